//! VirtualBox's extra data `VBoxInternal/CPUM/MSRs/NAME/FIELD`: as `VBoxManage setextradata` lines, as what
//! `getextradata VM enumerate` prints, as a .vbox file, or as `KEY=VALUE`.

use std::collections::BTreeMap;

use super::draft::{Draft, Origin, Said};
use super::libvirt::{parse, place};
use super::{ImportError, number};

const ABOUT: &str = "Imported from VirtualBox's CPUM/MSRs. Such an MSR reads as a constant and keeps nothing that is written.";

const PREFIX: &str = "VBoxInternal/CPUM/";

/// A key with its value. `None`: the key is taken away.
struct Setting {
    place: String,
    key: String,
    value: Option<String>,
}

/// What is said of one name, each with its place.
#[derive(Default)]
struct Entry {
    fields: BTreeMap<String, (String, String)>,
}

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::new(ABOUT, "VBoxInternal/CPUM/MSRs/… key");
    let settings = if text.trim_start().starts_with('<') {
        file(text)?
    } else {
        lines(text)?
    };
    let mut entries: Vec<(String, Entry)> = Vec::new();
    let mut positions: BTreeMap<String, usize> = BTreeMap::new();
    for Setting { place, key, value } in settings {
        let Some(key) = key.strip_prefix(PREFIX) else {
            continue;
        };
        let Some((name, field)) = key
            .strip_prefix("MSRs/")
            .and_then(|key| key.split_once('/'))
        else {
            let why = "a setting of the virtual processor, but not of an MSR";
            draft.note(&place, key, why);
            continue;
        };
        let position = *positions.entry(name.to_owned()).or_insert_with(|| {
            entries.push((name.to_owned(), Entry::default()));
            entries.len() - 1
        });
        let entry = &mut entries[position].1;
        match value {
            Some(value) => entry.fields.insert(field.to_owned(), (place, value)),
            None => entry.fields.remove(field),
        };
    }
    for (name, entry) in &entries {
        entry.read(name, &mut draft)?;
    }
    Ok(draft)
}

impl Entry {
    fn read(&self, name: &str, draft: &mut Draft) -> Result<(), ImportError> {
        let Some((place, _)) = self.fields.values().next() else {
            return Ok(());
        };
        let place = self.fields.get("First").map_or(place, |(place, _)| place);
        let malformed = |why: String| ImportError::malformed(place, format!("MSRs/{name}: {why}"));
        let number = |field: &str, default: Option<u64>| match (self.fields.get(field), default) {
            (Some((_, value)), _) => {
                number(value).map_err(|why| malformed(format!("{field}={value}: {why}")))
            }
            (None, Some(default)) => Ok(default),
            (None, None) => Err(malformed(format!("has no {field}"))),
        };
        let first = number("First", None)?;
        let last = number("Last", Some(first))?;
        let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else {
            return Err(malformed("an index has 32 bits".to_owned()));
        };
        if last < first {
            return Err(malformed("Last is before First".to_owned()));
        }
        if let Some((_, kind)) = self.fields.get("Type")
            && !kind.eq_ignore_ascii_case("FixedValue")
        {
            return Err(malformed(format!(
                "Type={kind}: VirtualBox has only FixedValue"
            )));
        }
        let value = number("Value", Some(0))?;
        // Bits of this one are dropped, as are all others.
        number("WrIgnMask", Some(0))?;
        let write = match number("WrGpMask", Some(0))? {
            0 => "ignore",
            u64::MAX => "fault",
            mask => {
                let what = format!("MSRs/{name}/WrGpMask={mask:#x}");
                let why = "in VirtualBox a write with one of these bits is #GP; here all writes are dropped";
                draft.note(place, &what, why);
                "ignore"
            }
        };
        const FIELDS: [&str; 6] = ["First", "Last", "Type", "Value", "WrIgnMask", "WrGpMask"];
        for (field, (place, _)) in &self.fields {
            if !FIELDS.contains(&field.as_str()) {
                let what = format!("MSRs/{name}/{field}");
                draft.note(place, &what, "VirtualBox has no such field");
            }
        }
        let says: Vec<Said> = vec![
            ("read", format!("{{ value = {value:#x} }}")),
            ("write", format!("\"{write}\"")),
        ];
        let words = format!("MSRs/{name}");
        let origin = Origin {
            place,
            words: &words,
        };
        draft.rule(origin, first, last, says)
    }
}

/// The `<ExtraDataItem name= value=/>` of a .vbox file.
fn file(text: &str) -> Result<Vec<Setting>, ImportError> {
    let document = parse(text)?;
    let items = document
        .descendants()
        .filter(|node| node.tag_name().name() == "ExtraDataItem");
    let setting = |node| {
        let item: roxmltree::Node<'_, '_> = node;
        Some(Setting {
            place: place(&document, item),
            key: item.attribute("name")?.to_owned(),
            value: item.attribute("value").map(str::to_owned),
        })
    };
    Ok(items.filter_map(setting).collect())
}

fn lines(text: &str) -> Result<Vec<Setting>, ImportError> {
    let mut settings = Vec::new();
    let mut vm = None;
    for (line, text) in (1..).zip(text.lines()) {
        if !text.contains(PREFIX) || text.trim_start().starts_with('#') {
            continue;
        }
        let place = format!("line {line}");
        let (key, value) = match text.trim().strip_prefix("Key: ") {
            Some(listed) => listed
                .split_once(", Value: ")
                .map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
                .ok_or_else(|| ImportError::malformed(&place, "a Key: without its Value:"))?,
            None => command(&place, text, &mut vm)?,
        };
        settings.push(Setting { place, key, value });
    }
    Ok(settings)
}

/// `VBoxManage setextradata VM KEY [VALUE]`, or `KEY=VALUE`.
fn command(
    place: &str,
    text: &str,
    vm: &mut Option<String>,
) -> Result<(String, Option<String>), ImportError> {
    let malformed = |why: String| ImportError::malformed(place, why);
    let words = shlex::split(text).ok_or_else(|| malformed("a quote is not closed".to_owned()))?;
    let at = words.iter().position(|word| word == "setextradata");
    match (at.map(|at| &words[at + 1..]), &words[..]) {
        (Some([name, key, value @ ..]), _) if value.len() < 2 => {
            if let Some(other) = vm.replace(name.clone()).filter(|other| other != name) {
                let why = format!(
                    "is of the VM {name:?}, but others are of {other:?}: import one at a time"
                );
                return Err(malformed(why));
            }
            // Without a value, or with an empty one, VirtualBox takes the key away.
            let value = value.first().filter(|value| !value.is_empty());
            Ok((key.clone(), value.cloned()))
        }
        (None, [word]) => match word.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), Some(value.to_owned()))),
            None => Err(malformed(
                "is neither KEY=VALUE nor a setextradata command".to_owned(),
            )),
        },
        _ => Err(malformed(
            "is not `VBoxManage setextradata VM KEY VALUE`".to_owned(),
        )),
    }
}
