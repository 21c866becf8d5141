//! [`Cpuid`]: the processor that every engine is given: what all of them have.

use msrgate_core::Errno;
use msrgate_tests::door::Door;

const GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const ENTRIES: usize = 256;
/// Words of an entry: function, index, flags, EAX, EBX, ECX, EDX, and padding.
const ENTRY: usize = 10;

/// Leaves that are cut to what all engines have.
const FEATURES: [u32; 3] = [1, 7, 0x8000_0001];
/// Leaves that are taken as one engine has them.
const TAKEN: [u32; 3] = [0, 0x8000_0000, 0x8000_0008];
/// Leaf 1, ECX: features with state of their own (XSAVE, AVX and what needs them).
const NO_XSAVE: u32 = !(1 << 26 | 1 << 27 | 1 << 28 | 1 << 12 | 1 << 29);

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Cpuid(Vec<[u32; ENTRY]>);

impl Cpuid {
    /// What the engine supports, as far as it matters here.
    pub(crate) fn of<D: Door>(door: &D) -> Result<Self, Errno> {
        let mut words = vec![0_u32; 2 + ENTRY * ENTRIES];
        words[0] = u32::try_from(ENTRIES).expect("few");
        let address = words.as_mut_ptr().expose_provenance() as u64;
        door.ioctl(door.system(), GET_SUPPORTED_CPUID, address)?;
        let count = usize::try_from(words[0]).expect("few");
        let entries = words[2..].chunks_exact(ENTRY).take(count);
        let entries = entries.map(|entry| entry.try_into().expect("of this length"));
        let wanted = |entry: &[u32; ENTRY]| {
            entry[1] == 0 && (FEATURES.contains(&entry[0]) || TAKEN.contains(&entry[0]))
        };
        let mut entries: Vec<[u32; ENTRY]> = entries.filter(wanted).collect();
        for entry in &mut entries {
            match entry[0] {
                0 => entry[3] = 7,
                1 => entry[5] &= NO_XSAVE,
                0x8000_0000 => entry[3] = 0x8000_0008,
                _ => {}
            }
        }
        Ok(Self(entries))
    }

    /// The features that both have.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut table = self.clone();
        for entry in table
            .0
            .iter_mut()
            .filter(|entry| FEATURES.contains(&entry[0]))
        {
            let same = other.0.iter().find(|same| same[0] == entry[0]);
            let masks = same.map_or([0; 3], |same| [same[4], same[5], same[6]]);
            let first = if entry[0] == 1 { 5 } else { 4 }; // leaf 1, EBX: no features
            for (at, mask) in (4..7).zip(masks) {
                if at >= first {
                    entry[at] &= mask;
                }
            }
        }
        table
    }

    /// Whether a bit of a register (EAX is 0) is set.
    pub(crate) fn has(&self, leaf: u32, register: usize, bit: u32) -> bool {
        let entry = self.0.iter().find(|entry| entry[0] == leaf);
        entry.is_some_and(|entry| entry[3 + register] >> bit & 1 == 1)
    }

    /// `struct kvm_cpuid2`.
    pub(crate) fn words(&self) -> [u32; 2 + ENTRY * 8] {
        let mut words = [0; 2 + ENTRY * 8];
        words[0] = u32::try_from(self.0.len()).expect("few");
        words[2..][..ENTRY * self.0.len()].copy_from_slice(self.0.as_flattened());
        words
    }
}
