//! [`IoEventFds`]: writes of the guest that signal an event and do not leave (`KVM_IOEVENTFD`).

use std::sync::{PoisonError, RwLock};

use msrgate_core::Errno;

use crate::eventfd::EventFd;

/// Where the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    Port,
    Memory,
    /// Of other architectures: it can be asked for, and no guest writes there.
    VirtioCcw,
}

/// Which writes signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bus: Bus,
    pub(crate) address: u64,
    /// Bytes written; 0: any number of them.
    pub(crate) len_bytes: u32,
    /// Only this value does.
    pub(crate) value: Option<u64>,
}

impl Place {
    /// Whether a write could be for both.
    fn collides(&self, other: &Self) -> bool {
        let any_length = self.len_bytes == 0 || other.len_bytes == 0;
        let any_value = self.value.is_none() || other.value.is_none();
        self.bus == other.bus
            && self.address == other.address
            && (any_length
                || self.len_bytes == other.len_bytes && (any_value || self.value == other.value))
    }
}

/// Those of a VM.
#[derive(Debug, Default)]
pub(crate) struct IoEventFds(RwLock<Vec<(Place, EventFd)>>);

impl IoEventFds {
    /// # Errors
    /// EEXIST if a write could be for another one too.
    pub(crate) fn assign(&self, place: Place, event: EventFd) -> Result<(), Errno> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if list.iter().any(|(other, _)| other.collides(&place)) {
            return Err(Errno::EEXIST);
        }
        list.push((place, event));
        Ok(())
    }

    /// # Errors
    /// ENOENT if there is none like this.
    pub(crate) fn deassign(&self, place: Place, event: &EventFd) -> Result<(), Errno> {
        let mut list = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let same = |(other, own): &(Place, EventFd)| *other == place && own.id() == event.id();
        let at = list.iter().position(same).ok_or(Errno::ENOENT)?;
        list.remove(at);
        Ok(())
    }

    /// The guest writes; whether that was for one of these.
    pub(crate) fn signal(&self, write: &Place) -> bool {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = list.iter().find(|(place, _)| place.collides(write));
        own.inspect(|(_, event)| event.signal()).is_some()
    }
}
