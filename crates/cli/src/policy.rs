//! Reading a policy file, and drawing what is wrong with it.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, bail};
use miette::{LabeledSpan, MietteHandlerOpts, NamedSource, Report, SourceCode};
use msrgate_kvm::HANDLERS;
use msrgate_policy::{
    Compiled, Diagnostic, HostFacts, Label, Options, Severity, Source, Sources, compile_with,
    included,
};

/// What a policy file may not exceed.
const MAX_BYTES: u64 = 16 << 20;
/// Columns of a drawing.
const WIDTH: usize = 80;
/// How many diagnostics are drawn; the rest is only counted.
const MAX_DRAWN: usize = 20;

/// Compiles the policy in the file `path` and in those that it includes; warnings and errors go to the standard error.
pub(crate) fn compile_file_with(path: &Path, options: &Options<'_>) -> anyhow::Result<Compiled> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read the policy {name}"))?;
    let compiled = compile_from(&name, file, options)?;
    draw(&compiled.sources, &compiled.warnings);
    Ok(compiled)
}

/// The same, with advice for who checks a policy.
pub(crate) fn compile_file_to_check(path: &Path) -> anyhow::Result<Compiled> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read the policy {name}"))?;
    let options = Options {
        handlers: HANDLERS,
        ..Options::default()
    };
    let mut compiled = compile_from(&name, file, &options)?;
    let host = HostFacts {
        ignore_msrs: msrgate_kvm::ignore_msrs(),
    };
    let advice = compiled.advice(&host);
    compiled.warnings.extend(advice);
    draw(&compiled.sources, &compiled.warnings);
    Ok(compiled)
}

/// The same for a policy that was opened before, without its warnings.
pub(crate) fn compile_from(
    name: &str,
    file: impl Read,
    options: &Options<'_>,
) -> anyhow::Result<Compiled> {
    let text = read(file).with_context(|| format!("cannot read the policy {name}"))?;
    let options = Options {
        load: Some(&load),
        ..*options
    };
    compile_text(name, &text, &options)
}

/// Compiles the program's own policy `text`, which is known as `name`. Nobody is warned who could not mend it.
pub(crate) fn compile_source(
    name: &str,
    text: &str,
    options: &Options<'_>,
) -> anyhow::Result<Compiled> {
    compile_text(name, text, options)
}

fn compile_text(name: &str, text: &str, options: &Options<'_>) -> anyhow::Result<Compiled> {
    match compile_with(name, text, options) {
        (_, Ok(compiled)) => Ok(compiled),
        (sources, Err(diagnostics)) => {
            draw(&sources, &diagnostics);
            let count = diagnostics
                .iter()
                .filter(|diagnostic| diagnostic.severity == Severity::Error)
                .count();
            let mistakes = if count == 1 { "mistake" } else { "mistakes" };
            bail!("the policy {name} has {count} {mistakes}")
        }
    }
}

/// Reads a file that another one, `from`, includes as `path`.
fn load(from: &str, path: &str) -> Result<Source, String> {
    let name = included(from, path);
    let text = File::open(&name)
        .and_then(read)
        .map_err(|error| error.to_string())?;
    Ok(Source { name, text })
}

/// A text that is not too long for us.
pub(crate) fn read(file: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other("longer than 16 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("not a text (UTF-8)"))
}

/// Shows what is wrong with a policy.
pub(crate) fn draw(sources: &Sources, diagnostics: &[Diagnostic]) {
    // Fails only when something else has set the hook, which then draws just as well.
    let _ = miette::set_hook(Box::new(|_| {
        Box::new(MietteHandlerOpts::new().width(WIDTH).build())
    }));
    for diagnostic in diagnostics.iter().take(MAX_DRAWN) {
        let report = Report::new(Drawing::of(diagnostic, sources));
        anstream::eprintln!("{report:?}");
    }
    if let Some(more @ 1..) = diagnostics.len().checked_sub(MAX_DRAWN) {
        anstream::eprintln!("… and {more} more");
    }
}

/// A diagnostic, or what it has to say about one file more, as miette draws it.
#[derive(Debug)]
struct Drawing {
    message: String,
    code: Option<&'static str>,
    severity: miette::Severity,
    source: Option<NamedSource<String>>,
    labels: Vec<LabeledSpan>,
    help: Option<String>,
    elsewhere: Vec<Drawing>,
}

impl Drawing {
    fn of(diagnostic: &Diagnostic, sources: &Sources) -> Self {
        let labels = diagnostic.labels.clone();
        let main = labels.first().map(|label| label.span.source);
        let (here, elsewhere): (Vec<_>, Vec<_>) = labels
            .into_iter()
            .partition(|label| Some(label.span.source) == main);
        Self {
            message: diagnostic.message.clone(),
            code: Some(diagnostic.code),
            severity: match diagnostic.severity {
                Severity::Warning => miette::Severity::Warning,
                Severity::Error => miette::Severity::Error,
            },
            source: here.first().map(|label| named_source(label, sources)),
            labels: here
                .iter()
                .map(|label| labeled_span(label, sources))
                .collect(),
            help: diagnostic.help.clone(),
            elsewhere: elsewhere
                .iter()
                .map(|label| Self::elsewhere(label, sources))
                .collect(),
        }
    }

    fn elsewhere(label: &Label, sources: &Sources) -> Self {
        Self {
            message: format!("in {}", sources.place(label.span)),
            code: None,
            severity: miette::Severity::Advice,
            source: Some(named_source(label, sources)),
            labels: vec![labeled_span(label, sources)],
            help: None,
            elsewhere: Vec::new(),
        }
    }
}

fn named_source(label: &Label, sources: &Sources) -> NamedSource<String> {
    let source = sources.get(label.span.source);
    NamedSource::new(&source.name, source.text.clone())
}

fn labeled_span(label: &Label, sources: &Sources) -> LabeledSpan {
    let text = sources.text(label.span);
    let middle = sources.place(label.span).column + text.chars().count() / 2;
    let columns = WIDTH.saturating_sub(middle + LABEL_MARGIN);
    LabeledSpan::at(label.span.range(), folded(&label.text, columns))
}

/// What stands left of a label whose middle is at column 0: line number, bar, arrow.
const LABEL_MARGIN: usize = 12;
/// A label is not folded to less.
const LABEL_MIN: usize = 20;

/// `text` in lines of at most `columns`.
pub(crate) fn folded(text: &str, columns: usize) -> String {
    let columns = columns.max(LABEL_MIN);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

impl Display for Drawing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Drawing {}

impl miette::Diagnostic for Drawing {
    fn code<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.code?))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.help.as_ref()?))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source.as_ref()?)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn miette::Diagnostic> + 'a>> {
        let elsewhere = self.elsewhere.iter();
        Some(Box::new(
            elsewhere.map(|one| one as &dyn miette::Diagnostic),
        ))
    }
}
