//! Making a running vCPU come back: `immediate_exit` for a run that has not begun, a signal for one that has.
// UNSAFETY: a signal handler is installed, and a thread is signalled.
#![expect(unsafe_code, reason = "signals")]

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Once};

use msrgate_core::Kick;

use crate::run_page::RunPage;

/// Interrupts a [`KvmVcpu`](crate::KvmVcpu) from another thread.
///
/// The signal is `SIGRTMIN`; the first vCPU of a process installs a handler for it that does nothing.
#[derive(Clone, Debug)]
pub struct KvmKicker {
    doorbell: Arc<Doorbell>,
}

/// What the vCPU and its kickers share.
#[derive(Debug)]
pub(crate) struct Doorbell {
    pub(crate) page: RunPage,
    /// A kick that no run has answered yet. Apart from `immediate_exit`, which `complete` uses as well.
    kicked: AtomicBool,
    /// The thread inside `KVM_RUN`, or 0.
    thread: AtomicI32,
}

impl KvmKicker {
    pub(crate) fn new(doorbell: Arc<Doorbell>) -> Self {
        Self { doorbell }
    }
}

impl Kick for KvmKicker {
    fn kick(&self) {
        self.doorbell.kicked.store(true, Ordering::SeqCst);
        let immediate_exit = self.doorbell.page.immediate_exit();
        immediate_exit.store(1, Ordering::SeqCst);
        let thread = self.doorbell.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: takes three numbers. A thread that has left meanwhile, or another of this process that
            // got its number, only runs a handler that does nothing.
            unsafe {
                libc::syscall(
                    libc::SYS_tgkill,
                    std::process::id(),
                    thread,
                    libc::SIGRTMIN(),
                )
            };
        }
    }
}

impl Doorbell {
    /// A doorbell that nobody has rung.
    pub(crate) fn new(page: RunPage) -> Self {
        install_handler();
        Self {
            page,
            kicked: AtomicBool::new(false),
            thread: AtomicI32::new(0),
        }
    }

    /// This thread is about to enter `KVM_RUN`. A kick from before is passed on to it.
    pub(crate) fn enter(&self) {
        // SAFETY: takes nothing.
        let thread = unsafe { libc::gettid() };
        self.thread.store(thread, Ordering::SeqCst);
        if self.kicked.load(Ordering::SeqCst) {
            self.page.immediate_exit().store(1, Ordering::SeqCst);
        }
    }

    /// This thread came back from `KVM_RUN`.
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// The run came back interrupted: all kicks until now are answered.
    pub(crate) fn answer(&self) {
        // A kick between the two lines leaves `immediate_exit` set, so the next run still sees it.
        self.page.immediate_exit().store(0, Ordering::SeqCst);
        self.kicked.store(false, Ordering::SeqCst);
    }
}

/// Without a handler the signal would end the process; with `SA_RESTART` it would not end `KVM_RUN`.
fn install_handler() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler touches nothing, so it is safe at any moment and in any thread.
        unsafe { libc::sigaction(libc::SIGRTMIN(), &raw const action, ptr::null_mut()) };
    });
}

extern "C" fn nothing(_signal: libc::c_int) {}
