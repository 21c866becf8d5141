//! Which instructions there are: every one of the features that the processor has, in all three widths of code, but for
//! a short list of exceptions.

#[path = "support/opcodes.rs"]
mod opcodes;
mod support;

use std::collections::BTreeSet;

use iced_x86::{Code, CpuidFeature};
use msrgate_core::Segment;
use support::Machine;

/// The features, as the decoder's tables name them.
fn is_in_scope(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | CPUID
            | CMOV
            | CX8
            | CMPXCHG16B
            | FPU
            | FPU287
            | FPU387
            | FXSR
            | MMX
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | POPCNT
            | LZCNT
            | MOVBE
            | MSR
            | TSC
            | RDTSCP
            | RDPMC
            | RDPID
            | RDRAND
            | FSGSBASE
            | SEP
            | SYSCALL
            | CLFSH
            | CLFLUSHOPT
            | CLWB
            | CLDEMOTE
            | PREFETCHW
            | MULTIBYTENOP
            | PAUSE
            | SMAP
            | INVPCID
            | MONITOR
    )
}

/// In scope by their features, and not there.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("Fldenv_m14byte", THE_16_BIT_LAYOUT),
    ("Fnstenv_m14byte", THE_16_BIT_LAYOUT),
    ("Frstor_m94byte", THE_16_BIT_LAYOUT),
    ("Fnsave_m94byte", THE_16_BIT_LAYOUT),
];
const THE_16_BIT_LAYOUT: &str =
    "the x87 environment as the 8087 had it, which no kernel of 32 or 64 bits uses";

/// Where 16-bit code can be too.
const LOW_CODE: u64 = 0xc000;

/// A processor that has run the instruction once, in ring 0.
fn run(bits: u32, bytes: &[u8]) -> Machine {
    let mut m = Machine::long(bytes);
    let mut system = m.cpu.system_registers();
    system.cr4 |= 1 << 9; // OSFXSR
    if bits != 64 {
        system.cs = Segment {
            l: false,
            db: bits == 32,
            ..system.cs
        };
    }
    m.cpu.set_system_registers(&system);
    m.cpu.set_registers(&msrgate_core::Registers {
        rip: LOW_CODE,
        rflags: 2,
        ..m.cpu.registers()
    });
    m.ram.write(LOW_CODE, bytes);
    m.run(1);
    m
}

#[test]
fn every_instruction_of_the_features_is_there() {
    let mut missing = BTreeSet::new();
    let mut count = 0;
    for bits in [16, 32, 64] {
        for (code, examples) in opcodes::all(bits) {
            let features = code.cpuid_features();
            let name = format!("{code:?}");
            if !features.iter().all(|feature| is_in_scope(*feature)) {
                continue;
            }
            count += 1;
            let excepted = EXCEPTIONS.iter().any(|(known, _)| *known == name);
            let m = run(bits, &examples[0]);
            if m.cpu.unimplemented().is_empty() == excepted {
                missing.insert(format!("{bits} {name} {features:?} {:x?}", examples[0]));
            }
        }
    }
    assert!(count > 3000, "only {count}");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn instruction_that_is_not_there_is_named() {
    // vaddps ymm0, ymm0, ymm1; twice.
    let mut m = run(64, &[0xc5, 0xfc, 0x58, 0xc1]);
    let [note] = m.cpu.unimplemented() else {
        panic!("{:?}", m.cpu.unimplemented());
    };
    assert_eq!(note.name, format!("{:?}", Code::VEX_Vaddps_ymm_ymm_ymmm256));
    assert_eq!(
        (note.rip, &note.bytes[..]),
        (LOW_CODE, &[0xc5, 0xfc, 0x58, 0xc1][..])
    );
    assert_eq!(note.count, 1);
    m.cpu.reset();
    assert_eq!(m.cpu.unimplemented().len(), 1, "a reset does not forget");
}
