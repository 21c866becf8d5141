//! FXSAVE and FXRSTOR.
//!
//! The area (SDM vol. 1, 10.5.1) is 512 bytes, of which the last 96 are never touched. Code and data
//! selectors of the last x87 instruction are stored as 0, as on processors that deprecate them.

use iced_x86::{Code, Instruction};

use crate::control::cr0;
use crate::op::{Exec, Exit, Fault, Flow, Op};
use crate::walk::AccessKind;
use crate::{Bus, Cpu, Fpu};

/// The bits that MXCSR has.
pub(super) const MXCSR_MASK: u32 = 0xffff;

const AREA_BYTES: usize = 512;
/// What is loaded and stored of it.
const USED_BYTES: usize = 416;
const ST: usize = 32;
const XMM: usize = 160;

/// The functions of this family.
pub(super) fn lower<B: Bus>(insn: &Instruction, _op: &mut Op<B>) -> Option<Exec<B>> {
    let exec: Exec<B> = match insn.code() {
        Code::Fxsave_m512byte => fxsave::<B, false>,
        Code::Fxsave64_m512byte => fxsave::<B, true>,
        Code::Fxrstor_m512byte => fxrstor::<B, false>,
        Code::Fxrstor64_m512byte => fxrstor::<B, true>,
        _ => return None,
    };
    Some(exec)
}

/// The area's linear address.
fn area<B>(cpu: &mut Cpu, op: &Op<B>, kind: AccessKind) -> Result<u64, Exit> {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(cpu.raise(Fault::NM));
    }
    let linear = cpu.linear(op, AREA_BYTES, kind)?;
    if linear % 16 != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    Ok(linear)
}

/// XMM registers that the mode has.
fn xmm_count(cpu: &Cpu) -> usize {
    if cpu.is_64() { 16 } else { 8 }
}

/// With REX.W (`WIDE`), the instruction and data pointers are 64 bits.
fn fxsave<B: Bus, const WIDE: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let linear = area(cpu, op, AccessKind::Write)?;
    let used = XMM + 16 * xmm_count(cpu);
    cpu.reserve_bytes(bus, linear, op.segment(), used)?;
    let image = save(&cpu.fpu, if WIDE { u64::MAX } else { 0xffff_ffff });
    cpu.write_bytes(bus, linear, op.segment(), &image[..used])
}

fn fxrstor<B: Bus, const WIDE: bool>(cpu: &mut Cpu, bus: &mut B, op: &Op<B>) -> Flow {
    let linear = area(cpu, op, AccessKind::Read)?;
    let mut image = [0; USED_BYTES];
    let xmm_count = xmm_count(cpu);
    cpu.read_bytes(
        bus,
        linear,
        op.segment(),
        &mut image[..XMM + 16 * xmm_count],
    )?;
    let fpu = restore(&image, if WIDE { u64::MAX } else { 0xffff_ffff });
    if fpu.mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.raise(Fault::GP));
    }
    let high = cpu.fpu.xmm;
    cpu.fpu = fpu;
    cpu.fpu.xmm[xmm_count..].copy_from_slice(&high[xmm_count..]);
    Ok(())
}

fn save(fpu: &Fpu, pointer_mask: u64) -> [u8; USED_BYTES] {
    let mut image = [0; USED_BYTES];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &fpu.fcw.to_le_bytes());
    put(2, &fpu.fsw.to_le_bytes());
    put(4, &[fpu.ftw]);
    put(6, &fpu.fop.to_le_bytes());
    put(8, &(fpu.fip & pointer_mask).to_le_bytes());
    put(16, &(fpu.fdp & pointer_mask).to_le_bytes());
    put(24, &fpu.mxcsr.to_le_bytes());
    put(28, &MXCSR_MASK.to_le_bytes());
    for (i, st) in fpu.st.iter().enumerate() {
        put(ST + 16 * i, &st[..10]);
    }
    for (i, xmm) in fpu.xmm.iter().enumerate() {
        put(XMM + 16 * i, &xmm.to_le_bytes());
    }
    image
}

fn restore(image: &[u8; USED_BYTES], pointer_mask: u64) -> Fpu {
    fn at<const N: usize>(image: &[u8; USED_BYTES], place: usize) -> [u8; N] {
        core::array::from_fn(|i| image[place + i])
    }
    let st = |i| {
        let mut st = at(image, ST + 16 * i);
        st[10..].fill(0);
        st
    };
    let mut fpu = Fpu {
        // Bit 6 is always 1, bits 7 and 13 to 15 are always 0.
        fcw: u16::from_le_bytes(at(image, 0)) & 0x1f3f | 0x40,
        fsw: u16::from_le_bytes(at(image, 2)),
        ftw: image[4],
        fop: u16::from_le_bytes(at(image, 6)) & 0x7ff,
        fip: u64::from_le_bytes(at(image, 8)) & pointer_mask,
        fdp: u64::from_le_bytes(at(image, 16)) & pointer_mask,
        mxcsr: u32::from_le_bytes(at(image, 24)),
        st: core::array::from_fn(st),
        xmm: core::array::from_fn(|i| u128::from_le_bytes(at(image, XMM + 16 * i))),
    };
    // ES and B follow from the exceptions and their masks.
    let pending = fpu.fsw & !fpu.fcw & 0x3f != 0;
    fpu.fsw = fpu.fsw & 0x7f7f | if pending { 0x8080 } else { 0 };
    fpu
}
