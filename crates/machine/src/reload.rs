//! Replacing the policies of a running machine from another thread: [`Reloader`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};

use msrgate_core::{Kick, VmError};

use crate::machine::Rules;

/// New rules, and who waits to hear whether they are in force.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) rules: Rules,
    pub(crate) answer: mpsc::Sender<Result<(), VmError>>,
}

/// Where the vCPU's thread finds new rules between two runs.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    request: Mutex<Option<Request>>,
    is_full: AtomicBool,
}

impl Mailbox {
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    pub(crate) fn take(&self) -> Option<Request> {
        self.exchange(None)
    }

    fn exchange(&self, request: Option<Request>) -> Option<Request> {
        // Nobody panics while he holds it.
        let mut held = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_full.store(request.is_some(), Ordering::SeqCst);
        std::mem::replace(&mut held, request)
    }
}

/// Replaces the policies of a machine while its guest runs.
#[derive(Clone, Debug)]
pub struct Reloader<K> {
    /// Belongs to the machine: with it goes a request that nobody has taken, and who waits hears of that.
    mailbox: Weak<Mailbox>,
    kicker: K,
}

impl<K: Kick> Reloader<K> {
    pub(crate) fn new(mailbox: &Arc<Mailbox>, kicker: K) -> Self {
        let mailbox = Arc::downgrade(mailbox);
        Self { mailbox, kicker }
    }

    /// Puts `rules` into force in place of all policies, and comes back when they are. `None`: the machine is
    /// gone, or somebody else's rules came before the vCPU could take these.
    ///
    /// # Errors
    /// The backend refuses them.
    pub fn replace(&self, rules: Rules) -> Option<Result<(), VmError>> {
        let (answer, heard) = mpsc::channel();
        let request = Request { rules, answer };
        self.mailbox.upgrade()?.exchange(Some(request));
        self.kicker.kick();
        heard.recv().ok()
    }
}
