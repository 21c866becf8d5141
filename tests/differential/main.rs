//! Random filters, masks, accesses and replies on two engines; the traces must be equal.
//!
//! `MSRGATE_DIFF_CASES=N` makes N accesses (10,000 without it), `MSRGATE_DIFF_SEED=S` repeats a run.

mod known;
mod round;
mod survey;

use std::env;

use msrgate_core::{Access, ExitReason, RunError, Verdict, Vm, VmExit};
use msrgate_tests::guest::{Answer, Request};
use msrgate_tests::machine::{Backend, KvmBackend, Machine, SoftBackend};
use msrgate_tests::random::Random;
use msrgate_tests::skip::say;

use known::Known;
use round::{ACCESSES, Round, reply, target};

/// Rounds on one VM: what earlier rounds wrote is state for later ones.
const ROUNDS_PER_VM: usize = 16;

/// Differences that a failure prints.
const SHOWN: usize = 8;

/// What an engine did in a round.
#[derive(Debug, PartialEq, Eq)]
struct Trace {
    exits: Vec<VmExit>,
    answers: Vec<Option<Answer>>,
}

fn trace<V: Vm>(machine: &mut Machine<V>, round: &Round) -> Result<Trace, RunError> {
    machine
        .vm
        .set_exit_reasons(round.reasons)
        .expect("every mask is accepted");
    machine
        .vm
        .set_msr_filter(&round.filter)
        .expect("the filter is valid");
    machine.set_list(&round.requests);
    let mut exits = Vec::new();
    let mut replies = round.replies.clone();
    machine.run_list(|exit| {
        exits.push(exit);
        reply(&mut replies, &exit)
    })?;
    let answers = (0..round.requests.len())
        .map(|n| machine.answer(n))
        .collect();
    Ok(Trace { exits, answers })
}

/// The rules alone say this much of a trace: which exits have reason FILTER, and that nothing leaves the guest
/// for a reason that the mask has not.
fn check_rules(round: &Round, trace: &Trace) {
    for exit in &trace.exits {
        let (index, access, reason) = exit.msr_access().expect("only MSR exits are noted");
        let denied = round.filter.decide(index, access).verdict == Verdict::Deny;
        assert_eq!(reason == ExitReason::FILTER, denied, "{exit:?}");
        assert!(
            round.reasons.contains(reason),
            "{exit:?}, but the mask is {:?}",
            round.reasons
        );
    }
}

/// Forgets the values that are known to differ.
fn without_values(trace: &mut Trace, round: &Round, known: &Known) {
    for (request, answer) in round.requests.iter().zip(&mut trace.answers) {
        if let Some(answer) = answer
            && !known.may_compare_value(request)
        {
            (answer.rax, answer.rdx) = (0, 0);
        }
    }
}

/// Says where two traces part.
fn compare(round: &Round, [one, other]: [(&str, &Trace); 2], seed: u64) {
    if one.1 == other.1 {
        return;
    }
    let mut text = format!("seed {seed:#x}, mask {:?}\n", round.reasons);
    let answers = one.1.answers.iter().zip(&other.1.answers);
    let parted = |(_, (a, b)): &(_, (_, _))| a != b;
    for (request, answers) in round
        .requests
        .iter()
        .zip(answers)
        .filter(parted)
        .take(SHOWN)
    {
        text += &describe(request, round);
        text += &format!(
            "  {}: {:x?}\n  {}: {:x?}\n",
            one.0, answers.0, other.0, answers.1
        );
    }
    let parting = one
        .1
        .exits
        .iter()
        .zip(&other.1.exits)
        .position(|(a, b)| a != b);
    if let Some(at) = parting {
        text += &format!("exit {at}: {}: {:x?}\n", one.0, one.1.exits[at]);
        text += &format!("exit {at}: {}: {:x?}\n", other.0, other.1.exits[at]);
    }
    panic!("{text}");
}

fn describe(request: &Request, round: &Round) -> String {
    let (index, access) = target(request);
    let value = match access {
        Access::Read => String::new(),
        Access::Write => format!(" {:#x}", request.rdx << 32 | request.rax & 0xffff_ffff),
    };
    let verdict = round.filter.decide(index, access);
    format!("{:?} {index}{value} ({verdict:?})\n", request.routine)
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs the rounds on two backends.
fn differential<A: Backend, B: Backend>(names: [&str; 2]) {
    let seed = number("MSRGATE_DIFF_SEED").unwrap_or(0x6d73_7267);
    let cases = number("MSRGATE_DIFF_CASES").unwrap_or(10_000);
    let rounds = usize::try_from(cases).expect("a count").div_ceil(ACCESSES);
    let known = Known::load();
    let mut random = Random::new(seed);
    let mut exits = 0;
    let mut machines = None;
    for n in 0..rounds {
        if n % ROUNDS_PER_VM == 0 {
            machines = Machine::<A::Vm>::on::<A>().zip(Machine::<B::Vm>::on::<B>());
        }
        let Some((one, other)) = &mut machines else {
            return;
        };
        let round = Round::random(&mut random, &known);
        let mut traces = (run(one, &round, names[0]), run(other, &round, names[1]));
        check_rules(&round, &traces.0);
        check_rules(&round, &traces.1);
        without_values(&mut traces.0, &round, &known);
        without_values(&mut traces.1, &round, &known);
        compare(&round, [(names[0], &traces.0), (names[1], &traces.1)], seed);
        exits += traces.0.exits.len();
    }
    let [one, other] = names;
    let accesses = rounds * ACCESSES;
    say(&format!(
        "differential: {one} against {other}: seed {seed:#x}, {accesses} accesses, {exits} exits, no difference"
    ));
    assert!(exits > rounds, "the rounds reach user space");
}

fn run<V: Vm>(machine: &mut Machine<V>, round: &Round, name: &str) -> Trace {
    trace(machine, round).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn soft_and_kvm_give_equal_traces() {
    differential::<SoftBackend, KvmBackend>(["soft", "kvm"]);
}

#[test]
fn soft_is_deterministic_and_keeps_the_rules() {
    differential::<SoftBackend, SoftBackend>(["soft", "another soft"]);
}

#[test]
fn kvm_is_deterministic_and_keeps_the_rules() {
    differential::<KvmBackend, KvmBackend>(["kvm", "another kvm"]);
}
