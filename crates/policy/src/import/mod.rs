//! Policies that were written for another program, in our language: [`import`].
//!
//! * [`Peer`] says whose they are.
//! * [`Imported`] is the text of a policy, each rule with the place that it comes from, and a [`Note`] for whatever
//!   could not be said.
//! * [`ImportError`] tells why there is no policy at all.
//!
//! The text always compiles, for a program that reads the host's MSRs. Nothing here does I/O; no input makes more of
//! itself than some comments.

mod crosvm;
mod draft;
mod firecracker;
mod libvirt;
mod msr_safe;
mod virtualbox;

use std::fmt;

use crate::compile::{Options, compile_with};
use crate::diagnostic::Diagnostic;
use crate::source::Sources;

/// A text may not be longer.
const MAX_BYTES: usize = 1 << 20;

/// A program that has MSR policies of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `--userspace-msr`, which crosvm had until 2023.
    Crosvm,
    /// `msr_modifiers` of a custom CPU template.
    Firecracker,
    /// An allowlist of the kernel module msr-safe.
    MsrSafe,
    /// `<msrs unknown='…'/>` of a domain.
    Libvirt,
    /// `VBoxInternal/CPUM/MSRs/…` of a VM's extra data.
    VirtualBox,
}

/// A policy that was somebody else's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The text, with comments.
    pub policy: String,
    /// What it does not say, or says otherwise. The text's comments tell it too.
    pub inexpressible: Vec<Note>,
}

/// One thing that a policy cannot say as the peer says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where it stands, such as `line 3`.
    pub place: String,
    /// What it is.
    pub what: String,
    /// What the policy does instead, and why.
    pub why: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, what, why } = self;
        write!(f, "{place}: {what}: {why}")
    }
}

/// Why a text was not imported.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is not in the peer's format.
    #[error("{place}: {why}")]
    Malformed {
        /// Where, such as `line 3`.
        place: String,
        /// What is wrong there.
        why: String,
    },
    /// It is longer than any that somebody has written.
    #[error("longer than 1 MiB")]
    TooLong,
    /// There is nothing about MSRs in it.
    #[error("nothing to import: it has no {what}")]
    Nothing {
        /// What there should be.
        what: &'static str,
    },
    /// The policy that it comes to cannot be honoured.
    #[error("what it says cannot be done on KVM")]
    Refused {
        /// The policy that would say it.
        sources: Sources,
        /// What is wrong with it.
        diagnostics: Vec<Diagnostic>,
    },
}

impl ImportError {
    fn malformed(place: impl Into<String>, why: impl AsRef<str>) -> Self {
        Self::Malformed {
            place: place.into(),
            why: on_one_line(why.as_ref(), 200),
        }
    }
}

/// Makes a policy of what `peer` calls one.
///
/// ```
/// use msrgate_policy::{Peer, import};
///
/// let imported = import(Peer::MsrSafe, "0x199 0xffff # \"MSR_PERF_CTL\"\n")?;
/// assert!(imported.policy.contains("writable = 0xffff"));
/// assert_eq!(imported.inexpressible, []);
/// # Ok::<(), msrgate_policy::ImportError>(())
/// ```
///
/// # Errors
/// It is not in that format, says nothing about MSRs, or comes to what KVM's filter cannot do.
pub fn import(peer: Peer, text: &str) -> Result<Imported, ImportError> {
    if text.len() > MAX_BYTES {
        return Err(ImportError::TooLong);
    }
    let text = text.trim_start_matches('\u{feff}');
    let draft = match peer {
        Peer::Crosvm => crosvm::read(text),
        Peer::Firecracker => firecracker::read(text),
        Peer::MsrSafe => msr_safe::read(text),
        Peer::Libvirt => libvirt::read(text),
        Peer::VirtualBox => virtualbox::read(text),
    }?;
    let imported = draft.finish()?;
    let options = Options {
        handlers: &["host"],
        ..Options::default()
    };
    match compile_with("imported", &imported.policy, &options) {
        (_, Ok(_)) => Ok(imported),
        (sources, Err(diagnostics)) => Err(ImportError::Refused {
            sources,
            diagnostics,
        }),
    }
}

/// Words that may be a peer's, with at most `length` characters and nothing that moves a cursor.
fn on_one_line(words: &str, length: usize) -> String {
    let mut line: String = words
        .chars()
        .take(length)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if words.chars().nth(length).is_some() {
        line.push('…');
    }
    line
}

/// A number as C and its friends write it. One that begins with 0 is octal to some and decimal to others.
fn number(text: &str) -> Result<u64, &'static str> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', _, ..] => return Err("a number that begins with 0 is ambiguous: write 0x…"),
        _ => (&*lower, 10),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err("not a number");
    }
    u64::from_str_radix(digits, radix).map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => "more than 64 bits",
        _ => "not a number",
    })
}

/// The index of an MSR.
fn index(text: &str) -> Result<u32, &'static str> {
    u32::try_from(number(text)?).map_err(|_| "an index has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_a_prefix_or_are_decimal() {
        assert_eq!(number("0x8B"), Ok(0x8b));
        assert_eq!(number("0"), Ok(0));
        assert_eq!(number("139"), Ok(139));
        assert_eq!(number("0b101"), Ok(5));
        assert_eq!(number("0xffffffffffffffff"), Ok(u64::MAX));
        for (text, why) in [
            ("0x1ffffffffffffffff", "64 bits"),
            ("010", "ambiguous"),
            ("", "not a number"),
            ("0x", "not a number"),
            ("-1", "not a number"),
            ("0x+1", "not a number"),
            ("1e3", "not a number"),
            ("٣", "not a number"),
            ("0é", "ambiguous"),
        ] {
            let error = number(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert_eq!(index("0x100000000"), Err("an index has 32 bits"));
    }
}
