//! Why a processor stopped.

/// Why [`Cpu::run`](crate::Cpu::run) came back.
///
/// `Rdmsr`, `Wrmsr`, `IoIn` and `MmioRead` leave the instruction unretired: RIP is at its first byte, and
/// the next `run` needs the matching `complete_*` call first, or starts the instruction over.
/// `IoOut` and `MmioWrite` have retired (or, with REP, done one element and will go on).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The instruction budget is used up.
    Budget,
    /// RDMSR at CPL 0: ECX.
    Rdmsr {
        /// ECX.
        index: u32,
    },
    /// WRMSR at CPL 0.
    Wrmsr {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// One element of IN or INS.
    IoIn {
        /// Port number.
        port: u16,
        /// 1, 2 or 4.
        len_bytes: u8,
    },
    /// One element of OUT or OUTS.
    IoOut {
        /// Port number.
        port: u16,
        /// 1, 2 or 4.
        len_bytes: u8,
        /// The data, zero-extended.
        value: u32,
    },
    /// A load from where there is no RAM.
    MmioRead {
        /// Guest-physical address.
        gpa: u64,
        /// 1 to 8.
        len_bytes: u8,
    },
    /// A store to where there is no RAM.
    MmioWrite {
        /// Guest-physical address.
        gpa: u64,
        /// 1 to 8.
        len_bytes: u8,
        /// The data, zero-extended.
        value: u64,
    },
    /// PAUSE retired, for the last of several times in this run: the program is likely to wait for another processor.
    Pause,
    /// HLT retired: RIP is behind it.
    Hlt,
    /// An external interrupt would be taken now, as
    /// [`Cpu::set_interrupt_window`](crate::Cpu::set_interrupt_window) asked to hear.
    InterruptWindow,
    /// MOV to CR8 retired and lowered the task priority.
    PriorityLowered,
    /// VMCALL or VMMCALL: RIP is behind it. RAX and the others hold the hypercall.
    Hypercall,
    /// A fault while a double fault was being delivered. The processor stays shut down until it is reset.
    TripleFault,
    /// #DB or #BP that [`Config`](crate::Config) asks to see: guest debugging.
    Debug {
        /// 1 (#DB) or 3 (#BP).
        vector: u8,
        /// RIP of the stop.
        rip: u64,
        /// What DR6 would have become.
        dr6: u64,
    },
}
