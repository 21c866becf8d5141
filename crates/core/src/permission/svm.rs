//! The SVM MSR permission map: three vectors of 2 KiB, two bits for each MSR, and 2 KiB that are reserved.

use super::{Candidate, PermissionLayout, Vector};
use crate::{Access, MsrIndex};

pub(super) static LAYOUT: PermissionLayout = PermissionLayout {
    len_bytes: 0x2000,
    vectors: &[
        vector(0, 0x0000),
        vector(0xc000_0000, 0x0800),
        vector(0xc001_0000, 0x1000),
    ],
    candidates: CANDIDATES,
};

const fn vector(base: u32, byte: usize) -> Vector {
    Vector {
        base: MsrIndex(base),
        bits: [byte * 8, byte * 8 + 1],
        stride: 2,
    }
}

/// Those of `direct_access_msrs`.
#[rustfmt::skip]
const CANDIDATES: &[Candidate] = &[
    always(0xc000_0081, "IA32_STAR: always"),
    sometimes(0x176, "IA32_SYSENTER_EIP: unless the guest's CPUID is Intel's"),
    sometimes(0x175, "IA32_SYSENTER_ESP: unless the guest's CPUID is Intel's"),
    always(0x174, "IA32_SYSENTER_CS: always"),
    always(0xc000_0101, "IA32_GS_BASE: always"),
    always(0xc000_0100, "IA32_FS_BASE: always"),
    always(0xc000_0102, "IA32_KERNEL_GS_BASE: always"),
    always(0xc000_0082, "IA32_LSTAR: always"),
    always(0xc000_0083, "IA32_CSTAR: always"),
    always(0xc000_0084, "IA32_FMASK: always"),
    always(0xc001_0130, "GHCB: always; only encrypted guests have it"),
    sometimes(0x48, "IA32_SPEC_CTRL: if virtualized, or after the guest has written a value that is not 0"),
    sometimes(0x49, "IA32_PRED_CMD: writes, if CPUID has it"),
    sometimes(0x10b, "IA32_FLUSH_CMD: writes, if CPUID has it"),
    sometimes(0x1d9, "IA32_DEBUGCTL: in encrypted guests, with virtualized branch records"),
    sometimes(0x1db, "MSR_LASTBRANCHFROMIP: with virtualized branch records"),
    sometimes(0x1dc, "MSR_LASTBRANCHTOIP: with virtualized branch records"),
    sometimes(0x1dd, "MSR_LASTINTFROMIP: with virtualized branch records"),
    sometimes(0x1de, "MSR_LASTINTTOIP: with virtualized branch records"),
    sometimes(0xda0, "IA32_XSS: in encrypted guests with protected state"),
    sometimes(0xc000_0080, "IA32_EFER: in encrypted guests with protected state"),
    sometimes(0x277, "IA32_PAT: in encrypted guests with protected state"),
    sometimes(0xc000_0103, "IA32_TSC_AUX: in encrypted guests, if the hardware swaps it"),
    x2apic(0x802, "identity"),
    x2apic(0x803, "version"),
    x2apic(0x808, "task priority"),
    x2apic(0x809, "arbitration priority"),
    x2apic(0x80a, "processor priority"),
    x2apic(0x80b, "end of interrupt"),
    x2apic(0x80c, "remote read"),
    x2apic(0x80d, "logical destination"),
    x2apic(0x80e, "destination format"),
    x2apic(0x80f, "spurious interrupt vector"),
    x2apic(0x810, "in service, first"),
    x2apic(0x818, "trigger modes, first"),
    x2apic(0x820, "requested, first"),
    x2apic(0x828, "errors"),
    x2apic(0x830, "interrupt command"),
    x2apic(0x831, "interrupt command, upper half"),
    // Not the timer's vector, 0x832: KVM emulates the timer, and must see its mode.
    x2apic(0x833, "thermal vector"),
    x2apic(0x834, "performance counter vector"),
    x2apic(0x835, "pin 0 vector"),
    x2apic(0x836, "pin 1 vector"),
    x2apic(0x837, "error vector"),
    x2apic(0x838, "timer's initial count"),
    x2apic(0x839, "timer's current count"),
    x2apic(0x83e, "timer's divider"),
];

const fn always(index: u32, note: &'static str) -> Candidate {
    Candidate {
        index: MsrIndex(index),
        initial: &Access::ALL,
        nested: &Access::ALL,
        note,
    }
}

const fn sometimes(index: u32, note: &'static str) -> Candidate {
    Candidate {
        initial: &[],
        ..always(index, note)
    }
}

/// Passed through where the hardware virtualizes the x2APIC (x2AVIC), and never to a nested guest.
const fn x2apic(index: u32, note: &'static str) -> Candidate {
    Candidate {
        nested: &[],
        ..sometimes(index, note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Access::{Read, Write};
    use crate::{Desired, PermissionBitmap};

    /// Byte and bit by the rule in the manual: 2 KiB to a vector, 4 MSRs to a byte, read before write.
    #[test]
    fn bits_lie_where_the_manual_says() {
        for (index, access, byte, bit) in [
            (0x0, Read, 0x0000, 0),
            (0x0, Write, 0x0000, 1),
            (0x48, Read, 0x0012, 0),
            (0x49, Write, 0x0012, 3),
            (0x10b, Write, 0x0042, 7),
            (0x174, Read, 0x005d, 0),
            (0x277, Write, 0x009d, 7),
            (0x1fff, Write, 0x07ff, 7),
            (0xc000_0080, Read, 0x0820, 0),
            (0xc000_0081, Write, 0x0820, 3),
            (0xc000_0084, Read, 0x0821, 0),
            (0xc000_0102, Write, 0x0840, 5),
            (0xc000_1fff, Write, 0x0fff, 7),
            (0xc001_0000, Read, 0x1000, 0),
            (0xc001_0130, Write, 0x104c, 1),
            (0xc001_1fff, Write, 0x17ff, 7),
        ] {
            let index = MsrIndex(index);
            assert_eq!(
                LAYOUT.bit(index, access),
                Some(byte * 8 + bit),
                "{access} of {index}"
            );
        }
    }

    #[test]
    fn new_map_passes_the_always_ones_only() {
        let mut expected = [0xff; 8192];
        expected[0x005d] = 0b1111_1100; // 0x174
        expected[0x0820] = 0b0000_0011; // 0xc0000081, …82, …83; not EFER
        expected[0x0821] = 0b1111_1100; // 0xc0000084
        expected[0x0840] = 0b1100_0000; // 0xc0000100, …101, …102; not TSC_AUX
        expected[0x104c] = 0b1111_1100; // 0xc0010130
        assert_eq!(PermissionBitmap::new(&LAYOUT).as_bytes(), expected);
    }

    #[test]
    fn timer_vector_is_no_candidate() {
        let mut bitmap = PermissionBitmap::new(&LAYOUT);
        let answer = bitmap.set_desired(MsrIndex(0x832), Read, Desired::PassThrough);
        assert!(answer.is_err());
        let answer = bitmap.set_desired(MsrIndex(0x833), Read, Desired::PassThrough);
        assert_eq!(answer, Ok(()));
        assert_eq!(bitmap.as_bytes()[0x20c], 0b1011_1111);
    }

    /// KVM merges by whole 32-bit words, of 16 MSRs: the words that hold a candidate other than those of
    /// the x2APIC are the OR of both maps, the rest is ones.
    #[test]
    fn merged_map_is_the_or_of_the_words_with_candidates() {
        let mut outer = PermissionBitmap::new(&LAYOUT);
        for x2apic in CANDIDATES.iter().filter(|row| row.index.is_x2apic()) {
            let answer = outer.set_desired(x2apic.index, Read, Desired::PassThrough);
            assert_eq!(answer, Ok(()));
        }
        let inner: Vec<u8> = (0..8192u32).map(|byte| (byte * 37 % 251) as u8).collect();
        let words = [
            0x0010, 0x0040, 0x005c, 0x0074, 0x009c, 0x0368, 0x0820, 0x0840, 0x104c,
        ];
        let mut expected = [0xff; 8192];
        for byte in words.into_iter().flat_map(|word| word..word + 4) {
            expected[byte] = outer.as_bytes()[byte] | inner[byte];
        }
        assert_eq!(*outer.merge_nested(&inner), expected);
    }
}
