//! crosvm's `--userspace-msr INDEX,type=(r|w|rw|wr),action=(pass|emu)[,from=cpu0][,filter=(yes|no)]`, and the older
//! `INDEX,action=r0`.
//!
//! The text is a command line, or several, or only the options' values, one to a line.

use msrgate_core::{Access, MsrIndex};

use super::draft::{Draft, Origin, Said};
use super::{ImportError, index};
use crate::forward::{HostPath, host_path};

const ABOUT: &str =
    "Imported from crosvm's --userspace-msr. As there, an MSR that nobody knows is #GP.";

const OPTION: &str = "--userspace-msr";

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::new(ABOUT, OPTION);
    // Whether the last word was the option, so that the next one is its value.
    let mut awaits_value = false;
    for (line, text) in (1..).zip(text.lines()) {
        let place = format!("line {line}");
        let words = shlex::split(text.strip_suffix('\\').unwrap_or(text))
            .ok_or_else(|| ImportError::malformed(&place, "a quote is not closed on its line"))?;
        let is_bare = words.len() == 1 && words[0].starts_with(|c: char| c.is_ascii_digit());
        for word in &words {
            if awaits_value || is_bare {
                option(&mut draft, &place, word)?;
                awaits_value = false;
                continue;
            }
            match word.strip_prefix(OPTION) {
                Some("") => awaits_value = true,
                Some(value) if value.starts_with('=') => option(&mut draft, &place, &value[1..])?,
                _ => {}
            }
        }
        if awaits_value && !text.ends_with('\\') {
            let why = format!("{OPTION} has no value");
            return Err(ImportError::malformed(place, why));
        }
    }
    if awaits_value {
        let why = format!("{OPTION} has no value");
        return Err(ImportError::malformed("the last line", why));
    }
    Ok(draft)
}

/// What one option says.
#[derive(Default)]
struct Config<'a> {
    access: Option<&'a str>,
    action: Option<&'a str>,
    from: Option<&'a str>,
    filter: Option<&'a str>,
}

fn option(draft: &mut Draft, place: &str, value: &str) -> Result<(), ImportError> {
    let malformed = |why: String| ImportError::malformed(place, format!("{value}: {why}"));
    let mut parts = value.split(',');
    let first = parts.next().unwrap_or_default();
    let first = first.strip_prefix("index=").unwrap_or(first);
    let msr = index(first).map_err(|why| malformed(format!("{first:?}: {why}")))?;
    let mut config = Config::default();
    for part in parts {
        let Some((key, word)) = part.split_once('=') else {
            return Err(malformed(format!("{part:?} is not KEY=VALUE")));
        };
        let (slot, words): (_, &[&str]) = match key {
            "type" => (&mut config.access, &["r", "w", "rw", "wr"]),
            "action" => (&mut config.action, &["pass", "emu", "r0"]),
            "from" => (&mut config.from, &["cpu0"]),
            "filter" => (&mut config.filter, &["yes", "no"]),
            _ => return Err(malformed(format!("crosvm has no key {key:?}"))),
        };
        if !words.contains(&word) {
            return Err(malformed(format!("{key} is one of {}", words.join(", "))));
        }
        if slot.replace(word).is_some() {
            return Err(malformed(format!("{key} is given twice")));
        }
    }
    if config.action == Some("r0") {
        config = Config {
            access: Some("r"),
            action: Some("pass"),
            from: Some("cpu0"),
            filter: config.filter,
        };
    }
    let access = config
        .access
        .ok_or_else(|| malformed("no type=".to_owned()))?;
    let action = config
        .action
        .ok_or_else(|| malformed("no action=".to_owned()))?;
    let says = says(draft, place, value, access, action);
    let reads_host = says.iter().any(|(_, value)| value == "\"host\"");
    if reads_host && config.from == Some("cpu0") {
        let why = "the host's value is that of the CPU which runs the vCPU, not of CPU 0";
        draft.note(place, value, why);
    }
    if config.filter != Some("yes") && kvm_knows(msr, access) {
        let why =
            "without filter=yes, crosvm lets KVM answer an MSR that it knows; this rule does not";
        draft.note(place, value, why);
    }
    let origin = Origin {
        place,
        words: value,
    };
    draft.rule(origin, msr, msr, says)
}

/// The rule's own words, and what cannot be said.
fn says(draft: &mut Draft, place: &str, value: &str, access: &str, action: &str) -> Vec<Said> {
    let (read, write, shadow) = match (action, access) {
        ("emu", "r") => {
            let why =
                "crosvm reads the host's value once, when it starts; here it is read each time";
            draft.note(place, value, why);
            (Some("host"), None, None)
        }
        ("emu", "w") => (None, Some("ignore"), None),
        ("emu", _) => {
            let why = "in crosvm it begins with the host's value; here with 0: write that value as `reset`";
            draft.note(place, value, why);
            (None, None, Some("{ scope = \"vcpu\", reset = 0 }"))
        }
        (_, "r") => (Some("host"), None, None),
        (_, access) => {
            let why = "no guest writes the host's registers: its writes are #GP";
            draft.note(place, value, why);
            let read = (access != "w").then_some("host");
            (read, Some("fault"), None)
        }
    };
    let word = |key: &'static str, word: Option<&str>| Some((key, format!("\"{}\"", word?)));
    let shadow = shadow.map(|table| ("shadow", table.to_owned()));
    let all = [word("read", read), word("write", write), shadow];
    all.into_iter().flatten().collect()
}

/// Whether KVM can answer an access of this type by itself.
fn kvm_knows(msr: u32, access: &str) -> bool {
    Access::ALL.into_iter().any(|direction| {
        let letter = match direction {
            Access::Read => 'r',
            Access::Write => 'w',
        };
        access.contains(letter) && host_path(MsrIndex(msr), direction) != HostPath::Unknown
    })
}
