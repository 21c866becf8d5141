//! Single flags: CLC, STC, CMC, CLD, STD, LAHF, SAHF. CLI and STI are in [`system`](crate::system).

use iced_x86::{Instruction, Mnemonic};

use crate::flags;
use crate::op::{Exec, Flow, Op};
use crate::{Bus, Cpu, reg};

/// The flags that LAHF and SAHF move: all arithmetic ones but OF.
const MOVED: u64 = flags::ARITHMETIC & !flags::OF;

pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    Some(match insn.mnemonic() {
        Mnemonic::Clc => |cpu, _, _| carry(cpu, false),
        Mnemonic::Stc => |cpu, _, _| carry(cpu, true),
        Mnemonic::Cmc => |cpu, _, _| carry(cpu, !cpu.flags.cf()),
        Mnemonic::Cld => |cpu, _, _| direction(cpu, false),
        Mnemonic::Std => |cpu, _, _| direction(cpu, true),
        Mnemonic::Lahf => |cpu, _, _| {
            let value = cpu.flags.get() as u8;
            cpu.set(reg::HIGH, value);
            Ok(())
        },
        Mnemonic::Sahf => |cpu, _, _| {
            let value = u64::from(cpu.get::<u8>(reg::HIGH));
            cpu.flags.merge_arithmetic(MOVED, value);
            Ok(())
        },
        _ => return None,
    })
}

fn carry(cpu: &mut Cpu, on: bool) -> Flow {
    cpu.flags.set_cf(on);
    Ok(())
}

fn direction(cpu: &mut Cpu, on: bool) -> Flow {
    cpu.flags.put(flags::DF, on);
    Ok(())
}
