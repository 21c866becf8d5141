//! Differences as a table of at most 80 columns, or as JSON.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use msrgate_core::MsrIndex;
use serde::Serialize;

use crate::output;

const BOLD: Style = Style::new().bold();
const OLD: Style = AnsiColor::Red.on_default();
const NEW: Style = AnsiColor::Green.on_default();
/// Columns of a line.
const WIDTH: usize = 80;
/// Columns before what has no room beside its MSR.
const INDENT: usize = 4;

/// One difference.
pub(super) struct Row {
    pub(super) subject: Subject,
    /// `read`, `write` or `both`.
    pub(super) access: &'static str,
    /// What is so in the one, and what in the other.
    pub(super) sides: [String; 2],
}

/// What a difference is about.
pub(super) enum Subject {
    /// A key of a policy's defaults, and what it is about.
    Default(&'static str, &'static str),
    /// MSRs that stand next to each other.
    Msrs { first: MsrIndex, last: MsrIndex },
}

impl Subject {
    fn name(&self) -> String {
        match *self {
            Self::Default(_, about) => about.to_owned(),
            Self::Msrs { first, last } => {
                let name = first.name().map(str::to_owned);
                match u64::from(last.0.saturating_sub(first.0)) + 1 {
                    1 => name.unwrap_or_else(|| "-".to_owned()),
                    count => format!("{count} from {}", name.unwrap_or_else(|| first.to_string())),
                }
            }
        }
    }

    fn index(&self) -> String {
        match *self {
            Self::Default(..) => "-".to_owned(),
            Self::Msrs { first, .. } => first.to_string(),
        }
    }
}

/// Where both files were made, if that is known of one.
pub(super) fn write_heading(out: &mut dyn Write, about: &[String; 2]) -> io::Result<()> {
    if about.iter().all(String::is_empty) {
        return Ok(());
    }
    for (mark, (about, style)) in ["A", "B"].into_iter().zip(about.iter().zip([OLD, NEW])) {
        let about = if about.is_empty() {
            "(nothing is known)"
        } else {
            about
        };
        write_wrapped(
            out,
            &format!("{style}{mark}{style:#}  "),
            about,
            Style::new(),
        )?;
    }
    writeln!(out)
}

/// The first `most` of `rows`, and how many there are.
pub(super) fn write(out: &mut dyn Write, kind: &str, rows: &[Row], most: usize) -> io::Result<()> {
    let shown = &rows[..rows.len().min(most)];
    let names: Vec<String> = shown.iter().map(|row| row.subject.name()).collect();
    // A row that takes two lines in any case does not make the others do so.
    let fitting = shown
        .iter()
        .zip(&names)
        .filter(|(row, name)| row.fits(name.len()));
    let width = fitting.map(|(_, name)| name.len()).max().unwrap_or(0);
    let width = width.max("MSR".len());
    if !shown.is_empty() {
        writeln!(
            out,
            "{BOLD}{:width$}  {:<10}  ACCESS  A → B{BOLD:#}",
            "MSR", "INDEX"
        )?;
    }
    for (row, name) in shown.iter().zip(&names) {
        row.write(out, name, width)?;
    }
    if !shown.is_empty() {
        writeln!(out)?;
    }
    writeln!(out, "{}", summary(kind, rows.len(), shown.len()))
}

impl Row {
    /// Columns of both sides.
    fn sides_width(&self) -> usize {
        self.sides[0].len() + " → ".chars().count() + self.sides[1].len()
    }

    /// Whether all is on one line where names have `width` columns.
    fn fits(&self, width: usize) -> bool {
        width + "  0x00000000  ACCESS  ".len() + self.sides_width() <= WIDTH
    }

    /// On one line, or with the sides below it.
    fn write(&self, out: &mut dyn Write, name: &str, width: usize) -> io::Result<()> {
        let (index, access) = (self.subject.index(), self.access);
        let [a, b] = &self.sides;
        let both = format!("{OLD}{a}{OLD:#} → {NEW}{b}{NEW:#}");
        if self.fits(width.max(name.len())) {
            return writeln!(out, "{name:width$}  {index:<10}  {access:<6}  {both}");
        }
        writeln!(out, "{name:width$}  {index:<10}  {access}")?;
        if INDENT + self.sides_width() <= WIDTH {
            return writeln!(out, "{:INDENT$}{both}", "");
        }
        write_wrapped(out, "      ", a, OLD)?;
        write_wrapped(out, "    → ", b, NEW)
    }
}

/// Behind `mark`, on as many lines as it takes.
fn write_wrapped(out: &mut dyn Write, mark: &str, text: &str, style: Style) -> io::Result<()> {
    const MARK: usize = INDENT + 2;
    let mut line = String::new();
    let mut mark = mark.to_owned();
    for word in text.split(' ') {
        if !line.is_empty() && MARK + line.len() + 1 + word.len() > WIDTH {
            writeln!(out, "{mark}{style}{line}{style:#}")?;
            line.clear();
            mark = " ".repeat(INDENT + 2);
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{mark}{style}{line}{style:#}")
}

fn summary(kind: &str, count: usize, shown: usize) -> String {
    match (count, count - shown) {
        (0, _) => format!("The {kind} do not differ."),
        (1, _) => format!("The {kind} differ in 1 place."),
        (count, 0) => format!("The {kind} differ in {count} places."),
        (count, more) => {
            format!("The {kind} differ in {count} places; --all shows the other {more} too.")
        }
    }
}

/// Counts up when a key changes its meaning or goes away.
const JSON_VERSION: u32 = 1;

/// All differences.
pub(super) fn write_json(
    out: &mut dyn Write,
    kind: &'static str,
    rows: &[Row],
) -> anyhow::Result<()> {
    let json = Json {
        version: JSON_VERSION,
        kind,
        differences: rows.iter().map(JsonDifference::of).collect(),
    };
    output::write_json(out, &json)
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    kind: &'static str,
    differences: Vec<JsonDifference<'a>>,
}

#[derive(Serialize)]
struct JsonDifference<'a> {
    default: Option<&'static str>,
    first: Option<String>,
    last: Option<String>,
    name: Option<&'static str>,
    access: &'static str,
    a: &'a str,
    b: &'a str,
}

impl<'a> JsonDifference<'a> {
    fn of(row: &'a Row) -> Self {
        let (default, msrs) = match row.subject {
            Subject::Default(key, _) => (Some(key), None),
            Subject::Msrs { first, last } => (None, Some((first, last))),
        };
        Self {
            default,
            first: msrs.map(|(first, _)| first.to_string()),
            last: msrs.map(|(_, last)| last.to_string()),
            name: msrs.and_then(|(first, _)| first.name()),
            access: row.access,
            a: &row.sides[0],
            b: &row.sides[1],
        }
    }
}
