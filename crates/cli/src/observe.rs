//! A trace as observations: what the guest did, what the trace cannot show, and what is wrong with it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use msrgate_kvm::HANDLERS;
use msrgate_policy::{Compiled, Observations, Options, Source, compile_recorded};
use msrgate_trace::{Facts, Observation, PolicySource, Reader, Summary};

use crate::warn;

/// No guest changes between more policies than these, which are all looked at for each access.
const MOST_POLICIES: usize = 64;

/// A trace that was read.
pub(crate) struct Trace {
    pub(crate) observations: Observations,
    /// What it is of.
    pub(crate) facts: Facts,
}

/// Reads a whole trace, which is called `name`, and warns of what is missing in it.
pub(crate) fn read_trace(name: &str, input: impl Read) -> anyhow::Result<Trace> {
    let mut reader = Reader::new(input).with_context(|| name.to_owned())?;
    let facts = reader.header().facts.clone();
    let policies = policies(name, &facts)?;
    let mut observations = Observations::default();
    for timed in &mut reader {
        let timed = timed.with_context(|| name.to_owned())?;
        observations.observe(&timed.event, &policies);
    }
    match facts.observation {
        Some(Observation::Native) => {}
        Some(Observation::Tracepoint) => observations.miss_what_is_passed_through(&policies),
        Some(Observation::Filter) => observations.miss_what_cannot_be_forwarded(&policies),
        _ => observations.miss_what_kvm_did(&policies),
    }
    warn_of_gaps(name, reader.summary());
    Ok(Trace {
        observations,
        facts,
    })
}

/// Opens the trace in the file `path`, which `-` says is the standard input: its name, and its bytes.
pub(crate) fn open_trace(path: &Path) -> anyhow::Result<(String, Box<dyn Read>)> {
    let name = path.display().to_string();
    if path == Path::new("-") {
        return Ok((name, Box::new(io::stdin().lock())));
    }
    let file = File::open(path).with_context(|| format!("cannot read the trace {name}"))?;
    Ok((name, Box::new(file)))
}

/// The policies that were in force. One that cannot be compiled is passed over, with a warning.
pub(crate) fn policies(name: &str, facts: &Facts) -> anyhow::Result<Vec<Compiled>> {
    if facts.policies.len() > MOST_POLICIES {
        let count = facts.policies.len();
        bail!("{name} has {count} policies: at most {MOST_POLICIES} may be");
    }
    let includes: Vec<Source> = facts.includes.iter().map(source).collect();
    let options = Options {
        handlers: HANDLERS,
        observe: facts.observation == Some(Observation::Filter),
        ..Options::default()
    };
    let compiled = |policy: &PolicySource| {
        let compiled = compile_recorded(&source(policy), &includes, &options).1;
        if let Err(diagnostics) = &compiled {
            let why = diagnostics.first().map_or("", |found| &found.message);
            let (policy, why) = (printable(&policy.name), printable(why));
            warn(format!("{name}: its policy {policy} is passed over: {why}"));
        }
        compiled.ok()
    };
    Ok(facts.policies.iter().filter_map(compiled).collect())
}

fn source(kept: &PolicySource) -> Source {
    Source {
        name: kept.name.clone(),
        text: kept.text.clone(),
    }
}

/// What a file says of itself, as what may be shown: its beginning, without what would control a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = text.chars().take(LONGEST_SHOWN);
    let mut shown: String = shown
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().nth(LONGEST_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters of what a file says of itself that are shown.
const LONGEST_SHOWN: usize = 64;

/// Warns of what is missing in a trace that was read to its end.
pub(crate) fn warn_of_gaps(name: &str, summary: &Summary) {
    if summary.is_torn {
        warn(format!("{name} is torn: it is used as far as it goes"));
    }
    if let damaged @ 1.. = summary.damaged {
        warn(format!("{name}: {damaged} damaged records are passed over"));
    }
    if let unknown @ 1.. = summary.unknown {
        warn(format!(
            "{name}: {unknown} records of a later version are passed over"
        ));
    }
    if let lost @ 1.. = summary.lost() {
        warn(format!(
            "{name}: {lost} accesses were lost when it was written"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_control_a_terminal_or_fill_it_is_not_shown() {
        assert_eq!(printable("guest \u{1b}[31m\n"), "guest ?[31m?");
        let long = "ä".repeat(LONGEST_SHOWN + 1);
        assert_eq!(printable(&long), "ä".repeat(LONGEST_SHOWN) + "…");
        assert_eq!(printable(&long[2..]), long[2..]);
    }
}
