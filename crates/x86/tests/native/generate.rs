//! Instructions to try, and registers that point their operands into the arena.
//!
//! An instruction is random bytes, every other time behind an opcode that is chosen among all, that decode to something
//! fit: user mode, nothing but registers and memory that the registers choose. Branches go to one known place.

use std::collections::BTreeSet;

use iced_x86::{
    Code, ConstantOffsets, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl,
    Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register, UsedMemory,
};

use crate::layout::*;
use crate::opcodes;
use crate::random::Random;
use crate::state::{Fx, State};

/// An instruction to try.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) bytes: Vec<u8>,
    pub(crate) instruction: Instruction,
    memory: Vec<UsedMemory>,
}

/// Makes instructions and inputs.
pub(crate) struct Generator {
    pub(crate) random: Random,
    info: InstructionInfoFactory,
    /// Beginnings of encodings, instruction by instruction, so that rare ones are tried as often as others.
    beginnings: Vec<Vec<Vec<u8>>>,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            info: InstructionInfoFactory::new(),
            beginnings: opcodes::all(64)
                .into_values()
                .filter_map(|examples| {
                    let is_tried = |bytes: &Vec<u8>| {
                        let bytes = [bytes, &[0; 12][..]].concat();
                        decode(&bytes).is_some_and(|(instruction, _)| is_fit(&instruction))
                    };
                    let tried: Vec<_> = examples.into_iter().filter(is_tried).collect();
                    (!tried.is_empty()).then_some(tried)
                })
                .collect(),
        }
    }

    /// The instructions that will be tried, if the run is long enough.
    pub(crate) fn codes(&self) -> BTreeSet<Code> {
        let examples = self.beginnings.iter().flatten();
        examples
            .filter_map(|bytes| decode(&[bytes, &[0; 12][..]].concat()))
            .map(|(instruction, _)| instruction.code())
            .collect()
    }

    /// The next instruction.
    pub(crate) fn subject(&mut self) -> Subject {
        loop {
            let mut bytes = self.bytes();
            let Some((instruction, offsets)) = decode(&bytes) else {
                continue;
            };
            bytes.truncate(instruction.len());
            if !is_fit(&instruction) || !self.aim(&mut bytes, &instruction, offsets) {
                continue;
            }
            let Some((instruction, _)) = decode(&bytes) else {
                continue;
            };
            let memory = self.info.info(&instruction).used_memory().to_vec();
            return Subject {
                bytes,
                instruction,
                memory,
            };
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut bytes = Vec::with_capacity(32);
        if random.one_in(2) {
            let examples = &self.beginnings[random.below(self.beginnings.len() as u64) as usize];
            bytes.extend(&examples[random.below(examples.len() as u64) as usize]);
            bytes.extend((0..2).flat_map(|_| random.next().to_le_bytes()));
            return bytes;
        }
        if random.one_in(2) {
            bytes.push(random.pick(&[0x66, 0x66, 0x66, 0xf2, 0xf3, 0xf3, 0xf0, 0x67]));
        }
        if random.one_in(16) {
            bytes.push(random.pick(&[0x66, 0x67, 0xf2, 0xf3, 0x2e]));
        }
        if random.one_in(2) {
            bytes.push(0x40 | random.below(16) as u8);
        }
        match random.below(8) {
            0..3 => {}
            3..6 => bytes.push(0x0f),
            6 => bytes.extend([0x0f, 0x38]),
            _ => bytes.extend([0x0f, 0x3a]),
        }
        bytes.extend((0..4).flat_map(|_| random.next().to_le_bytes()).take(20));
        bytes
    }

    /// Sets displacements and branch targets that no register can correct. `false`: not possible.
    fn aim(&mut self, bytes: &mut [u8], insn: &Instruction, offsets: ConstantOffsets) -> bool {
        if matches!(insn.flow_control(), FlowControl::Next) {
            let fixed =
                insn.memory_base() == Register::None && insn.memory_index() == Register::None;
            let moffs = offsets.displacement_size() == 8;
            if insn.is_ip_rel_memory_operand() || fixed && offsets.has_displacement() && !moffs {
                let at = offsets.displacement_offset();
                let origin = match insn.is_ip_rel_memory_operand() {
                    true => INSTRUCTION + bytes.len() as u64,
                    false => 0,
                };
                let target = self.target(16).wrapping_sub(origin) as u32;
                bytes[at..at + 4].copy_from_slice(&target.to_le_bytes());
            } else if moffs && offsets.has_displacement() {
                let at = offsets.displacement_offset();
                let target = self.target(8);
                bytes[at..at + 8].copy_from_slice(&target.to_le_bytes());
            }
            return true;
        }
        // Intel ignores the operand size of near branches, AMD cuts RIP to 16 bits.
        if bytes[..bytes.len() - 2].contains(&0x66) {
            return false;
        }
        let distance = u32::from(BRANCH_BYTES).to_le_bytes();
        let (at, len) = (offsets.immediate_offset(), offsets.immediate_size());
        if !matches!(len, 1 | 4) {
            return false;
        }
        bytes[at..at + len].copy_from_slice(&distance[..len]);
        true
    }

    /// An address for an access of `len_bytes`.
    fn target(&mut self, len_bytes: u64) -> u64 {
        let random = &mut self.random;
        match random.below(16) {
            0..9 => WRITABLE.start + 512 + random.below(PAGE) / 16 * 16,
            9..11 => WRITABLE.start + 512 + random.below(PAGE),
            11 => WRITABLE.start + PAGE - random.below(len_bytes.max(2)), // two pages
            12 => WRITABLE.end - random.below(len_bytes.max(2)),          // runs out of memory
            13 => WRITABLE.end - len_bytes,
            14 => READ_ONLY.start + random.below(PAGE - 512),
            _ => WRITABLE.start - random.below(len_bytes.max(2)), // comes out of nothing
        }
    }

    /// Registers to start from, or `None` where no register makes the operands lie in the arena.
    pub(crate) fn input(&mut self, subject: &Subject) -> Option<State> {
        (0..8).find_map(|_| {
            let state = self.try_input(subject);
            is_safe(subject, &state).then_some(state)
        })
    }

    fn try_input(&mut self, subject: &Subject) -> State {
        let random = &mut self.random;
        let mut gpr: [u64; 16] = core::array::from_fn(|_| random.integer());
        gpr[RSP] = WRITABLE.start + 1024 + random.below(128) * 8;
        let insn = &subject.instruction;
        if insn.has_rep_prefix() || insn.has_repne_prefix() {
            gpr[RCX] = random.below(24);
        }
        if is_bit_string(insn) {
            gpr[insn.op1_register().full_register().number()] =
                random.below(4096).wrapping_sub(2048);
        }
        if matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) {
            gpr[RCX] = gpr[RCX] & !31 | random.below(17);
        }
        for memory in &subject.memory {
            self.point(memory, &mut gpr);
        }
        let random = &mut self.random;
        let masked = !random.one_in(8);
        let st = core::array::from_fn(|_| random.extended());
        let fcw = 0x40
            | random.below(16) << 8
            | if random.one_in(8) {
                random.below(64)
            } else {
                63
            };
        // Nothing is pending: the flags are among the masked.
        let fsw = random.next() & 0x7f00 | random.next() & fcw & 0x3f;
        let mxcsr = random.next() & 0xe07f
            | if masked {
                0x1f80
            } else {
                random.next() & 0x1f80
            };
        let fx = Fx {
            fcw: fcw as u16,
            fsw: fsw as u16,
            ftw: if random.one_in(4) {
                random.below(256) as u16
            } else {
                0xff
            },
            mxcsr: mxcsr as u32,
            st: st.map(|mut st: [u8; 16]| {
                st[10..].fill(0);
                st
            }),
            xmm: core::array::from_fn(|_| random.vector()),
            ..Fx::default()
        };
        let rflags = random.next() & 0x8d5 | if random.one_in(4) { 0x400 } else { 0 } | 0x202;
        State { gpr, rflags, fx }
    }

    /// Makes a base or index register point a memory operand somewhere.
    fn point(&mut self, memory: &UsedMemory, gpr: &mut [u64; 16]) {
        let target = self.target(memory.memory_size().size() as u64);
        let (base, index) = (memory.base(), memory.index());
        let scaled = match index {
            Register::None => 0,
            index => value(index, gpr).wrapping_mul(memory.scale().into()),
        };
        let rest = target.wrapping_sub(memory.displacement());
        let (register, at) = match base {
            Register::None | Register::RIP | Register::EIP if index == Register::None => return,
            Register::None => (index, rest / u64::from(memory.scale())),
            _ => (base, rest.wrapping_sub(scaled)),
        };
        if register.is_gpr32() || register.is_gpr64() {
            gpr[register.number()] = match register.size() {
                4 => at & 0xffff_ffff | self.random.next() << 32,
                _ => at,
            };
        }
    }
}

pub(crate) const RCX: usize = 1;
pub(crate) const RSP: usize = 4;
pub(crate) const RDI: usize = 7;

fn decode(bytes: &[u8]) -> Option<(Instruction, ConstantOffsets)> {
    let mut decoder = Decoder::with_ip(64, bytes, INSTRUCTION, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instruction);
    (!instruction.is_invalid()).then_some((instruction, offsets))
}

fn value(register: Register, gpr: &[u64; 16]) -> u64 {
    let value = gpr[register.full_register().number()];
    match register.size() {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// BT and relatives whose bit number reaches beyond the memory operand.
fn is_bit_string(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic(), Bt | Bts | Btr | Btc)
        && insn.op0_kind() == OpKind::Memory
        && insn.op1_kind() == OpKind::Register
}

/// Whether all that the instruction accesses is in the arena, with room around for repeats and bit offsets, and
/// its operands have a meaning.
fn is_safe(subject: &Subject, state: &State) -> bool {
    let insn = &subject.instruction;
    if is_bit_string(insn) {
        let number = state.gpr[insn.op1_register().full_register().number()] as i64;
        if !(-2048..2048).contains(&number) {
            return false;
        }
    }
    // Processors differ about faults of bytes that are not stored.
    let rdi = state.gpr[RDI];
    if matches!(insn.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq)
        && !(WRITABLE.contains(&rdi) && WRITABLE.contains(&(rdi + 15)))
    {
        return false;
    }
    // 16-bit operands cannot be shifted by more than 16.
    if matches!(insn.code(), Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL)
        && state.gpr[RCX] & 31 > 16
    {
        return false;
    }
    subject.memory.iter().all(|memory| {
        let address = memory.virtual_address(0, |register, _, _| match register {
            Register::RIP | Register::EIP => Some(0),
            register if register.is_gpr() => Some(value(register, &state.gpr)),
            _ => Some(0),
        });
        let room = ARENA + 1024..ARENA + ARENA_PAGES * PAGE - 1024;
        address.is_some_and(|address| room.contains(&address))
    })
}

/// Whether an instruction may be tried.
fn is_fit(insn: &Instruction) -> bool {
    let plain = |register: Register| {
        register.is_gpr() || register.is_xmm() || register.is_st() || register.is_mm()
    };
    let registers_are_plain = (0..insn.op_count())
        .filter(|&i| insn.op_kind(i) == OpKind::Register)
        .all(|i| plain(insn.op_register(i)));
    let stays_here = match insn.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
            insn.op0_kind() == OpKind::NearBranch64
        }
        _ => false,
    };
    let own_segment = !matches!(insn.memory_segment(), Register::FS | Register::GS);
    insn.code().encoding() == EncodingKind::Legacy
        && !insn.is_privileged()
        && registers_are_plain
        && stays_here
        && own_segment
        && !is_of_the_system(insn)
        && is_in_scope(insn)
        && is_defined(insn)
}

/// What reads or changes more than registers and memory, or saves pointers that processors keep differently.
fn is_of_the_system(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let more = matches!(
        insn.mnemonic(),
        Rdtsc
            | Rdtscp
            | Cpuid
            | Rdpmc
            | Xgetbv
            | Rdrand
            | Rdseed
            | Rdpid
            | Rdpru
            | Clzero
            | Sldt
            | Str
            | Smsw
            | Sgdt
            | Sidt
            | Lar
            | Lsl
            | Verr
            | Verw
            | Lfs
            | Lgs
            | Lss
            | Syscall
            | Sysenter
            | Popf
            | Popfd
            | Popfq
            | Rdfsbase
            | Rdgsbase
            | Wrfsbase
            | Wrgsbase
    );
    let saves = matches!(
        insn.mnemonic(),
        Xsave
            | Xsave64
            | Xsavec
            | Xsavec64
            | Xsaveopt
            | Xsaveopt64
            | Xrstor
            | Xrstor64
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Fnstenv
            | Fnsave
            | Fldenv
            | Frstor
    );
    // Its frame pointers are not where its operands say.
    let frame = insn.mnemonic() == Enter;
    more || saves || frame
}

/// Whether the instruction is among what the embedded processor is meant to have.
fn is_in_scope(insn: &Instruction) -> bool {
    use CpuidFeature::*;
    is_everywhere(insn)
        || insn.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                SSE3 | SSSE3
                    | SSE4_1
                    | SSE4_2
                    | POPCNT
                    | LZCNT
                    | BMI1
                    | MOVBE
                    | MMX
                    | CX8
                    | CMPXCHG16B
                    | CLFSH
                    | CLFLUSHOPT
                    | CLWB
                    | PREFETCHW
                    | MULTIBYTENOP
                    | PAUSE
                    | CET_IBT
                    | FPU
                    | X64
                    | INTEL486
                    | INTEL386
            )
        })
}

/// Whether every processor since the first with 64 bits and SSE2 has the instruction.
pub(crate) fn is_everywhere(insn: &Instruction) -> bool {
    use CpuidFeature::*;
    insn.mnemonic() != Mnemonic::Reservednop
        && insn.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                INTEL8086
                    | INTEL186
                    | INTEL286
                    | INTEL386
                    | INTEL486
                    | X64
                    | CMOV
                    | FPU
                    | FPU287
                    | FPU387
                    | SSE
                    | SSE2
            )
        })
}

/// Whether the vendors agree about the instruction, and it has a meaning at all.
fn is_defined(insn: &Instruction) -> bool {
    use Mnemonic::*;
    match insn.mnemonic() {
        Bswap => insn.code() != Code::Bswap_r16,
        // AMD reads 32 bits.
        Movsxd => insn.code() != Code::Movsxd_r16_rm16,
        // With REX.B, AMD exchanges R8 and RAX.
        Pause => insn.len() == 2,
        // On AMD, the prefixes of repeating change the condition.
        Loope | Loopne => !insn.has_rep_prefix() && !insn.has_repne_prefix(),
        Shld | Shrd if insn.op2_kind() == OpKind::Immediate8 => {
            insn.memory_size().size() != 2 && !insn.op0_register().is_gpr16()
                || insn.immediate8() & 31 <= 16
        }
        _ => true,
    }
}
