//! What KVM does by itself, from the kernel's tracepoint `kvm:kvm_msr`: [`Tracepoint`], and a [`Watch`] on each vCPU's
//! thread.
//!
//! Nothing is altered: neither filter nor guest. KVM tells of what it emulates; what the processor lets through does
//! not come to KVM, and what leaves the guest is not told here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};
use perf_event::data::Record;
use perf_event::{Builder, Clock, SampleFlag, Sampler, events};

/// Where tracefs is.
const FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Room for some thousand accesses of a thread; more than this is locked memory that not every user may have.
const BUFFER_BYTES: usize = 256 << 10;

/// As many are taken in one look: more than the buffer holds.
const MOST_RECORDS: usize = BUFFER_BYTES / 32;

/// The tracepoint, which this user may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracepoint {
    id: u64,
    layout: Layout,
}

/// Where the fields of a sample are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    write: Field,
    ecx: Field,
    data: Field,
    exception: Field,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    at: usize,
    bytes: usize,
}

impl Tracepoint {
    /// Finds it, and tries whether it can be used.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let folder = FOLDERS.iter().map(Path::new);
        let folder = folder.map(|folder| folder.join("events/kvm/kvm_msr"));
        let (folder, id) = folder
            .map(|folder| (folder.clone(), fs::read_to_string(folder.join("id"))))
            .find(
                |(_, id)| !matches!(id, Err(error) if error.kind() == std::io::ErrorKind::NotFound),
            )
            .context("tracefs, with the tracepoint kvm_msr, is not mounted")?;
        let cannot = || format!("{} cannot be read", folder.display());
        let id = id.with_context(cannot)?;
        let tracepoint = Self {
            id: id.trim().parse().ok().with_context(cannot)?,
            layout: Layout::read(&folder.join("format")).with_context(cannot)?,
        };
        tracepoint.watch(0).context("perf_event_open")?;
        Ok(tracepoint)
    }

    /// Watches a thread from now on; 0 is the calling one.
    pub(super) fn watch(&self, thread: u32) -> std::io::Result<Watch> {
        let mut builder = Builder::new(events::Tracepoint::with_id(self.id));
        builder
            .observe_pid(thread.cast_signed())
            .any_cpu()
            .include_kernel()
            .include_hv()
            .sample_period(1)
            .sample(SampleFlag::TIME | SampleFlag::RAW)
            .clockid(Clock::MONOTONIC)
            .enabled(true);
        Ok(Watch {
            sampler: builder.build()?.sampled(BUFFER_BYTES)?,
            layout: self.layout,
        })
    }
}

impl Layout {
    fn read(path: &PathBuf) -> anyhow::Result<Self> {
        Self::parse(&fs::read_to_string(path)?)
    }

    /// As the kernel describes it.
    fn parse(format: &str) -> anyhow::Result<Self> {
        let field = |name: &str| {
            let line = format
                .lines()
                .find(|line| line.split(';').next().is_some_and(|it| it.ends_with(name)));
            let number = |key: &str| {
                let part = line?
                    .split(';')
                    .find_map(|part| part.trim().strip_prefix(key))?;
                part.parse().ok()
            };
            number("offset:")
                .zip(number("size:"))
                .filter(|(_, bytes)| *bytes <= 8)
                .map(|(at, bytes)| Field { at, bytes })
                .ok_or_else(|| anyhow!("the tracepoint has no{name}"))
        };
        Ok(Self {
            write: field(" write")?,
            ecx: field(" ecx")?,
            data: field(" data")?,
            exception: field(" exception")?,
        })
    }

    /// The access that a sample is of.
    fn event(&self, raw: &[u8], vcpu: VcpuId) -> Option<Event> {
        let field = |field: Field| {
            let bytes = raw.get(field.at..)?.get(..field.bytes)?;
            let mut number = [0; 8];
            number[..field.bytes].copy_from_slice(bytes);
            Some(u64::from_le_bytes(number))
        };
        let (is_write, is_fault) = (field(self.write)? != 0, field(self.exception)? != 0);
        let value = field(self.data)?;
        Some(Event {
            vcpu,
            index: MsrIndex(u32::try_from(field(self.ecx)?).ok()?),
            access: if is_write {
                Access::Write
            } else {
                Access::Read
            },
            reason: ExitReason::NONE,
            rip: None,
            value: if is_fault && !is_write { 0 } else { value },
            outcome: if is_fault {
                Outcome::Fault
            } else {
                Outcome::Native
            },
            log: false,
        })
    }
}

/// The accesses of a thread.
pub(super) struct Watch {
    sampler: Sampler,
    layout: Layout,
}

impl Watch {
    /// Takes what there is, by the clock that was 0 at `start_ns`; how many were lost.
    pub(super) fn empty(&mut self, vcpu: VcpuId, start_ns: u64, into: &mut Vec<Timed>) -> u64 {
        let mut lost = 0;
        for _ in 0..MOST_RECORDS {
            let Some(record) = self.sampler.next_record() else {
                break;
            };
            match record.parse_record() {
                Ok(Record::Sample(sample)) => {
                    let event = sample.raw().and_then(|raw| self.layout.event(raw, vcpu));
                    let time = sample.time().map(|time| time.saturating_sub(start_ns));
                    into.extend(
                        event
                            .zip(time)
                            .map(|(event, time_ns)| Timed { time_ns, event }),
                    );
                }
                Ok(Record::Lost(more)) => lost += more.lost,
                _ => {}
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Linux 6.18.
    const FORMAT: &str = "name: kvm_msr\nID: 99\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
        \n\
        \tfield:unsigned write;\toffset:8;\tsize:4;\tsigned:0;\n\
        \tfield:u32 ecx;\toffset:12;\tsize:4;\tsigned:0;\n\
        \tfield:u64 data;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:u8 exception;\toffset:24;\tsize:1;\tsigned:0;\n";

    #[test]
    fn sample_is_read_as_the_kernel_describes_it() {
        let layout = Layout::parse(FORMAT).unwrap();
        let mut raw = vec![0; 28];
        raw[8] = 1;
        raw[12..16].copy_from_slice(&0xc000_0080u32.to_le_bytes());
        raw[16..24].copy_from_slice(&0xd01u64.to_le_bytes());
        let event = layout.event(&raw, VcpuId(2)).unwrap();
        assert_eq!(
            event.to_string(),
            "vCPU 2: wrmsr 0xc0000080 (IA32_EFER), 0xd01, none: native"
        );
        raw[24] = 1;
        let event = layout.event(&raw, VcpuId(2)).unwrap();
        assert_eq!(event.outcome, Outcome::Fault);
        assert_eq!(layout.event(&raw[..24], VcpuId(2)), None);
    }

    #[test]
    fn tracepoint_without_its_fields_is_refused() {
        let without = FORMAT.replace("exception", "error");
        let error = Layout::parse(&without).unwrap_err();
        assert_eq!(error.to_string(), "the tracepoint has no exception");
        assert!(Layout::parse(&FORMAT.replace("size:8", "size:9")).is_err());
    }
}
