//! Breakpoints of the debug registers: on instructions, before they run, and on data and ports, after the access. A
//! host may put its own in the place of the guest's ([`Config::breakpoints`](crate::Config::breakpoints)).
//!
//! While any is enabled, instructions run one at a time. Pages with a breakpoint on data are kept out of the TLB, so
//! that accesses to them go the slow way, which asks here.

use crate::control::cr4;
use crate::op::Op;
use crate::state::DebugRegisters;
use crate::walk::AccessKind;
use crate::{Cpu, PAGE_BYTES, seg};

/// What a breakpoint is on: the two bits of DR7 for each.
const INSTRUCTION: u64 = 0;
const STORE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;
/// DR7: the local and global enables.
const ENABLES: u64 = 0xff;

impl DebugRegisters {
    /// The numbers of the breakpoints that are enabled for one of `kinds`.
    fn enabled(&self, kinds: [u64; 2]) -> impl Iterator<Item = usize> {
        let dr7 = self.dr7;
        let is_on =
            move |i: &usize| dr7 >> (2 * i) & 3 != 0 && kinds.contains(&(dr7 >> (16 + 4 * i) & 3));
        (0..4).filter(is_on)
    }

    /// First and last byte, or port, of a breakpoint that is not on an instruction.
    fn span(&self, i: usize) -> (u64, u64) {
        let below = match self.dr7 >> (18 + 4 * i) & 3 {
            0 => 0,
            1 => 1,
            2 => 7,
            _ => 3,
        };
        (self.db[i] & !below, self.db[i] | below)
    }
}

impl Cpu {
    /// The debug registers that are in force: the guest's, unless the host has put others in their place.
    #[must_use]
    pub fn debug_in_force(&self) -> DebugRegisters {
        self.config.breakpoints.unwrap_or(self.debug)
    }

    /// Whether anything is to be looked for.
    pub(crate) fn has_breakpoints(&self) -> bool {
        self.debug_in_force().dr7 & ENABLES != 0
    }

    /// Follows a change of the registers in force.
    pub(crate) fn update_breakpoints(&mut self) {
        let watches = self
            .debug_in_force()
            .enabled([STORE, ACCESS])
            .next()
            .is_some();
        if watches || self.watches {
            self.watches = watches;
            self.flush_tlb(false);
        }
        self.attention = true;
    }

    /// The DR6 bits of the breakpoints that are set on an instruction.
    pub(crate) fn code_breakpoints<B>(&self, op: &Op<B>) -> u64 {
        let debug = self.debug_in_force();
        let linear = if self.is_64() {
            self.rip_of(op)
        } else {
            self.segs[seg::CS].base.wrapping_add(self.rip_of(op)) & 0xffff_ffff
        };
        let bits = debug
            .enabled([INSTRUCTION; 2])
            .filter(|&i| debug.db[i] == linear);
        bits.fold(0, |dr6, i| dr6 | 1 << i)
    }

    /// Whether the page of `linear` has a breakpoint on data.
    pub(crate) fn is_watched(&self, linear: u64) -> bool {
        let page = |address: u64| address / PAGE_BYTES as u64;
        let debug = self.debug_in_force();
        self.watches
            && debug
                .enabled([STORE, ACCESS])
                .any(|i| page(debug.db[i]) == page(linear))
    }

    /// Remembers the breakpoints that an access meets, until the instruction has retired.
    pub(crate) fn watch(&mut self, linear: u64, len_bytes: usize, kind: AccessKind) {
        let kinds = match kind {
            _ if !self.watches => return,
            AccessKind::Fetch => return,
            AccessKind::Read => [ACCESS; 2],
            AccessKind::Write => [STORE, ACCESS],
        };
        self.note_met(kinds, linear, len_bytes);
    }

    /// The same for ports. Without CR4.DE there are no breakpoints on them: the manual leaves open what they do.
    pub(crate) fn watch_ports(&mut self, port: u16, len_bytes: usize) {
        if self.cr4 & cr4::DE != 0 {
            self.note_met([PORT; 2], port.into(), len_bytes);
        }
    }

    fn note_met(&mut self, kinds: [u64; 2], first: u64, len_bytes: usize) {
        let debug = self.debug_in_force();
        let last = first.wrapping_add(len_bytes as u64 - 1);
        for i in debug.enabled(kinds) {
            let (from, to) = debug.span(i);
            if first <= to && from <= last {
                self.watched |= 1 << i;
            }
        }
    }
}
