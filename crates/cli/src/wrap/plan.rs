//! What will stand between a VMM and its KVM, and why: [`Plan`].

use std::fmt::Display;

use anyhow::bail;
use clap::ValueEnum;
use msrgate_core::Access;
use msrgate_kvm::HANDLERS;
use msrgate_policy::{Compiled, Options};
use msrgate_trace::channel::{Channel, Rings};
use msrgate_trace::{Facts, Observation};

use super::{Kvm, Observe, Vmm};
use crate::collect::tracepoint::Tracepoint;
use crate::policy::{compile_file_with, compile_source};
use crate::run::{OBSERVE, policy_facts};
use crate::{collect, host, warn};

/// What is done to the program.
pub(crate) struct Plan {
    pub(super) kvm: Behind,
    /// Who collects what is recorded, if anybody wants it.
    pub(crate) collector: Option<collect::Args>,
    pub(crate) facts: Facts,
    /// `None`: nothing is gated.
    policy: Option<Compiled>,
    /// What is worth a line at the start.
    lines: Vec<String>,
}

/// What stands behind /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    Real,
    Soft,
}

impl Behind {
    /// As the library is told.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Soft => "soft",
        }
    }

    /// As traces say it.
    const fn backend(self) -> &'static str {
        match self {
            Self::Real => "kvm",
            Self::Soft => "soft",
        }
    }
}

impl Plan {
    /// What the arguments ask for, if that can be had. `has_stats`: the table is shown.
    pub(super) fn of(args: &Vmm, has_stats: bool) -> anyhow::Result<Self> {
        let (kvm, mut lines) = behind(args.kvm)?;
        let wants_to_see = args.trace.is_some() || has_stats || args.metrics.is_some();
        let (observation, why) = observation(args.observe, kvm, wants_to_see)?;
        lines.extend(why);
        let options = Options {
            handlers: HANDLERS,
            observe: observation == Observation::Filter,
            ..Options::default()
        };
        let policy = match &args.policy {
            Some(path) => Some(compile_file_with(path, &options)?),
            None if wants_to_see => {
                Some(compile_source("of a VMM without one", OBSERVE, &options)?)
            }
            None => None,
        };
        if let Some(policy) = &policy {
            host::check(policy)?;
            if kvm == Behind::Real && msrgate_kvm::ignore_msrs() == Some(true) {
                warn("kvm.ignore_msrs=1 hides unknown MSRs from every policy");
            }
        }
        let is_seen = wants_to_see || policy.as_ref().is_some_and(logs);
        let collector = is_seen.then(|| collect::Args {
            trace: args.trace.clone(),
            stats: has_stats,
            metrics: args.metrics.clone(),
            detach: false,
        });
        let program = args.program.first().map(|name| name.to_string_lossy());
        let guest = args.guest.clone().map(Into::into).or(program);
        let mut facts = policy_facts(policy.as_slice(), observation);
        facts.guest = guest.unwrap_or_default().into_owned();
        kvm.backend().clone_into(&mut facts.backend);
        Ok(Self {
            kvm,
            collector,
            facts,
            policy,
            lines,
        })
    }

    /// Whether the program runs otherwise than without us.
    pub(super) const fn needs_library(&self) -> bool {
        self.policy.is_some() || matches!(self.kvm, Behind::Soft)
    }

    /// What the library, and the collector, are told.
    pub(super) fn channel(&self) -> anyhow::Result<Option<Channel>> {
        let rings = match self.collector {
            Some(_) => Rings::Wanted,
            None => Rings::NotWanted,
        };
        let channel = self.policy.as_ref();
        let channel = channel.map(|_| Channel::create(&self.facts, rings));
        Ok(channel.transpose()?)
    }

    /// Says what is worth a line, and who the collector is.
    pub(crate) fn announce(&self, collector: Option<u32>) {
        for line in &self.lines {
            anstream::eprintln!("msrgate: {line}");
        }
        if let (Some(pid), Some(args)) = (collector, &self.collector) {
            let into = args.trace.as_ref();
            let into = into.map_or_else(String::new, |path| format!(", into {}", path.display()));
            let ask = if args.stats {
                format!("; `kill -USR1 {pid}` shows them so far")
            } else {
                String::new()
            };
            anstream::eprintln!("msrgate: process {pid} collects MSR accesses{into}{ask}");
        }
    }
}

/// What stands behind /dev/kvm, and a line about it where that was left to us.
fn behind(choice: Kvm) -> anyhow::Result<(Behind, Vec<String>)> {
    if choice == Kvm::Soft {
        return Ok((Behind::Soft, Vec::new()));
    }
    Ok(match msrgate_kvm::Kvm::open() {
        Ok(_) if choice == Kvm::Real => (Behind::Real, Vec::new()),
        Ok(_) => (Behind::Real, vec!["on the machine's own KVM".to_owned()]),
        Err(why) if choice == Kvm::Auto => {
            let line = format!("on the embedded KVM, because {why}");
            (Behind::Soft, vec![line])
        }
        Err(why) => bail!(why),
    })
}

/// Which accesses will be seen, by which means, and a line about it where that was left to us.
fn observation(
    choice: Option<Observe>,
    kvm: Behind,
    wants_to_see: bool,
) -> anyhow::Result<(Observation, Option<String>)> {
    let filter = |why: &dyn Display| {
        let line = format!("observing by filter what can leave the guest: {why}");
        Ok((Observation::Filter, Some(line)))
    };
    match choice {
        Some(word @ (Observe::Filter | Observe::Tracepoint)) if !wants_to_see => {
            let word = word.to_possible_value().expect("no value is hidden");
            let word = word.get_name();
            bail!("--observe {word}: nobody would see it; add --trace, --stats or --metrics")
        }
        Some(Observe::Filter) => Ok((Observation::Filter, None)),
        Some(Observe::Tracepoint) if kvm == Behind::Soft => {
            bail!("--observe tracepoint: it tells of the machine's KVM, not of the embedded one")
        }
        Some(Observe::Tracepoint) => match Tracepoint::find() {
            Ok(_) => Ok((Observation::Tracepoint, None)),
            Err(why) => Err(why.context("--observe tracepoint")),
        },
        None | Some(Observe::Auto) if wants_to_see => {
            if kvm == Behind::Soft {
                return filter(&"the embedded KVM has no tracepoint");
            }
            if let Err(why) = Tracepoint::find() {
                return filter(&format_args!("{why:#}"));
            }
            let line = "observing by the kernel's tracepoint what KVM does";
            Ok((Observation::Tracepoint, Some(line.to_owned())))
        }
        _ => Ok((Observation::Deflected, None)),
    }
}

/// Whether the policy asks for lines.
fn logs(policy: &Compiled) -> bool {
    let defaults = policy.image.defaults();
    let defaults = [defaults.known, defaults.unknown, defaults.invalid];
    let segments = Access::ALL.into_iter().flat_map(|it| policy.segments(it));
    let mut rules = defaults
        .into_iter()
        .chain(segments.map(|segment| segment.rule));
    rules.any(|rule| rule.log)
}
