//! `msrgate diff`: what two policies, two traces or two surfaces mean differently.

mod table;

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msrgate_core::Access;
use msrgate_kvm::HANDLERS;
use msrgate_policy::{
    Compiled, Difference, Msrs, Observations, Options, PolicyDifference, Surface, TraceDifference,
};
use msrgate_trace::Observation;

use crate::observe::{Trace, printable, read_trace};
use crate::policy::compile_from;
use crate::{Status, warn};
use table::{Row, Subject};

/// Show what two policies, traces or surfaces mean differently.
///
/// Policies differ where a guest meets something else, traces where a guest made other accesses or got other
/// answers, surfaces where MSRs do something else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A policy, a trace, or a surface
    a: PathBuf,
    /// Another of the same kind
    b: PathBuf,
    /// Show all differences, however many there are
    #[arg(long, conflicts_with = "json")]
    all: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    let about = [a.about(), b.about()];
    let (kind, rows) = match (a, b) {
        (Document::Policy(a), Document::Policy(b)) => {
            let differences = Compiled::compare(&a, &b);
            ("policies", differences.iter().map(policy_row).collect())
        }
        (Document::Trace(a), Document::Trace(b)) => ("traces", trace_rows(&a, &b)),
        (Document::Surface(a), Document::Surface(b)) => {
            let differences = Surface::compare(&a, &b);
            let rows: Vec<Row> = differences.iter().map(surface_row).collect();
            ("surfaces", rows)
        }
        (a, b) => bail!(
            "{} is a {}, and {} is a {}: they cannot be compared",
            args.a.display(),
            a.kind(),
            args.b.display(),
            b.kind()
        ),
    };
    if args.json {
        table::write_json(&mut io::stdout().lock(), kind, &rows)?;
    } else {
        let most = if args.all { rows.len() } else { MOST_ROWS };
        let mut out = anstream::AutoStream::auto(io::stdout().lock());
        table::write_heading(&mut out, &about)?;
        table::write(&mut out, kind, &rows, most)?;
    }
    Ok(if rows.is_empty() {
        Status::Done
    } else {
        Status::Different
    })
}

/// More lines than these nobody reads.
const MOST_ROWS: usize = 200;

/// What can be compared.
enum Document {
    Policy(Box<Compiled>),
    Trace(Box<Trace>),
    Surface(Box<Surface>),
}

impl Document {
    /// Where it was made; nothing is known of that of a policy.
    fn about(&self) -> String {
        let parts = match self {
            Self::Policy(_) => Vec::new(),
            Self::Trace(trace) => {
                let facts = &trace.facts;
                let observation = facts.observation.map_or("", Observation::word);
                vec![&facts.guest, &facts.backend, &facts.kernel, observation]
            }
            Self::Surface(surface) => {
                let host = &surface.host;
                vec![&surface.backend, &host.kernel, host.processor.trim()]
            }
        };
        let known: Vec<String> = parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(printable)
            .collect();
        known.join(", ")
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Policy(_) => "policy",
            Self::Trace(_) => "trace",
            Self::Surface(_) => "surface",
        }
    }
}

/// Reads a file once, as what it is: it may be a pipe.
fn read(path: &Path) -> anyhow::Result<Document> {
    let name = path.display().to_string();
    let cannot = || format!("cannot read {name}");
    let mut file = File::open(path).with_context(cannot)?;
    let mut start = Vec::new();
    let head = file.by_ref().take(HEAD_BYTES);
    { head }.read_to_end(&mut start).with_context(cannot)?;
    let file = Cursor::new(start.clone()).chain(file);
    if start.starts_with(b"MSRTRACE") {
        return Ok(Document::Trace(Box::new(read_trace(&name, file)?)));
    }
    if Surface::recognises(&start) {
        let surface = io::read_to_string(file).with_context(cannot)?;
        let surface = Surface::parse(&surface).with_context(cannot)?;
        return Ok(Document::Surface(Box::new(surface)));
    }
    if start.is_empty() {
        bail!("{name} is empty: it is no policy, trace or surface");
    }
    let options = Options {
        handlers: HANDLERS,
        ..Options::default()
    };
    let policy = compile_from(&name, file, &options)?;
    Ok(Document::Policy(Box::new(policy)))
}

/// Enough to tell what a file is.
const HEAD_BYTES: u64 = 256;

fn policy_row(difference: &PolicyDifference) -> Row {
    Row {
        subject: match difference.msrs {
            Msrs::Unnamed => Subject::Default("known", "(what no rule names)"),
            Msrs::Unknown => Subject::Default("unknown", "(what KVM does not know)"),
            Msrs::Invalid => Subject::Default("invalid", "(what KVM refuses)"),
            Msrs::Range { first, last } => Subject::Msrs { first, last },
        },
        access: access(difference.access),
        sides: difference.describe(HANDLERS),
    }
}

fn trace_rows(a: &Trace, b: &Trace) -> Vec<Row> {
    if a.observations.sees_otherwise(&b.observations) {
        let word = |trace: &Trace| trace.facts.observation.map_or("unknown", Observation::word);
        warn(format!(
            "one trace shows what the other cannot ({} and {}): what KVM did by itself is compared \
             only where both show it",
            word(a),
            word(b)
        ));
    }
    let differences = Observations::compare(&a.observations, &b.observations);
    differences.iter().map(trace_row).collect()
}

fn trace_row(difference: &TraceDifference) -> Row {
    Row {
        subject: Subject::Msrs {
            first: difference.first,
            last: difference.last,
        },
        access: access(Some(difference.access)),
        sides: [0, 1].map(|side| {
            let answers = &difference.sides[side];
            let shown = answers.iter().take(MOST_ANSWERS).map(ToString::to_string);
            let mut words: Vec<String> = shown.collect();
            if let Some(more @ 1..) = answers.len().checked_sub(MOST_ANSWERS) {
                words.push(format!("{more} more"));
            }
            if words.is_empty() {
                words.push("not made".to_owned());
            }
            words.join(", ")
        }),
    }
}

/// Answers to one access that are shown.
const MOST_ANSWERS: usize = 4;

fn surface_row(difference: &Difference) -> Row {
    Row {
        subject: Subject::Msrs {
            first: difference.first,
            last: difference.last,
        },
        access: access(difference.access),
        sides: difference.sides.map(|side| side.to_string()),
    }
}

fn access(access: Option<Access>) -> &'static str {
    match access {
        Some(Access::Read) => "read",
        Some(Access::Write) => "write",
        None => "both",
    }
}
