//! Linear to guest-physical addresses: the walk over the guest's page tables.
//!
//! [`walk`] knows 4-level, PAE and 32-bit paging (SDM vol. 3, chapter 4) and is a function of [`Paging`], the
//! bus and the access; it caches nothing. Accessed and dirty bits are written only once the access is known
//! to succeed. An entry outside RAM counts as not present, as in KVM's walker, and entries in read-only memory
//! keep their bits. No 5-level paging, no protection keys; PAE's four pointers are read from memory at
//! each walk, as AMD processors do.

use crate::control::{cr0, cr4, efer};
use crate::{Bus, Cpu};

/// #PF error code bits.
pub(crate) mod error_code {
    pub(crate) const PRESENT: u32 = 1 << 0;
    pub(crate) const WRITE: u32 = 1 << 1;
    pub(crate) const USER: u32 = 1 << 2;
    pub(crate) const RESERVED: u32 = 1 << 3;
    pub(crate) const FETCH: u32 = 1 << 4;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Where an 8-byte entry holds an address, before MAXPHYADDR is applied.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The kinds of paging, with the entry's size and the linear-address bits that each level consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// CR0.PG is clear: linear addresses are physical.
    Off,
    /// 32-bit entries, 4 KiB pages, and 4 MiB pages with CR4.PSE.
    Legacy {
        /// CR4.PSE.
        large: bool,
    },
    /// 64-bit entries below four pointers.
    Pae,
    /// 4-level paging.
    Long,
}

impl Mode {
    /// The lowest linear-address bit that each level looks at, from the root down.
    const fn shifts(self) -> &'static [u32] {
        match self {
            Self::Off => &[],
            Self::Legacy { .. } => &[22, 12],
            Self::Pae => &[30, 21, 12],
            Self::Long => &[39, 30, 21, 12],
        }
    }

    const fn index_mask(self) -> u64 {
        if matches!(self, Self::Legacy { .. }) {
            0x3ff
        } else {
            0x1ff
        }
    }

    const fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Off => 0,
            Self::Legacy { .. } => cr3 & 0xffff_f000,
            Self::Pae => cr3 & 0xffff_ffe0,
            Self::Long => cr3 & ADDRESS,
        }
    }
}

/// The state that translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are control register bits"
)]
pub(crate) struct Paging {
    mode: Mode,
    cr3: u64,
    write_protect: bool,
    global_pages: bool,
    no_execute: bool,
    smep: bool,
    smap: bool,
    physical_bits: u32,
}

impl Paging {
    /// Picks the state out of the control registers. `physical_bits` is MAXPHYADDR.
    pub(crate) const fn new(cr0: u64, cr3: u64, cr4: u64, efer: u64, physical_bits: u32) -> Self {
        let mode = if cr0 & cr0::PG == 0 {
            Mode::Off
        } else if efer & efer::LMA != 0 {
            Mode::Long
        } else if cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy {
                large: cr4 & cr4::PSE != 0,
            }
        };
        Self {
            mode,
            cr3,
            write_protect: cr0 & cr0::WP != 0,
            global_pages: cr4 & cr4::PGE != 0,
            no_execute: cr4 & cr4::PAE != 0 && efer & efer::NXE != 0,
            smep: cr4 & cr4::SMEP != 0,
            smap: cr4 & cr4::SMAP != 0,
            physical_bits,
        }
    }

    /// Whether `translation`'s rights allow `access`. Dirty bits are not a matter of permission.
    pub(crate) const fn permits(&self, translation: &Translation, access: Access) -> bool {
        if access.user && !translation.user {
            return false;
        }
        let supervisor_on_user_page = !access.user && translation.user;
        match access.kind {
            AccessKind::Fetch => !(translation.no_execute || supervisor_on_user_page && self.smep),
            AccessKind::Read => !(supervisor_on_user_page && self.smap && !access.alignment_check),
            AccessKind::Write => {
                !(supervisor_on_user_page && self.smap && !access.alignment_check)
                    && (translation.writable || !access.user && !self.write_protect)
            }
        }
    }

    /// The bits that must be clear in a present entry at `shift`.
    const fn reserved(&self, shift: u32, entry: u64) -> u64 {
        let wide = ADDRESS & !((1 << self.physical_bits) - 1)
            | if self.no_execute { 0 } else { NO_EXECUTE };
        let leaf = entry & LARGE != 0;
        match (self.mode, shift) {
            (Mode::Off, _) => 0,
            // A 4 MiB page keeps address bits 39:32 in 20:13 (PSE-36); bit 21 is reserved.
            (Mode::Legacy { large: true }, 22) if leaf => {
                1 << 21 | ((0xff << 32 & !((1 << self.physical_bits) - 1)) >> 19)
            }
            (Mode::Legacy { .. }, _) => 0,
            // The four pointers carry no rights at all.
            (Mode::Pae, 30) => 0xfff0_0000_0000_01e6 | wide,
            (Mode::Pae, 21) if leaf => 0x7ff0_0000_001f_e000 | wide,
            (Mode::Pae, _) => 0x7ff0_0000_0000_0000 | wide,
            (Mode::Long, 39) => LARGE | wide,
            (Mode::Long, 30) if leaf => 0x3fff_e000 | wide,
            (Mode::Long, 21) if leaf => 0x1f_e000 | wide,
            (Mode::Long, _) => wide,
        }
    }

    const fn is_leaf(&self, shift: u32, entry: u64) -> bool {
        let large = match (self.mode, shift) {
            (_, 12) => return true,
            (Mode::Legacy { large }, _) => large,
            (Mode::Pae, 21) | (Mode::Long, 21 | 30) => true,
            _ => false,
        };
        large && entry & LARGE != 0
    }

    /// The #PF error code of `access`, `why` being the bits that tell the cause.
    const fn fault(&self, access: Access, why: u32) -> PageFault {
        let mut code = why;
        if access.user {
            code |= error_code::USER;
        }
        match access.kind {
            AccessKind::Read => {}
            AccessKind::Write => code |= error_code::WRITE,
            AccessKind::Fetch if self.no_execute || self.smep => code |= error_code::FETCH,
            AccessKind::Fetch => {}
        }
        PageFault { error_code: code }
    }
}

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessKind {
    /// Load data.
    Read,
    /// Store data, or load it in order to store it.
    Write,
    /// Fetch code.
    Fetch,
}

/// An access, and the privilege that it is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// What it wants to do.
    pub(crate) kind: AccessKind,
    /// CPL is 3, and the access is not one of the processor's own (descriptor tables, TSS).
    pub(crate) user: bool,
    /// RFLAGS.AC of an explicit access: suspends SMAP.
    pub(crate) alignment_check: bool,
}

/// Where a linear address lies, and with which rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the entries' bits")]
pub(crate) struct Translation {
    /// Number of the 4 KiB frame that holds the address, within a large page too.
    pub(crate) pfn: u64,
    /// log2 of the page's size: 12, 21, 22 or 30.
    pub(crate) page_shift: u32,
    /// Every level has R/W.
    pub(crate) writable: bool,
    /// Every level has U/S.
    pub(crate) user: bool,
    /// Some level has NX.
    pub(crate) no_execute: bool,
    /// G, with CR4.PGE.
    pub(crate) global: bool,
    /// The leaf's D is set, after this access.
    pub(crate) dirty: bool,
}

/// The error code of the #PF; CR2 is the linear address that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    /// See [`error_code`].
    pub(crate) error_code: u32,
}

/// Translates `linear` for `access`, and sets the accessed and dirty bits where it succeeds.
pub(crate) fn walk<B: Bus>(
    bus: &mut B,
    paging: &Paging,
    linear: u64,
    access: Access,
) -> Result<Translation, PageFault> {
    let mut path = Path::default();
    let mut translation =
        find(bus, paging, linear, &mut path).map_err(|why| paging.fault(access, why))?;
    if !paging.permits(&translation, access) {
        return Err(paging.fault(access, error_code::PRESENT));
    }
    if access.kind == AccessKind::Write {
        translation.dirty = true;
    }
    path.mark(bus, paging.mode, translation.dirty);
    Ok(translation)
}

/// Where `linear` lies, whatever the rights.
fn probe<B: Bus>(bus: &mut B, paging: &Paging, linear: u64) -> Option<Translation> {
    find(bus, paging, linear, &mut Path::default()).ok()
}

impl Cpu {
    /// The guest-physical address behind a linear one, whatever its rights; the tables' accessed bits stay
    /// as they are (`KVM_TRANSLATE`).
    pub fn translate_linear<B: Bus>(&self, bus: &mut B, linear: u64) -> Option<u64> {
        if self.is_long() && !Self::is_canonical(linear) {
            return None;
        }
        let found = probe(bus, &self.paging, linear)?;
        Some(found.pfn << 12 | linear & 0xfff)
    }
}

/// The walk itself. `Err` holds the error code bits that tell why there is no translation.
fn find<B: Bus>(
    bus: &mut B,
    paging: &Paging,
    linear: u64,
    path: &mut Path,
) -> Result<Translation, u32> {
    let mode = paging.mode;
    let linear = if mode == Mode::Long {
        linear
    } else {
        linear & 0xffff_ffff
    };
    let mut found = Translation {
        pfn: linear >> 12,
        page_shift: 12,
        writable: true,
        user: true,
        no_execute: false,
        global: false,
        dirty: true,
    };
    let mut table = mode.root(paging.cr3);
    for &shift in mode.shifts() {
        let index = linear >> shift & mode.index_mask();
        let step = read_entry(bus, mode, table, index).ok_or(0_u32)?;
        if step.entry & PRESENT == 0 {
            return Err(0);
        }
        if step.entry & paging.reserved(shift, step.entry) != 0 {
            return Err(error_code::PRESENT | error_code::RESERVED);
        }
        if (mode, shift) != (Mode::Pae, 30) {
            found.writable &= step.entry & WRITABLE != 0;
            found.user &= step.entry & USER != 0;
            found.no_execute |= step.entry & NO_EXECUTE != 0;
            path.push(step);
        }
        if paging.is_leaf(shift, step.entry) {
            let offset = (1 << shift) - 1;
            let base = frame_address(mode, shift, step.entry) & !offset;
            found.pfn = (base | linear & offset) >> 12;
            found.page_shift = shift;
            found.global = paging.global_pages && step.entry & GLOBAL != 0;
            found.dirty = step.entry & DIRTY != 0;
            return Ok(found);
        }
        table = step.entry & ADDRESS;
    }
    Ok(found)
}

const fn frame_address(mode: Mode, shift: u32, entry: u64) -> u64 {
    match (mode, shift) {
        (Mode::Legacy { .. }, 22) => entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32,
        _ => entry & ADDRESS,
    }
}

/// An entry that the walk went through.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    address: u64,
    entry: u64,
}

fn read_entry<B: Bus>(bus: &mut B, mode: Mode, table: u64, index: u64) -> Option<Step> {
    let legacy = matches!(mode, Mode::Legacy { .. });
    let address = table + index * if legacy { 4 } else { 8 };
    let page = bus.ram_page(address >> 12, false)?;
    let offset = page_offset(address);
    let entry = if legacy {
        u64::from(u32::from_le_bytes(bus.load(page, offset)))
    } else {
        u64::from_le_bytes(bus.load(page, offset))
    };
    Some(Step { address, entry })
}

const fn page_offset(address: u64) -> usize {
    (address & 0xfff) as usize
}

/// The entries of a walk, leaf last.
#[derive(Default)]
struct Path {
    steps: [Step; 4],
    len: usize,
}

impl Path {
    fn push(&mut self, step: Step) {
        self.steps[self.len] = step;
        self.len += 1;
    }

    /// Sets A in every entry and, where `dirty`, D in the leaf.
    fn mark<B: Bus>(&self, bus: &mut B, mode: Mode, dirty: bool) {
        for (i, step) in self.steps[..self.len].iter().enumerate() {
            let is_leaf = i + 1 == self.len;
            let marked = step.entry | ACCESSED | if dirty && is_leaf { DIRTY } else { 0 };
            if marked == step.entry {
                continue;
            }
            let Some(page) = bus.ram_page(step.address >> 12, true) else {
                continue;
            };
            let offset = page_offset(step.address);
            if matches!(mode, Mode::Legacy { .. }) {
                let [low @ .., _, _, _, _] = marked.to_le_bytes();
                bus.store(page, offset, low);
            } else {
                bus.store(page, offset, marked.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests;
