//! A trace for each VM that has a vCPU: [`Traces`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use msrgate_trace::Header;

use crate::pump::{TraceEnd, TraceFile};
use crate::warn;

/// As many VMs have a trace: each is an open file.
const FILES_LIMIT: usize = 64;

/// `FILE` for the first VM, `FILE.2` for the second, and so on.
#[derive(Debug)]
pub(super) struct Traces {
    path: PathBuf,
    header: Header,
    /// By VM; `None` is the one that is still to come, whose file is there from the start.
    files: Vec<(Option<u32>, Trace)>,
    /// Whether somebody was told of the VMs that have none.
    has_told: bool,
}

#[derive(Debug)]
struct Trace {
    /// `None` where it cannot be written.
    file: Option<TraceFile>,
    has_told: bool,
}

impl Traces {
    /// Begins the first file.
    pub(super) fn create(path: &Path, header: Header) -> anyhow::Result<Self> {
        let first = Trace {
            file: Some(TraceFile::create(path, &header)?),
            has_told: false,
        };
        Ok(Self {
            path: path.to_owned(),
            header,
            files: vec![(None, first)],
            has_told: false,
        })
    }

    /// The trace of this VM, if there is one.
    pub(super) fn of(&mut self, vm: u32) -> Option<&mut TraceFile> {
        let found = self
            .files
            .iter()
            .position(|(owner, _)| owner.is_none_or(|owner| owner == vm));
        let at = match found {
            Some(at) => at,
            None if self.files.len() < FILES_LIMIT => {
                self.files.push((None, self.next()));
                self.files.len() - 1
            }
            None => {
                if !std::mem::replace(&mut self.has_told, true) {
                    warn(format_args!(
                        "more than {FILES_LIMIT} VMs: the others have no trace"
                    ));
                }
                return None;
            }
        };
        let (owner, trace) = &mut self.files[at];
        *owner = Some(vm);
        trace.file.as_mut()
    }

    fn next(&self) -> Trace {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{}", self.files.len() + 1));
        let file = TraceFile::create(Path::new(&name), &self.header);
        if let Err(error) = &file {
            warn(format_args!("{error:#}: the guest runs on without it"));
        }
        Trace {
            has_told: file.is_err(),
            file: file.ok(),
        }
    }

    /// Writes what is due, and says once of each file that it takes no more.
    pub(super) fn keep_up(&mut self) {
        for (_, trace) in &mut self.files {
            let Some(file) = &mut trace.file else {
                continue;
            };
            file.flush_in_time();
            let end = file.end_so_far();
            if let Some(error) = end.error.filter(|_| !trace.has_told) {
                trace.has_told = true;
                warn(format_args!(
                    "{}: {error}: the guest runs on, and what is lost is counted",
                    end.file
                ));
            }
        }
    }

    /// Writes everything; what became of each.
    pub(super) fn flush(&mut self) -> Vec<TraceEnd> {
        let files = self.files.iter_mut().filter_map(|(_, it)| it.file.as_mut());
        files
            .map(|file| {
                file.flush();
                file.end_so_far()
            })
            .collect()
    }

    /// Events that the files did not take.
    pub(super) fn lost(&self) -> u64 {
        let files = self.files.iter().filter_map(|(_, it)| it.file.as_ref());
        files.map(|file| file.end_so_far().lost_in_file).sum()
    }
}
