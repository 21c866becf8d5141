//! The VMX MSR bitmap: four quarters of 1 KiB, reads before writes, low MSRs before high ones.

use super::{Candidate, PermissionLayout, Vector};
use crate::Access::{self, Read, Write};
use crate::MsrIndex;

pub(super) static LAYOUT: PermissionLayout = PermissionLayout {
    len_bytes: 0x1000,
    vectors: &[
        Vector {
            base: MsrIndex(0),
            bits: [0, 0x800 * 8],
            stride: 1,
        },
        Vector {
            base: MsrIndex(0xc000_0000),
            bits: [0x400 * 8, 0xc00 * 8],
            stride: 1,
        },
    ],
    candidates: CANDIDATES,
};

/// Those of `vmx_possible_passthrough_msrs`. The x2APIC, the processor trace and the branch records have
/// rules of their own in KVM and are intercepted here.
#[rustfmt::skip]
const CANDIDATES: &[Candidate] = &[
    row(0x10, &[Read], &[], "time-stamp counter: reads always"),
    row(0x48, &[], &[Read, Write], "IA32_SPEC_CTRL: after the guest has written a value that is not 0"),
    row(0x49, &[], &[Write], "IA32_PRED_CMD: writes, if CPUID has it"),
    row(0x10b, &[], &[Write], "IA32_FLUSH_CMD: writes, if CPUID has it"),
    row(0x174, &[Read, Write], &[], "IA32_SYSENTER_CS: always, it is a field of the VMCS"),
    row(0x175, &[Read, Write], &[], "IA32_SYSENTER_ESP: always, it is a field of the VMCS"),
    row(0x176, &[Read, Write], &[], "IA32_SYSENTER_EIP: always, it is a field of the VMCS"),
    row(0x1c4, &[], &[], "IA32_XFD: after the guest has written a value that is not 0"),
    row(0x1c5, &[], &[], "IA32_XFD_ERR: reads, if CPUID has it"),
    row(0x3fc, &[], &[], "MSR_CORE_C3_RESIDENCY: reads, if the guest has idle states of its own"),
    row(0x3fd, &[], &[], "MSR_CORE_C6_RESIDENCY: reads, if the guest has idle states of its own"),
    row(0x3fe, &[], &[], "MSR_CORE_C7_RESIDENCY: reads, if the guest has idle states of its own"),
    row(0x660, &[], &[], "MSR_CORE_C1_RES: reads, if the guest has idle states of its own"),
    row(0xc000_0100, &[Read, Write], &[Read, Write], "IA32_FS_BASE: always"),
    row(0xc000_0101, &[Read, Write], &[Read, Write], "IA32_GS_BASE: always"),
    row(0xc000_0102, &[Read, Write], &[Read, Write], "IA32_KERNEL_GS_BASE: always"),
];

const fn row(
    index: u32,
    initial: &'static [Access],
    nested: &'static [Access],
    note: &'static str,
) -> Candidate {
    Candidate {
        index: MsrIndex(index),
        initial,
        nested,
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Desired, PermissionBitmap};

    /// Byte and bit by the rule in the manual: read low 0x000, read high 0x400, write low 0x800, write high
    /// 0xc00; then the MSR's low 13 bits, 8 to a byte.
    #[test]
    fn bits_lie_where_the_manual_says() {
        for (index, access, byte, bit) in [
            (0x0, Read, 0x000, 0),
            (0x10, Read, 0x002, 0),
            (0x48, Read, 0x009, 0),
            (0x48, Write, 0x809, 0),
            (0x49, Write, 0x809, 1),
            (0x10b, Write, 0x821, 3),
            (0x176, Write, 0x82e, 6),
            (0x1c5, Read, 0x038, 5),
            (0x660, Read, 0x0cc, 0),
            (0x1fff, Write, 0xbff, 7),
            (0xc000_0000, Read, 0x400, 0),
            (0xc000_0080, Read, 0x410, 0),
            (0xc000_0102, Read, 0x420, 2),
            (0xc000_0102, Write, 0xc20, 2),
            (0xc000_1fff, Write, 0xfff, 7),
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
    fn new_page_passes_the_always_ones_only() {
        let mut expected = [0xff; 4096];
        expected[0x002] = 0b1111_1110; // time-stamp counter, read
        for quarter in [0x000, 0x800] {
            expected[quarter + 0x2e] = 0b1000_1111; // 0x174, 0x175, 0x176
        }
        for quarter in [0x400, 0xc00] {
            expected[quarter + 0x20] = 0b1111_1000; // 0xc0000100, …101, …102
        }
        assert_eq!(PermissionBitmap::new(&LAYOUT).as_bytes(), expected);
    }

    #[test]
    fn wishes_change_single_bits() {
        let mut bitmap = PermissionBitmap::new(&LAYOUT);
        for (index, access, byte, value) in [
            (0x48, Read, 0x009, 0b1111_1110),
            (0x49, Write, 0x809, 0b1111_1101),
            (0x48, Write, 0x809, 0b1111_1100),
            (0x10b, Write, 0x821, 0b1111_0111),
        ] {
            let answer = bitmap.set_desired(MsrIndex(index), access, Desired::PassThrough);
            assert_eq!(answer, Ok(()));
            assert_eq!(bitmap.as_bytes()[byte], value);
        }
    }

    /// Passed to a nested guest: the three bases, speculation control, and the two commands.
    #[test]
    fn merged_page_passes_what_kvm_merges() {
        let mut bitmap = PermissionBitmap::new(&LAYOUT);
        for row in CANDIDATES {
            for access in Access::ALL {
                let answer = bitmap.set_desired(row.index, access, Desired::PassThrough);
                assert_eq!(answer, Ok(()));
            }
        }
        let mut expected = [0xff; 4096];
        expected[0x009] = 0b1111_1110;
        expected[0x809] = 0b1111_1100;
        expected[0x821] = 0b1111_0111;
        expected[0x420] = 0b1111_1000;
        expected[0xc20] = 0b1111_1000;
        assert_eq!(*bitmap.merge_nested(&[0; 4096]), expected);
    }
}
