//! `msrgate learn`: from traces to the policy that allows what was observed, and no more.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msrgate_core::{Access, MsrIndex};
use msrgate_kvm::HANDLERS;
use msrgate_policy::{LearnError, Learned, Observations};

use crate::observe::read_trace;
use crate::output::write_file;
use crate::policy::draw;
use crate::{Status, warn};

/// Make a policy that allows what traces show, and denies the rest.
///
/// The order of the traces makes no difference, nor does it whether accesses are in one trace or in many.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Traces, as `msrgate run --trace` writes them
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// Write the policy to a file, in place of what is there
    #[arg(short, long, value_name = "POLICY")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let mut observations = Observations::default();
    for path in &args.traces {
        observations.merge(observed(path)?);
    }
    let learned = match observations.policy(HANDLERS) {
        Ok(learned) => learned,
        Err(LearnError::Nothing) => {
            let there = if args.traces.len() == 1 {
                "the trace has"
            } else {
                "the traces have"
            };
            bail!("{there} no MSR access: there is nothing to learn from");
        }
        Err(error) => {
            if let LearnError::Refused {
                sources,
                diagnostics,
            } = &error
            {
                draw(sources, diagnostics);
            }
            return Err(error.into());
        }
    };
    warn_of(&learned);
    match &args.output {
        Some(path) => write_file(path, learned.text.as_bytes())?,
        None => io::stdout().write_all(learned.text.as_bytes())?,
    }
    Ok(Status::Done)
}

fn observed(path: &Path) -> anyhow::Result<Observations> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read the trace {name}"))?;
    Ok(read_trace(&name, file)?.observations)
}

fn warn_of(learned: &Learned) {
    if learned.is_blind {
        warn(
            "a trace shows only what left the guest: what KVM did by itself is not in it, and is \
             denied by this policy; `msrgate run --backend soft --trace` sees all accesses",
        );
    }
    if let [first, more @ ..] = &learned.ambiguous[..] {
        let accesses = some(*first, more.len());
        warn(format!(
            "{accesses} answered in several ways, and the policy has one: see its comments"
        ));
    }
    if let [first, more @ ..] = &learned.lost[..] {
        let accesses = some(*first, more.len());
        warn(format!(
            "{accesses} answered by what no rule can say here, and denied by this policy: see its \
             comments"
        ));
    }
}

fn some((index, access): (MsrIndex, Access), more: usize) -> String {
    let name = index
        .name()
        .map_or_else(|| index.to_string(), str::to_owned);
    match more {
        0 => format!("{access}s of {name} were"),
        more => format!("{access}s of {name} and {more} more were"),
    }
}
