//! [`Irqfds`]: events that raise a GSI (`KVM_IRQFD`), and the one thread of a VM, which waits for them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use msrgate_core::Errno;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io;

use super::IrqChip;
use crate::client::SignalGuard;
use crate::eventfd::EventFd;

/// An event that raises a GSI.
#[derive(Debug)]
pub(crate) struct Irqfd {
    pub(crate) gsi: u32,
    pub(crate) event: EventFd,
    /// The line stays high until the guest ends the interrupt, and this says so.
    pub(crate) ended: Option<Arc<EventFd>>,
}

/// Those of a VM.
#[derive(Debug, Default)]
pub(crate) struct Irqfds(Mutex<Option<Watcher>>);

impl Irqfds {
    /// # Errors
    /// EBUSY for an event that raises a GSI already; what the kernel answers where there is no room.
    pub(crate) fn assign(&self, irqchip: &Arc<IrqChip>, irqfd: Irqfd) -> Result<(), Errno> {
        let mut watcher = self.lock();
        let watcher = match &mut *watcher {
            Some(watcher) => watcher,
            none => none.insert(Watcher::start(irqchip)?),
        };
        watcher.watch.add(irqfd)
    }

    /// Once this returns, the event does not raise the GSI any more. It need not have.
    pub(crate) fn deassign(&self, event: &EventFd, gsi: u32) {
        if let Some(watcher) = &*self.lock() {
            watcher.watch.remove(event, gsi);
        }
    }

    /// Ends all.
    pub(crate) fn release(&self) {
        if let Some(watcher) = self.lock().take() {
            watcher.stop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Watcher>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, and what it shares.
#[derive(Debug)]
struct Watcher {
    watch: Arc<Watch>,
    thread: JoinHandle<()>,
}

impl Watcher {
    fn start(irqchip: &Arc<IrqChip>) -> Result<Self, Errno> {
        let watch = Arc::new(Watch::new(irqchip).map_err(errno)?);
        let shared = Arc::clone(&watch);
        // A thread inherits what is blocked: the client's signals are not its.
        let _signals = SignalGuard::hold();
        let thread = thread::Builder::new().name("kvm-irqfd".to_owned());
        let thread = thread.spawn(move || shared.run());
        Ok(Self {
            watch,
            thread: thread.map_err(|_| Errno::ENOMEM)?,
        })
    }

    fn stop(self) {
        let _ = io::write(&self.watch.stop, &1_u64.to_ne_bytes());
        // It does not panic; if it did, it has ended too.
        let _ = self.thread.join();
        self.watch.remove_all();
    }
}

/// What is waited for.
#[derive(Debug)]
struct Watch {
    irqchip: Arc<IrqChip>,
    epoll: OwnedFd,
    /// Signalled when the thread shall end.
    stop: OwnedFd,
    /// By the event's number. Locked while a GSI is raised.
    irqfds: Mutex<BTreeMap<u64, Irqfd>>,
}

/// What `epoll` says of `stop`.
const STOP: u64 = u64::MAX;
/// Events that are served between two waits.
const EVENTS: usize = 16;

impl Watch {
    fn new(irqchip: &Arc<IrqChip>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self {
            irqchip: Arc::clone(irqchip),
            epoll,
            stop,
            irqfds: Mutex::default(),
        })
    }

    fn add(&self, irqfd: Irqfd) -> Result<(), Errno> {
        let mut irqfds = self.lock();
        let id = irqfd.event.id();
        if irqfds.contains_key(&id) {
            return Err(Errno::EBUSY);
        }
        // Told of each signal once, also of one that came before.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &irqfd.event, EventData::new_u64(id), flags).map_err(errno)?;
        if let Some(ended) = &irqfd.ended {
            let (gsi, ended) = (irqfd.gsi, Arc::clone(ended));
            self.irqchip
                .with(|chips, _| chips.add_resampler(gsi, ended));
        }
        irqfds.insert(id, irqfd);
        Ok(())
    }

    fn remove(&self, event: &EventFd, gsi: u32) {
        let mut irqfds = self.lock();
        if irqfds
            .get(&event.id())
            .is_some_and(|irqfd| irqfd.gsi == gsi)
            && let Some(irqfd) = irqfds.remove(&event.id())
        {
            self.forget(&irqfd);
        }
    }

    fn remove_all(&self) {
        for irqfd in std::mem::take(&mut *self.lock()).values() {
            self.forget(irqfd);
        }
    }

    fn forget(&self, irqfd: &Irqfd) {
        // By name: closing our descriptor would not do, as the client still has its own.
        let _ = epoll::delete(&self.epoll, &irqfd.event);
        if let Some(ended) = &irqfd.ended {
            let gsi = irqfd.gsi;
            self.irqchip
                .with(|chips, _| chips.remove_resampler(gsi, ended));
        }
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(io::Errno::INTR) => {}
                Err(_) => return,
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    STOP => return,
                    id => self.fire(id),
                }
            }
        }
    }

    fn fire(&self, id: u64) {
        let irqfds = self.lock();
        let Some(Irqfd { gsi, event, ended }) = irqfds.get(&id) else {
            return;
        };
        event.take();
        self.irqchip.with(|chips, _| match ended {
            None => {
                chips.set_gsi(*gsi, true);
                chips.set_gsi(*gsi, false);
            }
            Some(_) => chips.raise_until_ended(*gsi),
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Irqfd>> {
        self.irqfds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn errno(error: io::Errno) -> Errno {
    Errno(error.raw_os_error())
}
