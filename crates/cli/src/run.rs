//! `msrgate run`: boot a guest and show what became of its MSR accesses.

mod boot;
mod reload;
mod signals;

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use msrgate_kvm::HANDLERS;
use msrgate_machine::{Guest, Rules, guest_memory, tour};
use msrgate_policy::{Compiled, Options, Source};
use msrgate_trace::{Facts, Observation, PolicySource};

use self::boot::{Setup, boot};
use crate::Status;
use crate::backend::{self, Backend, Choice};
use crate::host;
use crate::policy::{compile_file_with, compile_source};
use crate::trace::Trace;

/// Boot a guest, and show what became of its MSR accesses.
///
/// Without GUEST it is the built-in tour: a small 64-bit guest that tries some MSRs and says what it saw.
///
/// Without --policy the tour has its own; another guest has KVM's own behaviour, and what KVM refuses is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest: an ELF64 executable, or a flat binary (16-bit, started at 0000:7c00)
    guest: Option<PathBuf>,
    /// What MSR accesses do
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Replace the policy while the guest runs, whenever its file (or one that it includes) changes; SIGHUP
    /// does so too
    #[arg(long, requires = "policy")]
    watch: bool,
    /// Who runs the guest
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    backend: Choice,
    /// Guest memory, such as 64M or 1G
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    mem: u64,
    /// Write each MSR access to a trace: see `export` and `learn`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Which accesses are seen [default: auto for a trace, else off]
    #[arg(long, value_enum)]
    observe: Option<Observe>,
    /// Exit status 1 if the policy answered an access with a fault
    #[arg(long)]
    strict: bool,
    /// Count exits and instructions, and measure the time
    #[arg(long)]
    stats: bool,
    /// Print JSON instead of a table; the guest's console goes to the standard error
    #[arg(long)]
    json: bool,
    /// Print the policy that would be in force, and boot nothing
    #[arg(long)]
    print_policy: bool,
}

/// Which accesses are seen, beyond those that leave the guest because of the policy or because KVM refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Observe {
    /// As many as can be without a change for the guest
    Auto,
    /// All: the backend tells of those that it does by itself (soft)
    Native,
    /// Those too that can leave the guest and be done by KVM all the same
    Filter,
    /// No others
    Off,
}

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
    let guest = match &args.guest {
        Some(path) => read_guest(path)?,
        None => tour::guest(),
    };
    let memory = guest_memory(args.mem)?;
    let (backend, why) = backend::open(args.backend, &memory)?;
    let name = backend.name();
    let observation = args.observation(&backend)?;
    let policies = policies(args, &options(observation))?;
    policies.iter().try_for_each(host::check)?;
    guest.load(&memory).with_context(|| match &args.guest {
        Some(path) => format!("cannot boot {}", path.display()),
        None => "cannot boot the tour".to_owned(),
    })?;
    anstream::eprintln!("msrgate: on {name}: {why}");
    let trace = match &args.trace {
        Some(path) => {
            let facts = facts(args, name, observation, &policies);
            let trace = Trace::create(path, facts)?;
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
    };
    match backend {
        Backend::Kvm(vm) => boot(setup, vm),
        Backend::Soft(vm) => boot(setup, vm),
    }
}

impl Args {
    /// Which accesses will be seen, and by which means.
    fn observation(&self, backend: &Backend) -> anyhow::Result<Observation> {
        let auto = match self.trace {
            Some(_) => Observe::Auto,
            None => Observe::Off,
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
        guest: match &args.guest {
            Some(path) => path.display().to_string(),
            None => "the tour".to_owned(),
        },
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

fn read_guest(path: &Path) -> anyhow::Result<Guest> {
    let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Guest::parse(&file).with_context(|| format!("cannot boot {}", path.display()))
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

/// A number of bytes, with K, M or G for the powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        _ => return Err("the unit is K, M or G".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a number of bytes".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than 64 bits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        assert!(parse_size("64X").is_err());
        assert!(parse_size("M").is_err());
        assert!(parse_size("99999999999999999G").is_err());
    }
}
