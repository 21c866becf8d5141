//! What threads share is built from these: atomic words, and the lock and the write-once cell of
//! [`FilterCell`](crate::FilterCell). Those of `core` and `std`, or under `--cfg loom` those of the model checker.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(all(feature = "std", not(loom)))]
pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard};
#[cfg(loom)]
pub(crate) use model::OnceLock;

/// Locks; a panic of another holder does not matter, as what is locked is replaced in one step.
#[cfg(feature = "std")]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(loom)]
mod model {
    use loom::sync::atomic::{AtomicBool, Ordering};

    /// `std::sync::OnceLock`, whose state the model checker sees: a value counts from the moment when the
    /// flag is raised. The model's threads are one thread of the host, so the value needs no model.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        raised: AtomicBool,
        value: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                raised: AtomicBool::new(false),
                value: std::sync::OnceLock::new(),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.raised.load(Ordering::Acquire) {
                self.value.get()
            } else {
                None
            }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            self.value.set(value)?;
            self.raised.store(true, Ordering::Release);
            Ok(())
        }

        pub(crate) fn wait(&self) -> &T {
            loop {
                if let Some(value) = self.get() {
                    return value;
                }
                loom::thread::yield_now();
            }
        }

        pub(crate) fn take(&mut self) -> Option<T> {
            self.value.take()
        }
    }
}
