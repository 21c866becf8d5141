//! The gates of a VM: what each action answers, and random accesses of two vCPUs against the slowest reading of the
//! rules, where images are replaced in between and each vCPU switches in its own time.
#![cfg(not(loom))]

mod answer;
mod model;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use msrgate_core::{
    Access, Action, Defaults, Event, ExitReason, Gate, Gates, HandlerId, Mask, MsrHandler,
    OnViolation, Rule, Scope, Shadow, VcpuId, VmEntry, VmExit, Writable,
};
use proptest::prelude::*;

use model::{Handler, Host, INDICES, Model, Rules};

#[derive(Clone, Debug)]
enum Step {
    Access {
        vcpu: usize,
        index: u32,
        /// A write.
        written: Option<u64>,
        reason: ExitReason,
    },
    Replace(Rules),
    Switch {
        vcpu: usize,
    },
}

fn rules() -> impl Strategy<Value = Rules> {
    let index = prop::sample::select(&INDICES[..]);
    let access = prop::sample::select(&Access::ALL[..]);
    let named = (index, 0u32..3, access, rule()).prop_map(|(first, width, access, rule)| {
        (first, first.saturating_add(width), access, rule)
    });
    let simple = || {
        prop_oneof![
            Just(Action::Allow),
            Just(Action::Fault),
            Just(Action::Ignore),
            any::<u64>().prop_map(Action::Value),
        ]
        .prop_map(Rule::quiet)
    };
    let defaults = (simple(), simple(), simple()).prop_map(|(known, unknown, invalid)| Defaults {
        known,
        unknown,
        invalid,
    });
    (defaults, prop::collection::vec(named, 0..16))
        .prop_map(|(defaults, rules)| Rules { defaults, rules })
}

fn rule() -> impl Strategy<Value = Rule> {
    let on_violation = prop::sample::select(&[OnViolation::Fault, OnViolation::Ignore][..]);
    let writable = (prop::sample::select(&[0, 0xff, u64::MAX][..]), on_violation)
        .prop_map(|(bits, on_violation)| Writable { bits, on_violation });
    let scope = prop::sample::select(&[Scope::Vcpu, Scope::Vm][..]);
    let shadow = (scope, 0u64..0x300, writable.clone()).prop_map(|(scope, reset, writable)| {
        Action::Shadow(Shadow {
            scope,
            reset,
            writable,
        })
    });
    let mask = (any::<u64>(), any::<u64>()).prop_map(|(replaced, ones)| {
        Action::Mask(Mask {
            replaced,
            ones: ones & replaced,
        })
    });
    let action = prop_oneof![
        1 => Just(Action::Allow),
        1 => Just(Action::Fault),
        1 => Just(Action::Ignore),
        1 => any::<u64>().prop_map(Action::Value),
        1 => mask,
        1 => writable.prop_map(Action::Writable),
        6 => shadow,
        1 => (0u16..3).prop_map(|id| Action::Handler(HandlerId(id))),
    ];
    (action, any::<bool>(), any::<bool>()).prop_map(|(action, log, has_limit)| Rule {
        action,
        log,
        limit_per_second: has_limit.then_some(NonZeroU32::MIN),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let reason = prop_oneof![
        6 => Just(ExitReason::FILTER),
        1 => Just(ExitReason::UNKNOWN),
        1 => Just(ExitReason::INVAL),
    ];
    let value = prop_oneof![0u64..0x400, any::<u64>()];
    let index = prop::sample::select(&INDICES[..]);
    let access = (0usize..2, index, prop::option::of(value), reason).prop_map(
        |(vcpu, index, written, reason)| Step::Access {
            vcpu,
            index,
            written,
            reason,
        },
    );
    prop_oneof![
        20 => access,
        1 => rules().prop_map(Step::Replace),
        2 => (0usize..2).prop_map(|vcpu| Step::Switch { vcpu }),
    ]
}

fn handlers() -> Arc<[Arc<dyn MsrHandler>]> {
    Arc::new([Arc::new(Handler(0)), Arc::new(Handler(1))])
}

/// Both do the access, and must agree on all that can be seen.
fn access(model: &mut Model, gate: &mut Gate<Vec<Event>>, host: &mut Host, step: &Step) {
    let &Step::Access {
        vcpu,
        index,
        written,
        reason,
    } = step
    else {
        panic!("{step:?} is no access");
    };
    let (access, exit) = match written {
        None => (
            Access::Read,
            VmExit::Rdmsr {
                index: index.into(),
                reason,
            },
        ),
        Some(value) => (
            Access::Write,
            VmExit::Wrmsr {
                index: index.into(),
                value,
                reason,
            },
        ),
    };
    let rule = model.policies[model.vcpus[vcpu].policy].rule(index, access, reason);
    let (answer, outcome) = model.answer(vcpu, index, written, reason, rule);
    let entry = match access {
        Access::Read => VmEntry::CompleteRdmsr(answer),
        Access::Write => VmEntry::CompleteWrmsr(answer.map(|_| ())),
    };
    assert_eq!(gate.image().rule(index.into(), access, reason), rule);
    assert_eq!(gate.service(&exit, host), Some(entry), "{step:?}, {rule:?}");
    assert_eq!(host.0, model.host.0, "{step:?}, {rule:?}");
    let event = Event {
        vcpu: VcpuId(u32::try_from(vcpu).expect("there are two")),
        index: index.into(),
        access,
        reason,
        rip: None,
        value: written.or(answer.ok()).unwrap_or(0),
        outcome,
        log: rule.log,
    };
    assert_eq!(gate.recorder().last(), Some(&event));
    let is_read = Cell::new(false);
    let _ = gate.throttle(|| {
        is_read.set(true);
        0
    });
    assert_eq!(is_read.get(), rule.limit_per_second.is_some(), "the clock");
}

proptest! {
    #[test]
    fn gates_do_what_the_rules_say_while_images_are_replaced(
        first in rules(),
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut gates = Gates::new(first.image()).with_handlers(handlers());
        let mut vcpus = [0, 1].map(|id| gates.gate(VcpuId(id), Vec::new()));
        let mut host = Host::default();
        let mut model = Model {
            host: host.clone(),
            policies: vec![first],
            vcpus: Default::default(),
            written: BTreeMap::new(),
        };
        for step in steps {
            match &step {
                Step::Replace(rules) => {
                    gates = gates.replaced(rules.image());
                    model.policies.push(rules.clone());
                }
                &Step::Switch { vcpu } => {
                    vcpus[vcpu].switch(&gates);
                    model.switch(vcpu);
                }
                &Step::Access { vcpu, .. } => {
                    access(&mut model, &mut vcpus[vcpu], &mut host, &step);
                }
            }
        }
    }
}
