//! A small VMM in C that knows nothing of us (`vmm.c`), under a policy, on the embedded KVM and on the real one.
//!
//! What it prints is compared with facts about KVM and about the policy; where the policy has no say, with what it
//! prints without us on the same KVM.

#[path = "support/channel.rs"]
mod channel;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use msrgate_core::{Access, Outcome};
use msrgate_trace::Observation;
use msrgate_trace::channel::{Channel, Rings};

const POLICY: &str = r#"
version = 1
[defaults]
unknown = "ignore"
[[rule]]
msr = 0x8b
read = { value = 0x1_0000_0042 }
write = "ignore"
[[rule]]
msr = 0x3a
both = "fault"
[[rule]]
msr = 0xc0000084
shadow = { scope = "vcpu", reset = 5, writable = 0xff, on-violation = "fault" }
"#;

/// KVM's own behaviour.
const PLAIN: &str = "version = 1\n";

/// One way to stand behind /dev/kvm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kvm {
    Real,
    Soft,
}

/// All that there are here.
fn kvms() -> Vec<Kvm> {
    let mut kvms = vec![Kvm::Soft];
    if support::real_kvm_opens() {
        kvms.push(Kvm::Real);
    }
    kvms
}

/// A run of the VMM.
struct Run {
    output: Output,
    channel: Option<Channel>,
}

impl Run {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.output.stdout);
        text.lines().map(str::to_owned).collect()
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Index, direction and outcome of each event, ring by ring.
    fn events(&mut self) -> Vec<(u32, Access, Outcome, u64)> {
        let channel = self.channel.as_mut().expect("the run had a channel");
        let mut events = Vec::new();
        for mut ring in channel.claimed().expect("the rings can be mapped") {
            while let Some(timed) = ring.pop() {
                let event = timed.event;
                events.push((event.index.0, event.access, event.outcome, event.value));
            }
            assert_eq!((ring.dropped(), ring.failures()), (0, 0));
        }
        events
    }
}

/// The VMM under a policy; `None` where there is no compiler.
fn wrapped(kvm: Kvm, policy: &str, observation: Observation, words: &[&str]) -> Option<Run> {
    let mut command = command(kvm, words)?;
    let channel = channel::give(&mut command, policy, observation, Rings::Wanted);
    let run = Run {
        output: command.output().expect("the VMM can be started"),
        channel: Some(channel),
    };
    assert!(
        run.output.status.success(),
        "{kvm:?} {words:?}: {:?}\n{}",
        run.lines(),
        run.errors()
    );
    Some(run)
}

/// The VMM without a policy.
fn bare(kvm: Kvm, words: &[&str]) -> Option<Vec<String>> {
    let output = command(kvm, words)?
        .output()
        .expect("the VMM can be started");
    let run = Run {
        output,
        channel: None,
    };
    assert!(
        run.output.status.success(),
        "{kvm:?} {words:?}: {}",
        run.errors()
    );
    Some(run.lines())
}

fn command(kvm: Kvm, words: &[&str]) -> Option<Command> {
    static VMM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let vmm: &Path = VMM.get_or_init(|| support::compile("vmm")).as_deref()?;
    let mut command = Command::new(vmm);
    let kvm = match kvm {
        Kvm::Real => "real",
        Kvm::Soft => "soft",
    };
    command
        .args(words)
        .env("LD_PRELOAD", support::library())
        .env("MSRGATE_KVM", kvm);
    Some(command)
}

#[test]
fn policy_answers_and_the_vmm_sees_nothing_of_it() {
    for kvm in kvms() {
        let words = [
            "r:8b",
            "w:8b:7",
            "r:3a",
            "w:3a:1",
            "r:474f4f00",
            "w:474f4f00:1",
            "r:c0000084",
            "w:c0000084:42",
            "r:c0000084",
            "w:c0000084:100",
        ];
        let Some(mut run) = wrapped(kvm, POLICY, Observation::Deflected, &words) else {
            return;
        };
        let expected = [
            "r 8b = 100000042",
            "w 8b ok",
            "r 3a #GP",
            "w 3a #GP",
            "r 474f4f00 = 0",
            "w 474f4f00 ok",
            "r c0000084 = 5",
            "w c0000084 ok",
            "r c0000084 = 42",
            "w c0000084 #GP",
        ];
        assert_eq!(run.lines(), expected, "{kvm:?}");
        use Access::{Read, Write};
        assert_eq!(
            run.events(),
            [
                (0x8b, Read, Outcome::Value, 0x1_0000_0042),
                (0x8b, Write, Outcome::Ignored, 7),
                (0x3a, Read, Outcome::Fault, 0),
                (0x3a, Write, Outcome::Fault, 1),
                (0x474f_4f00, Read, Outcome::Ignored, 0),
                (0x474f_4f00, Write, Outcome::Ignored, 1),
                (0xc000_0084, Read, Outcome::Shadow, 5),
                (0xc000_0084, Write, Outcome::Shadow, 0x42),
                (0xc000_0084, Read, Outcome::Shadow, 0x42),
                (0xc000_0084, Write, Outcome::Fault, 0x100),
            ],
            "{kvm:?}"
        );
        assert_eq!(run.errors(), "", "{kvm:?}");
    }
}

/// Filters, masks, exits and refusals of the VMM's own, in all orders.
const OWN: [&str; 30] = [
    "r:35",
    "mask:7",
    "r:474f4f00",
    "w:474f4f00:1",
    "w:474f4f00:2",
    "r:210",
    "w:2ff:ffff",
    "w:2ff:fffe",
    "deny:35,c0000084",
    "r:35",
    "w:35:1",
    "w:35:2",
    "r:c0000084",
    "r:174",
    "bad:filter",
    "bad:cap",
    "r:35",
    "mask:0",
    "r:35",
    "r:474f4f00",
    "mask:4",
    "r:35",
    "r:474f4f00",
    "deny:",
    "r:35",
    "r:c0000084",
    "mask:2",
    "deny:174",
    "r:174",
    "r:474f4f00",
];

#[test]
fn vmm_keeps_its_own_filter_mask_and_exits() {
    for kvm in kvms() {
        let Some(expected) = bare(kvm, &OWN) else {
            return;
        };
        assert!(expected.contains(&"exit rdmsr 35 reason 4".to_owned()));
        // A policy that has no say about those MSRs, seen or not, changes nothing.
        let elsewhere = "version = 1\n[[rule]]\nmsr = 0x611\nboth = 'fault'\n";
        for policy in [PLAIN, elsewhere] {
            for observation in [Observation::Deflected, Observation::Filter] {
                let run = wrapped(kvm, policy, observation, &OWN).expect("compiled above");
                assert_eq!(run.lines(), expected, "{kvm:?} {observation:?} {policy}");
                assert_eq!(run.errors(), "");
            }
        }
    }
}

#[test]
fn what_the_vmm_answered_is_an_event() {
    for kvm in kvms() {
        let words = [
            "mask:7",
            "deny:35",
            "r:35",
            "w:35:1",
            "w:35:2",
            "r:474f4f00",
        ];
        let Some(mut run) = wrapped(kvm, PLAIN, Observation::Deflected, &words) else {
            return;
        };
        // Each is complete when the vCPU runs next.
        assert_eq!(
            run.events(),
            [
                (0x35, Access::Read, Outcome::Vmm, 0x3500_0035),
                (0x35, Access::Write, Outcome::Fault, 1),
                (0x35, Access::Write, Outcome::Vmm, 2),
                (0x474f_4f00, Access::Read, Outcome::Vmm, 0x7c4f_4f00),
            ],
            "{kvm:?}"
        );
    }
}

#[test]
fn policy_outranks_the_vmms_filter() {
    for kvm in kvms() {
        let words = [
            "mask:7",
            "deny:8b,3a,174",
            "r:8b",
            "r:3a",
            "r:174",
            "deny:",
            "r:8b",
            "mask:0",
            "r:8b",
            "r:474f4f00",
        ];
        let Some(run) = wrapped(kvm, POLICY, Observation::Deflected, &words) else {
            return;
        };
        let expected = [
            "mask 0",
            "deny 0",
            "r 8b = 100000042",
            "r 3a #GP",
            "exit rdmsr 174 reason 4",
            "r 174 = 35000174",
            "deny 0",
            "r 8b = 100000042",
            "mask 0",
            "r 8b = 100000042",
            "r 474f4f00 = 0",
        ];
        assert_eq!(run.lines(), expected, "{kvm:?}");
    }
}

#[test]
fn filters_that_do_not_fit_together_are_refused_by_name() {
    for kvm in kvms() {
        let words = ["scatter:16", "r:8b", "r:10000000"];
        let Some(run) = wrapped(kvm, POLICY, Observation::Deflected, &words) else {
            return;
        };
        let lines = run.lines();
        assert_eq!(lines[..2], ["scatter E2BIG", "r 8b = 100000042"], "{kvm:?}");
        assert!(
            run.errors().contains("18 filter ranges, but KVM has 16"),
            "{}",
            run.errors()
        );
    }
}

#[test]
fn observation_gives_way_to_the_vmms_filter() {
    for kvm in kvms() {
        let words = ["r:174", "mask:4", "scatter:14", "r:174", "r:10000000"];
        let Some(mut run) = wrapped(kvm, PLAIN, Observation::Filter, &words) else {
            return;
        };
        let expected = [
            "r 174 = 0",
            "mask 0",
            "scatter 0",
            "r 174 = 0",
            "exit rdmsr 10000000 reason 4",
            "r 10000000 = 45000000",
        ];
        assert_eq!(run.lines(), expected, "{kvm:?}");
        assert!(
            run.errors().contains("no room to observe"),
            "{}",
            run.errors()
        );
        let events = run.events();
        assert_eq!(
            events.iter().filter(|event| event.0 == 0x174).count(),
            1,
            "{events:x?}"
        );
    }
}

#[test]
fn observed_guest_is_the_same_guest() {
    let words: Vec<String> = [
        0x10a_u32,
        0x174,
        0x176,
        0x1a0,
        0x277,
        0x2ff,
        0xc000_0080,
        0xc000_0081,
        0xc000_0100,
    ]
    .iter()
    .flat_map(|index| {
        [
            format!("r:{index:x}"),
            format!("w:{index:x}:1"),
            format!("r:{index:x}"),
        ]
    })
    .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    for kvm in kvms() {
        let Some(expected) = bare(kvm, &words) else {
            return;
        };
        let mut run = wrapped(kvm, PLAIN, Observation::Filter, &words).expect("compiled above");
        assert_eq!(run.lines(), expected, "{kvm:?}");
        let seen = run.events();
        let is_seen = |index, access| {
            seen.iter()
                .any(|event| (event.0, event.1) == (index, access))
        };
        assert!(
            is_seen(0x174, Access::Write) && is_seen(0xc000_0081, Access::Read),
            "{seen:x?}"
        );
    }
}

#[test]
fn signals_end_a_run_whose_exits_are_all_answered() {
    for kvm in kvms() {
        for (word, handled) in [("kicks:200:8b", 200), ("masked:200:8b", 200)] {
            let Some(run) = wrapped(kvm, POLICY, Observation::Deflected, &[word]) else {
                return;
            };
            let expected = format!("kicks 200, handled {handled}, interrupted 200");
            assert_eq!(run.lines(), [expected], "{kvm:?} {word}");
        }
    }
}

#[test]
fn exit_record_is_as_it_was_where_the_vmm_saw_no_exit() {
    for kvm in kvms() {
        let words = ["immediate:8b", "r:8b", "kicks:3:8b", "immediate:8b", "r:8b"];
        let Some(run) = wrapped(kvm, POLICY, Observation::Deflected, &words) else {
            return;
        };
        let lines = run.lines();
        let expected = "immediate -1 EINTR reason 5a5a data 5a5a5a5a5a5a5a5a";
        assert_eq!((&*lines[0], &*lines[3]), (expected, expected), "{kvm:?}");
        assert_eq!(lines[4], "r 8b = 100000042");
    }
}

#[test]
fn vms_and_vcpus_in_one_process_have_a_gate_and_a_ring_each() {
    for kvm in kvms() {
        let Some(mut run) = wrapped(kvm, POLICY, Observation::Deflected, &["many:3:4:250:8b"])
        else {
            return;
        };
        let sum = 3_u64 * 4 * 250 * 0x1_0000_0042;
        assert_eq!(run.lines(), [format!("many {sum:x}")], "{kvm:?}");
        let mut rings = run
            .channel
            .take()
            .expect("a channel")
            .claimed()
            .expect("mapped");
        // The first VM's vCPU never ran.
        let mut counts: Vec<(u32, u32, u32)> = Vec::new();
        for ring in &mut rings {
            let mut count = 0;
            while ring.pop().is_some() {
                count += 1;
            }
            let claim = ring.who();
            counts.push((claim.vm, claim.vcpu.0, count));
        }
        counts.sort_unstable();
        let expected: Vec<_> = [(1, 0, 0)]
            .into_iter()
            .chain((2..5).flat_map(|vm| (0..4).map(move |vcpu| (vm, vcpu, 250))))
            .collect();
        assert_eq!(counts, expected, "{kvm:?}");
    }
}

#[test]
fn child_after_fork_cannot_use_its_parents_vm() {
    for kvm in kvms() {
        let Some(run) = wrapped(kvm, POLICY, Observation::Deflected, &["fork", "r:8b"]) else {
            return;
        };
        let expected = ["child's run EIO", "child's vcpu EIO", "r 8b = 100000042"];
        assert_eq!(run.lines(), expected, "{kvm:?}");
    }
}

#[test]
fn seccomp_filter_that_the_gate_could_not_live_under_ends_the_program_at_once() {
    let locked = |words: &[&str]| {
        let mut command = command(Kvm::Real, words)?;
        let observation = Observation::Deflected;
        let _channel = channel::give(&mut command, POLICY, observation, Rings::NotWanted);
        Some(Run {
            output: command.output().expect("the VMM can be started"),
            channel: None,
        })
    };
    if !support::real_kvm_opens() {
        return;
    }
    for (request, name) in [
        ("c008ae88", "KVM_GET_MSRS"),
        ("4188aec6", "KVM_X86_SET_MSR_FILTER"),
    ] {
        let Some(run) = locked(&[&format!("lock:{request}"), "r:8b"]) else {
            return;
        };
        assert_eq!(run.output.status.code(), Some(2), "{}", run.errors());
        assert!(
            run.errors().contains(&format!("forbids {name}")),
            "{}",
            run.errors()
        );
        assert_eq!(run.lines(), [""; 0]);
    }
    // One that is of no concern, and one of a thread that runs no vCPU.
    for request in ["ae03", "ae80"] {
        let run = locked(&[&format!("lock:{request}")]).expect("compiled above");
        assert_eq!(run.lines(), ["locked"], "{}", run.errors());
        assert!(run.output.status.success());
    }
}

#[test]
fn program_that_closes_all_it_does_not_know_is_seen_all_the_same() {
    for kvm in kvms() {
        let words = ["closeall", "r:8b"];
        let Some(mut run) = wrapped(kvm, POLICY, Observation::Deflected, &words) else {
            return;
        };
        assert_eq!(run.lines(), ["r 8b = 100000042"], "{kvm:?}");
        assert_eq!(run.events().len(), 1, "{kvm:?}");
    }
}

#[test]
fn program_whose_channel_is_gone_gets_no_vm() {
    for kvm in kvms() {
        let Some(mut command) = command(kvm, &["r:8b"]) else {
            return;
        };
        command.env("MSRGATE_CHANNEL", "999");
        let run = Run {
            output: command.output().expect("the VMM can be started"),
            channel: None,
        };
        assert_eq!(run.lines(), ["no VM EPERM"], "{kvm:?}");
        assert!(
            run.errors().contains("the policy cannot be reached"),
            "{}",
            run.errors()
        );
    }
}

#[test]
fn program_without_a_channel_is_left_alone() {
    for kvm in kvms() {
        let lines = bare(kvm, &["r:8b", "w:174:5", "r:174", "r:474f4f00"]);
        let Some(lines) = lines else { return };
        assert_eq!(
            lines[1..],
            ["w 174 ok", "r 174 = 5", "r 474f4f00 #GP"],
            "{kvm:?}"
        );
    }
}
