//! One random round: a mask, a filter, a list of accesses and the replies to their exits.

use msrgate_core::{
    Access, DefaultAction, ExitReasons, FilterRange, Gp, MsrFilter, MsrIndex, RangeFlags, VmEntry,
    VmExit,
};
use msrgate_tests::guest::{Request, Routine};
use msrgate_tests::host::HostFlaws;
use msrgate_tests::random::Random;

use crate::known::Known;

/// Accesses in one round.
pub(crate) const ACCESSES: usize = 64;

/// What both engines are asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) reasons: ExitReasons,
    pub(crate) filter: MsrFilter,
    pub(crate) requests: Vec<Request>,
    /// The answers to the round's exits, in order, from a generator of its own.
    pub(crate) replies: Random,
}

impl Round {
    /// The next round of `random`, without the accesses that are known to differ.
    pub(crate) fn random(random: &mut Random, known: &Known) -> Self {
        let reasons = ExitReasons::from_mask(random.below(8).into());
        let filter = random_filter(random);
        let flaws = HostFlaws::of_this_host();
        let requests = std::iter::repeat_with(|| random_request(random, &filter, flaws))
            .filter(|request| known.may_compare(request) && flaws.can_run(request))
            .take(ACCESSES)
            .collect();
        Self {
            reasons: reasons.expect("masks below 8 are defined"),
            filter,
            requests,
            replies: Random::new(random.bits()),
        }
    }
}

/// The answer to an exit.
pub(crate) fn reply(replies: &mut Random, exit: &VmExit) -> VmEntry {
    let refuse = replies.one_in(3);
    let value = replies.bits();
    match exit {
        VmExit::Rdmsr { .. } => VmEntry::CompleteRdmsr(if refuse { Err(Gp) } else { Ok(value) }),
        _ => VmEntry::CompleteWrmsr(if refuse { Err(Gp) } else { Ok(()) }),
    }
}

fn random_filter(random: &mut Random) -> MsrFilter {
    /// No range up to all 16 of them.
    const COUNTS: u32 = 17;
    let count = random.below(COUNTS);
    let ranges: Vec<_> = (0..count).map(|_| random_range(random)).collect();
    let default = match random.below(4) {
        0 if !ranges.is_empty() => DefaultAction::Deny,
        _ => DefaultAction::Allow,
    };
    MsrFilter::new(default, ranges).expect("the ranges are in order")
}

fn random_range(random: &mut Random) -> FilterRange {
    let nmsrs = match random.below(4) {
        0 => 1,
        1 => 1 + random.below(130),
        2 => 1 + random.below(0x3000),
        _ => random.pick(&[63, 64, 65, 0x2fff, 0x3000]),
    };
    let base = random_index(random).wrapping_sub(random.below(nmsrs.min(0x100)));
    let all = random.pick(&[0, u64::MAX]);
    let sparse = random.one_in(2);
    let bitmap = (0..FilterRange::bitmap_words(nmsrs))
        .map(|_| if sparse { random.bits() } else { all })
        .collect();
    FilterRange {
        flags: RangeFlags(1 + random.below(3)),
        base: MsrIndex(base),
        nmsrs,
        bitmap,
    }
}

fn random_request(random: &mut Random, filter: &MsrFilter, flaws: HostFlaws) -> Request {
    let index = match filter.ranges() {
        ranges @ [_, ..] if random.one_in(3) => {
            let at = random.below(u32::try_from(ranges.len()).expect("at most 16"));
            let range = &ranges[at as usize];
            let edge = random.pick(&[0, 1, range.nmsrs - 1, range.nmsrs, range.nmsrs / 2]);
            let edge = edge.wrapping_add(random.pick(&[0, 0, u32::MAX]));
            range.base.0.wrapping_add(edge)
        }
        _ => random_index(random),
    };
    let value = random_value(random);
    Request {
        routine: random_routine(random),
        rcx: random.bits() << 32 & flaws.rcx_junk() | u64::from(index),
        rax: random.bits() << 32 | value & 0xffff_ffff,
        rdx: random.bits() << 32 | value >> 32,
    }
}

fn random_index(random: &mut Random) -> u32 {
    /// Where MSRs are: the two architectural windows, AMD's, KVM's own, Hyper-V's, and x2APIC's.
    const WINDOWS: [(u32, u32); 8] = [
        (0, 0x200),
        (0, 0x2000),
        (0x800, 0x100),
        (0xc000_0080, 0x90),
        (0xc000_0000, 0x2000),
        (0xc001_0000, 0x200),
        (0x4b56_4d00, 0x10),
        (0x4000_0000, 0x120),
    ];
    match random.below(8) {
        0 => random.word(),
        1 => random.pick(&[
            0x474f_4f00,
            0xdead_beef,
            u32::MAX,
            0xffff_fff0,
            0x7ff,
            0x900,
        ]),
        2..=4 => random.pick(&PLAIN),
        _ => {
            let (base, count) = random.pick(&WINDOWS);
            base + random.below(count)
        }
    }
}

/// Registers that hold what is written to them, or have simple rules.
const PLAIN: [u32; 20] = [
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0x174,
    0x175,
    0x176,
    0x277,
    0x1a0,
    0x1d9,
    0xfe,
    0x200,
    0x201,
    0x250,
    0x2ff,
];

fn random_value(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => 1 << random.below(64),
        2 => u64::from(random.word()),
        3 => random.bits() >> 17,
        4 => random.bits() | 0xffff_8000_0000_0000,
        5 => u64::MAX,
        6 => random.pick(&[
            0x0007_0406_0007_0406,
            0x0606_0606_0606_0606,
            0x500,
            0xd01,
            0x1d01,
        ]),
        _ => random.bits(),
    }
}

fn random_routine(random: &mut Random) -> Routine {
    const RARE: [Routine; 10] = [
        Routine::Rdmsr66,
        Routine::RdmsrF2,
        Routine::RdmsrF3,
        Routine::RdmsrRexW,
        Routine::LockRdmsr,
        Routine::LockWrmsr,
        Routine::UserRdmsr,
        Routine::UserWrmsr,
        Routine::TrapRdmsr,
        Routine::TrapWrmsr,
    ];
    match random.below(16) {
        0 => random.pick(&RARE),
        1..=8 => Routine::Rdmsr,
        _ => Routine::Wrmsr,
    }
}

/// The direction and index of a request.
pub(crate) fn target(request: &Request) -> (MsrIndex, Access) {
    let access = match request.routine {
        Routine::Wrmsr | Routine::LockWrmsr | Routine::UserWrmsr | Routine::TrapWrmsr => {
            Access::Write
        }
        _ => Access::Read,
    };
    let index = u32::try_from(request.rcx & 0xffff_ffff).expect("32 bits are left");
    (MsrIndex(index), access)
}
