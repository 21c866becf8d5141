//! The trace file: what a guest's MSR accesses were, one after another, with the time of each.
//!
//! A record is an [`Event`](msrgate_core::Event) with its time, or a [`Loss`] of some: 64 bytes, with a check of its own.
//!
//! * [`Header`], [`Facts`]: what was traced, and by which means.
//! * [`Writer`]: appends. A program that is killed loses what was not flushed; a full disk loses records, which are counted.
//! * [`Reader`]: streams them back, from a whole file, a torn one, or one that is still being written.
//! * [`channel`]: how events come from a wrapped VMM to whoever writes the trace.
//!
//! `docs/trace-format.md` has the bytes. Nothing here makes events, or knows where a file is.
//!
//! ```
//! use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
//! use msrgate_trace::{Header, Reader, Writer};
//!
//! let event = Event {
//!     vcpu: VcpuId(0),
//!     index: MsrIndex(0x8b),
//!     access: Access::Read,
//!     reason: ExitReason::FILTER,
//!     rip: Some(0x10_0000),
//!     value: 0x42,
//!     outcome: Outcome::Value,
//!     log: false,
//! };
//! let mut file = Vec::new();
//! let mut writer = Writer::new(&mut file, &Header::default())?;
//! writer.record(&Timed { time_ns: 1000, event });
//! assert_eq!(writer.finish().events, 1);
//!
//! let mut reader = Reader::new(&file[..])?;
//! assert_eq!(reader.next().expect("one event")?, Timed { time_ns: 1000, event });
//! assert!(reader.next().is_none());
//! assert!(!reader.summary().is_torn);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod channel;
mod header;
mod reader;
mod record;
mod writer;

pub use header::{FACTS_LIMIT_BYTES, Facts, Header, Observation, PolicySource, VERSION};
pub use reader::{ReadError, Reader, Summary};
pub use record::{Loss, LossCause, RECORD_BYTES};
pub use writer::{Writer, Written};
