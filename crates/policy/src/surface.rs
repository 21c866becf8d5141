//! What a VM makes of every MSR, as a document: [`Surface`], read with [`Surface::parse`], written with
//! [`Surface::to_json`].
//!
//! A surface tells of windows of MSRs that were tried. An MSR of a window without an entry is one that KVM does
//! not know. Nothing here tries anything; what differs between two surfaces is [`Surface::compare`]'s part.

mod compare;
mod hex;

use std::fmt;

use msrgate_core::{ExitReason, MsrIndex};
use serde::{Deserialize, Serialize};

pub use compare::{Difference, Side};

/// What a VM makes of the MSRs of some windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surface {
    /// Who ran the VM: `kvm` or `soft`.
    pub backend: String,
    /// Where.
    pub host: SurfaceHost,
    /// What was tried, in order; they do not touch.
    pub windows: Vec<Window>,
    /// Those that are not simply unknown, by index.
    #[serde(skip_serializing)]
    pub msrs: Vec<SurfaceMsr>,
}

/// The machine on which a surface was made. What cannot be found out is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SurfaceHost {
    /// Kernel release.
    pub kernel: String,
    /// CPUID's vendor, such as `GenuineIntel`.
    pub vendor: String,
    /// What the processor calls itself.
    pub processor: String,
    /// CPUID's family.
    pub family: Option<u32>,
    /// CPUID's model.
    pub model: Option<u32>,
    /// CPUID's stepping.
    pub stepping: Option<u32>,
    /// The module parameter that makes unknown MSRs read 0.
    pub ignore_msrs: Option<bool>,
}

/// Consecutive MSRs that were tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Window {
    /// The first one.
    #[serde(with = "hex::index")]
    pub first: MsrIndex,
    /// The last one.
    #[serde(with = "hex::index")]
    pub last: MsrIndex,
}

/// What came of one MSR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurfaceMsr {
    /// Which one.
    #[serde(with = "hex::index")]
    pub index: MsrIndex,
    /// What it is called, for who reads the document.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    name: Option<&'static str>,
    /// What came of the read.
    pub read: Tried,
    /// What was read, if something was.
    #[serde(with = "hex::value", default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
    /// It read something else a little later.
    #[serde(default, skip_serializing_if = "is_false")]
    pub volatile: bool,
    /// What came of writing the same value back, if that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<Tried>,
    /// Why it was not tried, where writes were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_written: Option<String>,
}

/// What came of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Tried {
    /// It was done.
    Done,
    /// KVM does not know the MSR.
    Unknown,
    /// KVM knows the MSR and refuses the access.
    Invalid,
    /// #GP without an exit: the processor itself refuses it.
    Gp,
    /// The VM did not survive it.
    Failed,
}

/// The word in the document's key `format`.
const FORMAT: &str = "msrgate-surface";
/// Counts up when a key changes its meaning or goes away.
const VERSION: u64 = 1;

/// What tells this document, and this version of it, from others.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl Surface {
    /// Reads a document. Windows and entries may be in any order; keys that are not known here do not count.
    ///
    /// # Errors
    /// It is no surface, of another version, or contradicts itself.
    pub fn parse(text: &str) -> Result<Self, SurfaceError> {
        let head: Head = serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => SurfaceError::NotSurface,
            _ => SurfaceError::Json(error),
        })?;
        if head.format != FORMAT {
            return Err(SurfaceError::NotSurface);
        }
        if head.version != VERSION {
            return Err(SurfaceError::Version {
                found: head.version,
            });
        }
        let mut surface: Self = serde_json::from_str(text).map_err(SurfaceError::Json)?;
        surface.settle()?;
        Ok(surface)
    }

    /// Whether a file is meant to be read by [`Surface::parse`]: it is an object of JSON.
    #[must_use]
    pub fn recognises(file: &[u8]) -> bool {
        file.trim_ascii_start().first() == Some(&b'{')
    }

    /// The document: JSON with one MSR a line.
    #[must_use]
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            head: Head,
            #[serde(flatten)]
            surface: &'a Surface,
        }
        let document = Document {
            head: Head {
                format: FORMAT.to_owned(),
                version: VERSION,
            },
            surface: self,
        };
        let mut text = serde_json::to_string_pretty(&document).expect("keys are texts");
        text.truncate(text.len() - "\n}".len());
        text += ",\n  \"msrs\": [";
        for (number, msr) in self.msrs.iter().enumerate() {
            text += if number == 0 { "\n    " } else { ",\n    " };
            text += &serde_json::to_string(msr).expect("keys are texts");
        }
        text + "\n  ]\n}\n"
    }

    /// What is known of an MSR; `None` where its window has no entry for it.
    fn msr(&self, index: MsrIndex) -> Option<&SurfaceMsr> {
        let place = self
            .msrs
            .binary_search_by_key(&index, |msr| msr.index)
            .ok()?;
        Some(&self.msrs[place])
    }

    /// Whether an MSR was tried.
    fn has_tried(&self, index: MsrIndex) -> bool {
        let after = self.windows.partition_point(|window| window.first <= index);
        after != 0 && index <= self.windows[after - 1].last
    }

    /// Puts windows and entries in order, and refuses what cannot be.
    fn settle(&mut self) -> Result<(), SurfaceError> {
        if let Some(&window) = self
            .windows
            .iter()
            .find(|window| window.first > window.last)
        {
            return Err(SurfaceError::Window { window });
        }
        self.windows = Window::merge(std::mem::take(&mut self.windows));
        self.msrs.sort_by_key(|msr| msr.index);
        for pair in self.msrs.windows(2) {
            if pair[0].index == pair[1].index {
                return Err(SurfaceError::Twice {
                    index: pair[0].index,
                });
            }
        }
        if let Some(msr) = self.msrs.iter().find(|msr| !self.has_tried(msr.index)) {
            return Err(SurfaceError::Outside { index: msr.index });
        }
        for msr in &mut self.msrs {
            if (msr.read == Tried::Done) != msr.value.is_some() {
                return Err(SurfaceError::Value { index: msr.index });
            }
            msr.name = msr.index.name();
        }
        Ok(())
    }
}

impl Window {
    /// The same MSRs in order, in as few windows as can be.
    #[must_use]
    pub fn merge(mut windows: Vec<Self>) -> Vec<Self> {
        windows.sort_unstable();
        windows.dedup_by(|next, kept| {
            let touches = next.first.0 <= kept.last.0.saturating_add(1);
            if touches {
                kept.last = kept.last.max(next.last);
            }
            touches
        });
        windows
    }

    /// How many MSRs it has.
    #[must_use]
    pub const fn count(self) -> u64 {
        (self.last.0 as u64 + 1).saturating_sub(self.first.0 as u64)
    }
}

impl SurfaceMsr {
    /// An MSR of which no more is known than what came of the read.
    #[must_use]
    pub fn new(index: MsrIndex, read: Tried, value: Option<u64>) -> Self {
        Self {
            index,
            name: index.name(),
            read,
            value,
            volatile: false,
            write: None,
            not_written: None,
        }
    }
}

impl Tried {
    /// One word for tables and files.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
            Self::Gp => "gp",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Where no filter denies anything, what KVM does not call unknown it calls invalid.
impl From<ExitReason> for Tried {
    fn from(reason: ExitReason) -> Self {
        match reason {
            ExitReason::UNKNOWN => Self::Unknown,
            _ => Self::Invalid,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Why a text is no surface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurfaceError {
    /// Something else.
    #[error("not a surface: `msrgate surface --json` writes one")]
    NotSurface,
    /// A later program's.
    #[error("a surface of version {found}: this program reads version {VERSION}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// Not JSON, or not the JSON of a surface.
    #[error("not a whole surface: {0}")]
    Json(serde_json::Error),
    /// A window that ends before it begins.
    #[error("the window {}..={} ends before it begins", window.first, window.last)]
    Window {
        /// Which one.
        window: Window,
    },
    /// An MSR with two entries.
    #[error("{index} has two entries")]
    Twice {
        /// Which one.
        index: MsrIndex,
    },
    /// An MSR that was not tried.
    #[error("{index} has an entry, but is in no window")]
    Outside {
        /// Which one.
        index: MsrIndex,
    },
    /// A read that was done without a value, or the other way round.
    #[error("{index} has a value if, and only if, its read was done")]
    Value {
        /// Which one.
        index: MsrIndex,
    },
}
