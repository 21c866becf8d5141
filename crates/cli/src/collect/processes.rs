//! Which processes of the VMM still live: [`Processes`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The VMM, and what else has vCPUs.
#[derive(Debug, Default)]
pub(super) struct Processes {
    vmm: u32,
    /// Those that lived when they were looked at last.
    living: BTreeMap<u32, OwnedFd>,
}

impl Processes {
    /// For the VMM with this pid, which lives.
    pub(super) fn of(vmm: u32) -> io::Result<Self> {
        let living = BTreeMap::from([(vmm, open(vmm)?)]);
        Ok(Self { vmm, living })
    }

    /// Looks at this one too from now on; 0 is nobody's.
    pub(super) fn watch(&mut self, pid: u32) {
        // One that cannot be opened has ended.
        if !self.living.contains_key(&pid)
            && let Ok(process) = open(pid)
        {
            self.living.insert(pid, process);
        }
    }

    /// Looks, and says whether there is still somebody.
    pub(super) fn any_live(&mut self) -> bool {
        self.living.retain(|_, process| !has_ended(process));
        !self.living.is_empty()
    }

    /// Whether there was somebody but the VMM itself.
    pub(super) fn others_live(&self) -> bool {
        self.living.keys().any(|pid| *pid != self.vmm)
    }

    /// Looks at nobody but the VMM from now on.
    pub(super) fn forget_others(&mut self) {
        self.living.retain(|pid, _| *pid == self.vmm);
    }

    /// Whether this one lived; of 0, nothing is known.
    pub(super) fn lives(&self, pid: u32) -> bool {
        pid == 0 || self.living.contains_key(&pid)
    }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// All of its threads, too.
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready != 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn process_lives_until_it_has_ended() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut processes = Processes::of(child.id()).unwrap();
        processes.watch(0);
        assert!(processes.any_live() && processes.lives(child.id()));
        assert!(!processes.others_live());
        processes.watch(std::process::id());
        assert!(processes.others_live());
        child.kill().unwrap();
        // Not yet waited for, as a VMM whose parent is busy.
        while processes.any_live() && processes.lives(child.id()) {}
        assert!(processes.others_live() && processes.lives(0));
        child.wait().unwrap();
        assert!(Processes::of(child.id()).is_err());
    }
}
