//! Descriptor-table registers and translations: LGDT, SGDT, LLDT, SLDT, LTR, STR, INVLPG, INVPCID.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::segment::require_descriptors;
use super::system::{require_cpl0, require_feature, require_umip};
use super::{operand_bytes, sized};
use crate::control::cr4;
use crate::cpuid::CpuidRegister;
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu};
use msrgate_core::DescriptorTable;

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    use Mnemonic::{Invlpg, Invpcid, Lgdt, Lidt, Lldt, Ltr, Sgdt, Sidt, Sldt, Str};
    let in_memory = insn.op0_kind() == OpKind::Memory;
    match insn.mnemonic() {
        Lgdt | Lidt => {
            op.imm = u64::from(insn.mnemonic() == Lidt);
            op.src = base_bytes(insn.code());
            Some(load_table)
        }
        Sgdt | Sidt => {
            op.imm = u64::from(insn.mnemonic() == Sidt);
            op.src = base_bytes(insn.code());
            Some(store_table)
        }
        Lldt | Ltr => {
            op.imm = u64::from(insn.mnemonic() == Ltr);
            Some(if in_memory {
                load_selector::<B, true>
            } else {
                load_selector::<B, false>
            })
        }
        Sldt | Str => {
            op.imm = u64::from(insn.mnemonic() == Str);
            if in_memory {
                Some(store_selector_to_memory)
            } else {
                sized!(operand_bytes(insn), T => store_selector::<B, T>)
            }
        }
        Invlpg => Some(invlpg),
        Invpcid => Some(invpcid),
        _ => None,
    }
}

/// Bytes of the base that count; a 16-bit LGDT loads three.
const fn base_bytes(code: Code) -> u8 {
    match code {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => 3,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    }
}

/// LGDT and LIDT (`imm` 1).
fn load_table<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    let base_bytes = usize::from(op.src).next_power_of_two();
    let linear = cpu.linear(op, 2 + base_bytes, AccessKind::Read)?;
    let limit = cpu.read(bus, linear, op.segment())?;
    let behind = cpu.wrap_linear(linear.wrapping_add(2));
    let base = match op.src {
        8 => cpu.read(bus, behind, op.segment())?,
        _ => u64::from(cpu.read::<B, u32>(bus, behind, op.segment())?),
    };
    let base = if op.src == 3 { base & 0xff_ffff } else { base };
    if op.src == 8 && !Cpu::is_canonical(base) {
        return Err(cpu.raise(Fault::GP));
    }
    let table = DescriptorTable { base, limit };
    if op.imm == 1 {
        cpu.idt = table;
    } else {
        cpu.gdt = table;
    }
    Ok(())
}

/// SGDT and SIDT (`imm` 1).
fn store_table<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_umip(cpu)?;
    let table = if op.imm == 1 { cpu.idt } else { cpu.gdt };
    let base_bytes = usize::from(op.src);
    let linear = cpu.linear(op, 2 + base_bytes, AccessKind::Write)?;
    cpu.reserve(bus, linear, op.segment(), 2 + base_bytes)?;
    cpu.write(bus, linear, op.segment(), table.limit)?;
    let behind = cpu.wrap_linear(linear.wrapping_add(2));
    if base_bytes == 8 {
        cpu.write(bus, behind, op.segment(), table.base)
    } else {
        cpu.write(bus, behind, op.segment(), table.base as u32)
    }
}

/// LLDT and LTR (`imm` 1).
fn load_selector<B: Bus, const MEMORY: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_descriptors(cpu)?;
    require_cpl0(cpu)?;
    let selector: u16 = if MEMORY {
        cpu.load(bus, op)?
    } else {
        cpu.get(op.dst)
    };
    if op.imm == 1 {
        cpu.load_tr(bus, selector)
    } else {
        cpu.load_ldtr(bus, selector)
    }
}

/// The selector that SLDT and STR (`imm` 1) store.
fn selector<B: Bus>(cpu: &mut Cpu, op: &Op<B>) -> Result<u16, Exit> {
    require_descriptors(cpu)?;
    require_umip(cpu)?;
    Ok(if op.imm == 1 {
        cpu.tr.selector
    } else {
        cpu.ldt.selector
    })
}

fn store_selector<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let selector = selector(cpu, op)?;
    cpu.set(op.dst, T::cut(u64::from(selector)));
    Ok(())
}

fn store_selector_to_memory<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let selector = selector(cpu, op)?;
    cpu.store(bus, op, selector)
}

fn invlpg<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    let mut linear = cpu.offset(op);
    if !op.addressing.is_flat() {
        let base = cpu.segs[op.addressing.segment()].base;
        linear = cpu.wrap_linear((linear & op.addressing.mask()).wrapping_add(base));
    }
    cpu.flush_page(linear);
    Err(Exit::Leave)
}

/// Translations of all PCIDs are one here, so each kind forgets at least what it names.
fn invpcid<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    const ADDRESS: u64 = 0;
    const CONTEXT: u64 = 1;
    const ALL: u64 = 2;
    const ALL_BUT_GLOBAL: u64 = 3;
    require_feature(cpu, 7, CpuidRegister::Ebx, 10)?;
    require_cpl0(cpu)?;
    let descriptor: u128 = cpu.load(bus, op)?;
    let (pcid, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let kind = if cpu.is_64() {
        cpu.get(op.dst)
    } else {
        u64::from(cpu.get::<u32>(op.dst))
    };
    let wrong = pcid > 0xfff
        || kind > ALL_BUT_GLOBAL
        || kind <= CONTEXT && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0
        || kind == ADDRESS && !Cpu::is_canonical(linear);
    if wrong {
        return Err(cpu.raise(Fault::GP));
    }
    match kind {
        ADDRESS => cpu.flush_page(linear),
        _ => cpu.flush_tlb(kind != ALL),
    }
    Err(Exit::Leave)
}
