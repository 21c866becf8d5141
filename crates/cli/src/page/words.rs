//! What a trace comes to in words: [`summary`], and what is odd about it, [`anomalies`].

use std::cmp::Reverse;
use std::fmt::Write as _;

use msrgate_core::{Access, ExitReason, Outcome};
use msrgate_trace::{Facts, Header, Observation, Summary};
use serde::Serialize;

use super::document::{printable, seconds};
use super::gather::{Answerer, Gathered, Msr};
use super::symbols::Symbols;

/// So many accesses to one MSR in a tenth of a second are a storm.
const STORM: u64 = 1000;
/// MSRs that are listed for one thing that is odd.
const MOST_ITEMS: usize = 100;

/// A few sentences.
pub(super) fn summary(header: &Header, gathered: &Gathered) -> Vec<String> {
    let facts = &header.facts;
    let mut sentences = vec![accesses(facts, gathered)];
    if gathered.events != 0 {
        sentences.push(answerers(gathered));
    }
    let seen = match facts.observation {
        Some(Observation::Native) => {
            "All accesses were seen: the backend told of those that it did by itself."
        }
        Some(Observation::Tracepoint) => {
            "All accesses were seen: the kernel told of those that KVM did by itself."
        }
        Some(Observation::Filter) => {
            "Seen were those accesses that can be deflected and then done by KVM with the same result; \
             others stayed in KVM."
        }
        _ => {
            "Seen were those accesses that left the guest because of a policy, or because KVM refused \
             them; what KVM did by itself is not here."
        }
    };
    sentences.push(seen.to_owned());
    sentences
}

fn accesses(facts: &Facts, gathered: &Gathered) -> String {
    let guest = match facts.guest.as_str() {
        "" => "the guest".to_owned(),
        guest => printable(guest, 200),
    };
    let mut text = match facts.backend.as_str() {
        "" => format!("As far as was seen, {guest}"),
        backend => format!("On {}, {guest}", printable(backend, 40)),
    };
    if gathered.events == 0 {
        return text + " made no MSR access that was seen.";
    }
    let [reads, writes] = gathered.by_access;
    let vcpus = counted(gathered.vcpu_count() as u64, "vCPU");
    let mut msrs = counted(gathered.msrs.len() as u64, "MSR");
    if gathered.hidden != 0 {
        msrs.insert_str(0, "at least ");
    }
    let _ = write!(
        text,
        " made {} to {msrs} on {vcpus}: {} and {}, in {}.",
        plural(gathered.events, "access", "accesses"),
        counted(reads, "read"),
        counted(writes, "write"),
        seconds(gathered.last_ns - gathered.first_ns),
    );
    text
}

/// Who answered how many.
fn answerers(gathered: &Gathered) -> String {
    let parts: Vec<String> = Answerer::ALL
        .into_iter()
        .zip(gathered.by_answerer)
        .filter(|(_, count)| *count != 0)
        .map(|(answerer, count)| {
            let who = match answerer {
                Answerer::Kvm => "done by KVM",
                Answerer::Policy => "answered by the policy",
                Answerer::Vmm => "answered by the VMM itself",
                Answerer::Nobody => "#GP for the guest",
            };
            format!(
                "{} {who} ({})",
                grouped(count),
                share(count, gathered.events)
            )
        })
        .collect();
    format!("Of these, {}.", parts.join(", "))
}

/// What is not on the page: a sentence each.
pub(super) fn gaps(summary: &Summary, gathered: &Gathered) -> Vec<String> {
    let mut sentences = Vec::new();
    if summary.is_torn {
        sentences.push(
            "The trace is torn: it ends inside a record, or in damaged ones. Its writer was stopped, or \
             writes still; this page shows what there is."
                .to_owned(),
        );
    }
    for (count, what) in [
        (summary.damaged, "damaged records are passed over."),
        (
            summary.unknown,
            "records of a later version are passed over.",
        ),
        (
            summary.lost_in_rings,
            "accesses came faster than they could be written, and are lost.",
        ),
        (
            summary.lost_in_file,
            "accesses could not be written, and are lost.",
        ),
        (
            gathered.hidden,
            "accesses to still other MSRs are in no row of the table.",
        ),
    ] {
        if count != 0 {
            sentences.push(format!("{} {what}", grouped(count)));
        }
    }
    sentences
}

/// Something that whoever looks for trouble wants to see first.
#[derive(Debug, Serialize)]
pub(super) struct Anomaly {
    title: &'static str,
    meaning: &'static str,
    items: Vec<Item>,
    /// MSRs that are not listed.
    more: usize,
}

#[derive(Debug, Serialize)]
struct Item {
    /// The place of the MSR's row.
    msr: usize,
    text: String,
}

/// What is odd, with the MSRs that it is about.
pub(super) fn anomalies(gathered: &Gathered, symbols: &Symbols) -> Vec<Anomaly> {
    let is_unknown = |msr: &Msr| msr.count(|answer| answer.reason == ExitReason::UNKNOWN);
    let is_nameless = |msr: &Msr| match msr.index.name() {
        Some(_) => 0,
        None => msr.count(|_| true),
    };
    let all = [
        anomaly(
            gathered,
            "#GP taken",
            "The guest made these accesses and got a general-protection exception.",
            |msr| msr.count(|answer| answer.outcome == Outcome::Fault),
            |msr, _| faults(msr, symbols),
        ),
        anomaly(
            gathered,
            "Unknown to KVM",
            "KVM does not have these MSRs; without a policy, such an access is #GP.",
            is_unknown,
            |_, count| plural(count, "access", "accesses"),
        ),
        anomaly(
            gathered,
            "Without a name",
            "Neither the processors' manuals nor the interfaces of hypervisors that msrgate knows name these.",
            is_nameless,
            |_, count| plural(count, "access", "accesses"),
        ),
        anomaly(
            gathered,
            "Storms",
            "At least 1,000 accesses to one MSR in a tenth of a second. Where each leaves the guest, they cost time.",
            |msr| if msr.peak >= STORM { msr.peak } else { 0 },
            |_, peak| format!("up to {} accesses in a tenth of a second", grouped(peak)),
        ),
        anomaly(
            gathered,
            "Values that changed",
            "A vCPU read something else than it had last read or written there: a counter, a clock, a status, or \
             somebody else's write.",
            |msr| msr.changes,
            |_, count| plural(count, "read", "reads"),
        ),
    ];
    all.into_iter().filter(|it| !it.items.is_empty()).collect()
}

fn anomaly(
    gathered: &Gathered,
    title: &'static str,
    meaning: &'static str,
    count: impl Fn(&Msr) -> u64,
    text: impl Fn(&Msr, u64) -> String,
) -> Anomaly {
    let counts = gathered.msrs.iter().map(count).enumerate();
    let mut found: Vec<(usize, u64)> = counts.filter(|(_, count)| *count != 0).collect();
    found.sort_by_key(|(_, count)| Reverse(*count));
    let items = found.iter().take(MOST_ITEMS).map(|(msr, count)| Item {
        msr: *msr,
        text: text(&gathered.msrs[*msr], *count),
    });
    Anomaly {
        title,
        meaning,
        items: items.collect(),
        more: found.len().saturating_sub(MOST_ITEMS),
    }
}

fn faults(msr: &Msr, symbols: &Symbols) -> String {
    let is_fault = |outcome| outcome == Outcome::Fault;
    let directions = [(Access::Read, "read"), (Access::Write, "write")].map(|(access, word)| {
        let count = msr.count(|answer| is_fault(answer.outcome) && answer.access == access);
        (count != 0).then(|| counted(count, word))
    });
    let directions: Vec<String> = directions.into_iter().flatten().collect();
    let mut text = directions.join(", ");
    let mut faulted = msr.answers.iter().filter(|answer| is_fault(answer.outcome));
    if let Some(rip) = faulted.find_map(|answer| answer.rip) {
        let _ = match symbols.find(rip) {
            Some(symbol) => write!(text, "; first at {}", printable(&symbol, 100)),
            None => write!(text, "; first at {rip:#x}"),
        };
    }
    text
}

fn counted(count: u64, one: &str) -> String {
    plural(count, one, &format!("{one}s"))
}

fn plural(count: u64, one: &str, more: &str) -> String {
    let word = if count == 1 { one } else { more };
    format!("{} {word}", grouped(count))
}

/// With commas between thousands.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place != 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In whole percent, but never 0 or 100 for what is not.
fn share(count: u64, all: u64) -> String {
    match u128::from(count) * 100 / u128::from(all) {
        0 => "under 1 %".to_owned(),
        percent => format!("{percent} %"),
    }
}

#[cfg(test)]
mod tests {
    use msrgate_core::{Event, MsrIndex, Timed, VcpuId};

    use super::super::gather::Limits;
    use super::*;

    #[test]
    fn storm_is_a_thousand_accesses_in_a_tenth_of_a_second() {
        let titles = |count: u64, apart_ns: u64| {
            let mut gathered = Gathered::new(&Limits::for_traces(1));
            for number in 0..count {
                gathered.add(&Timed {
                    time_ns: number * apart_ns,
                    event: Event {
                        vcpu: VcpuId(0),
                        index: MsrIndex(0x10),
                        access: Access::Read,
                        reason: ExitReason::NONE,
                        rip: None,
                        value: 0,
                        outcome: Outcome::Native,
                        log: false,
                    },
                });
            }
            let found = anomalies(&gathered, &Symbols::default());
            found.iter().map(|it| it.title).collect::<Vec<_>>()
        };
        assert_eq!(titles(STORM, 100_000), ["Storms"]);
        assert!(titles(STORM - 1, 1).is_empty());
        assert!(titles(3 * STORM, 110_000).is_empty());
    }

    #[test]
    fn numbers_are_as_people_write_them() {
        let texts = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [share(1, 1000), share(999, 1000), share(3, 3)],
            ["under 1 %", "99 %", "100 %"]
        );
        assert_eq!(
            [counted(1, "read"), counted(0, "read")],
            ["1 read", "0 reads"]
        );
    }
}
