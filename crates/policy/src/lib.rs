//! One text says what every MSR access of a VM does; [`compile`] makes it what KVM and the gate need.
//!
//! * [`compile`]: text in, [`Compiled`] out: the filter, the exit reasons, the image of the answers.
//! * [`compile_with`]: the same for a policy that includes others, or names a program's handlers.
//! * [`compile_recorded`]: the same for one that was kept with what it includes, as traces do.
//! * [`Compiled::deciders`], [`Compiled::segments`]: which rule decides an access, and what is written about all of them.
//! * [`Compiled::explain`]: what a guest sees of one access, and every decision on the way.
//! * [`Diagnostic`]: what is wrong with the text, where, and what to write instead. Many per run.
//! * [`import`]: policies that were written for crosvm, Firecracker, msr-safe, libvirt or VirtualBox.
//! * [`merge`]: a policy's filter and a program's own, in one.
//! * [`Surface`]: what a VM makes of every MSR, as a document that can be compared.
//!
//! ```
//! let source = r#"
//!     version = 1
//!     [defaults]
//!     unknown = "ignore"
//!     [[rule]]
//!     msr = "IA32_SPEC_CTRL"
//!     both = "fault"
//! "#;
//! let compiled = msrgate_policy::compile(source).expect("this policy has no mistakes");
//! assert_eq!(compiled.filter.ranges().len(), 1);
//! ```
//!
//! A policy that a kernel cannot honour is refused by name, never made weaker. Nothing here does I/O, or
//! knows how a diagnostic is drawn.
#![forbid(unsafe_code)]

mod action;
mod ast;
mod compile;
mod diagnostic;
mod diff;
mod document;
mod explain;
mod filter;
mod forward;
mod import;
mod include;
mod learn;
mod merge;
mod observe;
mod parse;
mod plan;
mod reader;
mod recorded;
mod refuse;
mod resolve;
mod select;
mod source;
mod surface;
mod warn;

pub use ast::{Selector, SelectorKind};
pub use compile::{Compiled, Decider, Options, compile, compile_with};
pub use diagnostic::{Diagnostic, Label, Severity};
pub use diff::{Msrs, PolicyDifference};
pub use explain::{
    Authority, Explanation, HostSteps, Instruction, KvmAnswer, KvmAnswers, NotTried, Sees, Stage,
    Step,
};
pub use forward::{HostPath, host_path};
pub use import::{ImportError, Imported, Note, Peer, import};
pub use include::Load;
pub use learn::{Answered, LearnError, Learned, Observations, TraceDifference};
pub use merge::{MergeError, merge};
pub use observe::Unobserved;
pub use recorded::{compile_recorded, included};
pub use resolve::Segment;
pub use source::{Place, Source, SourceId, Sources, Span};
pub use surface::{
    Difference, Side, Surface, SurfaceError, SurfaceHost, SurfaceMsr, Tried, Window,
};
pub use warn::HostFacts;
