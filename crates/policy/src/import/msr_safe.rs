//! msr-safe's allowlist: an index and a mask of writable bits for each MSR that may be reached.
//!
//! It is made for programs of the host and for the host's registers; here it is for a guest and for its registers.

use super::draft::{Draft, Origin};
use super::{ImportError, index, number};

const ABOUT: &str = "Imported from an allowlist of msr-safe. What was a right of the host's programs is the guest's, over its own \
    registers: those that are listed are read, the bits of the mask are written, and everything else is #GP.";

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::new(ABOUT, "line with an index and a write mask");
    let mut first_word = None;
    for (line, text) in (1..).zip(text.lines()) {
        let place = format!("line {line}");
        for word in text.split_ascii_whitespace() {
            // As in the kernel: a comment begins where an index could.
            match first_word.take() {
                None if word.starts_with('#') => break,
                None => first_word = Some(word),
                Some(index) => entry(&mut draft, &place, index, word)?,
            }
        }
        if let Some(index) = first_word.take() {
            let why = format!("{index} has no write mask");
            return Err(ImportError::malformed(place, why));
        }
    }
    if !draft.is_empty() {
        draft.default("known", "fault");
        draft.allow_x2apic();
    }
    Ok(draft)
}

fn entry(draft: &mut Draft, place: &str, msr: &str, mask: &str) -> Result<(), ImportError> {
    let malformed = |word: &str, why| ImportError::malformed(place, format!("{word}: {why}"));
    let words = format!("{msr} {mask}");
    let msr = index(msr).map_err(|why| malformed(msr, why))?;
    let write = match number(mask).map_err(|why| malformed(mask, why))? {
        0 => "\"fault\"".to_owned(),
        u64::MAX => "\"allow\"".to_owned(),
        bits => format!("{{ writable = {bits:#x}, on-violation = \"ignore\" }}"),
    };
    let says = vec![("read", "\"allow\"".to_owned()), ("write", write)];
    let words = &words;
    draft.rule(Origin { place, words }, msr, msr, says)
}
