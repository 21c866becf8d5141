//! `"host"` in a policy: refused where the MSRs of the processor below cannot be read.

use std::io;

use anyhow::bail;
use msrgate_core::{Access, Action};
use msrgate_kvm::HostProcessor;
use msrgate_policy::Compiled;

/// Refuses a policy that asks for the host's MSRs where they cannot be read.
pub(crate) fn check(compiled: &Compiled) -> anyhow::Result<()> {
    let asks = Access::ALL.into_iter().any(|access| {
        let mut segments = compiled.segments(access).iter();
        segments.any(|segment| matches!(segment.rule.action, Action::Handler(_)))
    });
    if asks && let Err(error) = HostProcessor::new().check() {
        let how = match error.kind() {
            io::ErrorKind::NotFound => "load the kernel module msr",
            _ => "it takes root, and CAP_SYS_RAWIO",
        };
        bail!(
            "the policy reads the host's MSRs, but /dev/cpu/0/msr cannot be opened ({error}): {how}"
        );
    }
    Ok(())
}
