//! CPUID: the lookup that the instruction does, and the features that this processor has.
//!
//! What a guest sees is the host's choice ([`Config::cpuid`](crate::Config::cpuid)); [`SUPPORTED_FEATURES`] says
//! what may be chosen, [`fixed_cpuid`] is a choice that does not depend on any machine. Features that are
//! MSRs or devices (APIC, MTRR, MCA, x2APIC, TSC deadline, the hypervisor bit) are the host's to add, and so is
//! RDRAND, whose numbers come from the bus.
//! Nothing here checks that a table keeps to the list: a bit too many makes the guest meet #UD.

use crate::CpuidLeaf;

/// One of the four registers that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the manuals' register names")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature that the processor has, and the bit that tells a guest so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// CPUID leaf. All leaves with features use subleaf 0.
    pub function: u32,
    /// Register that holds the bit.
    pub register: CpuidRegister,
    /// Bit number.
    pub bit: u8,
    /// Name, as `/proc/cpuinfo` spells it.
    pub name: &'static str,
}

/// Every feature bit that may be advertised to a guest of this processor.
pub const SUPPORTED_FEATURES: &[Feature] = &{
    use CpuidRegister::{Eax, Ebx, Ecx, Edx};
    [
        feature(1, Edx, 0, "fpu"),
        feature(1, Edx, 2, "de"),
        feature(1, Edx, 3, "pse"),
        feature(1, Edx, 4, "tsc"),
        feature(1, Edx, 5, "msr"),
        feature(1, Edx, 6, "pae"),
        feature(1, Edx, 7, "mce"),
        feature(1, Edx, 8, "cx8"),
        feature(1, Edx, 11, "sep"),
        feature(1, Edx, 13, "pge"),
        feature(1, Edx, 15, "cmov"),
        feature(1, Edx, 16, "pat"),
        feature(1, Edx, 17, "pse36"),
        feature(1, Edx, 19, "clflush"),
        feature(1, Edx, 23, "mmx"),
        feature(1, Edx, 24, "fxsr"),
        feature(1, Edx, 25, "sse"),
        feature(1, Edx, 26, "sse2"),
        feature(1, Ecx, 0, "pni"),
        feature(1, Ecx, 9, "ssse3"),
        feature(1, Ecx, 13, "cx16"),
        feature(1, Ecx, 17, "pcid"),
        feature(1, Ecx, 19, "sse4_1"),
        feature(1, Ecx, 20, "sse4_2"),
        feature(1, Ecx, 22, "movbe"),
        feature(1, Ecx, 23, "popcnt"),
        feature(7, Ebx, 0, "fsgsbase"),
        feature(7, Ebx, 7, "smep"),
        feature(7, Ebx, 9, "erms"),
        feature(7, Ebx, 10, "invpcid"),
        feature(7, Ebx, 23, "clflushopt"),
        feature(7, Ebx, 24, "clwb"),
        feature(7, Ecx, 2, "umip"),
        feature(7, Ecx, 22, "rdpid"),
        feature(7, Edx, 4, "fsrm"),
        feature(0x8000_0001, Ecx, 0, "lahf_lm"),
        feature(0x8000_0001, Ecx, 5, "abm"),
        feature(0x8000_0001, Ecx, 8, "3dnowprefetch"),
        feature(0x8000_0001, Edx, 11, "syscall"),
        feature(0x8000_0001, Edx, 20, "nx"),
        feature(0x8000_0001, Edx, 26, "pdpe1gb"),
        feature(0x8000_0001, Edx, 27, "rdtscp"),
        feature(0x8000_0001, Edx, 29, "lm"),
        // AMD's: what does not speculate needs no mitigation.
        feature(0x8000_0008, Ebx, 26, "ssb_no"),
        feature(0x8000_0008, Ebx, 29, "btc_no"),
        feature(0x8000_0021, Eax, 29, "srso_no"),
        feature(0x8000_0021, Ecx, 1, "tsa_sq_no"),
        feature(0x8000_0021, Ecx, 2, "tsa_l1_no"),
    ]
};

/// All supported bits of one register of a leaf: what a host's own value may be masked with.
///
/// AMD repeats leaf 1's EDX in leaf 0x80000001; those copies count as supported with the originals.
#[must_use]
pub fn supported_mask(function: u32, register: CpuidRegister) -> u32 {
    let of = |function| {
        SUPPORTED_FEATURES
            .iter()
            .filter(|f| f.function == function && f.register == register)
            .fold(0, |mask, f| mask | 1 << f.bit)
    };
    match (function, register) {
        (0x8000_0001, CpuidRegister::Edx) => of(function) | of(1) & AMD_COPIES,
        _ => of(function),
    }
}

/// Bits of leaf 1's EDX that AMD repeats in leaf 0x80000001's.
pub const AMD_COPIES: u32 = 0x0183_f3ff;

/// A generic 64-bit processor with every supported feature: `GenuineIntel`, family 6, model 26 (the
/// first that had SSE4.2 and POPCNT), 40 physical and 48 linear address bits.
#[must_use]
pub fn fixed_cpuid() -> Vec<CpuidLeaf> {
    use CpuidRegister::{Ebx, Ecx, Edx};
    let leaf = |function, [eax, ebx, ecx, edx]: [u32; 4]| CpuidLeaf {
        function,
        index: None,
        eax,
        ebx,
        ecx,
        edx,
    };
    let mut leaves = vec![
        leaf(0, [7, word(b"Genu"), word(b"ntel"), word(b"ineI")]),
        // EBX: CLFLUSH works on 8 quadwords.
        leaf(
            1,
            [
                0x0001_06a3,
                0x0800,
                supported_mask(1, Ecx),
                supported_mask(1, Edx),
            ],
        ),
        CpuidLeaf {
            index: Some(0),
            ..leaf(
                7,
                [
                    0,
                    supported_mask(7, Ebx),
                    supported_mask(7, Ecx),
                    supported_mask(7, Edx),
                ],
            )
        },
        leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        leaf(
            0x8000_0001,
            [
                0,
                0,
                supported_mask(0x8000_0001, Ecx),
                supported_mask(0x8000_0001, Edx) & !AMD_COPIES,
            ],
        ),
    ];
    let brand = b"msrgate software processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (function, bytes) in (0x8000_0002..).zip(brand.chunks_exact(16)) {
        leaves.push(leaf(
            function,
            [0, 4, 8, 12].map(|at| word(&bytes[at..at + 4])),
        ));
    }
    leaves.push(leaf(0x8000_0008, [48 << 8 | 40, 0, 0, 0]));
    leaves
}

const fn feature(function: u32, register: CpuidRegister, bit: u8, name: &'static str) -> Feature {
    Feature {
        function,
        register,
        bit,
        name,
    }
}

const fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What CPUID answers: the row, or by the vendor's rule for leaves that are out of range.
///
/// AMD answers zeros. Intel answers with the highest basic leaf where `function` is above its range's
/// maximum, and zeros where it is merely absent.
pub(crate) fn lookup(table: &[CpuidLeaf], function: u32, index: u32) -> [u32; 4] {
    let row = find(table, function, index).or_else(|| {
        let basic = find(table, 0, 0)?;
        if is_amd(basic) {
            return None;
        }
        let range = match function {
            0x4000_0000..=0x4fff_ffff => function & 0xffff_ff00,
            _ => function & 0x8000_0000,
        };
        if find(table, range, 0).is_some_and(|first| function <= first.eax) {
            return None;
        }
        find(table, basic.eax, index)
    });
    row.map_or([0; 4], |row| [row.eax, row.ebx, row.ecx, row.edx])
}

fn find(table: &[CpuidLeaf], function: u32, index: u32) -> Option<&CpuidLeaf> {
    table
        .iter()
        .find(|row| row.function == function && row.index.is_none_or(|own| own == index))
}

/// Whether leaf 0 names AMD, or Hygon, whose processors follow it.
pub(crate) fn is_amd(basic: &CpuidLeaf) -> bool {
    let vendor = [basic.ebx, basic.edx, basic.ecx].map(u32::to_le_bytes);
    matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// What the processor itself wants to know of its table, looked up once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    leaf_1_ecx: u32,
    leaf_1_edx: u32,
    leaf_7: [u32; 4],
    extended_ecx: u32,
    extended_edx: u32,
    /// MAXPHYADDR, 32 to 52.
    pub(crate) physical_bits: u32,
    /// The vendor is AMD or Hygon.
    pub(crate) amd: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Features {
    pub(crate) fn new(table: &[CpuidLeaf]) -> Self {
        let leaf = |function| find(table, function, 0).copied().unwrap_or_default();
        let (leaf_1, leaf_7, extended) = (leaf(1), leaf(7), leaf(0x8000_0001));
        let physical_bits = match find(table, 0x8000_0008, 0) {
            Some(row) => row.eax & 0xff,
            None => 36,
        };
        Self {
            leaf_1_ecx: leaf_1.ecx,
            leaf_1_edx: leaf_1.edx,
            leaf_7: [leaf_7.eax, leaf_7.ebx, leaf_7.ecx, leaf_7.edx],
            extended_ecx: extended.ecx,
            extended_edx: extended.edx,
            physical_bits: physical_bits.clamp(32, 52),
            amd: find(table, 0, 0).is_some_and(is_amd),
        }
    }

    /// Whether the table advertises a bit.
    pub(crate) const fn has(&self, function: u32, register: CpuidRegister, bit: u8) -> bool {
        use CpuidRegister::{Eax, Ebx, Ecx, Edx};
        let word = match (function, register) {
            (1, Ecx) => self.leaf_1_ecx,
            (1, Edx) => self.leaf_1_edx,
            (7, Eax) => self.leaf_7[0],
            (7, Ebx) => self.leaf_7[1],
            (7, Ecx) => self.leaf_7[2],
            (7, Edx) => self.leaf_7[3],
            (0x8000_0001, Ecx) => self.extended_ecx,
            (0x8000_0001, Edx) => self.extended_edx,
            _ => 0,
        };
        word >> bit & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(function: u32, index: Option<u32>, eax: u32) -> CpuidLeaf {
        CpuidLeaf {
            function,
            index,
            eax,
            ..CpuidLeaf::default()
        }
    }

    fn vendor(name: &[u8; 12], maximum: u32) -> CpuidLeaf {
        CpuidLeaf {
            ebx: word(&name[..4]),
            edx: word(&name[4..8]),
            ecx: word(&name[8..]),
            ..row(0, None, maximum)
        }
    }

    #[test]
    fn subleaf_that_matters_is_matched_and_one_that_does_not_is_ignored() {
        let table = [row(1, None, 11), row(4, Some(0), 40), row(4, Some(1), 41)];
        assert_eq!(lookup(&table, 1, 77)[0], 11);
        assert_eq!(lookup(&table, 4, 1)[0], 41);
        assert_eq!(lookup(&table, 4, 2), [0; 4]);
    }

    #[test]
    fn leaf_out_of_range_follows_the_vendor() {
        let rows = |name| {
            [
                vendor(name, 7),
                row(7, Some(0), 70),
                row(0x8000_0000, None, 0x8000_0008),
            ]
        };
        let intel = rows(b"GenuineIntel");
        let amd = rows(b"AuthenticAMD");
        for function in [8, 0x4000_0000, 0x8000_0009] {
            assert_eq!(lookup(&intel, function, 0)[0], 70, "{function:#x}");
            assert_eq!(lookup(&amd, function, 0), [0; 4], "{function:#x}");
        }
        // In range but absent, and no such subleaf of the highest leaf.
        assert_eq!(lookup(&intel, 6, 0), [0; 4]);
        assert_eq!(lookup(&intel, 8, 1), [0; 4]);
        assert_eq!(lookup(&[], 0, 0), [0; 4]);
    }

    #[test]
    fn fixed_table_advertises_what_long_mode_kernels_need() {
        let features = Features::new(&fixed_cpuid());
        assert!(features.has(0x8000_0001, CpuidRegister::Edx, 29));
        assert!(features.has(1, CpuidRegister::Edx, 26));
        assert!(
            !features.has(1, CpuidRegister::Ecx, 26),
            "XSAVE is not supported"
        );
        assert!(
            !features.has(7, CpuidRegister::Ebx, 5),
            "AVX2 is not supported"
        );
        assert_eq!(features.physical_bits, 40);
        assert!(!features.amd);
    }

    #[test]
    fn features_are_listed_once() {
        for (i, a) in SUPPORTED_FEATURES.iter().enumerate() {
            for b in &SUPPORTED_FEATURES[..i] {
                assert!(
                    (a.function, a.register, a.bit) != (b.function, b.register, b.bit),
                    "{a:?}"
                );
            }
        }
    }
}
