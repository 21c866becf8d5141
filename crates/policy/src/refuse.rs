//! What no kernel can do for a policy: [`refusals`]. It is refused by name rather than done by half.

use msrgate_core::{Access, Action, Defaults, MsrIndex, Rule};

use crate::ast::Policy;
use crate::diagnostic::Diagnostic;
use crate::forward::{HostPath, differences, host_path};
use crate::resolve::Segment;

/// The x2APIC's MSRs, which no filter sees.
const X2APIC: (u32, u32) = (0x800, 0x8ff);

/// Everything that the rules ask and cannot have. `segments`: by [`Access`].
pub(crate) fn refusals(
    policy: &Policy,
    segments: &[Vec<Segment>; 2],
    defaults: &Defaults,
) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for access in Access::ALL {
        for segment in &segments[access as usize] {
            let asked = Asked {
                policy,
                segment,
                access,
            };
            found.extend(asked.x2apic());
            found.extend(asked.logged());
            found.extend(asked.refused(defaults));
        }
    }
    found.sort_by_key(|diagnostic| (diagnostic.span(), diagnostic.code));
    found.dedup_by_key(|diagnostic| (diagnostic.span(), diagnostic.code));
    found
}

/// What is asked of some neighbours in one direction.
struct Asked<'a> {
    policy: &'a Policy,
    segment: &'a Segment,
    access: Access,
}

impl Asked<'_> {
    fn x2apic(&self) -> Option<Diagnostic> {
        let first = self.segment.first.0.max(X2APIC.0);
        let is_asked =
            self.segment.rule != Rule::ALLOW && first <= self.segment.last.0 && first <= X2APIC.1;
        let label = "holds MSRs of 0x800..=0x8ff";
        is_asked.then(|| {
            self.error(
                "policy::x2apic",
                "KVM never filters the x2APIC's MSRs".to_owned(),
                MsrIndex(first),
                label.to_owned(),
            )
            .help("leave them out: whatever the policy says, KVM answers them itself")
        })
    }

    /// To be logged or counted, an allowed access leaves the guest and is done on the host path.
    fn logged(&self) -> Option<Diagnostic> {
        let rule = self.segment.rule;
        if rule == Rule::ALLOW || rule.action != Action::Allow {
            return None;
        }
        let mut differences = differences(self.segment.first.0, self.segment.last.0, self.access);
        let (index, how) = differences.find_map(|(index, path)| match path {
            HostPath::Differs(how) => Some((index, how)),
            _ => None,
        })?;
        let (done, word) = match rule.log {
            true => ("logged", "log"),
            false => ("limited", "limit"),
        };
        let name = index.name().unwrap_or("this MSR");
        Some(
            self.error(
                "policy::log-allow",
                format!(
                    "{}s of {name} ({index}) cannot be allowed and {done}",
                    self.access
                ),
                index,
                format!("the host path {how}"),
            )
            .help(format!(
                "leave out `{word}`, or write a narrower rule without it"
            )),
        )
    }

    /// What is done on the host path and refused there is either unknown or invalid: nobody says which.
    fn refused(&self, defaults: &Defaults) -> Option<Diagnostic> {
        let rule = self.segment.rule;
        let is_forwarded = match rule.action {
            Action::Allow => rule != Rule::ALLOW,
            Action::Mask(_) | Action::Writable(_) => true,
            _ => false,
        };
        if !is_forwarded || defaults.unknown.action == defaults.invalid.action {
            return None;
        }
        // What is the same is known to KVM, so that its refusal means that the access is invalid.
        let index = (self.segment.first.0..=self.segment.last.0)
            .map(MsrIndex)
            .find(|&index| host_path(index, self.access) != HostPath::Same)?;
        let name = index.name().unwrap_or("this MSR");
        Some(
            self.error(
                "policy::one-refusal",
                format!(
                    "a refused {} of {name} ({index}) can be answered in one way only",
                    self.access
                ),
                index,
                "the host path does not say whether KVM knows the MSR".to_owned(),
            )
            .help("let the defaults for unknown and invalid do the same, or leave this MSR out"),
        )
    }

    fn error(
        &self,
        code: &'static str,
        message: String,
        index: MsrIndex,
        label: String,
    ) -> Diagnostic {
        let diagnostic = Diagnostic::error(code, message);
        match self.policy.decider(index, self.access) {
            Some((selector, _)) => diagnostic.at(selector.span, label),
            None => diagnostic,
        }
    }
}
