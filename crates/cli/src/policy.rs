//! Reading a policy file, and drawing what is wrong with it.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use miette::{LabeledSpan, MietteDiagnostic, MietteHandlerOpts, NamedSource, Report};
use msrgate_policy::{Compiled, Diagnostic, Severity, compile};

/// Compiles the policy in the file `path`; warnings and errors go to the standard error.
pub(crate) fn compile_file(path: &Path) -> anyhow::Result<Compiled> {
    let name = path.display().to_string();
    let bytes = fs::read(path).with_context(|| format!("cannot read the policy {name}"))?;
    let Ok(source) = String::from_utf8(bytes) else {
        bail!("the policy {name} is not a text (UTF-8)");
    };
    compile_source(&name, &source)
}

/// Compiles the policy `source`, which is known as `name`.
pub(crate) fn compile_source(name: &str, source: &str) -> anyhow::Result<Compiled> {
    match compile(source) {
        Ok(compiled) => {
            draw(name, source, &compiled.warnings);
            Ok(compiled)
        }
        Err(diagnostics) => {
            draw(name, source, &diagnostics);
            let count = diagnostics
                .iter()
                .filter(|diagnostic| diagnostic.severity == Severity::Error)
                .count();
            let mistakes = if count == 1 { "mistake" } else { "mistakes" };
            bail!("the policy {name} has {count} {mistakes}")
        }
    }
}

fn draw(name: &str, source: &str, diagnostics: &[Diagnostic]) {
    // Fails only when something else has set the hook, which then draws just as well.
    let _ = miette::set_hook(Box::new(|_| {
        Box::new(MietteHandlerOpts::new().width(80).build())
    }));
    for diagnostic in diagnostics {
        let report = Report::new(drawable(diagnostic))
            .with_source_code(NamedSource::new(name, source.to_owned()));
        anstream::eprintln!("{report:?}");
    }
}

fn drawable(diagnostic: &Diagnostic) -> MietteDiagnostic {
    let labels = diagnostic
        .labels
        .iter()
        .map(|label| LabeledSpan::at(label.span.clone(), label.text.clone()));
    let mut drawable = MietteDiagnostic::new(diagnostic.message.clone())
        .with_code(diagnostic.code)
        .with_labels(labels)
        .with_severity(match diagnostic.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Error => miette::Severity::Error,
        });
    drawable.help.clone_from(&diagnostic.help);
    drawable
}
