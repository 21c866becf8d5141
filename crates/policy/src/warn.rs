//! What the author of a policy may not have meant: [`warnings`]. Nothing here makes a policy unusable.

use msrgate_core::{Defaults, Rule};

use crate::ast::Policy;
use crate::diagnostic::Diagnostic;
use crate::resolve::Segment;

/// What is doubtful about a policy that can be used. `segments`: by [`Access`](msrgate_core::Access).
pub(crate) fn warnings(
    policy: &Policy,
    _segments: &[Vec<Segment>; 2],
    defaults: &Defaults,
) -> Vec<Diagnostic> {
    x2apic(policy, defaults).into_iter().collect()
}

/// With everything denied, somebody may believe that x2APIC MSRs are denied too.
fn x2apic(policy: &Policy, defaults: &Defaults) -> Option<Diagnostic> {
    let known = policy.known?;
    let is_named = policy
        .rules
        .iter()
        .flat_map(|written| &written.msrs)
        .any(|selector| selector.overlaps(0x800, 0x8ff));
    (defaults.known != Rule::ALLOW && !is_named).then(|| {
        Diagnostic::warning("policy::x2apic", "KVM never filters the x2APIC's MSRs")
            .at(known.span, "holds for all MSRs but 0x800..=0x8ff")
            .help("to say that you know: [[rule]] msr = \"0x800..=0x8ff\", both = \"allow\"")
    })
}
