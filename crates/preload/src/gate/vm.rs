//! A VM whose policy is ours: [`VmGate`] keeps its filter and its exit reasons what the policy and the program ask
//! for together.
//!
//! KVM replaces both whole at each call. So each call of the program's is remembered, merged with the policy, and
//! made with the result; a call that KVM would refuse is made as it stands, and changes nothing.

use std::array;
use std::fmt;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, kvm_enable_cap};
use msrgate_core::{
    Errno, ExitReason, ExitReasons, FILTER_BYTES_64, FilterCell, FilterReader, Gates, MsrFilter,
    MsrHandler, RawFilter,
};
use msrgate_kvm::abi::{KVM_ENABLE_CAP, KVM_X86_SET_MSR_FILTER};
use msrgate_kvm::raw_filter;
use msrgate_policy::{MergeError, merge};
use msrgate_soft::client;

use crate::lower::Lower;
use crate::rules::Rules;
use crate::session::say;

/// What the vCPUs of one VM have in common.
pub(crate) struct VmGate {
    /// Which VM of the channel it is.
    pub(crate) number: u32,
    /// `KVM_GET_VCPU_MMAP_SIZE`.
    pub(crate) run_page_bytes: usize,
    pub(crate) gates: Gates,
    rules: Arc<Rules>,
    /// The program's own filter: what it denies is for the program.
    filter: FilterCell,
    /// The program's own exit reasons.
    reasons: AtomicU32,
    /// Held while KVM is told of a change, so that what it has is what we remember.
    changing: Mutex<Option<MsrFilter>>,
}

impl VmGate {
    /// Puts the policy into force for a VM that the program has just made.
    pub(crate) fn install(
        number: u32,
        run_page_bytes: usize,
        rules: &Arc<Rules>,
        lower: &Lower,
        fd: RawFd,
    ) -> Result<Self, InstallError> {
        let vm = Self::new(number, run_page_bytes, rules, Rules::handlers());
        let refused = |call| move |errno| InstallError { call, errno };
        // The reasons come first: what a filter denies must not be #GP in between.
        vm.set_reasons(lower, fd, ExitReasons::NONE)
            .map_err(refused("KVM_CAP_X86_USER_SPACE_MSR"))?;
        set_filter(lower, fd, &rules.filter).map_err(refused("KVM_X86_SET_MSR_FILTER"))?;
        Ok(vm)
    }

    fn new(
        number: u32,
        run_page_bytes: usize,
        rules: &Arc<Rules>,
        handlers: Arc<[Arc<dyn MsrHandler>]>,
    ) -> Self {
        Self {
            number,
            run_page_bytes,
            gates: Gates::new(Arc::clone(&rules.image)).with_handlers(handlers),
            rules: Arc::clone(rules),
            filter: FilterCell::new(),
            reasons: AtomicU32::new(0),
            changing: Mutex::new(None),
        }
    }

    /// What the program's own filter denies, as one vCPU sees it.
    pub(crate) fn filter_reader(&self) -> FilterReader {
        self.filter.reader()
    }

    /// Whether the program asked for exits of this reason.
    pub(crate) fn program_wants(&self, reason: ExitReason) -> bool {
        self.reasons.load(Ordering::Acquire) & reason.0 != 0
    }

    /// The program's `KVM_ENABLE_CAP`.
    pub(crate) fn enable_cap(&self, lower: &Lower, fd: RawFd, argument: u64) -> Result<i32, Errno> {
        let mut start = [0; 16];
        client::read(argument, &mut start)?;
        let [capability, flags, mask, mask_high] =
            array::from_fn(|n| u32::from_le_bytes(array::from_fn(|byte| start[4 * n + byte])));
        let mask = u64::from(mask) | u64::from(mask_high) << 32;
        let ours = capability == KVM_CAP_X86_USER_SPACE_MSR && flags == 0;
        let Some(reasons) = ExitReasons::from_mask(mask).ok().filter(|_| ours) else {
            return lower
                .ioctl(fd, KVM_ENABLE_CAP, argument)
                .map(|done| done.value);
        };
        let _one_change = self.lock();
        self.set_reasons(lower, fd, reasons)?;
        self.reasons.store(reasons.mask(), Ordering::Release);
        Ok(0)
    }

    /// The program's `KVM_X86_SET_MSR_FILTER`.
    pub(crate) fn set_filter(&self, lower: &Lower, fd: RawFd, argument: u64) -> Result<i32, Errno> {
        let mut bytes = [0; FILTER_BYTES_64];
        client::read(argument, &mut bytes)?;
        let own = RawFilter::from_bytes_64(&bytes).check(|address, words| {
            let mut copied = vec![0; words.len() * 8];
            client::read(address, &mut copied)?;
            for (word, bytes) in words.iter_mut().zip(copied.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            Ok(())
        });
        let own = own.map_err(|error| error.errno())?;
        let mut current = self.lock();
        let merged = self.rules.merged(&own).map_err(|error| {
            say(format_args!(
                "the program's own MSR filter is refused: with the policy's, {error}"
            ));
            Errno::E2BIG
        })?;
        // A vCPU that meets the new filter must know whose it is; one that meets the old one asks the policy's
        // image, which says the same.
        self.filter.replace(own.clone());
        match set_filter(lower, fd, &merged) {
            Ok(()) => {
                *current = Some(own);
                Ok(0)
            }
            Err(errno) => {
                self.filter
                    .replace(current.clone().unwrap_or_else(MsrFilter::allow_all));
                Err(errno)
            }
        }
    }

    fn set_reasons(&self, lower: &Lower, fd: RawFd, own: ExitReasons) -> Result<(), Errno> {
        let mask = self.rules.reasons.mask() | own.mask();
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [mask.into(), 0, 0, 0],
            ..Default::default()
        };
        lower.ioctl_on(fd, KVM_ENABLE_CAP, &mut cap).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, Option<MsrFilter>> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for VmGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmGate")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// KVM does not take a policy.
#[derive(Debug)]
pub(crate) struct InstallError {
    pub(crate) call: &'static str,
    pub(crate) errno: Errno,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, errno } = self;
        write!(
            f,
            "KVM refuses {call} ({errno}): a policy needs Linux 5.10 or newer"
        )
    }
}

impl Rules {
    /// The policy's filter and the program's in one. Where both and the observation do not fit, the observation
    /// goes.
    fn merged(&self, own: &MsrFilter) -> Result<MsrFilter, MergeError> {
        merge(&self.filter, own).or_else(|error| {
            if self.filter == self.enforced {
                return Err(error);
            }
            let merged = merge(&self.enforced, own)?;
            say(format_args!(
                "with the program's own MSR filter there is no room to observe: from now on the trace has only what the \
                 policy and KVM refuse"
            ));
            Ok(merged)
        })
    }
}

fn set_filter(lower: &Lower, fd: RawFd, filter: &MsrFilter) -> Result<(), Errno> {
    let mut raw = raw_filter(filter);
    lower
        .ioctl_on(fd, KVM_X86_SET_MSR_FILTER, &mut raw)
        .map(drop)
}

#[cfg(test)]
use msrgate_core::Image;

#[cfg(test)]
impl VmGate {
    /// One that answers from `image`, whatever KVM has.
    pub(super) fn of_image(image: Image, handlers: Arc<[Arc<dyn MsrHandler>]>) -> Self {
        let rules = Rules {
            image: Arc::new(image),
            enforced: MsrFilter::allow_all(),
            filter: MsrFilter::allow_all(),
            reasons: ExitReasons::NONE,
        };
        Self::new(1, 0, &Arc::new(rules), handlers)
    }
}
