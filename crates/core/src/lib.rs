//! The words and rules of user-space MSR control, with nothing that does I/O.
//!
//! * [`MsrIndex`], [`Access`], [`ExitReason`]: the words of the KVM UAPI.
//! * [`MsrFilter`]: at most 16 bitmap ranges and a default; [`MsrFilter::decide`] is the oracle, [`Lookup`] the fast form.
//! * `FilterCell` (feature `std`): the filter of a VM, replaced while its vCPUs run.
//! * [`VmExit`], [`VmEntry`]: how a vCPU stops and how it goes on, as owned, comparable values.
//! * [`Disposition`], [`PendingCompletion`]: what an access comes to, and the exit that waits for an answer.
//! * [`PermissionBitmap`]: what VMX and SVM let pass without an exit, as wanted and as allowed.
//! * [`MsrName`], [`MsrGroup`]: what MSRs are called; `"IA32_SPEC_CTRL".parse::<MsrIndex>()`.
//! * [`RawFilter`]: the ioctl's structure, checked in the kernel's order.
//! * [`Gate`], [`Image`]: a policy's answers to the accesses that leave the guest.
//! * [`Event`], [`EventRing`]: what was answered, and how another thread gets it without holding up a vCPU.
//! * [`Vm`], [`Vcpu`]: what a backend (the real KVM, the embedded one) must do.
//!
//! Every number, order and errno is Linux 6.12's; the kernel function is named where it matters.
//!
//! ```
//! use msrgate_core::*;
//!
//! let spec_ctrl: MsrIndex = "IA32_SPEC_CTRL".parse().expect("a name of the SDM");
//! let range = FilterRange::uniform(RangeFlags::WRITE, spec_ctrl, 1, Verdict::Deny);
//! let filter = MsrFilter::new(DefaultAction::Allow, vec![range])?;
//! assert_eq!(filter.decide(spec_ctrl, Access::Read).verdict, Verdict::Allow);
//! let decision = filter.decide(spec_ctrl, Access::Write);
//! assert_eq!(decision.verdict, Verdict::Deny);
//! assert_eq!(decision.source, DecisionSource::Range(0));
//! # Ok::<(), FilterError>(())
//! ```
#![cfg_attr(not(any(feature = "std", test)), no_std)]
#![forbid(unsafe_code)]
#![warn(clippy::std_instead_of_core, clippy::std_instead_of_alloc)]

extern crate alloc;

mod abi;
mod action;
mod backend;
#[cfg(feature = "std")]
mod cell;
mod completion;
mod disposition;
mod errno;
mod event;
mod exit;
mod filter;
mod gate;
mod host;
mod image;
mod lookup;
mod msr;
mod names;
mod permission;
mod reason;
mod recorder;
mod registers;
mod ring;
mod shadow;
mod storm;
mod sync;
mod tree;

pub use abi::{FILTER_BYTES_32, FILTER_BYTES_64, RawFilter, RawRange};
pub use action::{Action, HandlerId, Mask, OnViolation, Rule, Scope, Shadow, Writable};
pub use backend::{Kick, LineLevel, RunError, Unimplemented, Vcpu, Vm, VmError};
#[cfg(feature = "std")]
pub use cell::{FilterCell, FilterReader};
pub use completion::PendingCompletion;
pub use disposition::{Disposition, Emulation, UnknownMsrs};
pub use errno::Errno;
pub use event::{Event, Outcome, VcpuId};
pub use exit::{Exception, Gp, NativeAccess, VmEntry, VmExit};
pub use filter::{
    Decision, DecisionSource, DefaultAction, FilterError, FilterRange, MAX_BITMAP_BYTES, MAX_MSRS,
    MAX_RANGES, MsrFilter, RangeFlags, Verdict,
};
pub use gate::{Gate, Gates};
pub use host::{HostMsrs, MsrHandler};
pub use image::{Defaults, Image, ImageError, MAX_SHADOWS};
pub use lookup::Lookup;
pub use msr::{Access, MsrIndex};
pub use names::{MsrGroup, MsrName, ParseMsrIndexError, Vendor, msr_groups, msr_names};
pub use permission::{
    Candidate, Desired, NotCandidate, PermissionBitmap, PermissionLayout, Vector,
};
pub use reason::{ExitReason, ExitReasons, UnknownExitReasons};
pub use recorder::Recorder;
pub use registers::{DescriptorTable, Registers, Segment, SystemRegisters};
pub use ring::{EventConsumer, EventProducer, EventRing, Timed};
