//! Actions as a rule writes them, which is what the parser reads.

use msrgate_core::{Access, Action, Mask, OnViolation, Scope, Shadow, Writable};

use super::text::WIDTH;

/// What the two directions of a rule do, as lines. `None`: a direction that is left to the defaults.
pub(super) fn lines(actions: [Option<Action>; 2], handlers: &[&str]) -> Vec<String> {
    let written = match actions {
        [Some(read), Some(write)] if read == write && is_for_both(read, handlers) => {
            let key = match read {
                Action::Shadow(_) => "shadow",
                _ => "both",
            };
            vec![(key, value(read, handlers))]
        }
        actions => Access::ALL
            .into_iter()
            .zip(actions)
            .filter_map(|(access, action)| {
                let key = match access {
                    Access::Read => "read",
                    Access::Write => "write",
                };
                Some((key, value(action?, handlers)))
            })
            .collect(),
    };
    let width = written.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines = written
        .into_iter()
        .flat_map(|(key, value)| value.lines(key, width));
    lines.collect()
}

/// Whether `both` and `shadow` take it.
fn is_for_both(action: Action, handlers: &[&str]) -> bool {
    !matches!(
        action,
        Action::Value(_) | Action::Mask(_) | Action::Writable(_)
    ) && !is_host(action, handlers)
}

/// The value of the host's processor, which is only read.
fn is_host(action: Action, handlers: &[&str]) -> bool {
    matches!(action, Action::Handler(id) if handlers.get(usize::from(id.0)) == Some(&"host"))
}

/// What stands behind the equals sign.
enum Value {
    Word(&'static str),
    Table(Vec<(&'static str, String)>),
}

impl Value {
    fn lines(self, key: &str, width: usize) -> Vec<String> {
        let pairs = match self {
            Self::Word(word) => return vec![format!("{key:<width$} = \"{word}\"")],
            Self::Table(pairs) => pairs,
        };
        let inline: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        let inline = format!("{key:<width$} = {{ {} }}", inline.join(", "));
        if inline.len() <= WIDTH {
            return vec![inline];
        }
        let dotted = |(inner, value): &(&str, String)| format!("{key}.{inner} = {value}");
        pairs.iter().map(dotted).collect()
    }
}

fn value(action: Action, handlers: &[&str]) -> Value {
    match action {
        Action::Allow => Value::Word("allow"),
        Action::Ignore => Value::Word("ignore"),
        Action::Value(value) => Value::Table(vec![("value", format!("{value:#x}"))]),
        Action::Mask(mask) => Value::Table(vec![("mask", format!("\"{}\"", digits(mask)))]),
        Action::Writable(bits) => Value::Table(writable(bits)),
        Action::Shadow(shadow) => Value::Table(kept(shadow)),
        Action::Handler(_) if is_host(action, handlers) => Value::Word("host"),
        Action::Handler(id) => {
            let name = handlers.get(usize::from(id.0)).unwrap_or(&"");
            Value::Table(vec![("handler", format!("\"{}\"", name.escape_default()))])
        }
        _ => Value::Word("fault"),
    }
}

fn kept(shadow: Shadow) -> Vec<(&'static str, String)> {
    let scope = match shadow.scope {
        Scope::Vcpu => "\"vcpu\"",
        Scope::Vm => "\"vm\"",
    };
    let mut pairs = vec![
        ("scope", scope.to_owned()),
        ("reset", format!("{:#x}", shadow.reset)),
    ];
    pairs.extend(writable(shadow.writable));
    pairs
}

fn writable(writable: Writable) -> Vec<(&'static str, String)> {
    let on_violation = match writable.on_violation {
        OnViolation::Fault => "\"fault\"",
        OnViolation::Ignore => "\"ignore\"",
    };
    vec![
        ("writable", format!("{:#x}", writable.bits)),
        ("on-violation", on_violation.to_owned()),
    ]
}

/// The highest bit first; what is left out in front stays as it is.
fn digits(mask: Mask) -> String {
    let highest = mask.replaced.checked_ilog2().unwrap_or(0);
    let digit = |bit| match (mask.replaced >> bit & 1, mask.ones >> bit & 1) {
        (0, _) => 'x',
        (_, 0) => '0',
        _ => '1',
    };
    let digits: String = (0..=highest).rev().map(digit).collect();
    format!("0b{digits}")
}
