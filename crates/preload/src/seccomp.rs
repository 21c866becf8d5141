//! A program that locks itself down: [`check`] looks at the filter that it is about to install, before it does.
//!
//! A vCPU whose thread may not ask KVM for an MSR would be killed at the first access that the policy forwards, and a
//! VM could not be given its policy. So the filter is asked, as the kernel would ask it, about the calls that the
//! gate makes where the program makes its own.

use msrgate_core::Errno;
use msrgate_kvm::abi::{
    KVM_CREATE_VM, KVM_ENABLE_CAP, KVM_GET_MSRS, KVM_GET_REGS, KVM_GET_VCPU_MMAP_SIZE, KVM_RUN,
    KVM_SET_MSRS, KVM_SET_SIGNAL_MASK, KVM_X86_SET_MSR_FILTER,
};
use msrgate_soft::client;

/// A system call that the gate makes, with its second argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    name: &'static str,
    number: i64,
    request: u32,
}

const fn ioctl(name: &'static str, request: u32) -> Call {
    Call {
        name,
        number: libc::SYS_ioctl,
        request,
    }
}

/// What the gate does where the program does what stands first. A filter that forbids that is of a thread which is no
/// concern of the gate's.
const NEEDS: [(Call, &[Call]); 2] = [
    (
        ioctl("KVM_CREATE_VM", KVM_CREATE_VM),
        &[
            ioctl("KVM_GET_VCPU_MMAP_SIZE", KVM_GET_VCPU_MMAP_SIZE),
            ioctl("KVM_ENABLE_CAP", KVM_ENABLE_CAP),
            ioctl("KVM_X86_SET_MSR_FILTER", KVM_X86_SET_MSR_FILTER),
        ],
    ),
    (
        ioctl("KVM_RUN", KVM_RUN),
        &[
            ioctl("KVM_GET_MSRS", KVM_GET_MSRS),
            ioctl("KVM_SET_MSRS", KVM_SET_MSRS),
            ioctl("KVM_GET_REGS", KVM_GET_REGS),
            ioctl("KVM_SET_SIGNAL_MASK", KVM_SET_SIGNAL_MASK),
            Call {
                name: "rt_sigprocmask",
                number: libc::SYS_rt_sigprocmask,
                request: 0,
            },
        ],
    ),
];

/// The first call of the gate's that the filter forbids, by name. `program` is the address of a `struct sock_fprog`;
/// one that cannot be read is the kernel's to refuse.
pub(crate) fn check(program: u64) -> Result<(), &'static str> {
    let Ok(filter) = read(program) else {
        return Ok(());
    };
    for (cause, needs) in NEEDS {
        let forbidden = needs.iter().find(|call| !is_allowed(&filter, **call));
        if let Some(call) = forbidden.filter(|_| is_allowed(&filter, cause)) {
            return Err(call.name);
        }
    }
    Ok(())
}

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    k: u32,
}

fn read(program: u64) -> Result<Vec<Instruction>, Errno> {
    let mut fprog = [0; 16];
    client::read(program, &mut fprog)?;
    let [length, _, _, _, address] = [0, 2, 4, 6, 8].map(|at| &fprog[at..]);
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let address = u64::from_le_bytes(*address.first_chunk().expect("16 bytes"));
    let mut bytes = vec![0; length * 8];
    client::read(address, &mut bytes)?;
    let instructions = bytes.as_chunks::<8>().0.iter();
    Ok(instructions
        .map(
            |&[code, code_high, if_true, if_false, k @ ..]| Instruction {
                code: u16::from_le_bytes([code, code_high]),
                if_true,
                if_false,
                k: u32::from_le_bytes(k),
            },
        )
        .collect())
}

/// Whether the filter lets the call pass. What nobody can know here, a tracer's word or what a damaged filter means,
/// counts as yes: the kernel decides.
fn is_allowed(filter: &[Instruction], call: Call) -> bool {
    const ACTION: u32 = 0xffff_0000;
    const KILL_PROCESS: u32 = 0x8000_0000;
    const KILL_THREAD: u32 = 0;
    const TRAP: u32 = 0x0003_0000;
    const ERRNO: u32 = 0x0005_0000;
    let data = data(call);
    let forbidding = [KILL_PROCESS, KILL_THREAD, TRAP, ERRNO];
    run(filter, &data).is_none_or(|value| !forbidding.contains(&(value & ACTION)))
}

/// `struct seccomp_data` as the filter loads it: the call's number, the architecture, the instruction pointer, six
/// arguments.
fn data(call: Call) -> [u32; 16] {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    let mut data = [0; 16];
    data[0] = u32::try_from(call.number).unwrap_or(u32::MAX);
    data[1] = AUDIT_ARCH_X86_64;
    data[6] = call.request;
    data
}

/// Classic BPF, as far as seccomp has it. Jumps lead forwards only, so that it ends.
fn run(filter: &[Instruction], data: &[u32; 16]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [0_u32; 16]);
    let mut at = 0_usize;
    loop {
        let Instruction {
            code,
            if_true,
            if_false,
            k,
        } = *filter.get(at)?;
        at += 1;
        let place = usize::try_from(k).ok()?;
        let operand = if code & 8 == 0 { k } else { x };
        let mut jump = |condition: bool| {
            at += usize::from(if condition { if_true } else { if_false });
        };
        match code {
            0x20 => a = *data.get(place / 4).filter(|_| place % 4 == 0)?, // ld [k]
            0x80 => a = 64,                                               // ld len
            0x81 => x = 64,                                               // ldx len
            0x00 => a = k,                                                // ld #k
            0x01 => x = k,                                                // ldx #k
            0x60 => a = *memory.get(place)?,                              // ld M[k]
            0x61 => x = *memory.get(place)?,                              // ldx M[k]
            0x02 => *memory.get_mut(place)? = a,                          // st M[k]
            0x03 => *memory.get_mut(place)? = x,                          // stx M[k]
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c => a = a.checked_div(operand)?,
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0x64 | 0x6c => a = a.checked_shl(operand).unwrap_or(0),
            0x74 | 0x7c => a = a.checked_shr(operand).unwrap_or(0),
            0xa4 | 0xac => a ^= operand,
            0x84 => a = a.wrapping_neg(),
            0x05 => at = at.checked_add(place)?, // ja
            0x15 | 0x1d => jump(a == operand),
            0x25 | 0x2d => jump(a > operand),
            0x35 | 0x3d => jump(a >= operand),
            0x45 | 0x4d => jump(a & operand != 0),
            0x07 => x = a, // tax
            0x87 => a = x, // txa
            0x06 => return Some(k),
            0x16 => return Some(a),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET_MSRS: Call = ioctl("KVM_GET_MSRS", KVM_GET_MSRS);

    const fn step(code: u16, if_true: u8, if_false: u8, k: u32) -> Instruction {
        Instruction {
            code,
            if_true,
            if_false,
            k,
        }
    }

    /// `linux/bpf_common.h`: LD|W|ABS, JMP|JEQ|K, RET|K.
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;

    /// As Cloud Hypervisor's look: what is not listed by number and request is forbidden.
    #[test]
    fn list_of_requests_is_read_as_the_kernel_reads_it() {
        let ioctl = u32::try_from(libc::SYS_ioctl).unwrap();
        for (listed, expected) in [(KVM_GET_MSRS, true), (KVM_SET_MSRS, false)] {
            let filter = [
                step(LOAD, 0, 0, 4),
                step(IF_EQUAL, 1, 0, 0xc000_003e),
                step(RETURN, 0, 0, 0x8000_0000),
                step(LOAD, 0, 0, 0),
                step(IF_EQUAL, 0, 3, ioctl),
                step(LOAD, 0, 0, 24),
                step(IF_EQUAL, 0, 1, listed),
                step(RETURN, 0, 0, 0x7fff_0000),
                step(RETURN, 0, 0, 0x0003_0000),
            ];
            assert_eq!(is_allowed(&filter, GET_MSRS), expected, "{listed:#x}");
        }
    }

    #[test]
    fn words_of_seccomp_that_forbid_are_four() {
        for (word, expected) in [
            (0x8000_0000, false), // SECCOMP_RET_KILL_PROCESS
            (0x0000_0000, false), // SECCOMP_RET_KILL_THREAD
            (0x0003_0000, false), // SECCOMP_RET_TRAP
            (0x0005_0001, false), // SECCOMP_RET_ERRNO
            (0x7fc0_0000, true),  // SECCOMP_RET_USER_NOTIF
            (0x7ff0_0000, true),  // SECCOMP_RET_TRACE
            (0x7ffc_0000, true),  // SECCOMP_RET_LOG
            (0x7fff_0000, true),  // SECCOMP_RET_ALLOW
        ] {
            assert_eq!(
                is_allowed(&[step(RETURN, 0, 0, word)], GET_MSRS),
                expected,
                "{word:#x}"
            );
        }
    }

    #[test]
    fn arithmetic_memory_and_jumps_are_those_of_bpf() {
        let program = [
            step(0x00, 0, 0, 6),    // a = 6
            step(0x07, 0, 0, 0),    // x = a
            step(0x24, 0, 0, 7),    // a = 42
            step(0x02, 0, 0, 3),    // M[3] = 42
            step(0x1c, 0, 0, 0),    // a = 36
            step(0x34, 0, 0, 5),    // a = 7
            step(0x64, 0, 0, 4),    // a = 0x70
            step(0x74, 0, 0, 1),    // a = 0x38
            step(0x44, 0, 0, 1),    // a = 0x39
            step(0xa4, 0, 0, 0xff), // a = 0xc6
            step(0x54, 0, 0, 0xfe), // a = 0xc6
            step(0x45, 0, 4, 0x40), // if a & 0x40
            step(0x25, 0, 3, 0xc5), // if a > 0xc5
            step(0x35, 0, 2, 0xc6), // if a >= 0xc6
            step(0x05, 0, 0, 2),    // go on behind the two
            step(RETURN, 0, 0, 1),
            step(RETURN, 0, 0, 2),
            step(0x61, 0, 0, 3), // x = M[3]
            step(0x0c, 0, 0, 0), // a = 0xf0
            step(0x84, 0, 0, 0), // a = -0xf0
            step(0x16, 0, 0, 0),
        ];
        assert_eq!(run(&program, &[0; 16]), Some(0xf0_u32.wrapping_neg()));
    }

    proptest! {
        #[test]
        fn any_program_ends(
            words in prop::collection::vec((0_u16..0x100, any::<u8>(), any::<u8>(), any::<u32>()), 0..64)
        ) {
            let filter: Vec<_> = words.iter().map(|&(code, t, f, k)| step(code, t, f, k)).collect();
            let _ = is_allowed(&filter, GET_MSRS);
        }
    }
}
