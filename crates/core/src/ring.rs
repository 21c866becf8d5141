//! Events from a vCPU's thread to another: [`EventRing`], with an [`EventProducer`] and an [`EventConsumer`].
//!
//! The producer never waits: where the ring is full it counts what it drops. The consumer asks now and then; nobody
//! wakes it, as that would cost the vCPU a system call. Each event has the time at which it was recorded, by the
//! program's clock.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::{Event, Recorder};

/// Room for some events, in order.
///
/// ```
/// use msrgate_core::*;
///
/// let (mut producer, mut consumer) = EventRing::new(64).split(|| 7_000);
/// # let event = Event {
/// #     vcpu: VcpuId(0), index: MsrIndex(0x8b), access: Access::Read, reason: ExitReason::FILTER,
/// #     rip: None, value: 1, outcome: Outcome::Value, log: false,
/// # };
/// producer.record(&event); // most often the gate does: Gate::new(vcpu, image, producer)
/// assert_eq!(consumer.pop(), Some(Timed { time_ns: 7_000, event }));
/// assert_eq!(consumer.pop(), None);
/// assert_eq!(consumer.dropped(), 0);
/// ```
pub struct EventRing {
    slots: Box<[Slot]>,
    /// Events recorded so far: what lies before is the consumer's.
    recorded: Line<AtomicUsize>,
    /// Events taken so far: their slots are the producer's again.
    taken: Line<AtomicUsize>,
    dropped: AtomicU64,
    is_closed: AtomicBool,
}

/// The time, and an event's words.
type Slot = [AtomicU64; 1 + Event::WORDS];

/// A cache line (a pair of them, as they are fetched), so that the two threads do not take it from each other.
#[repr(align(128))]
struct Line<T>(T);

impl EventRing {
    /// A ring for at least `capacity` events, of 40 bytes each.
    ///
    /// # Panics
    /// So much memory cannot be.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let count = capacity.max(1).checked_next_power_of_two();
        let count = count.expect("a ring fits into memory");
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            recorded: Line(AtomicUsize::new(0)),
            taken: Line(AtomicUsize::new(0)),
            dropped: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Its two ends, each for one thread. `clock` tells the time of each event, in nanoseconds.
    #[must_use]
    pub fn split<C: FnMut() -> u64>(self, clock: C) -> (EventProducer<C>, EventConsumer) {
        let ring = Arc::new(self);
        let producer = EventProducer {
            ring: Arc::clone(&ring),
            clock,
            recorded: 0,
            taken: 0,
            dropped: 0,
        };
        let consumer = EventConsumer { ring, taken: 0 };
        (producer, consumer)
    }

    fn slot(&self, number: usize) -> &Slot {
        &self.slots[number & (self.slots.len() - 1)]
    }
}

impl fmt::Debug for EventRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRing")
            .field("capacity", &self.slots.len())
            .finish_non_exhaustive()
    }
}

/// The end of a ring that records: a [`Recorder`].
pub struct EventProducer<C> {
    ring: Arc<EventRing>,
    clock: C,
    recorded: usize,
    /// At least so many were taken.
    taken: usize,
    dropped: u64,
}

impl<C: FnMut() -> u64> Recorder for EventProducer<C> {
    /// Records `event`, or drops and counts it where the ring is full.
    fn record(&mut self, event: &Event) {
        if self.is_full() {
            self.dropped += 1;
            self.ring.dropped.store(self.dropped, Ordering::Relaxed);
            return;
        }
        let [time, words @ ..] = self.ring.slot(self.recorded);
        time.store((self.clock)(), Ordering::Relaxed);
        for (place, word) in words.iter().zip(event.to_words()) {
            place.store(word, Ordering::Relaxed);
        }
        self.recorded = self.recorded.wrapping_add(1);
        // Whoever sees this number sees the words.
        self.ring.recorded.0.store(self.recorded, Ordering::Release);
    }
}

impl<C> EventProducer<C> {
    /// How many events were dropped.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn is_full(&mut self) -> bool {
        let capacity = self.ring.slots.len();
        if self.recorded.wrapping_sub(self.taken) == capacity {
            // Whoever sees this number knows that its slots are read.
            self.taken = self.ring.taken.0.load(Ordering::Acquire);
        }
        self.recorded.wrapping_sub(self.taken) == capacity
    }
}

impl<C> Drop for EventProducer<C> {
    fn drop(&mut self) {
        self.ring.is_closed.store(true, Ordering::Release);
    }
}

impl<C> fmt::Debug for EventProducer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventProducer")
            .field("ring", &self.ring)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

/// The end of a ring that is read.
#[derive(Debug)]
pub struct EventConsumer {
    ring: Arc<EventRing>,
    taken: usize,
}

impl EventConsumer {
    /// Takes the oldest event, if there is one. It does not wait.
    pub fn pop(&mut self) -> Option<Timed> {
        if self.taken == self.ring.recorded.0.load(Ordering::Acquire) {
            return None;
        }
        let [time, words @ ..] = self.ring.slot(self.taken);
        let time_ns = time.load(Ordering::Relaxed);
        let words = words.each_ref().map(|word| word.load(Ordering::Relaxed));
        self.taken = self.taken.wrapping_add(1);
        self.ring.taken.0.store(self.taken, Ordering::Release);
        let event = Event::from_words(words).expect("the producer stored an event's words");
        Some(Timed { time_ns, event })
    }

    /// How many events were dropped so far, as the ring was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.ring.dropped.load(Ordering::Relaxed)
    }

    /// Whether the producer is gone: once this was true, [`EventConsumer::pop`] gives what is left and
    /// [`EventConsumer::dropped`] is final.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed.load(Ordering::Acquire)
    }
}

/// An event, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timed {
    /// By the clock of the ring's producer.
    pub time_ns: u64,
    /// What happened.
    pub event: Event,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Access, ExitReason, MsrIndex, Outcome, VcpuId};

    /// All of it follows from `number`, so that a torn event is seen.
    fn event(number: u32) -> Event {
        Event {
            vcpu: VcpuId(!number),
            index: MsrIndex(number),
            access: Access::ALL[number as usize % 2],
            reason: ExitReason(number),
            rip: (!number.is_multiple_of(3)).then_some(number.into()),
            value: number.into(),
            outcome: Outcome::ALL[number as usize % 8],
            log: number.is_multiple_of(5),
        }
    }

    fn numbers(consumer: &mut EventConsumer) -> Vec<u32> {
        core::iter::from_fn(|| consumer.pop())
            .map(|timed| timed.event.index.0)
            .collect()
    }

    #[test]
    fn events_come_out_in_order_with_their_time() {
        let mut now = 100;
        let (mut producer, mut consumer) = EventRing::new(4).split(|| {
            now += 1;
            now
        });
        for round in 0..5 {
            for number in 0..3 {
                producer.record(&event(round * 3 + number));
            }
            for number in 0..3 {
                let number = round * 3 + number;
                let expected = Timed {
                    time_ns: 101 + u64::from(number),
                    event: event(number),
                };
                assert_eq!(consumer.pop(), Some(expected));
            }
            assert_eq!(consumer.pop(), None);
        }
    }

    #[test]
    fn full_ring_drops_the_newest_and_counts_them() {
        let (mut producer, mut consumer) = EventRing::new(3).split(|| 0);
        for number in 0..7 {
            producer.record(&event(number));
        }
        assert_eq!((producer.dropped(), consumer.dropped()), (3, 3));
        assert_eq!(numbers(&mut consumer), [0, 1, 2, 3], "rounded up to four");
        producer.record(&event(9));
        assert_eq!(numbers(&mut consumer), [9]);
        assert_eq!(consumer.dropped(), 3);
    }

    #[test]
    fn ring_for_no_event_has_room_for_one() {
        let (mut producer, mut consumer) = EventRing::new(0).split(|| 0);
        for number in 0..3 {
            producer.record(&event(number));
            assert_eq!(numbers(&mut consumer), [number]);
        }
    }

    #[test]
    fn consumer_outlives_the_producer_and_gets_the_rest() {
        let (mut producer, mut consumer) = EventRing::new(4).split(|| 0);
        producer.record(&event(1));
        assert!(!consumer.is_closed());
        drop(producer);
        assert!(consumer.is_closed());
        assert_eq!(numbers(&mut consumer), [1]);
    }

    #[test]
    fn counts_may_pass_the_end_of_their_type() {
        let ring = EventRing::new(4);
        ring.recorded.0.store(usize::MAX - 1, Ordering::Relaxed);
        ring.taken.0.store(usize::MAX - 1, Ordering::Relaxed);
        let (mut producer, mut consumer) = ring.split(|| 0);
        (producer.recorded, producer.taken) = (usize::MAX - 1, usize::MAX - 1);
        consumer.taken = usize::MAX - 1;
        for number in 0..6 {
            producer.record(&event(number));
        }
        assert_eq!(numbers(&mut consumer), [0, 1, 2, 3]);
        assert_eq!(consumer.dropped(), 2);
    }

    #[test]
    fn threads_lose_nothing_but_what_is_counted() {
        const EVENTS: u32 = 200_000;
        let (mut producer, mut consumer) = EventRing::new(64).split(|| 0);
        let thread = std::thread::spawn(move || {
            (0..EVENTS).for_each(|number| producer.record(&event(number)));
        });
        let mut seen = 0;
        let mut next = 0;
        loop {
            let is_closed = consumer.is_closed();
            while let Some(timed) = consumer.pop() {
                let number = timed.event.index.0;
                assert!(number >= next, "out of order");
                assert_eq!(timed.event, event(number), "torn");
                next = number + 1;
                seen += 1;
            }
            if is_closed {
                break;
            }
        }
        thread.join().unwrap();
        assert_eq!(seen + consumer.dropped(), EVENTS.into());
        assert!(seen >= 64);
    }
}
