//! [`Turn`]: the vCPUs of a VM run one at a time, each for a slice, in the order in which they ask.
//!
//! So no two vCPUs touch guest memory at the same time, and who changes memory slots takes a turn as well. A
//! lock of the standard library would do, but is not fair: a vCPU that releases it gets it right back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// A lock with a queue.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// The ticket that the next one to ask gets.
    next: AtomicU64,
    /// The ticket whose turn it is.
    serving: AtomicU64,
    /// Held while `serving` moves for somebody who sleeps, so that no wake-up is lost.
    sleepers: Mutex<()>,
    moved: Condvar,
}

/// It is the owner's turn until this is dropped.
#[derive(Debug)]
pub(crate) struct MyTurn<'a>(&'a Turn);

impl Turn {
    /// Waits for one's turn.
    #[inline]
    pub(crate) fn take(&self) -> MyTurn<'_> {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        if self.serving.load(Ordering::SeqCst) != ticket {
            self.wait(ticket);
        }
        MyTurn(self)
    }

    #[cold]
    fn wait(&self, ticket: u64) {
        let mut guard = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        while self.serving.load(Ordering::SeqCst) != ticket {
            guard = self
                .moved
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    #[cold]
    fn wake(&self) {
        drop(self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_all();
    }
}

impl Drop for MyTurn<'_> {
    #[inline]
    fn drop(&mut self) {
        // Either this sees the ticket of who has asked, or who asks sees the new `serving`: both are SeqCst.
        let next = self.0.serving.fetch_add(1, Ordering::SeqCst) + 1;
        if self.0.next.load(Ordering::SeqCst) != next {
            self.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn turns_exclude_each_other() {
        const TURNS: u64 = 20_000;
        let turn = Turn::default();
        // Loaded and stored, not added to: only turns keep the sum right.
        let counter = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        let _mine = turn.take();
                        let count = counter.load(Ordering::Relaxed);
                        counter.store(count + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(counter.into_inner(), 4 * TURNS);
    }

    #[test]
    fn waiting_thread_gets_the_next_turn() {
        let turn = Turn::default();
        let first = turn.take();
        thread::scope(|scope| {
            let other = scope.spawn(|| drop(turn.take()));
            while turn.next.load(Ordering::SeqCst) != 2 {
                thread::yield_now();
            }
            drop(first);
            let second = turn.take();
            assert!(other.join().is_ok(), "it had its turn before");
            drop(second);
        });
    }
}
