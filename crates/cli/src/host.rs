//! `"host"` in a policy: what the processor below has in an MSR, as /dev/cpu/N/msr tells it.
//!
//! [`HostProcessor`] reads the processor on which the vCPU's thread runs at that moment. It never writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::bail;
use msrgate_core::{Access, Action, Gp, MsrHandler, MsrIndex, VcpuId};
use msrgate_policy::Compiled;

/// The name of each handler that a policy may use, in the order of [`handlers`].
pub(crate) const HANDLERS: &[&str] = &["host"];

/// What answers for [`HANDLERS`] in a gate.
pub(crate) fn handlers() -> Arc<[Arc<dyn MsrHandler>]> {
    let host = HostProcessor {
        folder: PathBuf::from("/dev/cpu"),
    };
    Arc::new([Arc::new(host)])
}

/// Refuses a policy that asks for the host's MSRs where they cannot be read.
pub(crate) fn check(compiled: &Compiled) -> anyhow::Result<()> {
    let asks = Access::ALL.into_iter().any(|access| {
        let mut segments = compiled.segments(access).iter();
        segments.any(|segment| matches!(segment.rule.action, Action::Handler(_)))
    });
    if asks && let Err(error) = File::open("/dev/cpu/0/msr") {
        let how = match error.kind() {
            io::ErrorKind::NotFound => "load the kernel module msr",
            _ => "it takes root, and CAP_SYS_RAWIO",
        };
        bail!(
            "the policy reads the host's MSRs, but /dev/cpu/0/msr cannot be opened ({error}): {how}"
        );
    }
    Ok(())
}

/// The MSRs of the processor below.
struct HostProcessor {
    folder: PathBuf,
}

impl MsrHandler for HostProcessor {
    fn rdmsr(&self, _vcpu: VcpuId, index: MsrIndex) -> Result<u64, Gp> {
        read(&self.folder, rustix::thread::sched_getcpu(), index).map_err(|_| Gp)
    }

    fn wrmsr(&self, _vcpu: VcpuId, _index: MsrIndex, _value: u64) -> Result<(), Gp> {
        Err(Gp)
    }
}

/// EIO: the processor has no such MSR.
fn read(folder: &Path, cpu: usize, index: MsrIndex) -> io::Result<u64> {
    let mut bytes = [0; 8];
    let file = File::open(folder.join(cpu.to_string()).join("msr"))?;
    file.read_exact_at(&mut bytes, index.0.into())?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn msr_is_read_at_its_index_of_the_processors_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("3")).unwrap();
        let file = File::create(folder.path().join("3/msr")).unwrap();
        file.write_all_at(&0x1122_3344_5566_7788u64.to_le_bytes(), 0x1a2)
            .unwrap();
        let read = |cpu, index| read(folder.path(), cpu, MsrIndex(index));
        assert_eq!(read(3, 0x1a2).unwrap(), 0x1122_3344_5566_7788);
        assert!(read(3, 0x1b0).is_err(), "behind the end, as EIO is");
        assert!(read(2, 0x1a2).is_err());
    }
}
