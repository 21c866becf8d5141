//! What the policy crate says of KVM, asked of KVM: on soft, and on the real kernel where there is one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod host_path;
