//! kvmclock: the clock of a VM, and the pages in guest memory that tell each vCPU how to compute it from its TSC.
//!
//! [`VmClock`] is what `KVM_GET_CLOCK` reads. A guest hands over the address of a page with `MSR_KVM_SYSTEM_TIME`;
//! [`KvmClock`] is one vCPU's side of that. Both registers of a pair, the old index and the new one, are one register.
//! All pages of a VM name one moment, so that the clock never runs backwards from one vCPU to another; that is what
//! `PVCLOCK_TSC_STABLE_BIT` promises.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use crate::clock::Tsc;
use crate::memory::Slots;

/// `struct pvclock_vcpu_time_info`: where its fields are.
const INFO_BYTES: usize = 32;
const TSC_TIMESTAMP: usize = 8;
const SYSTEM_TIME: usize = 16;
const TSC_TO_SYSTEM_MUL: usize = 24;
const TSC_SHIFT: usize = 28;
const FLAGS: usize = 29;
const TSC_STABLE: u8 = 1;
const GUEST_STOPPED: u8 = 2;

/// `MSR_KVM_SYSTEM_TIME`: the page is in use.
const ENABLED: u64 = 1;

const PAGE_BYTES: u64 = 4096;
const NANOSECONDS: u64 = 1_000_000_000;

/// The clock of a VM.
#[derive(Debug)]
pub(crate) struct VmClock {
    /// When the VM was made.
    epoch: Instant,
    set: Mutex<Setting>,
    /// How often it was set.
    generation: AtomicU64,
    /// `MSR_KVM_WALL_CLOCK`, which a VM has once.
    wall_clock: AtomicU64,
}

/// The clock read `value` when `at` nanoseconds had passed since the epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Setting {
    at: u64,
    value: u64,
}

impl VmClock {
    /// A clock that is 0 at `epoch`.
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            set: Mutex::default(),
            generation: AtomicU64::new(0),
            wall_clock: AtomicU64::new(0),
        }
    }

    /// Nanoseconds that it reads now (`KVM_GET_CLOCK`).
    pub(crate) fn now(&self) -> u64 {
        let Setting { at, value } = self.setting();
        self.since_epoch().wrapping_sub(at).wrapping_add(value)
    }

    /// Sets it (`KVM_SET_CLOCK`); vCPUs tell their guests before they go on.
    pub(crate) fn set(&self, value: u64) {
        let at = self.since_epoch();
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = Setting { at, value };
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn setting(&self) -> Setting {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_epoch(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Nanoseconds since 1970.
pub(crate) fn realtime() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// One vCPU's registers of kvmclock, and what is to be written for it.
#[derive(Clone, Debug)]
pub(crate) struct KvmClock {
    vm: Arc<VmClock>,
    /// `MSR_KVM_SYSTEM_TIME`.
    system_time: u64,
    /// Of the time page, as it was written last.
    version: u32,
    /// What the time page says is about these.
    told: Option<(Tsc, u64)>,
    wall_clock_is_due: bool,
    /// The guest is to know that it was stopped (`KVM_KVMCLOCK_CTRL`).
    was_stopped: bool,
}

impl KvmClock {
    /// A vCPU of the clock's VM, after reset.
    pub(crate) fn new(vm: Arc<VmClock>) -> Self {
        Self {
            vm,
            system_time: 0,
            version: 0,
            told: None,
            wall_clock_is_due: false,
            was_stopped: false,
        }
    }

    /// `MSR_KVM_SYSTEM_TIME`.
    pub(crate) fn system_time(&self) -> u64 {
        self.system_time
    }

    /// Sets it: from now on, or no longer, there is a page.
    pub(crate) fn set_system_time(&mut self, value: u64) {
        self.system_time = value;
        self.told = None;
    }

    /// `MSR_KVM_WALL_CLOCK`.
    pub(crate) fn wall_clock(&self) -> u64 {
        self.vm.wall_clock.load(Ordering::Relaxed)
    }

    /// Sets it: the time of day at the clock's 0 is written there, once.
    pub(crate) fn set_wall_clock(&mut self, value: u64) {
        self.vm.wall_clock.store(value, Ordering::Relaxed);
        self.wall_clock_is_due = value != 0;
    }

    /// `KVM_KVMCLOCK_CTRL`; whether there is a page to say it on.
    pub(crate) fn note_stop(&mut self) -> bool {
        let told = self.page().is_some();
        self.was_stopped |= told;
        told
    }

    /// Whether [`KvmClock::tell`] has something to write, for a vCPU with this TSC.
    #[inline]
    pub(crate) fn is_due(&self, tsc: &Tsc) -> bool {
        let enabled = self.system_time & ENABLED != 0;
        self.wall_clock_is_due || enabled && (self.was_stopped || !self.is_told(tsc))
    }

    fn is_told(&self, tsc: &Tsc) -> bool {
        let generation = self.vm.generation.load(Ordering::Acquire);
        self.told.as_ref() == Some(&(*tsc, generation))
    }

    /// Writes what the guest is to know into its memory. The caller has the VM's turn.
    #[cold]
    pub(crate) fn tell(&mut self, slots: &Slots, tsc: &Tsc) {
        if std::mem::take(&mut self.wall_clock_is_due) {
            self.tell_wall_clock(slots);
        }
        let generation = self.vm.generation.load(Ordering::Acquire);
        self.told = Some((*tsc, generation));
        let Some(page) = self.page() else { return };
        let Some(old) = slots.read_guest::<INFO_BYTES>(page) else {
            return;
        };
        let mut flags = TSC_STABLE;
        if self.was_stopped || old[..4] != [0; 4] && old[FLAGS] & GUEST_STOPPED != 0 {
            flags |= GUEST_STOPPED;
        }
        self.was_stopped = false;
        let Setting { at, value } = self.vm.setting();
        let (multiplier, shift) = scale(tsc.khz());
        let mut info = [0; INFO_BYTES];
        info[TSC_TIMESTAMP..][..8].copy_from_slice(&tsc.at(at).to_le_bytes());
        info[SYSTEM_TIME..][..8].copy_from_slice(&value.to_le_bytes());
        info[TSC_TO_SYSTEM_MUL..][..4].copy_from_slice(&multiplier.to_le_bytes());
        info[TSC_SHIFT] = shift.to_le_bytes()[0];
        info[FLAGS] = flags;
        self.version = put_versioned(slots, page, self.version, &mut info);
    }

    /// `struct pvclock_wall_clock`: version, seconds, nanoseconds.
    fn tell_wall_clock(&self, slots: &Slots) {
        let address = self.wall_clock();
        let Some(version) = slots.read_guest::<4>(address) else {
            return;
        };
        let start = realtime().saturating_sub(self.vm.now());
        let [seconds, nanoseconds] = [start / NANOSECONDS, start % NANOSECONDS];
        let mut clock = [0; 12];
        clock[4..8].copy_from_slice(&seconds.to_le_bytes()[..4]);
        clock[8..].copy_from_slice(&nanoseconds.to_le_bytes()[..4]);
        put_versioned(slots, address, u32::from_le_bytes(version), &mut clock);
    }

    /// The address of the time page, if there is one. What does not fit in one page of memory is none, as in Linux.
    fn page(&self) -> Option<u64> {
        let address = self.system_time & !ENABLED;
        let fits = address % PAGE_BYTES <= PAGE_BYTES - INFO_BYTES as u64;
        (self.system_time & ENABLED != 0 && fits).then_some(address)
    }
}

/// Writes a structure that begins with its version, which is odd while the rest changes. The new version.
fn put_versioned(slots: &Slots, address: u64, version: u32, bytes: &mut [u8]) -> u32 {
    let odd = version.wrapping_add(1) | 1;
    slots.write_guest(address, &odd.to_le_bytes());
    bytes[..4].copy_from_slice(&odd.to_le_bytes());
    slots.write_guest(address, bytes);
    let even = odd.wrapping_add(1);
    slots.write_guest(address, &even.to_le_bytes());
    even
}

/// The multiplier and the shift of a TSC: nanoseconds are `(ticks << shift) * multiplier >> 32`. The multiplier has
/// its highest bit set, so that it is as exact as it can be.
fn scale(khz: u32) -> (u32, i8) {
    let hz = u128::from(khz.max(1)) * 1000;
    let fraction = |shift: i8| (u128::from(NANOSECONDS) << (64 - shift)) / (hz << 32);
    let fits = (-30..=30).find_map(|shift| Some((u32::try_from(fraction(shift)).ok()?, shift)));
    fits.expect("a frequency of 1 kHz to 4 THz")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// As Linux's `pvclock_scale_delta` computes.
    fn scaled(ticks: u64, (multiplier, shift): (u32, i8)) -> u64 {
        let ticks = if shift < 0 {
            ticks >> -shift
        } else {
            ticks << shift
        };
        u64::try_from((u128::from(ticks) * u128::from(multiplier)) >> 32).unwrap()
    }

    #[test]
    fn scale_turns_a_second_of_ticks_into_nanoseconds() {
        for khz in [1, 999, 1_000_000, 1_000_001, 2_600_000, 3_999_999, u32::MAX] {
            let scale = scale(khz);
            assert!(scale.0 >> 31 == 1, "{khz}: {scale:?}");
            let nanoseconds = scaled(u64::from(khz) * 1000, scale);
            // One part in 2^31, and one tick that a negative shift loses.
            let exact = NANOSECONDS;
            assert!(exact - nanoseconds <= 2, "{khz}: {nanoseconds}");
        }
        assert_eq!(scale(1_000_000), (1 << 31, 1));
    }

    fn load<const N: usize>(memory: &GuestMemoryMmap, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    #[test]
    fn page_tells_the_clock_and_follows_what_changes_it() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let slots = Memory::of_regions(&memory).unwrap().slots();
        let epoch = Instant::now();
        let vm = Arc::new(VmClock::new(epoch));
        let mut clock = KvmClock::new(Arc::clone(&vm));
        let mut tsc = Tsc::new(epoch, 2_500_000);
        assert!(!clock.is_due(&tsc));
        assert!(!clock.note_stop(), "there is no page yet");

        clock.set_system_time(0x1fe0 | ENABLED);
        assert!(clock.is_due(&tsc));
        clock.tell(&slots, &tsc);
        assert!(!clock.is_due(&tsc));
        let info: [u8; INFO_BYTES] = load(&memory, 0x1fe0);
        assert_eq!(info[..4], 2_u32.to_le_bytes(), "an even version");
        assert_eq!(info[FLAGS], TSC_STABLE);

        let reads = |tsc: &Tsc| {
            let info: [u8; INFO_BYTES] = load(&memory, 0x1fe0);
            let word = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
            let multiplier = u32::from_le_bytes(info[24..28].try_into().unwrap());
            let shift = i8::from_le_bytes([info[TSC_SHIFT]]);
            let ticks = tsc.now().wrapping_sub(word(TSC_TIMESTAMP));
            scaled(ticks, (multiplier, shift)).wrapping_add(word(SYSTEM_TIME))
        };
        let (before, read, after) = (vm.now(), reads(&tsc), vm.now());
        assert!(
            before <= read + 2 && read <= after,
            "{before} {read} {after}"
        );

        vm.set(1 << 60);
        assert!(clock.is_due(&tsc));
        clock.tell(&slots, &tsc);
        assert!((1 << 60..1 << 61).contains(&reads(&tsc)));

        tsc.set(77);
        assert!(clock.is_due(&tsc), "the TSC has jumped");
        assert!(clock.note_stop());
        clock.tell(&slots, &tsc);
        assert!((1 << 60..1 << 61).contains(&reads(&tsc)));
        let info: [u8; INFO_BYTES] = load(&memory, 0x1fe0);
        assert_eq!(info[FLAGS], TSC_STABLE | GUEST_STOPPED);

        clock.set_system_time(0);
        assert!(!clock.is_due(&tsc));
    }

    #[test]
    fn wall_clock_is_the_time_of_day_at_zero() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let slots = Memory::of_regions(&memory).unwrap().slots();
        let epoch = Instant::now();
        let mut clock = KvmClock::new(Arc::new(VmClock::new(epoch)));
        memory
            .write_slice(&[7, 0, 0, 0], GuestAddress(0x10))
            .unwrap();
        clock.set_wall_clock(0x10);
        let tsc = Tsc::new(epoch, 1_000_000);
        assert!(clock.is_due(&tsc));
        clock.tell(&slots, &tsc);
        let told: [u8; 12] = load(&memory, 0x10);
        assert_eq!(told[..4], 10_u32.to_le_bytes(), "odd, then even again");
        let seconds = u32::from_le_bytes(told[4..8].try_into().unwrap());
        let now = realtime() / NANOSECONDS;
        assert!(now - u64::from(seconds) < 60, "{seconds} {now}");
        assert!(!clock.is_due(&tsc));
    }

    #[test]
    fn page_that_is_no_memory_is_left_alone() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let slots = Memory::of_regions(&memory).unwrap().slots();
        let tsc = Tsc::new(Instant::now(), 1_000_000);
        for address in [0xff0, 0x2000, 0x1ff8, u64::MAX - 32, u64::MAX] {
            let mut clock = KvmClock::new(Arc::new(VmClock::new(Instant::now())));
            clock.set_system_time(address | ENABLED);
            clock.set_wall_clock(address);
            clock.tell(&slots, &tsc);
            assert!(!clock.is_due(&tsc), "{address:#x}");
        }
        // The wall clock fits before 0xffc; a time page that crosses pages is none.
        assert_eq!(load::<0x20>(&memory, 0xffc), [0; 0x20]);
    }
}
