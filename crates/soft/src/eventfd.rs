//! [`EventFd`]: an event descriptor (eventfd(2)) of the client's, kept for as long as a VM uses it.
//!
//! The client may close its own at any time, and may have made it a blocking one: nothing here waits.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use msrgate_core::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, ReadWriteFlags};

use crate::client;

/// An event descriptor.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
    /// The kernel's number of the event, whichever descriptor leads to it.
    id: u64,
}

impl EventFd {
    /// What the client's number `fd` leads to.
    ///
    /// # Errors
    /// EBADF; EINVAL where that is no event descriptor; EMFILE.
    pub(crate) fn of_client(fd: u32) -> Result<Self, Errno> {
        let fd = client::duplicate(fd)?;
        let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
        let facts = facts.map_err(|_| Errno::EINVAL)?;
        let id = facts
            .lines()
            .find_map(|line| line.strip_prefix("eventfd-id:"));
        let id = id.and_then(|id| id.trim().parse().ok());
        Ok(Self {
            fd,
            id: id.ok_or(Errno::EINVAL)?,
        })
    }

    /// The same for two descriptors of one event, and different for two events that exist.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Adds 1; to a count that is at its end, nothing.
    pub(crate) fn signal(&self) {
        let mut room = [PollFd::new(&self.fd, PollFlags::OUT)];
        if poll(&mut room, Some(&Timespec::default())) == Ok(1) {
            // Nobody is to hear of it if the client has closed our descriptor.
            let _ = io::write(&self.fd, &1_u64.to_ne_bytes());
        }
    }

    /// Takes what has been added.
    pub(crate) fn take(&self) {
        const NO_OFFSET: u64 = u64::MAX;
        let mut count = [0; 8];
        let mut count = [IoSliceMut::new(&mut count)];
        // The client may have taken it meanwhile.
        let _ = io::preadv2(&self.fd, &mut count, NO_OFFSET, ReadWriteFlags::NOWAIT);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
