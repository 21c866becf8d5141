//! What a trace comes to, as far as a page can show it: [`Gathered`], from one event after another.
//!
//! A trace may have any number of events of any MSRs: all that is kept is bounded by [`Limits`], and what is beyond is
//! counted.

use std::collections::{BTreeSet, HashMap};

use msrgate_core::{Access, Event, ExitReason, MsrIndex, Outcome, Timed, VcpuId};

use super::timeline::Timeline;

/// How much a page shows of a trace, so that it stays below 3 MB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// MSRs that have a row.
    pub(super) msrs: usize,
    /// Ways in which their accesses were answered, of all together.
    pub(super) answers: usize,
    /// Accesses that are shown one by one.
    pub(super) accesses: usize,
    /// Different rules of policies that are named.
    pub(super) rules: usize,
    /// Bytes of the policies' texts.
    pub(super) policy_bytes: usize,
}

impl Limits {
    /// The traces of a page share it.
    pub(super) const fn for_traces(count: usize) -> Self {
        let count = if count == 0 { 1 } else { count };
        Self {
            msrs: 2048 / count,
            answers: 6144 / count,
            accesses: 10_000 / count,
            rules: 2048 / count,
            policy_bytes: (64 << 10) / count,
        }
    }
}

/// Registers whose values are followed, vCPU by vCPU.
const MOST_HELD: usize = 1 << 16;
/// vCPUs that are counted.
const MOST_VCPUS: usize = 4096;
/// What is a storm is seen in windows of this length.
const WINDOW_NS: u64 = 100_000_000;

/// Who answered an access, in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answerer {
    Kvm,
    Policy,
    Vmm,
    /// Nobody: the guest got #GP.
    Nobody,
}

impl Answerer {
    pub(super) const ALL: [Self; 4] = [Self::Kvm, Self::Policy, Self::Vmm, Self::Nobody];

    pub(super) const fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Native | Outcome::Forwarded => Self::Kvm,
            Outcome::Vmm => Self::Vmm,
            Outcome::Fault => Self::Nobody,
            _ => Self::Policy,
        }
    }

    /// What the page calls it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Policy => "policy",
            Self::Vmm => "vmm",
            Self::Nobody => "gp",
        }
    }
}

/// What was seen so far.
#[derive(Debug)]
pub(super) struct Gathered {
    limits: Limits,
    /// In the order in which they were touched.
    pub(super) msrs: Vec<Msr>,
    places: HashMap<MsrIndex, usize>,
    answer_count: usize,
    /// What a vCPU has last seen in a register, or put there.
    held: HashMap<(MsrIndex, VcpuId), u64>,
    vcpus: BTreeSet<VcpuId>,
    pub(super) timeline: Timeline,
    /// The first accesses.
    pub(super) accesses: Vec<Timed>,
    /// All events, shown in a row or not.
    pub(super) events: u64,
    /// Events that are in no row.
    pub(super) hidden: u64,
    /// By [`Access`].
    pub(super) by_access: [u64; 2],
    /// By [`Answerer`].
    pub(super) by_answerer: [u64; 4],
    /// Events of accesses that did not leave the guest.
    pub(super) observed: u64,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
}

/// One register.
#[derive(Debug)]
pub(super) struct Msr {
    pub(super) index: MsrIndex,
    pub(super) answers: Vec<Answer>,
    /// The first and the last value that was read or written.
    pub(super) values: Option<[u64; 2]>,
    /// Reads whose answer was not what the vCPU had seen there before, or put there.
    pub(super) changes: u64,
    /// When it was touched first.
    pub(super) first_ns: u64,
    /// The first instruction that is known.
    pub(super) rip: Option<u64>,
    /// The most accesses in one window of time.
    pub(super) peak: u64,
    window: u64,
    window_count: u64,
}

/// How often something was done and answered in one way.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) access: Access,
    pub(super) outcome: Outcome,
    pub(super) reason: ExitReason,
    pub(super) count: u64,
    /// The first instruction that is known.
    pub(super) rip: Option<u64>,
}

impl Msr {
    fn new(index: MsrIndex, first_ns: u64) -> Self {
        Self {
            index,
            answers: Vec::new(),
            values: None,
            changes: 0,
            first_ns,
            rip: None,
            peak: 0,
            window: 0,
            window_count: 0,
        }
    }

    pub(super) fn count(&self, is_counted: impl Fn(&Answer) -> bool) -> u64 {
        let counted = self.answers.iter().filter(|answer| is_counted(answer));
        counted.map(|answer| answer.count).sum()
    }

    /// Finds storms. An access of another vCPU that comes late counts in the window that is under way.
    fn meter(&mut self, time_ns: u64) {
        let window = time_ns / WINDOW_NS;
        if window > self.window {
            self.window = window;
            self.window_count = 0;
        }
        self.window_count += 1;
        self.peak = self.peak.max(self.window_count);
    }
}

impl Gathered {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            limits: *limits,
            msrs: Vec::new(),
            places: HashMap::new(),
            answer_count: 0,
            held: HashMap::new(),
            vcpus: BTreeSet::new(),
            timeline: Timeline::new(),
            accesses: Vec::new(),
            events: 0,
            hidden: 0,
            by_access: [0; 2],
            by_answerer: [0; 4],
            observed: 0,
            first_ns: u64::MAX,
            last_ns: 0,
        }
    }

    pub(super) fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    pub(super) fn add(&mut self, timed: &Timed) {
        let Timed { time_ns, event } = timed;
        self.events += 1;
        self.by_access[event.access as usize] += 1;
        self.by_answerer[Answerer::of(event.outcome) as usize] += 1;
        self.observed += u64::from(event.reason == ExitReason::NONE);
        self.first_ns = self.first_ns.min(*time_ns);
        self.last_ns = self.last_ns.max(*time_ns);
        if self.vcpus.len() < MOST_VCPUS {
            self.vcpus.insert(event.vcpu);
        }
        if self.accesses.len() < self.limits.accesses {
            self.accesses.push(*timed);
        }
        self.timeline.add(timed);
        if !self.count(*time_ns, event) {
            self.hidden += 1;
        }
    }

    /// Whether there is a row for it.
    fn count(&mut self, time_ns: u64, event: &Event) -> bool {
        let place = match self.places.get(&event.index) {
            Some(place) => *place,
            None if self.msrs.len() < self.limits.msrs => {
                self.places.insert(event.index, self.msrs.len());
                self.msrs.push(Msr::new(event.index, time_ns));
                self.msrs.len() - 1
            }
            None => return false,
        };
        let msr = &mut self.msrs[place];
        let is_same = |answer: &&mut Answer| {
            (answer.access, answer.outcome, answer.reason)
                == (event.access, event.outcome, event.reason)
        };
        match msr.answers.iter_mut().find(is_same) {
            Some(answer) => {
                answer.count += 1;
                answer.rip = answer.rip.or(event.rip);
            }
            None if self.answer_count < self.limits.answers => {
                self.answer_count += 1;
                msr.answers.push(Answer {
                    access: event.access,
                    outcome: event.outcome,
                    reason: event.reason,
                    count: 1,
                    rip: event.rip,
                });
            }
            None => return false,
        }
        msr.meter(time_ns);
        msr.first_ns = msr.first_ns.min(time_ns);
        msr.rip = msr.rip.or(event.rip);
        let has_value = event.access == Access::Write || event.outcome != Outcome::Fault;
        if has_value {
            let [first, _] = msr.values.unwrap_or([event.value; 2]);
            msr.values = Some([first, event.value]);
        }
        let is_kept = has_value && !matches!(event.outcome, Outcome::Fault | Outcome::Ignored);
        if is_kept || event.access == Access::Read && has_value {
            let key = (event.index, event.vcpu);
            let is_room = self.held.len() < MOST_HELD || self.held.contains_key(&key);
            let before = is_room
                .then(|| self.held.insert(key, event.value))
                .flatten();
            let is_change = before.is_some_and(|before| before != event.value);
            msr.changes += u64::from(is_change && event.access == Access::Read);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(index: u32, value: u64) -> Event {
        Event {
            vcpu: VcpuId(0),
            index: MsrIndex(index),
            access: Access::Read,
            reason: ExitReason::NONE,
            rip: None,
            value,
            outcome: Outcome::Native,
            log: false,
        }
    }

    fn gathered(events: impl IntoIterator<Item = Event>) -> Gathered {
        let mut gathered = Gathered::new(&Limits::for_traces(1));
        for (time_ns, event) in (0..).zip(events) {
            gathered.add(&Timed { time_ns, event });
        }
        gathered
    }

    #[test]
    fn value_changes_where_the_vcpu_did_not_put_it_there() {
        let write = |value| Event {
            access: Access::Write,
            ..read(0x10, value)
        };
        let other = |event| Event {
            vcpu: VcpuId(1),
            ..event
        };
        let dropped = Event {
            outcome: Outcome::Ignored,
            ..write(9)
        };
        let refused = Event {
            outcome: Outcome::Fault,
            ..read(0x10, 0)
        };
        let quiet = [
            read(0x10, 1),
            write(2),
            read(0x10, 2),
            dropped,
            refused,
            read(0x10, 2),
        ];
        let quiet = quiet
            .into_iter()
            .chain([other(read(0x10, 7)), read(0x10, 2)]);
        let gathered_quiet = gathered(quiet.clone());
        assert_eq!(gathered_quiet.msrs[0].changes, 0);
        assert_eq!(gathered_quiet.msrs[0].values, Some([1, 2]));
        assert_eq!(gathered(quiet.chain([read(0x10, 3)])).msrs[0].changes, 1);
    }

    #[test]
    fn what_has_no_row_is_counted() {
        let limits = Limits::for_traces(1);
        let more = 10_000;
        let flood = gathered((0..more).map(|index| read(index, 0)));
        assert_eq!(flood.msrs.len(), limits.msrs);
        assert_eq!(flood.accesses.len(), limits.accesses);
        assert_eq!(flood.hidden, u64::from(more) - limits.msrs as u64);
        let reasons = (0..more).map(|reason| Event {
            reason: ExitReason(reason),
            ..read(0x10, 0)
        });
        let flood = gathered(reasons);
        assert_eq!(flood.msrs[0].answers.len(), limits.answers);
        assert_eq!(flood.hidden, u64::from(more) - limits.answers as u64);
    }
}
