//! [`HostProcessor`]: what the processor below has in an MSR, as /dev/cpu/N/msr tells it.
//!
//! It reads the processor on which the vCPU's thread runs at that moment, and never writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msrgate_core::{Gp, MsrHandler, MsrIndex, VcpuId};

/// What policies may call the handlers that msrgate's programs have, in the order of [`handlers`].
pub const HANDLERS: &[&str] = &["host"];

/// What answers for [`HANDLERS`] in a gate.
#[must_use]
pub fn handlers() -> Arc<[Arc<dyn MsrHandler>]> {
    Arc::new([Arc::new(HostProcessor::new())])
}

/// The MSRs of the processor below, as a handler that answers reads. A write, and what cannot be read, is #GP(0).
#[derive(Clone, Debug)]
pub struct HostProcessor {
    folder: PathBuf,
}

impl HostProcessor {
    /// As /dev/cpu has them.
    #[must_use]
    pub fn new() -> Self {
        Self {
            folder: PathBuf::from("/dev/cpu"),
        }
    }

    /// Whether they can be read at all.
    ///
    /// # Errors
    /// The MSRs of processor 0 cannot be opened.
    pub fn check(&self) -> io::Result<()> {
        open(&self.folder, 0).map(drop)
    }
}

impl Default for HostProcessor {
    fn default() -> Self {
        Self::new()
    }
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
    open(folder, cpu)?.read_exact_at(&mut bytes, index.0.into())?;
    Ok(u64::from_le_bytes(bytes))
}

fn open(folder: &Path, cpu: usize) -> io::Result<File> {
    File::open(folder.join(cpu.to_string()).join("msr"))
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
