//! A feature that may be advertised has its instructions.

mod support;
#[path = "support/tables.rs"]
mod tables;

use msrgate_x86::{SUPPORTED_FEATURES, Stop};
use tables::kernel;

/// Features, and one instruction of each. Those without an instruction of their own are bits of control
/// registers and page tables, promises about speed, or errata that are not there.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("fpu", &[0xdb, 0xe3]),                            // FNINIT
    ("tsc", &[0x0f, 0x31]),                            // RDTSC
    ("msr", &[0x0f, 0x32]),                            // RDMSR
    ("cx8", &[0x0f, 0xc7, 0x0f]),                      // CMPXCHG8B
    ("sep", &[0x0f, 0x34]),                            // SYSENTER
    ("cmov", &[0x0f, 0x44, 0xc0]),                     // CMOVE
    ("clflush", &[0x0f, 0xae, 0x3f]),                  // CLFLUSH
    ("mmx", &[0x0f, 0x77]),                            // EMMS
    ("fxsr", &[0x0f, 0xae, 0x07]),                     // FXSAVE
    ("sse", &[0x0f, 0x58, 0xc1]),                      // ADDPS
    ("sse2", &[0x66, 0x0f, 0xfe, 0xc1]),               // PADDD
    ("pni", &[0xf2, 0x0f, 0x7c, 0xc1]),                // HADDPS
    ("ssse3", &[0x66, 0x0f, 0x38, 0x00, 0xc1]),        // PSHUFB
    ("cx16", &[0x48, 0x0f, 0xc7, 0x0f]),               // CMPXCHG16B
    ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x0f]),      // INVPCID
    ("sse4_1", &[0x66, 0x0f, 0x3a, 0x0e, 0xc1, 0x55]), // PBLENDW
    ("sse4_2", &[0x66, 0x0f, 0x38, 0x37, 0xc1]),       // PCMPGTQ
    ("sse4_2", &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x0c]), // PCMPISTRI
    ("sse4_2", &[0xf2, 0x0f, 0x38, 0xf1, 0xc1]),       // CRC32
    ("movbe", &[0x0f, 0x38, 0xf0, 0x07]),              // MOVBE
    ("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]),             // POPCNT
    ("fsgsbase", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),     // RDFSBASE
    ("clflushopt", &[0x66, 0x0f, 0xae, 0x3f]),         // CLFLUSHOPT
    ("clwb", &[0x66, 0x0f, 0xae, 0x37]),               // CLWB
    ("rdpid", &[0xf3, 0x0f, 0xc7, 0xf8]),              // RDPID
    ("lahf_lm", &[0x9f]),                              // LAHF
    ("abm", &[0xf3, 0x0f, 0xbd, 0xc1]),                // LZCNT
    ("3dnowprefetch", &[0x0f, 0x0d, 0x0f]),            // PREFETCHW
    ("syscall", &[0x0f, 0x05]),                        // SYSCALL
    ("rdtscp", &[0x0f, 0x01, 0xf9]),                   // RDTSCP
];

const NO_INSTRUCTION: &[&str] = &[
    "de",
    "pse",
    "pae",
    "mce",
    "pge",
    "pat",
    "pcid",
    "pse36",
    "smep",
    "erms",
    "umip",
    "fsrm",
    "nx",
    "pdpe1gb",
    "lm",
    "ssb_no",
    "btc_no",
    "srso_no",
    "tsa_sq_no",
    "tsa_l1_no",
];

#[test]
fn every_advertised_feature_has_its_instructions() {
    const UD: u8 = 6;
    const OSFXSR_AND_FSGSBASE: u64 = 0x1_0600;
    for &(name, code) in INSTRUCTIONS {
        let mut m = kernel(|a| a.db(code));
        let mut system = m.cpu.system_registers();
        (system.cr4, system.efer) = (system.cr4 | OSFXSR_AND_FSGSBASE, system.efer | 1);
        m.cpu.set_system_registers(&system);
        m.set(|r| r.rdi = 0x30_0000);
        let stop = m.run(1);
        assert!(
            matches!(stop, Stop::Budget | Stop::Rdmsr { .. }),
            "{name}: {stop:?}"
        );
        assert_ne!(
            m.cpu.last_exception().map(|it| it.vector),
            Some(UD),
            "{name}"
        );
        assert!(m.cpu.unimplemented().is_empty(), "{name}");
    }
}

#[test]
fn every_supported_feature_is_accounted_for() {
    for feature in SUPPORTED_FEATURES {
        let has_instruction = INSTRUCTIONS.iter().any(|&(name, _)| name == feature.name);
        let has_none = NO_INSTRUCTION.contains(&feature.name);
        assert!(has_instruction != has_none, "{}", feature.name);
    }
}
