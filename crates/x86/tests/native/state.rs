//! What an instruction starts from and what it leaves, on either side.

/// An FXSAVE area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct Fx {
    pub(crate) fcw: u16,
    pub(crate) fsw: u16,
    pub(crate) ftw: u16,
    pub(crate) fop: u16,
    pub(crate) fip: u64,
    pub(crate) fdp: u64,
    pub(crate) mxcsr: u32,
    pub(crate) mxcsr_mask: u32,
    pub(crate) st: [[u8; 16]; 8],
    pub(crate) xmm: [u128; 16],
    pub(crate) rest: [u8; 96],
}

impl Default for Fx {
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            mxcsr_mask: 0,
            st: [[0; 16]; 8],
            xmm: [0; 16],
            rest: [0; 96],
        }
    }
}

/// The registers of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct State {
    /// In encoding order: RAX, RCX, RDX, RBX, RSP, …
    pub(crate) gpr: [u64; 16],
    pub(crate) rflags: u64,
    pub(crate) fx: Fx,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the next instruction.
    Next,
    /// With a branch.
    Taken,
    /// With an exception.
    Fault {
        vector: u8,
        error_code: u32,
        cr2: u64,
        rip: u64,
    },
    /// Only the emulated processor: it does not have the instruction.
    Unimplemented,
    /// Only the emulated processor: something else stopped it.
    Lost,
}
