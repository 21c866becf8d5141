//! `msrgate report`: a trace, or two beside each other, as one page for a browser.
//!
//! The page is three files that are put together here ([`HTML`], [`CSS`], [`SCRIPT`]) and a JSON document that the script
//! shows. Whatever comes from a trace is only in that document: the script makes texts of it, never markup.

mod document;
mod gather;
mod map;
mod symbols;
mod timeline;
mod words;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msrgate_trace::Reader;

use self::document::{Document, Trace};
use self::gather::{Gathered, Limits};
use self::symbols::Symbols;
use crate::observe::{open_trace, policies, warn_of_gaps};
use crate::output::write_file_with;
use crate::{Status, warn};

/// Make a page of a trace, to look at and to send to somebody.
///
/// It is one file that needs nothing else: a summary, a timeline, a map of the MSRs, a table of them, and what is odd.
/// Of two traces, it has both, and what they differ in.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A trace, as `run --trace` and `wrap --trace` write it, or two; `-` for the standard input
    #[arg(required = true, num_args = 1..=2, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// Write to a file, in place of what is there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The guest's System.map or vmlinux, for names of its instructions' places
    #[arg(long, value_name = "FILE")]
    symbols: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Status> {
    if args.output.is_none() && io::stdout().is_terminal() {
        bail!("the page is for a browser, not for a terminal: name a file with -o");
    }
    let symbols = match &args.symbols {
        Some(path) => Symbols::read(path)
            .with_context(|| format!("cannot read the symbols {}", path.display()))?,
        None => Symbols::default(),
    };
    let limits = Limits::for_traces(args.traces.len());
    let traces = args.traces.iter();
    let traces: anyhow::Result<Vec<Trace>> =
        traces.map(|path| read(path, &limits, &symbols)).collect();
    let document = Document::new(traces?);
    if args.symbols.is_some() && !document.has_symbols() {
        warn(
            "no instruction of the trace is in a function of the symbols: are they of this guest, and \
             was it booted with nokaslr?",
        );
    }
    match &args.output {
        Some(path) => write_file_with(path, |out| write(out, &document))?,
        None => write(&mut io::stdout().lock(), &document)?,
    }
    Ok(Status::Done)
}

fn read(path: &Path, limits: &Limits, symbols: &Symbols) -> anyhow::Result<Trace> {
    let (name, input) = open_trace(path)?;
    let mut reader = Reader::new(input).with_context(|| name.clone())?;
    let policies = policies(&name, &reader.header().facts)?;
    let mut gathered = Gathered::new(limits);
    for timed in &mut reader {
        gathered.add(&timed.with_context(|| name.clone())?);
    }
    let (header, summary) = (reader.header(), reader.summary());
    warn_of_gaps(&name, summary);
    let trace = Trace::new(
        &name, header, summary, &gathered, &policies, limits, symbols,
    );
    Ok(trace)
}

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// Puts the parts into their places. No part is looked at for places again.
fn write(out: &mut dyn Write, document: &Document) -> anyhow::Result<()> {
    let json = in_script(&serde_json::to_string(document)?);
    let mut rest = HTML;
    for (place, part) in [("{css}", CSS), ("{data}", &json), ("{script}", SCRIPT)] {
        let (before, behind) = rest.split_once(place).expect("the page has all places");
        out.write_all(before.as_bytes())?;
        out.write_all(part.as_bytes())?;
        rest = behind;
    }
    out.write_all(rest.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// JSON as it may stand in a script element: what could end the element, or begin a comment, is written otherwise.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_inside_of_its_element_and_means_the_same() {
        let hostile = "</script><!-- <script>alert(1)</script> \u{2028} {css} {script}";
        let json = in_script(&serde_json::to_string(hostile).unwrap());
        assert!(!json.contains('<'), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), hostile);
    }

    #[test]
    fn parts_neither_end_their_elements_nor_fetch_anything() {
        assert!(!CSS.contains("</") && !SCRIPT.contains("</script"));
        for part in [HTML, CSS, SCRIPT] {
            for mark in ["http:", "https:", "src=", "@import", "url(", "innerHTML"] {
                let outside = part.replace("http://www.w3.org/2000/svg", "");
                assert!(!outside.contains(mark), "{mark}");
            }
        }
    }
}
