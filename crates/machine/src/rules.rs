//! The policies of a machine while it runs: [`Rules`] are what one comes to, [`Reloader`] replaces them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use msrgate_core::{Defaults, ExitReasons, Gates, Image, MsrFilter, MsrHandler, Vm, VmError};

/// What a VM and its gates need of a policy.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The answers.
    pub image: Arc<Image>,
    /// What leaves the guest although KVM could do it.
    pub filter: MsrFilter,
    /// What leaves the guest rather than being #GP.
    pub reasons: ExitReasons,
}

/// What is in force, and what a guest may ask for.
#[derive(Debug)]
pub(crate) struct Rulebook<V> {
    vm: Arc<V>,
    held: Mutex<Held>,
    /// Counts the policies that have been in force.
    edition: AtomicU64,
}

#[derive(Debug)]
struct Held {
    gates: Gates,
    policies: Vec<Rules>,
}

impl<V: Vm> Rulebook<V> {
    /// Puts the first of `policies` into force; without one, the VM is as it was.
    pub(crate) fn new(vm: Arc<V>, policies: Vec<Rules>) -> Result<Self, VmError> {
        let image = match policies.first() {
            Some(rules) => {
                vm.set_exit_reasons(rules.reasons)?;
                vm.set_msr_filter(&rules.filter)?;
                Arc::clone(&rules.image)
            }
            None => Arc::new(Image::new(Defaults::ALLOW)),
        };
        let gates = Gates::new(image);
        Ok(Self {
            vm,
            held: Mutex::new(Held { gates, policies }),
            edition: AtomicU64::new(0),
        })
    }

    /// Answers with these where a policy names a handler. Gates made before do not.
    pub(crate) fn set_handlers(&self, handlers: Arc<[Arc<dyn MsrHandler>]>) {
        let mut held = self.lock();
        held.gates = held.gates.clone().with_handlers(handlers);
    }

    /// What the gates of the vCPUs have in common, and its edition.
    pub(crate) fn gates(&self) -> (Gates, u64) {
        let held = self.lock();
        (held.gates.clone(), self.edition())
    }

    /// Tells whether a gate is of the past.
    #[inline]
    pub(crate) fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// Puts the policy of this number into force, if there is one.
    pub(crate) fn turn_to(&self, number: u8) -> Result<(), VmError> {
        let mut held = self.lock();
        match held.policies.get(usize::from(number)).cloned() {
            Some(rules) => self.put_into_force(&rules, &mut held),
            None => Ok(()),
        }
    }

    fn replace(&self, rules: Rules) -> Result<(), VmError> {
        let mut held = self.lock();
        self.put_into_force(&rules, &mut held)?;
        held.policies = vec![rules];
        Ok(())
    }

    /// An access that the old filter lets leave may be answered from the new image, and the other way round: each
    /// image answers for any access, and "let KVM do it" is done on the host's path.
    fn put_into_force(&self, rules: &Rules, held: &mut Held) -> Result<(), VmError> {
        // All reasons first: what the old filter denies must not be #GP in between.
        self.vm.set_exit_reasons(ExitReasons::ALL)?;
        self.vm.set_msr_filter(&rules.filter)?;
        held.gates = held.gates.replaced(Arc::clone(&rules.image));
        self.edition.fetch_add(1, Ordering::Release);
        self.vm.set_exit_reasons(rules.reasons)
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nobody panics while he holds it.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces the policies of a machine while its guest runs.
#[derive(Debug)]
pub struct Reloader<V> {
    /// Belongs to the machine.
    book: Weak<Rulebook<V>>,
}

impl<V: Vm> Reloader<V> {
    pub(crate) fn new(book: &Arc<Rulebook<V>>) -> Self {
        let book = Arc::downgrade(book);
        Self { book }
    }

    /// Puts `rules` into force in place of all policies: no access that begins after this is answered by an old
    /// one. `None`: the machine is gone.
    ///
    /// # Errors
    /// The backend refuses them; the guest stays under the old ones.
    pub fn replace(&self, rules: Rules) -> Option<Result<(), VmError>> {
        Some(self.book.upgrade()?.replace(rules))
    }
}
