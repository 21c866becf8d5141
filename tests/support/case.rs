//! The corpus format: [`File`], [`Case`], [`Step`].
//!
//! A case is a list of steps on a fresh VM with one vCPU: ioctls with the errno that they answer, and guest
//! accesses with the exit that they cause, the reply, and what the guest sees in the end.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::guest::Routine;
use msrgate_core::{Access, Emulation, Errno, ExitReason};

/// One file of `testdata/filter`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its cases.
    pub case: Vec<Case>,
}

/// Something that every engine must do alike.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique in the corpus.
    pub name: String,
    /// The section of `docs/semantics.md` that says so.
    pub source: String,
    /// What happens.
    pub steps: Vec<Step>,
}

/// One ioctl or one guest access.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// `KVM_ENABLE_CAP(KVM_CAP_X86_USER_SPACE_MSR)` with this mask, which succeeds.
    Mask(u32),
    /// `KVM_ENABLE_CAP` in full.
    EnableCap(EnableCap),
    /// `KVM_CHECK_EXTENSION`.
    CheckExtension(CheckExtension),
    /// `KVM_X86_SET_MSR_FILTER`.
    Filter(Filter),
    /// The guest reads.
    Rdmsr(GuestAccess),
    /// The guest writes.
    Wrmsr(GuestAccess),
    /// An instruction that reads or writes MSRs by the way and must just work.
    SideEffect(Routine),
    /// `KVM_GET_MSRS` of one MSR.
    HostGet(HostAccess),
    /// `KVM_SET_MSRS` of one MSR.
    HostSet(HostAccess),
}

/// `KVM_ENABLE_CAP`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnableCap {
    /// Capability number.
    #[serde(default = "user_space_msr")]
    pub cap: u32,
    /// `flags`.
    #[serde(default)]
    pub flags: u32,
    /// `args[0]`.
    #[serde(default)]
    pub mask: Word,
    /// Fills `args[1..]` and the padding.
    #[serde(default)]
    pub junk: u8,
    /// The descriptor.
    #[serde(default)]
    pub on: On,
    /// Where the structure is.
    #[serde(default)]
    pub pointer: Pointer,
    /// Who calls.
    #[serde(default)]
    pub caller: Caller,
    /// The answer; none: success.
    pub errno: Option<ErrnoName>,
}

/// `KVM_CHECK_EXTENSION`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckExtension {
    /// Capability number.
    pub cap: u32,
    /// The descriptor.
    #[serde(default)]
    pub on: On,
    /// The answer where it succeeds.
    pub answer: Option<i32>,
    /// The answer where it fails.
    pub errno: Option<ErrnoName>,
}

/// `KVM_X86_SET_MSR_FILTER`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// `flags`: 0 allows by default, 1 denies.
    #[serde(default)]
    pub flags: u32,
    /// The slots that are not all zero.
    #[serde(default)]
    pub ranges: Vec<Range>,
    /// The request's size: 392, or 260 with the layout of 32-bit callers.
    #[serde(default)]
    pub request: Request,
    /// The descriptor.
    #[serde(default)]
    pub on: On,
    /// Where the structure is.
    #[serde(default)]
    pub pointer: Pointer,
    /// Fills the padding.
    #[serde(default)]
    pub junk: u8,
    /// Who calls.
    #[serde(default)]
    pub caller: Caller,
    /// The answer; none: success.
    pub errno: Option<ErrnoName>,
}

/// One slot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Which of the 16; none: the next.
    pub slot: Option<usize>,
    /// 1: reads, 2: writes.
    #[serde(default = "read_write")]
    pub flags: u32,
    /// The first MSR.
    pub base: u32,
    /// How many MSRs.
    pub nmsrs: u32,
    /// What the bits say, but for the positions in `except`.
    #[serde(default)]
    pub bitmap: Bit,
    /// Positions whose bits say the opposite.
    #[serde(default)]
    pub except: Vec<u32>,
    /// Where the bitmap is.
    #[serde(default)]
    pub pointer: Pointer,
}

/// A guest's RDMSR or WRMSR.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GuestAccess {
    /// ECX. The upper half of RCX is junk in every access.
    pub index: u32,
    /// What WRMSR writes. The upper halves of RAX and RDX are junk in every access.
    #[serde(default)]
    pub value: Word,
    /// How, if not by the plain instruction.
    pub via: Option<Routine>,
    /// What the emulation says if it is asked; none: what `exit` tells, or success.
    pub emulation: Option<EmulationName>,
    /// Who decided in the filter, for the engines that can tell.
    pub by: Option<String>,
    /// The exit's reason; none: no exit.
    pub exit: Option<ReasonName>,
    /// What user space does to the exit record.
    #[serde(default)]
    pub reply: Reply,
    /// Steps between the exit and its completion.
    #[serde(default)]
    pub meanwhile: Vec<Step>,
    /// How the exit is completed.
    #[serde(default)]
    pub complete_by: CompleteBy,
    /// The exception that the guest sees; none: the instruction retires.
    pub raises: Option<Exception>,
    /// What RDMSR reads.
    pub reads: Option<Word>,
}

/// A host's access to one MSR.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAccess {
    /// Which.
    pub index: u32,
    /// What is written, or what must be read.
    #[serde(default)]
    pub value: Word,
    /// How many entries the call does.
    pub done: i32,
}

/// What user space leaves in the exit record.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// `error`.
    pub error: Option<u8>,
    /// `data`.
    pub data: Option<Word>,
    /// Whether everything that is not an answer is overwritten.
    #[serde(default)]
    pub clobber: bool,
}

/// How an exit is completed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum CompleteBy {
    /// By running on.
    #[default]
    Run,
    /// By `immediate_exit`, twice, and then by running on.
    ImmediateExit,
    /// By a run that a pending signal ends, and then by running on.
    Signal,
    /// By a run with `KVM_GUESTDBG_SINGLESTEP`, and then by running on.
    SingleStep,
    /// By running on, after `KVM_SET_VCPU_EVENTS` queued #UD.
    QueuedUd,
}

/// The descriptor of an ioctl.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    /// `/dev/kvm`.
    System,
    /// The VM.
    #[default]
    Vm,
    /// The vCPU.
    Vcpu,
}

/// Who issues an ioctl.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// The process that made the VM.
    #[default]
    Owner,
    /// The same, by the 32-bit system call.
    Compat,
    /// A forked child.
    Child,
}

/// The size in the request's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Request {
    /// 392 bytes: the layout of 64-bit callers.
    #[default]
    Native,
    /// 260 bytes: the layout of 32-bit callers.
    Compat,
}

/// Where something lies in the caller's memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Pointer {
    /// At an address that is a multiple of 8.
    #[default]
    Aligned,
    /// At an odd address.
    Unaligned,
    /// At 0.
    Null,
    /// At an address of the kernel.
    Kernel,
    /// In a page that cannot be read.
    Unreadable,
    /// So that this many bytes can be read before a page that cannot.
    End(u32),
}

/// One bit of a bitmap, in words.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Bit {
    /// 1.
    Allow,
    /// 0.
    #[default]
    Deny,
}

/// An exception by its mnemonic.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Exception {
    /// #DB, a trap: the instruction has retired.
    Db,
    /// #UD.
    Ud,
    /// #GP(0).
    Gp,
}

impl Exception {
    /// Its vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        match self {
            Self::Db => 1,
            Self::Ud => 6,
            Self::Gp => 13,
        }
    }
}

/// A 64-bit number: an integer, or a string where TOML's integers end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word(pub u64);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Integer(u64),
            Text(String),
        }
        match Spelling::deserialize(from)? {
            Spelling::Integer(value) => Ok(Self(value)),
            Spelling::Text(text) => {
                let digits = text.strip_prefix("0x").unwrap_or_default().replace('_', "");
                u64::from_str_radix(&digits, 16)
                    .map(Self)
                    .map_err(D::Error::custom)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            392 => Ok(Self::Native),
            260 => Ok(Self::Compat),
            other => Err(D::Error::custom(format!("no request has {other} bytes"))),
        }
    }
}

/// An error number by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrnoName(pub Errno);

impl<'de> Deserialize<'de> for ErrnoName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const KNOWN: [Errno; 5] = [
            Errno::EIO,
            Errno::EFAULT,
            Errno::EINVAL,
            Errno::ENOTTY,
            Errno::E2BIG,
        ];
        let name = String::deserialize(from)?;
        let errno = KNOWN.into_iter().find(|errno| errno.name() == Some(&name));
        errno
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("no errno {name}")))
    }
}

/// A reason by its name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonName {
    /// FILTER.
    Filter,
    /// UNKNOWN.
    Unknown,
    /// INVAL.
    Invalid,
}

impl ReasonName {
    /// Core's word.
    #[must_use]
    pub const fn reason(self) -> ExitReason {
        match self {
            Self::Filter => ExitReason::FILTER,
            Self::Unknown => ExitReason::UNKNOWN,
            Self::Invalid => ExitReason::INVAL,
        }
    }
}

/// What emulating the access comes to, by name.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum EmulationName {
    /// KVM does it.
    Done,
    /// KVM does not know the MSR.
    Unknown,
    /// KVM refuses the access.
    Invalid,
}

impl GuestAccess {
    /// What KVM's emulation says about the access if it gets that far.
    #[must_use]
    pub fn emulation(&self) -> Emulation {
        match (self.emulation, self.exit) {
            (Some(EmulationName::Unknown), _) | (None, Some(ReasonName::Unknown)) => {
                Emulation::Unknown
            }
            (Some(EmulationName::Invalid), _) | (None, Some(ReasonName::Invalid)) => {
                Emulation::Invalid
            }
            _ => Emulation::Done,
        }
    }

    /// The instruction.
    #[must_use]
    pub fn routine(&self, access: Access) -> Routine {
        self.via.unwrap_or(match access {
            Access::Read => Routine::Rdmsr,
            Access::Write => Routine::Wrmsr,
        })
    }
}

const fn user_space_msr() -> u32 {
    188
}

const fn read_write() -> u32 {
    3
}
