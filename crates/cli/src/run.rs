//! `msrgate run`: boot a guest and show what became of its MSR accesses.

mod args;
mod boot;
mod guest;
mod keyboard;
mod reload;
mod signals;
mod status;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, bail};
use msrgate_kvm::HANDLERS;
use msrgate_machine::{Rules, guest_memory, tour};
use msrgate_policy::{Compiled, Options, Source};
use msrgate_trace::{Facts, Observation, PolicySource};

pub(crate) use self::args::Args;
use self::args::Observe;
use self::boot::{Setup, boot};
use crate::Status;
use crate::backend::{self, Backend};
use crate::host;
use crate::policy::{compile_file_with, compile_source};
use crate::trace::Trace;
use crate::view::Window;

/// What a guest without a policy runs under.
pub(crate) const OBSERVE: &str = "\
# KVM's own behaviour; what KVM refuses is seen.
version = 1

[defaults]
known   = \"allow\"
unknown = \"log\"
invalid = \"log\"
";

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    if args.print_policy {
        return print_policy(args);
    }
    let window = args.top.then(Window::find).transpose()?;
    let (guest, need) = guest::read(args)?;
    let memory = guest_memory(guest::memory_bytes(args, need))?;
    let (backend, why) = backend::open(args.backend, need, args.processor, &memory)?;
    let name = backend.name();
    let observation = args.observation(&backend)?;
    let policies = policies(args, &options(observation))?;
    policies.iter().try_for_each(host::check)?;
    let cannot = || format!("cannot boot {}", args.guest_name());
    let guest = guest.load(&memory).with_context(cannot)?;
    anstream::eprintln!("msrgate: on {name}: {why}");
    let trace = match &args.trace {
        Some(path) => {
            let facts = facts(args, name, observation, &policies);
            let trace = Trace::create(path, facts, args.cpus.into())?;
            anstream::eprintln!("msrgate: {} into {}", seen(observation), path.display());
            Some(trace)
        }
        None => None,
    };
    let setup = Setup {
        args,
        backend: name,
        guest: &guest,
        files: policies.iter().flat_map(reload::files).collect(),
        policies: policies.into_iter().map(rules).collect(),
        observation,
        trace,
        window,
    };
    match backend {
        Backend::Kvm(vm) => boot(setup, vm),
        Backend::Soft(vm) => boot(setup, vm),
    }
}

impl Args {
    fn guest_name(&self) -> String {
        let path = self.guest.as_ref();
        path.map_or_else(|| "the tour".to_owned(), |path| path.display().to_string())
    }

    /// Which accesses will be seen, and by which means.
    fn observation(&self, backend: &Backend) -> anyhow::Result<Observation> {
        let auto = if self.trace.is_some() || self.top {
            Observe::Auto
        } else {
            Observe::Off
        };
        Ok(match (self.observe.unwrap_or(auto), backend) {
            (Observe::Auto | Observe::Native, Backend::Soft(_)) => Observation::Native,
            (Observe::Auto, Backend::Kvm(_)) | (Observe::Filter, _) => Observation::Filter,
            (Observe::Off, _) => Observation::Deflected,
            (Observe::Native, Backend::Kvm(_)) => bail!(
                "--observe native: KVM does not tell of what it does by itself; \
                 `--backend soft` does"
            ),
        })
    }
}

/// What goes into the trace.
fn seen(observation: Observation) -> &'static str {
    match observation {
        Observation::Native => "every MSR access goes",
        Observation::Filter => "MSR accesses that can leave the guest go",
        _ => "MSR accesses that leave the guest go",
    }
}

/// What a trace says of the run that it is of.
fn facts(args: &Args, backend: &str, observation: Observation, compiled: &[Compiled]) -> Facts {
    Facts {
        guest: args.guest_name(),
        backend: backend.to_owned(),
        ..policy_facts(compiled, observation)
    }
}

/// The part of it that does not depend on what is run.
pub(crate) fn policy_facts(compiled: &[Compiled], observation: Observation) -> Facts {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let command: Vec<_> = env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let source = |source: &Source| PolicySource {
        name: source.name.clone(),
        text: source.text.clone(),
    };
    Facts {
        program: concat!("msrgate ", env!("CARGO_PKG_VERSION")).to_owned(),
        command: command.join(" "),
        kernel: kernel.trim_end().to_owned(),
        observation: Some(observation),
        policies: compiled
            .iter()
            .filter_map(|compiled| compiled.sources.iter().next().map(source))
            .collect(),
        includes: compiled
            .iter()
            .flat_map(|compiled| compiled.sources.iter().skip(1).map(source))
            .collect(),
        ..Facts::default()
    }
}

/// How policies are compiled for it.
fn options(observation: Observation) -> Options<'static> {
    Options {
        handlers: HANDLERS,
        observe: observation == Observation::Filter,
        ..Options::default()
    }
}

fn policies(args: &Args, options: &Options<'_>) -> anyhow::Result<Vec<Compiled>> {
    let own = |name, text| compile_source(name, text, options);
    Ok(match (&args.policy, &args.guest) {
        (Some(path), _) => vec![compile_file_with(path, options)?],
        (None, Some(_)) => vec![own("of a guest without one", OBSERVE)?],
        (None, None) => vec![
            own("of the tour", tour::POLICY)?,
            own("of the tour's second half", tour::SECOND_POLICY)?,
        ],
    })
}

fn rules(compiled: Compiled) -> Rules {
    Rules {
        image: Arc::new(compiled.image),
        filter: compiled.filter,
        reasons: compiled.reasons,
    }
}

fn print_policy(args: &Args) -> anyhow::Result<Status> {
    let source = match (&args.policy, &args.guest) {
        (Some(path), _) => fs::read_to_string(path)
            .with_context(|| format!("cannot read the policy {}", path.display()))?,
        (None, Some(_)) => OBSERVE.to_owned(),
        (None, None) => tour::POLICY.to_owned(),
    };
    io::stdout().write_all(source.as_bytes())?;
    Ok(Status::Done)
}
