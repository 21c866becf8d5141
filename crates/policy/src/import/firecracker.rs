//! Firecracker's custom CPU template: `msr_modifiers`, each an index and a bitmap of 0, 1 and x.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::draft::{Draft, Origin};
use super::{ImportError, index};

const ABOUT: &str = "Imported from a CPU template of Firecracker. There a register is changed once, before the guest runs, and the guest \
    may then write it; here the same bits are read in the same way always, over whatever KVM's value is.";

/// The part of a template that is about MSRs.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Template {
    #[serde(default)]
    msr_modifiers: Vec<Modifier>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Modifier {
    addr: String,
    bitmap: String,
}

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let template: Template = serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        let why = text.split(" at line ").next().unwrap_or_default();
        let place = format!("line {}", error.line());
        ImportError::malformed(place, format!("not a CPU template: {why}"))
    })?;
    let mut draft = Draft::new(ABOUT, "msr_modifiers");
    for (key, value) in &template.other {
        let why = match key.as_str() {
            "cpuid_modifiers" => "a policy does not change CPUID: leave them in the template",
            "kvm_capabilities" => {
                "a policy does not choose capabilities: leave them in the template"
            }
            "reg_modifiers" | "vcpu_features" => "of aarch64, which has no MSRs",
            _ => "a CPU template has no such key",
        };
        let what = match value.as_array() {
            Some(list) if list.is_empty() => continue,
            Some(list) => format!("{key} ({} of them)", list.len()),
            None => key.clone(),
        };
        draft.note("the template", &what, why);
    }
    for (position, modifier) in template.msr_modifiers.iter().enumerate() {
        let place = format!("msr_modifiers[{position}]");
        let malformed = |why: String| ImportError::malformed(&place, why);
        let addr = modifier.addr.as_str();
        if !addr.starts_with("0x") && !addr.starts_with("0b") {
            return Err(malformed(format!(
                "addr {addr:?} does not begin with 0x or 0b"
            )));
        }
        let msr = index(addr).map_err(|why| malformed(format!("addr {addr:?}: {why}")))?;
        let bits = Bits::parse(&modifier.bitmap)
            .map_err(|why| malformed(format!("bitmap of {addr}: {why}")))?;
        let read = match bits.replaced {
            0 => {
                let why = "its bitmap changes no bit, so there is no rule";
                draft.note(&place, addr, why);
                continue;
            }
            u64::MAX => format!("{{ value = {:#x} }}", bits.ones),
            _ => format!("{{ mask = \"{}\" }}", bits.mask()),
        };
        let words = format!("{addr} {}", modifier.bitmap);
        let origin = Origin {
            place: &place,
            words: &words,
        };
        draft.rule(origin, msr, msr, vec![("read", read)])?;
    }
    Ok(draft)
}

/// A bitmap of 0, 1 and x.
struct Bits {
    replaced: u64,
    ones: u64,
}

impl Bits {
    /// The highest bit first; bits that are not written are x.
    fn parse(bitmap: &str) -> Result<Self, String> {
        let digits = bitmap
            .strip_prefix("0b")
            .ok_or("it does not begin with 0b")?;
        let (mut replaced, mut ones) = (0u64, 0u64);
        let mut count = 0;
        for digit in digits.chars().filter(|&digit| digit != '_') {
            count += 1;
            if count > 64 {
                return Err("more than 64 bits".to_owned());
            }
            let (is_replaced, is_one) = match digit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                other => return Err(format!("{other:?} is none of 0, 1 and x")),
            };
            replaced = replaced << 1 | is_replaced;
            ones = ones << 1 | is_one;
        }
        if count == 0 {
            return Err("no bits".to_owned());
        }
        Ok(Self { replaced, ones })
    }

    /// As a policy writes it.
    fn mask(&self) -> String {
        let width = 64 - self.replaced.leading_zeros();
        let digits =
            (0..width).rev().map(
                |bit| match (self.replaced >> bit & 1, self.ones >> bit & 1) {
                    (0, _) => 'x',
                    (_, 0) => '0',
                    _ => '1',
                },
            );
        "0b".chars().chain(digits).collect()
    }
}
