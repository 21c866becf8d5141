//! Control, debug and base registers: MOV CR and DR, CLTS, LMSW, SMSW, SWAPGS, RDFSBASE and its kin, XGETBV.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::system::{require_cpl0, require_umip};
use super::{operand_bytes, sized, undefined};
use crate::control::{cr0, cr4};
use crate::int::Int;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::{Bus, Cpu, reg, seg};

/// XCR0 bits that exist: x87 and SSE.
const XCR0_SUPPORTED: u64 = 0b11;

/// The functions of this family.
pub(crate) fn lower<B: Bus>(insn: &Instruction, op: &mut Op<B>) -> Option<Exec<B>> {
    use Mnemonic::{
        Clts, Lmsw, Mov, Rdfsbase, Rdgsbase, Smsw, Swapgs, Wrfsbase, Wrgsbase, Xgetbv, Xsetbv,
    };
    match insn.mnemonic() {
        Mov if insn.op1_register().is_cr() => Some(read_cr(insn.op1_register())),
        Mov if insn.op0_register().is_cr() => Some(write_cr(insn.op0_register())),
        Mov if insn.op1_register().is_dr() => Some(read_dr),
        Mov if insn.op0_register().is_dr() => Some(write_dr),
        Clts => Some(clts),
        Lmsw => Some(match insn.op0_kind() {
            OpKind::Memory => lmsw::<B, true>,
            _ => lmsw::<B, false>,
        }),
        Smsw => match insn.op0_kind() {
            OpKind::Memory => Some(smsw_memory),
            _ => sized!(operand_bytes(insn), T => smsw::<B, T>),
        },
        Swapgs => Some(swapgs),
        Rdfsbase | Rdgsbase => {
            op.imm = base_register(insn.mnemonic() == Rdfsbase);
            sized!(operand_bytes(insn), T => read_base::<B, T>)
        }
        Wrfsbase | Wrgsbase => {
            op.imm = base_register(insn.mnemonic() == Wrfsbase);
            sized!(operand_bytes(insn), T => write_base::<B, T>)
        }
        Xgetbv => Some(xgetbv),
        Xsetbv => Some(xsetbv),
        _ => None,
    }
}

fn read_cr<B: Bus>(register: Register) -> Exec<B> {
    match register {
        Register::CR0 => |cpu, _, op| read_control(cpu, op, cpu.cr0),
        Register::CR2 => |cpu, _, op| read_control(cpu, op, cpu.cr2),
        Register::CR3 => |cpu, _, op| read_control(cpu, op, cpu.cr3),
        Register::CR4 => |cpu, _, op| read_control(cpu, op, cpu.cr4),
        Register::CR8 => |cpu, _, op| read_control(cpu, op, cpu.cr8),
        _ => undefined,
    }
}

fn read_control<B: Bus>(cpu: &mut Cpu, op: &Op<B>, value: u64) -> Flow {
    require_cpl0(cpu)?;
    put_native(cpu, op.dst, value);
    Ok(())
}

fn write_cr<B: Bus>(register: Register) -> Exec<B> {
    match register {
        Register::CR0 => |cpu, _, op| native(cpu, op.src).and_then(|value| cpu.write_cr0(value)),
        Register::CR2 => |cpu, _, op| native(cpu, op.src).map(|value| cpu.cr2 = value),
        Register::CR3 => |cpu, _, op| native(cpu, op.src).and_then(|value| cpu.write_cr3(value)),
        Register::CR4 => |cpu, _, op| native(cpu, op.src).and_then(|value| cpu.write_cr4(value)),
        Register::CR8 => |cpu, _, op| native(cpu, op.src).and_then(|value| cpu.write_cr8(value)),
        _ => undefined,
    }
}

/// The source of a privileged MOV: 64 bits in 64-bit mode, else 32.
fn native(cpu: &mut Cpu, register: u8) -> Result<u64, Exit> {
    require_cpl0(cpu)?;
    Ok(if cpu.is_64() {
        cpu.get(register)
    } else {
        u64::from(cpu.get::<u32>(register))
    })
}

fn put_native(cpu: &mut Cpu, register: u8, value: u64) {
    if cpu.is_64() {
        cpu.set(register, value);
    } else {
        cpu.set(register, value as u32);
    }
}

fn read_dr<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    let value = cpu.debug_register(op.src)?;
    put_native(cpu, op.dst, value);
    Ok(())
}

fn write_dr<B: Bus>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    let value = native(cpu, op.src)?;
    cpu.write_debug_register(op.dst, value)
}

fn clts<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    require_cpl0(cpu)?;
    cpu.cr0 &= !cr0::TS;
    cpu.update_mode();
    Err(Exit::Leave)
}

fn lmsw<B: Bus, const MEMORY: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    const CHANGES: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    require_cpl0(cpu)?;
    let value: u16 = if MEMORY {
        cpu.load(bus, op)?
    } else {
        cpu.get(op.dst)
    };
    // PE can be set but not cleared.
    let value = u64::from(value) & CHANGES | cpu.cr0 & cr0::PE;
    cpu.write_cr0(cpu.cr0 & !CHANGES | value)
}

fn smsw<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_umip(cpu)?;
    cpu.set(op.dst, T::cut(cpu.cr0));
    Ok(())
}

fn smsw_memory<B: Bus>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    require_umip(cpu)?;
    let low = cpu.cr0 as u16;
    cpu.store(bus, op, low)
}

fn swapgs<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    if !cpu.is_64() {
        return Err(cpu.raise(Fault::UD));
    }
    require_cpl0(cpu)?;
    core::mem::swap(&mut cpu.segs[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

fn base_register(fs: bool) -> u64 {
    (if fs { seg::FS } else { seg::GS }) as u64
}

fn require_fsgsbase(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::FSGSBASE == 0 || !cpu.is_64() {
        return Err(cpu.raise(Fault::UD));
    }
    Ok(())
}

fn read_base<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_fsgsbase(cpu)?;
    cpu.set(op.dst, T::cut(cpu.segs[op.imm as usize].base));
    Ok(())
}

fn write_base<B: Bus, T: Int>(cpu: &mut Cpu, _bus: &mut B, op: &Op<B>) -> Flow {
    require_fsgsbase(cpu)?;
    let base = cpu.get::<T>(op.dst).zx();
    if !Cpu::is_canonical(base) {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.segs[op.imm as usize].base = base;
    Ok(())
}

fn xgetbv<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.raise(Fault::UD));
    }
    if cpu.get::<u32>(reg::RCX as u8) != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.set_edx_eax(cpu.xcr0);
    Ok(())
}

fn xsetbv<B: Bus>(cpu: &mut Cpu, _bus: &mut B, _op: &Op<B>) -> Flow {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.raise(Fault::UD));
    }
    require_cpl0(cpu)?;
    let value = cpu.edx_eax();
    let wrong =
        cpu.get::<u32>(reg::RCX as u8) != 0 || value & 1 == 0 || value & !XCR0_SUPPORTED != 0;
    if wrong {
        return Err(cpu.raise(Fault::GP));
    }
    cpu.xcr0 = value;
    Ok(())
}
