//! What the processor lets through, measured, against what core's bitmaps say: Intel's page, AMD's map.
//!
//! KVM counts the exits of a vCPU. A guest that does the same access a hundred times shows by the count whether its hardware
//! leaves for it. That is done for every candidate and direction, without a filter, under a filter that denies it, and without
//! again; [`kvm::variants`] says what KVM wants to pass through here. A KVM without such hardware is skipped.

mod kvm;

use kvm::{Condition, Vendor};
use kvm_bindings::kvm_enable_cap;
use msrgate_core::{
    Access, Candidate, DefaultAction, ExitReason, FilterRange, MsrFilter, MsrIndex,
    PermissionBitmap, RangeFlags, Verdict,
};
use msrgate_kvm::{abi, raw_filter};
use msrgate_tests::door::{Door, KernelDoor};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::raw::RawMachine;
use msrgate_tests::skip::{kvm_or_skip, say};
use msrgate_tests::stats::Statistics;

/// Accesses of one kind in a row. A timer's interrupts are exits too, but few beside them.
const MANY: usize = 100;

const NO_FILTER: &str = "no filter";

type Machine<'d> = RawMachine<'d, KernelDoor>;

/// The KVM here, if it runs guests on hardware that has a permission bitmap.
fn hardware_or_skip() -> Option<(KernelDoor, Vendor)> {
    let kvm = kvm_or_skip()?;
    let Some(vendor) = Vendor::of_this_host() else {
        // Not a failure where KVM is required: it is there.
        say("SKIP(permission bitmap): neither kvm-intel nor kvm-amd is loaded");
        return None;
    };
    Some((KernelDoor::new(&kvm), vendor))
}

#[test]
fn kvm_passes_through_what_the_bitmap_says() {
    let Some((door, vendor)) = hardware_or_skip() else {
        return;
    };
    let mut wrong = Vec::new();
    let mut passed = 0;
    for candidate in vendor.layout().candidates {
        for condition in kvm::variants(vendor, candidate.index) {
            let found = Comparison::of(&door, vendor, candidate, condition);
            passed += found.passed;
            wrong.extend(found.wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The bases at least: else what was measured is not what it seems.
    assert!(passed >= 6, "only {passed} accesses are passed through");
    let count = vendor.layout().candidates.len();
    say(&format!(
        "{vendor:?}: {count} candidates, {passed} accesses passed through"
    ));
}

/// What was found of one candidate.
struct Comparison<'a, 'd> {
    machine: &'a Machine<'d>,
    statistics: Statistics,
    bitmap: PermissionBitmap,
    index: MsrIndex,
    what: String,
    passed: u32,
    wrong: Vec<String>,
}

/// The numbers that are left when a machine is gone.
struct Found {
    passed: u32,
    wrong: Vec<String>,
}

impl Comparison<'_, '_> {
    /// Measures one candidate on a VM of its own.
    fn of(door: &KernelDoor, vendor: Vendor, candidate: &Candidate, condition: Condition) -> Found {
        let mut is_offered = true;
        let machine = Machine::with_cpuid(door, |cpuid| {
            (condition.cpuid)(cpuid);
            let mut features = condition.features.iter();
            is_offered = condition.features.is_empty() || features.any(|it| it.is_in(cpuid));
        });
        let machine = machine.expect("the machine can be built");
        let statistics = Statistics::of(door, &machine.vcpu).expect("KVM counts");
        let mut comparison = Comparison {
            machine: &machine,
            statistics,
            bitmap: PermissionBitmap::new(vendor.layout()),
            index: candidate.index,
            what: format!("{} ({})", candidate.note, condition.name),
            passed: 0,
            wrong: Vec::new(),
        };
        enable_filter_exits(&machine);
        if is_offered {
            comparison.prepare(&condition);
        }
        comparison.compare(&MsrFilter::allow_all(), NO_FILTER);
        for (flags, denied) in [
            (RangeFlags::READ, "reads denied"),
            (RangeFlags::WRITE, "writes denied"),
            (RangeFlags::READ_WRITE, "both denied"),
        ] {
            let range = FilterRange::uniform(flags, candidate.index, 1, Verdict::Deny);
            let filter = MsrFilter::new(DefaultAction::Allow, vec![range]).expect("a filter");
            comparison.filter(&filter, denied);
        }
        comparison.filter(&MsrFilter::allow_all(), "allowed again");
        Found {
            passed: comparison.passed,
            wrong: comparison.wrong,
        }
    }

    /// Brings KVM to want what the condition says, and tells the bitmap.
    fn prepare(&mut self, condition: &Condition) {
        if let Some(value) = condition.written {
            let requests = [request(self.index, Access::Write, value)];
            let run = run(self.machine, &self.statistics, &requests);
            // Where the guest may not write it, KVM keeps intercepting.
            if run.faults > 0 {
                return;
            }
        }
        for &(access, desired) in condition.desired {
            let set = self.bitmap.set_desired(self.index, access, desired);
            set.expect("a candidate");
        }
    }

    fn filter(&mut self, filter: &MsrFilter, name: &str) {
        set_filter(self.machine, filter);
        self.bitmap.apply_filter(filter);
        self.compare(filter, name);
    }

    /// Whether the hardware does what the bitmap says, and KVM what the filter in force says, in each direction.
    fn compare(&mut self, filter: &MsrFilter, name: &str) {
        for access in Access::ALL {
            let Run {
                exits, filtered, ..
            } = self.measure(access);
            let intercepts = self.bitmap.intercepts(self.index, access);
            self.passed += u32::from(!intercepts && name == NO_FILTER);
            let denies = filter.decide(self.index, access).verdict == Verdict::Deny;
            let is_intercepted = exits >= MANY as u64;
            let is_passed = exits < MANY as u64 / 4;
            let right = if intercepts {
                is_intercepted
            } else {
                is_passed
            };
            if !right || filtered != if denies { MANY } else { 0 } {
                let (index, what) = (self.index, &self.what);
                let word = if intercepts { "intercepted" } else { "passed" };
                let verdict = if denies { "denied" } else { "allowed" };
                self.wrong.push(format!(
                    "{access} of {index}, {what}, {name}: should be {word} and {verdict}; \
                     of {MANY} {exits} were exits, and {filtered} denied"
                ));
            }
        }
    }

    /// The same access many times; writes put back what is there.
    fn measure(&self, access: Access) -> Run {
        let own = self.machine.host_msr(abi::KVM_GET_MSRS, self.index.0, 0);
        let value = own.map_or(0, |(_, value)| value);
        let requests = vec![request(self.index, access, value); MANY];
        run(self.machine, &self.statistics, &requests)
    }
}

/// What a list of accesses came to.
struct Run {
    /// How often the hardware left the guest.
    exits: u64,
    /// How often KVM left to us because its filter denied.
    filtered: usize,
    /// How often the guest got #GP.
    faults: usize,
}

/// Runs a list; what leaves to us is answered with success.
fn run(machine: &Machine, statistics: &Statistics, requests: &[Request]) -> Run {
    machine.set_list(requests);
    let before = statistics.get("exits");
    let mut filtered = 0;
    loop {
        let exit = machine.run().expect("KVM_RUN");
        if exit.is_done() {
            break;
        }
        let record = exit.msr().unwrap_or_else(|| panic!("{exit:x?}"));
        assert_eq!(ExitReason(record.reason), ExitReason::FILTER);
        filtered += 1;
        // A write of what was there leaves it; a read is told that it is 0, and nobody looks.
    }
    let answers =
        (0..requests.len()).map(|position| machine.answer_of(position).expect("an answer"));
    Run {
        exits: statistics.get("exits") - before,
        filtered,
        faults: answers.filter(|answer| answer.exception.is_some()).count(),
    }
}

fn request(index: MsrIndex, access: Access, value: u64) -> Request {
    Request {
        routine: match access {
            Access::Read => Routine::Rdmsr,
            Access::Write => Routine::Wrmsr,
        },
        rcx: index.0.into(),
        rax: value & 0xffff_ffff,
        rdx: value >> 32,
    }
}

fn enable_filter_exits(machine: &Machine) {
    let cap = kvm_enable_cap {
        cap: 188,
        args: [ExitReason::FILTER.0.into(), 0, 0, 0],
        ..Default::default()
    };
    let cap = &raw const cap as u64;
    let enabled = machine.door.ioctl(&machine.vm, abi::KVM_ENABLE_CAP, cap);
    assert_eq!(enabled, Ok(0));
}

fn set_filter(machine: &Machine, filter: &MsrFilter) {
    let raw = raw_filter(filter);
    let filter = &raw const raw as u64;
    let set = machine
        .door
        .ioctl(&machine.vm, abi::KVM_X86_SET_MSR_FILTER, filter);
    assert_eq!(set, Ok(0));
}

/// What is no candidate is never passed: with everything denied every access leaves, and without a filter every read is
/// an exit. The x2APIC's registers are nobody's here: this guest has no APIC.
#[test]
fn nothing_else_is_passed_through() {
    let Some((door, vendor)) = hardware_or_skip() else {
        return;
    };
    let machine = Machine::new(&door).expect("the machine can be built");
    let statistics = Statistics::of(&door, &machine.vcpu).expect("KVM counts");
    enable_filter_exits(&machine);
    let layout = vendor.layout();
    let is_candidate = |index: &MsrIndex| layout.candidates.iter().any(|row| row.index == *index);
    let step = kvm::sweep_step(vendor);
    let others: Vec<MsrIndex> = layout
        .vectors
        .iter()
        .flat_map(|vector| (vector.base.0..vector.base.0 + 0x2000).step_by(step))
        .map(MsrIndex)
        .filter(|index| !index.is_x2apic() && !is_candidate(index))
        .collect();

    let some = FilterRange::uniform(RangeFlags::READ_WRITE, MsrIndex(0), 1, Verdict::Deny);
    let deny_all = MsrFilter::new(DefaultAction::Deny, vec![some]).expect("a filter");
    for (filter, accesses) in [
        (&MsrFilter::allow_all(), &[Access::Read][..]),
        (&deny_all, &Access::ALL[..]),
    ] {
        set_filter(&machine, filter);
        for &access in accesses {
            for some in others.chunks(64) {
                let requests: Vec<_> = some
                    .iter()
                    .map(|&index| request(index, access, 0))
                    .collect();
                let run = run(&machine, &statistics, &requests);
                let (first, last) = (some[0], some[some.len() - 1]);
                assert!(
                    run.exits >= some.len() as u64,
                    "{access} of {first}..={last}: {} exits of {}",
                    run.exits,
                    some.len()
                );
                let is_denied = filter.default_action() == DefaultAction::Deny;
                let expected = if is_denied { some.len() } else { 0 };
                assert_eq!(run.filtered, expected, "{access} of {first}..={last}");
            }
        }
    }
    say(&format!(
        "{vendor:?}: {} other MSRs, none passed through",
        others.len()
    ));
}
