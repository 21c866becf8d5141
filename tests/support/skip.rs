//! Skipping where there is no real KVM, visibly: [`kvm_or_skip`].

use std::io::{self, Write};

use msrgate_kvm::Kvm;

/// Opens the real KVM, or says why the test cannot run and answers `None`.
///
/// # Panics
/// There is no KVM and `MSRGATE_REQUIRE_KVM=1`.
#[must_use]
pub fn kvm_or_skip() -> Option<Kvm> {
    match Kvm::open() {
        Ok(kvm) => Some(kvm),
        Err(error) => {
            skip("kvm", &error.to_string());
            None
        }
    }
}

/// Says that something did not run, and why.
///
/// # Panics
/// `MSRGATE_REQUIRE_KVM=1`.
pub fn skip(what: &str, why: &str) {
    let required = std::env::var_os("MSRGATE_REQUIRE_KVM").is_some_and(|value| value == "1");
    assert!(!required, "MSRGATE_REQUIRE_KVM=1, but {what}: {why}");
    say(&format!("SKIP({what}): {why}"));
}

/// Prints a line that is seen although the test passes: the test harness keeps back what the macros print.
pub fn say(line: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(io::stderr(), "{line}");
}
