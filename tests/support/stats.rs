//! KVM's own counters of a vCPU: [`Statistics`], read from the descriptor that `KVM_GET_STATS_FD` gives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use msrgate_core::Errno;

use crate::door::Door;

const KVM_GET_STATS_FD: u32 = 0xae_ce;
/// Offsets in `struct kvm_stats_header`, and the size of it.
const NAME_SIZE: usize = 4;
const COUNT: usize = 8;
const DESCRIPTORS_AT: usize = 16;
const DATA_AT: usize = 20;
const HEADER_BYTES: usize = 24;
/// Offsets in `struct kvm_stats_desc`; the name follows it.
const OFFSET: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;

/// The counters of a vCPU.
#[derive(Debug)]
pub struct Statistics {
    file: File,
    /// Where each counter lies in the file.
    counters: BTreeMap<String, u64>,
}

impl Statistics {
    /// Those of a vCPU.
    ///
    /// # Errors
    /// What the engine answers: kernels before 5.14 have no such descriptor.
    ///
    /// # Panics
    /// The file is not as its documentation says.
    pub fn of<D: Door<Handle = OwnedFd>>(door: &D, vcpu: &OwnedFd) -> Result<Self, Errno> {
        let file = File::from(door.create(vcpu, KVM_GET_STATS_FD, 0)?);
        let counters = counters(&file).expect("the statistics' header can be read");
        Ok(Self { file, counters })
    }

    /// A counter's value now.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        let at = self.counters.get(name).expect("a counter of this name");
        let mut value = [0; 8];
        let read = self.file.read_exact_at(&mut value, *at);
        read.expect("a counter can be read");
        u64::from_le_bytes(value)
    }
}

fn counters(file: &File) -> io::Result<BTreeMap<String, u64>> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let name_bytes = word(&header, NAME_SIZE);
    let size = DESCRIPTOR_BYTES + name_bytes as usize;
    let mut counters = BTreeMap::new();
    let mut at = u64::from(word(&header, DESCRIPTORS_AT));
    for _ in 0..word(&header, COUNT) {
        let mut descriptor = vec![0; size];
        file.read_exact_at(&mut descriptor, at)?;
        let name = descriptor[DESCRIPTOR_BYTES..]
            .split(|&byte| byte == 0)
            .next();
        let name = String::from_utf8_lossy(name.unwrap_or_default());
        let data = word(&header, DATA_AT) + word(&descriptor, OFFSET);
        counters.insert(name.into_owned(), data.into());
        at += size as u64;
    }
    Ok(counters)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
