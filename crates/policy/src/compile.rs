//! [`compile`], [`compile_with`]: the doors. From a text to what the VM and its gates need, or to what is wrong.

use std::fmt;

use msrgate_core::{
    Access, Action, Defaults, ExitReason, ExitReasons, Image, ImageError, MsrFilter, MsrIndex, Rule,
};

use crate::ast::{Policy, Selector, Word};
use crate::diagnostic::{Diagnostic, Severity};
use crate::filter::{exceptions, filter};
use crate::include::{Load, read};
use crate::observe::{Unobserved, observe};
use crate::plan::Exceptions;
use crate::refuse::refusals;
use crate::resolve::{Segment, overlaps, resolve};
use crate::source::{Source, Sources};
use crate::warn::warnings;

/// What a policy is compiled for. By [`Default`], there are no handlers and nothing can be included.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// What policies may call the program's handlers: the first is `HandlerId(0)`, and so on. The one called `host`
    /// is also what `"host"` means.
    pub handlers: &'a [&'a str],
    /// Reads what a policy includes.
    pub load: Option<&'a Load<'a>>,
    /// Lets what the policy allows leave the guest too, so that somebody can watch: all that KVM then does as if it had
    /// not. The guest notices nothing. It is not for encrypted guests, nor for guests whose nested guests' MSRs are
    /// loaded from lists (VMX): KVM asks the filter about these too, and has nobody to deflect them to.
    pub observe: bool,
}

/// A policy, ready for use. Set the reasons first, then the filter; give the image to every gate.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Compiled {
    /// The answers.
    pub image: Image,
    /// What leaves the guest although KVM could do it.
    pub filter: MsrFilter,
    /// What leaves the guest rather than being #GP.
    pub reasons: ExitReasons,
    /// What the author may not have meant.
    pub warnings: Vec<Diagnostic>,
    /// What it was compiled from.
    pub sources: Sources,
    /// With [`Options::observe`]: what the policy allows and KVM does unseen all the same.
    pub unobserved: Vec<Unobserved>,
    policy: Policy,
    segments: [Vec<Segment>; 2],
}

impl Compiled {
    /// What is written about each MSR, by index: neighbours that have one rule are one segment, and an MSR that no rule
    /// names is in none.
    #[must_use]
    pub fn segments(&self, access: Access) -> &[Segment] {
        &self.segments[access as usize]
    }

    /// The rules that name this access. The first decides, each beats those behind it; without any, the defaults
    /// decide.
    #[must_use]
    pub fn deciders(&self, index: MsrIndex, access: Access) -> Vec<Decider> {
        let mut deciders: Vec<Decider> = self
            .policy
            .pieces(access)
            .filter(|(selector, _)| selector.overlaps(index.0, index.0))
            .map(|(&selector, rule)| Decider { rule, selector })
            .collect();
        deciders.sort_by_key(|decider| decider.selector.rank());
        deciders
    }

    /// Lets what is allowed leave the guest too, as far as it can.
    fn watch(&mut self, exceptions: &Exceptions) {
        let (filter, unobserved) = observe(exceptions);
        self.filter = filter.unwrap_or_else(|| self.filter.clone());
        self.reasons = ExitReasons::ALL;
        self.unobserved = unobserved;
    }

    /// What is written.
    pub(crate) const fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("handlers", &self.handlers)
            .field("observe", &self.observe)
            .finish_non_exhaustive()
    }
}

/// A rule that names an access, and the part of its `msr` that does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decider {
    /// What the rule says of the access.
    pub rule: Rule,
    /// What names the MSR.
    pub selector: Selector,
}

/// Compiles the text of a policy that includes nothing and needs no handler.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text; warnings too.
pub fn compile(text: &str) -> Result<Compiled, Vec<Diagnostic>> {
    compile_with("policy", text, &Options::default()).1
}

/// Compiles the text of a policy, which is called `name`. All spans are places in the sources.
///
/// # Errors
/// Everything that is wrong with it, in the order of the texts; warnings too.
pub fn compile_with(
    name: &str,
    text: &str,
    options: &Options<'_>,
) -> (Sources, Result<Compiled, Vec<Diagnostic>>) {
    let source = Source {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let (sources, policy, diagnostics) = read(source, options);
    let compiled = check(policy, &sources, diagnostics, options);
    (sources, compiled)
}

fn check(
    policy: Policy,
    sources: &Sources,
    mut diagnostics: Vec<Diagnostic>,
    options: &Options<'_>,
) -> Result<Compiled, Vec<Diagnostic>> {
    diagnostics.extend(overlaps(&policy));
    let defaults = defaults(&policy, &mut diagnostics);
    let segments = Access::ALL.map(|access| resolve(&policy, access));
    diagnostics.extend(refusals(&policy, &segments, &defaults));
    if has_error(&diagnostics) {
        return Err(sorted(diagnostics));
    }
    diagnostics.extend(warnings(&policy, &segments, &defaults));
    let exceptions = exceptions(&segments, &defaults);
    let filter = filter(&policy, &exceptions);
    match filter.and_then(|filter| Ok((filter, image(&policy, &segments, defaults)?))) {
        Ok((filter, image)) => {
            let mut compiled = Compiled {
                reasons: reasons(&filter, &defaults),
                image,
                filter,
                warnings: sorted(diagnostics),
                sources: sources.clone(),
                unobserved: Vec::new(),
                policy,
                segments,
            };
            if options.observe {
                compiled.watch(&exceptions);
            }
            Ok(compiled)
        }
        Err(error) => {
            diagnostics.push(error);
            Err(sorted(diagnostics))
        }
    }
}

/// A filter that denies by default denies before anybody knows whether KVM has the MSR.
fn defaults(policy: &Policy, diagnostics: &mut Vec<Diagnostic>) -> Defaults {
    let quiet_fault = Rule::quiet(Action::Fault);
    let known = policy.known.as_ref().map_or(Rule::ALLOW, |word| word.rule);
    let refused = if known == Rule::ALLOW {
        quiet_fault
    } else {
        known
    };
    let rule = |word: &Option<Word>| word.as_ref().map_or(refused, |word| word.rule);
    let defaults = Defaults {
        known,
        unknown: rule(&policy.unknown),
        invalid: rule(&policy.invalid),
    };
    let Some(known_word) = policy
        .known
        .as_ref()
        .filter(|word| word.rule != Rule::ALLOW)
    else {
        return defaults;
    };
    for word in [&policy.unknown, &policy.invalid].into_iter().flatten() {
        if word.rule != known {
            diagnostics.push(
                Diagnostic::error(
                    "policy::default-deny",
                    "a filter that denies by default cannot tell known from unknown MSRs",
                )
                .at(word.span, "this would not be honoured")
                .at(known_word.span, "because everything is denied here")
                .help("leave this line out, or write the same word in both"),
            );
        }
    }
    defaults
}

fn image(
    policy: &Policy,
    segments: &[Vec<Segment>; 2],
    defaults: Defaults,
) -> Result<Image, Diagnostic> {
    let mut image = Image::new(defaults);
    for access in Access::ALL {
        for segment in &segments[access as usize] {
            if segment.rule == defaults.known {
                continue;
            }
            image
                .set(segment.first, segment.last, access, segment.rule)
                .map_err(|error| too_big(policy, segment, access, error))?;
        }
    }
    Ok(image)
}

fn too_big(policy: &Policy, segment: &Segment, access: Access, error: ImageError) -> Diagnostic {
    let message = format!("the policy names {error}");
    let diagnostic = Diagnostic::error("policy::too-big", message).help(match error {
        ImageError::TooManyShadows => "keep only what a guest uses",
        _ => "say with `defaults` what holds for most MSRs",
    });
    match policy.decider(segment.first, access) {
        Some((selector, _)) => diagnostic.at(selector.span, "these were too many"),
        None => diagnostic,
    }
}

/// What KVM would fault and the policy faults silently need not leave the guest.
fn reasons(filter: &MsrFilter, defaults: &Defaults) -> ExitReasons {
    let quiet_fault = Rule::quiet(Action::Fault);
    let mut reasons = ExitReasons::NONE;
    if *filter != MsrFilter::allow_all() {
        reasons = reasons.with(ExitReason::FILTER);
    }
    if defaults.unknown != quiet_fault {
        reasons = reasons.with(ExitReason::UNKNOWN);
    }
    if defaults.invalid != quiet_fault {
        reasons = reasons.with(ExitReason::INVAL);
    }
    reasons
}

fn has_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error)
}

fn sorted(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by_key(|diagnostic| diagnostic.span().map(|span| (span.source, span.start)));
    diagnostics
}
