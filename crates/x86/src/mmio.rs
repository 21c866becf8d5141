//! MMIO of one instruction: what it loaded in earlier attempts, and what it stores once it retires.

use crate::op::{Exit, Flow};
use crate::{Cpu, Stop};

/// MMIO of the instruction that runs in careful mode.
#[derive(Clone, Debug, Default)]
pub(crate) struct MmioBuffer {
    /// Completed loads, in the instruction's order.
    loaded: Vec<Load>,
    /// How many of them the instruction has met since it was restarted.
    next: usize,
    /// The last of `loaded` has not been answered.
    asked: bool,
    /// Stores of the instruction; once it has retired, of the past.
    stored: Vec<Store>,
}

#[derive(Clone, Copy, Debug)]
struct Load {
    gpa: u64,
    len_bytes: u8,
    value: u64,
}

#[derive(Clone, Copy, Debug)]
struct Store {
    gpa: u64,
    len_bytes: u8,
    value: u64,
}

impl MmioBuffer {
    /// The instruction starts (again).
    pub(crate) fn start(&mut self) {
        if core::mem::take(&mut self.asked) {
            self.loaded.pop();
        }
        self.next = 0;
        self.stored.clear();
    }

    /// The instruction retires: what it loaded is used up, what it stored is to be done.
    pub(crate) fn commit(&mut self) {
        self.loaded.clear();
    }

    /// The instruction faulted.
    pub(crate) fn abandon(&mut self) {
        self.loaded.clear();
        self.stored.clear();
    }

    /// The next store of the past, as a stop.
    pub(crate) fn next_store(&mut self) -> Option<Stop> {
        if self.stored.is_empty() {
            return None;
        }
        let Store {
            gpa,
            len_bytes,
            value,
        } = self.stored.remove(0);
        Some(Stop::MmioWrite {
            gpa,
            len_bytes,
            value,
        })
    }

    /// Whether an instruction is to be restarted with answers.
    pub(crate) fn has_answers(&self) -> bool {
        !self.loaded.is_empty()
    }

    /// Answers the load that stopped.
    pub(crate) fn complete(&mut self, value: u64) {
        if self.asked
            && let Some(load) = self.loaded.last_mut()
        {
            load.value = value;
            self.asked = false;
        }
    }

    /// The answer for a load, or `None` after noting that it must be asked for.
    fn load(&mut self, gpa: u64, len_bytes: u8) -> Option<u64> {
        if let Some(load) = self.loaded.get(self.next)
            && (load.gpa, load.len_bytes) == (gpa, len_bytes)
        {
            self.next += 1;
            return Some(load.value);
        }
        self.asked = true;
        self.loaded.truncate(self.next);
        self.loaded.push(Load {
            gpa,
            len_bytes,
            value: 0,
        });
        None
    }
}

impl Cpu {
    /// Fills `bytes` from answers of earlier stops, or stops.
    pub(crate) fn load_mmio(&mut self, gpa: u64, bytes: &mut [u8]) -> Flow {
        if !self.careful {
            return Err(Exit::Careful);
        }
        let mut gpa = gpa;
        for part in bytes.chunks_mut(8) {
            let len_bytes = part.len() as u8;
            let Some(value) = self.mmio.load(gpa, len_bytes) else {
                return Err(self.stop(Stop::MmioRead { gpa, len_bytes }));
            };
            part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
            gpa += 8;
        }
        Ok(())
    }

    /// Notes a store, to be done when the instruction has retired.
    pub(crate) fn store_mmio(&mut self, gpa: u64, bytes: &[u8]) {
        let mut gpa = gpa;
        for part in bytes.chunks(8) {
            let mut value = [0; 8];
            value[..part.len()].copy_from_slice(part);
            self.mmio.stored.push(Store {
                gpa,
                len_bytes: part.len() as u8,
                value: u64::from_le_bytes(value),
            });
            gpa += 8;
        }
    }
}
