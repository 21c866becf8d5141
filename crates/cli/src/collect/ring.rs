//! A vCPU as the collector sees it: [`Ring`], with the watch on its thread where there is one.

use msrgate_core::Timed;
use msrgate_trace::Loss;
use msrgate_trace::channel::{Claim, RingConsumer};

use super::tracepoint::{Tracepoint, Watch};
use crate::pump::Inlet;

/// So much later than it happened, an access is surely where we look. Nothing later is written before it.
const DELAY_NS: u64 = 1_000_000;

/// A vCPU's ring, and what is known of it.
pub(super) struct Ring {
    inlet: Inlet<RingConsumer>,
    failures: u64,
    damaged: u64,
    /// When the channel began, by the tracepoint's clock.
    start_ns: u64,
    watch: Option<Watch>,
    /// What is not old enough, where two sources are to be put in order.
    held: Vec<Timed>,
    lost_by_watch: u64,
}

impl Ring {
    pub(super) fn new(consumer: RingConsumer, start_ns: u64) -> Self {
        Self {
            inlet: Inlet::new(consumer.who().vcpu, consumer),
            failures: 0,
            damaged: 0,
            start_ns,
            watch: None,
            held: Vec::new(),
            lost_by_watch: 0,
        }
    }

    pub(super) const fn who(&self) -> &Claim {
        self.inlet.source.who()
    }

    /// Whether nothing more will come.
    pub(super) fn is_closed(&self) -> bool {
        self.inlet.source.is_closed()
    }

    pub(super) fn into_consumer(self) -> RingConsumer {
        self.inlet.source
    }

    /// Watches the thread on which the vCPU says that it runs now, and lets it run.
    pub(super) fn follow(&mut self, tracepoint: &Tracepoint) -> std::io::Result<()> {
        let Some(thread) = self.inlet.source.new_thread() else {
            return Ok(());
        };
        self.take_from_watch();
        let watch = tracepoint.watch(thread);
        self.inlet.source.knows(thread);
        self.watch = Some(watch?);
        Ok(())
    }

    /// Takes what there is, in order of time; says how much it was.
    pub(super) fn empty(&mut self, now_ns: u64, mut take: impl FnMut(&Timed)) -> usize {
        if self.watch.is_none() && self.held.is_empty() {
            return self.inlet.empty(take);
        }
        self.take_from_watch();
        // Whatever the VMM says of the time: nothing is held for long.
        let latest = now_ns.saturating_add(DELAY_NS);
        self.inlet.empty(|timed| {
            self.held.push(Timed {
                time_ns: timed.time_ns.min(latest),
                ..*timed
            });
        });
        self.held.sort_by_key(|timed| timed.time_ns);
        let is_old = |timed: &Timed| timed.time_ns.saturating_add(DELAY_NS) <= now_ns;
        let count = self.held.partition_point(is_old);
        self.held.drain(..count).for_each(|timed| take(&timed));
        count.max(usize::from(!self.held.is_empty()))
    }

    /// What was lost since this was asked last.
    pub(super) fn loss(&mut self, time_ns: u64) -> Loss {
        let mut loss = self.inlet.loss(time_ns);
        let by_watch = std::mem::take(&mut self.lost_by_watch);
        loss.count = loss.count.saturating_add(by_watch);
        loss
    }

    /// How often the gate failed since this was asked last.
    pub(super) fn new_failures(&mut self) -> u64 {
        let failures = self.inlet.source.failures().max(self.failures);
        failures - std::mem::replace(&mut self.failures, failures)
    }

    /// The same of what is no event.
    pub(super) fn new_damage(&mut self) -> u64 {
        let damaged = self.inlet.source.damaged();
        damaged - std::mem::replace(&mut self.damaged, damaged)
    }

    fn take_from_watch(&mut self) {
        let vcpu = self.who().vcpu;
        if let Some(watch) = &mut self.watch {
            self.lost_by_watch += watch.empty(vcpu, self.start_ns, &mut self.held);
        }
    }
}
