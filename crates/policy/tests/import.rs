//! Imported policies mean what their peers' documentation says: for each MSR of an example, what is read and what
//! becomes of a write. And no text, however hostile, does harm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use msrgate_core::{
    Access, ExitReason, ExitReasons, Gate, Gp, HostMsrs, MsrFilter, MsrHandler, MsrIndex, VcpuId,
    Verdict, VmEntry, VmError, VmExit,
};
use msrgate_policy::{ImportError, Imported, Options, Peer, compile_with, import};
use proptest::prelude::*;

/// What the processor below holds in each MSR.
const HOST: u64 = 0x5005;

struct Host;

impl MsrHandler for Host {
    fn rdmsr(&self, _vcpu: VcpuId, _index: MsrIndex) -> Result<u64, Gp> {
        Ok(HOST)
    }

    fn wrmsr(&self, _vcpu: VcpuId, _index: MsrIndex, _value: u64) -> Result<(), Gp> {
        panic!("the host's registers are only read")
    }
}

/// A KVM that knows a few MSRs, and lets all their bits be written.
struct Kvm(BTreeMap<u32, u64>);

impl HostMsrs for Kvm {
    fn get_msr(&self, index: MsrIndex) -> Result<Option<u64>, VmError> {
        Ok(self.0.get(&index.0).copied())
    }

    fn set_msr(&mut self, index: MsrIndex, value: u64) -> Result<bool, VmError> {
        Ok(self.0.get_mut(&index.0).map(|it| *it = value).is_some())
    }
}

/// A guest under an imported policy. The filter is asked first, then KVM, then the gate.
struct Guest {
    filter: MsrFilter,
    reasons: ExitReasons,
    gate: Gate<()>,
    kvm: Kvm,
}

impl Guest {
    fn under(imported: &Imported, kvm: &[(u32, u64)]) -> Self {
        let options = Options {
            handlers: &["host"],
            ..Options::default()
        };
        let compiled = compile_with("imported", &imported.policy, &options).1;
        let compiled = compiled.unwrap_or_else(|why| panic!("{why:#?}\n{}", imported.policy));
        let handlers: [Arc<dyn MsrHandler>; 1] = [Arc::new(Host)];
        Self {
            filter: compiled.filter,
            reasons: compiled.reasons,
            gate: Gate::new(VcpuId(0), Arc::new(compiled.image), ())
                .with_handlers(Arc::new(handlers)),
            kvm: Kvm(kvm.iter().copied().collect()),
        }
    }

    /// What RDMSR reads; `None`: #GP.
    fn reads(&mut self, index: u32) -> Option<u64> {
        let index = MsrIndex(index);
        let reason = match self.filter.decide(index, Access::Read).verdict {
            Verdict::Deny => ExitReason::FILTER,
            Verdict::Allow => match self.kvm.get_msr(index).unwrap() {
                Some(value) => return Some(value),
                None => ExitReason::UNKNOWN,
            },
        };
        match self.leaves(VmExit::Rdmsr { index, reason }, reason)? {
            VmEntry::CompleteRdmsr(answer) => answer.ok(),
            other => panic!("{other:?} answers no RDMSR"),
        }
    }

    /// Whether WRMSR succeeds.
    fn writes(&mut self, index: u32, value: u64) -> bool {
        let index = MsrIndex(index);
        let reason = match self.filter.decide(index, Access::Write).verdict {
            Verdict::Deny => ExitReason::FILTER,
            Verdict::Allow if self.kvm.set_msr(index, value).unwrap() => return true,
            Verdict::Allow => ExitReason::UNKNOWN,
        };
        let exit = VmExit::Wrmsr {
            index,
            value,
            reason,
        };
        match self.leaves(exit, reason) {
            Some(VmEntry::CompleteWrmsr(answer)) => answer.is_ok(),
            None => false,
            other => panic!("{other:?} answers no WRMSR"),
        }
    }

    fn leaves(&mut self, exit: VmExit, reason: ExitReason) -> Option<VmEntry> {
        if !self.reasons.contains(reason) {
            return None;
        }
        self.gate.service(&exit, &mut self.kvm)
    }
}

/// The example, imported.
fn imported(peer: Peer, example: &str) -> Imported {
    let path = format!("{}/../../{example}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    import(peer, &text).unwrap_or_else(|error| panic!("{example}: {error}"))
}

/// What the notes are about, in order.
fn noted(imported: &Imported) -> Vec<String> {
    let notes = imported.inexpressible.iter();
    let texts: Vec<String> = notes.map(ToString::to_string).collect();
    for text in &texts {
        let comments = imported.policy.replace("\n#   ", " ");
        assert!(comments.contains(text), "the policy tells {text}");
    }
    texts
}

const UNKNOWN: u32 = 0x474f_4f00;

#[test]
fn crosvm_options_mean_what_its_help_says() {
    let imported = imported(Crosvm, "testdata/import/crosvm/command-line.txt");
    let mut guest = Guest::under(&imported, &[(0x10, 7)]);
    assert_eq!(guest.reads(0x1a2), Some(HOST), "pass: the host's value");
    assert!(!guest.writes(0x1a2, 1), "type=r: no writes");
    assert_eq!(guest.reads(0x10), Some(0));
    assert!(guest.writes(0x10, 5), "emu: it is kept");
    assert_eq!(guest.reads(0x10), Some(5));
    assert_eq!(guest.kvm.0[&0x10], 7, "and not passed on");
    assert_eq!(guest.reads(0x199), None, "type=w: no reads");
    assert!(!guest.writes(0x199, 1), "no guest writes the host");
    assert_eq!(guest.reads(0x1b0), Some(HOST), "wr is rw");
    assert_eq!(guest.reads(0x19c), Some(HOST), "action=r0");
    assert_eq!(guest.reads(0x3f8), Some(HOST));
    assert!(guest.writes(0x1fc, 1), "emu, type=w: it seems to work");
    assert_eq!(guest.reads(UNKNOWN), None, "not listed: #GP");
    let notes = noted(&imported);
    for (words, why) in [
        ("0x1a2", "not of CPU 0"),
        ("0x10,", "write that value as `reset`"),
        ("0x199", "no guest writes the host's registers"),
        ("0x1b0", "no guest writes the host's registers"),
        ("0x19c", "not of CPU 0"),
        ("0x3f8", "once, when it starts"),
        ("0x1fc", "lets KVM answer"),
    ] {
        let found = |note: &&String| note.contains(words) && note.contains(why);
        assert!(notes.iter().any(|note| found(&note)), "{words}: {why}");
    }
    assert_eq!(notes.len(), 7, "{notes:#?}");
}

#[test]
fn firecracker_bitmaps_clear_set_and_leave_bits() {
    let imported = imported(Firecracker, "testdata/import/firecracker/template.json");
    let kvm = [(0x10a, 0x2b), (0xcf, u64::MAX), (0x150, 0x8002), (0x122, 3)];
    let mut guest = Guest::under(&imported, &kvm);
    assert_eq!(guest.reads(0x10a), Some(0), "all bits are cleared");
    assert_eq!(
        guest.reads(0xcf),
        Some(0xf000_0000_0000_00eb),
        "four bits are left intact"
    );
    assert_eq!(
        guest.reads(0x150),
        Some(0x8005),
        "0b101 is short for x…x101"
    );
    assert_eq!(guest.reads(0x122), Some(3), "nothing but x changes nothing");
    assert!(guest.writes(0xcf, 0), "rights are KVM's");
    assert_eq!(guest.reads(0xcf), Some(0xeb));
    assert_eq!(guest.reads(UNKNOWN), None);
    let notes = noted(&imported);
    assert!(
        notes[0].contains("cpuid_modifiers (1 of them)"),
        "{notes:?}"
    );
    assert!(notes[1].contains("kvm_capabilities (1 of them)"));
    assert!(notes[2].contains("0x122"));
    assert_eq!(notes.len(), 3);
}

#[test]
fn msr_safe_lists_give_reads_and_the_bits_of_the_mask() {
    let imported = imported(MsrSafe, "testdata/import/msr-safe/allowlist.txt");
    let kvm = [(0x10, 7), (0x199, 0xab_0000), (0xe7, 1), (0x17, 9)];
    let mut guest = Guest::under(&imported, &kvm);
    assert_eq!(guest.reads(0x10), Some(7));
    assert!(
        !guest.writes(0x10, 7),
        "mask 0: read-only, whatever is written"
    );
    assert!(guest.writes(0x199, 0x1_2345));
    assert_eq!(
        guest.reads(0x199),
        Some(0xab_2345),
        "only the bottom sixteen bits are writable"
    );
    assert!(guest.writes(0xe7, u64::MAX));
    assert_eq!(guest.reads(0xe7), Some(u64::MAX));
    assert_eq!(guest.reads(0x17), None, "not listed");
    assert!(!guest.writes(0x17, 0));
    assert_eq!(guest.reads(0xc1), None, "listed, but there is none");
    let notes = noted(&imported);
    assert!(notes[0].contains("line 7: 0x00000802"), "{notes:?}");
    assert_eq!(notes.len(), 1);
}

#[test]
fn libvirt_says_what_unknown_msrs_do() {
    let ignoring = imported(Libvirt, "testdata/import/libvirt/ignore.xml");
    let mut guest = Guest::under(&ignoring, &[(0x10, 7)]);
    assert_eq!(guest.reads(UNKNOWN), Some(0));
    assert!(guest.writes(UNKNOWN, 1));
    assert_eq!(guest.reads(0x10), Some(7), "known ones are KVM's");
    let faulting = imported(Libvirt, "testdata/import/libvirt/fault.xml");
    let mut guest = Guest::under(&faulting, &[(0x10, 7)]);
    assert_eq!(guest.reads(UNKNOWN), None);
    assert!(!guest.writes(UNKNOWN, 1));
    assert_eq!(guest.reads(0x10), Some(7));
    assert_eq!((noted(&ignoring), noted(&faulting)), (vec![], vec![]));
}

#[test]
fn virtualbox_values_are_fixed() {
    const REVISION: Option<u64> = Some(0x0100_0065_0000_0000);
    let commands = imported(VirtualBox, "testdata/import/virtualbox/commands.txt");
    let mut guest = Guest::under(&commands, &[(0x8b, 1), (0x10, 7)]);
    assert_eq!(guest.reads(0x8b), REVISION);
    assert!(guest.writes(0x8b, 5), "it is dropped");
    assert_eq!(guest.reads(0x8b), REVISION);
    for index in 0x1ad..=0x1af {
        assert_eq!(guest.reads(index), Some(0), "Value is 0 if it is not given");
        assert!(!guest.writes(index, 1), "WrGpMask of all ones: read-only");
    }
    assert_eq!(guest.reads(0x1fc), Some(0), "decimal 508");
    assert!(guest.writes(0x1fc, 0xff));
    assert_eq!(guest.reads(0x10), Some(7), "all others are KVM's");
    assert_eq!(guest.reads(0x1b0), None);
    let notes = noted(&commands);
    assert!(notes[0].contains("EnableHVP"), "{notes:?}");
    assert!(notes[1].contains("MSRs/Power/WrGpMask=0xff00000000"));
    assert_eq!(notes.len(), 2);
    for example in ["enumerate.txt", "machine.vbox", "keys.txt"] {
        let imported = imported(VirtualBox, &format!("testdata/import/virtualbox/{example}"));
        let mut guest = Guest::under(&imported, &[(0x8b, 1)]);
        assert_eq!(guest.reads(0x8b), REVISION, "{example}");
        assert!(guest.writes(0x8b, 5), "{example}");
        assert_eq!(noted(&imported), [""; 0], "{example}");
    }
}

#[test]
fn each_rule_tells_where_it_comes_from() {
    let policy = imported(Crosvm, "testdata/import/crosvm/command-line.txt").policy;
    for line in [
        "msr = \"MSR_TEMPERATURE_TARGET\"          # line 3: 0x1a2,type=r,action=pass,from=cpu0",
        "shadow = { scope = \"vcpu\", reset = 0 }",
    ] {
        assert!(policy.lines().any(|it| it == line), "{line}\n{policy}");
    }
    let policy = imported(MsrSafe, "testdata/import/msr-safe/allowlist.txt").policy;
    assert!(policy.contains("# line 3: 0x00000199 0x000000000000ffff\n"));
}

use Peer::{Crosvm, Firecracker, Libvirt, MsrSafe, VirtualBox};

/// What is wrong with a text, as a user reads it.
const MISTAKES: &[(Peer, &str, &str)] = &[
    (Crosvm, "", "nothing to import: it has no --userspace-msr"),
    (
        Crosvm,
        "--userspace-msr",
        "line 1: --userspace-msr has no value",
    ),
    (Crosvm, "0x10", "line 1: 0x10: no type="),
    (Crosvm, "\n0x10,type=rw", "line 2: 0x10,type=rw: no action="),
    (
        Crosvm,
        "0x10,type=x,action=emu",
        "line 1: 0x10,type=x,action=emu: type is one of r, w, rw, wr",
    ),
    (
        Crosvm,
        "--userspace-msr=hoge",
        "line 1: hoge: \"hoge\": not a number",
    ),
    (
        Crosvm,
        "0x10,type=r,type=r",
        "line 1: 0x10,type=r,type=r: type is given twice",
    ),
    (
        Crosvm,
        "0x10,foo=1",
        "line 1: 0x10,foo=1: crosvm has no key \"foo\"",
    ),
    (
        Crosvm,
        "--userspace-msr '0x10",
        "line 1: a quote is not closed on its line",
    ),
    (
        Crosvm,
        "0x10,action=r0\n16,action=r0",
        "line 2: MSR 0x10 is given twice, here and in line 1",
    ),
    (
        Firecracker,
        "{}",
        "nothing to import: it has no msr_modifiers",
    ),
    (
        Firecracker,
        "[",
        "line 1: not a CPU template: invalid type: sequence, expected an object",
    ),
    (
        Firecracker,
        r#"{"msr_modifiers": [{"addr": "266", "bitmap": "0b1"}]}"#,
        "msr_modifiers[0]: addr \"266\" does not begin with 0x or 0b",
    ),
    (
        Firecracker,
        r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b12"}]}"#,
        "msr_modifiers[0]: bitmap of 0x10a: '2' is none of 0, 1 and x",
    ),
    (
        MsrSafe,
        "# nothing\n",
        "nothing to import: it has no line with an index and a write mask",
    ),
    (MsrSafe, "0x10\n", "line 1: 0x10 has no write mask"),
    (MsrSafe, "0x10 0xg", "line 1: 0xg: not a number"),
    (
        MsrSafe,
        "0x123456789 0",
        "line 1: 0x123456789: an index has 32 bits",
    ),
    (
        MsrSafe,
        "0x10 0 0x10 1",
        "line 1: MSR 0x10 is given twice, here and in line 1",
    ),
    (
        Libvirt,
        "<domain/>",
        "nothing to import: it has no <msrs unknown='…'/> element",
    ),
    (
        Libvirt,
        "<msrs/>",
        "line 1: <msrs> says nothing: no unknown=",
    ),
    (
        Libvirt,
        "<msrs unknown='log'/>",
        "line 1: unknown=\"log\": libvirt has ignore and fault",
    ),
    (
        Libvirt,
        "<a><msrs unknown='fault'/>\n<msrs unknown='fault'/></a>",
        "line 2: a second <msrs>: a domain has one",
    ),
    (
        VirtualBox,
        "GUI/Foo=1",
        "nothing to import: it has no VBoxInternal/CPUM/MSRs/… key",
    ),
    (
        VirtualBox,
        "VBoxInternal/CPUM/MSRs/Foo/Value=1",
        "line 1: MSRs/Foo: has no First",
    ),
    (
        VirtualBox,
        "VBoxInternal/CPUM/MSRs/Foo/First=010",
        "line 1: MSRs/Foo: First=010: a number that begins with 0 is ambiguous: write 0x…",
    ),
    (
        VirtualBox,
        "VBoxManage setextradata VBoxInternal/CPUM/MSRs/Foo/First",
        "line 1: is not `VBoxManage setextradata VM KEY VALUE`",
    ),
    (
        VirtualBox,
        "VBoxManage setextradata one VBoxInternal/CPUM/MSRs/Foo/First 1\n\
             VBoxManage setextradata two VBoxInternal/CPUM/MSRs/Foo/First 2",
        "line 2: is of the VM \"two\", but others are of \"one\": import one at a time",
    ),
];

#[test]
fn mistakes_are_told_with_their_place() {
    for (peer, text, expected) in MISTAKES {
        let error = import(*peer, text).expect_err(text);
        assert_eq!(error.to_string(), *expected, "{text}");
    }
}

#[test]
fn policy_that_kvm_cannot_honour_is_refused_with_its_diagnostics() {
    let range = "VBoxInternal/CPUM/MSRs/All/First=0\nVBoxInternal/CPUM/MSRs/All/Last=0xffffffff\n";
    match import(VirtualBox, range) {
        Err(ImportError::Refused { diagnostics, .. }) => {
            let codes: Vec<&str> = diagnostics.iter().map(|it| it.code).collect();
            assert!(codes.contains(&"policy::too-many-ranges"), "{codes:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn line_ends_and_byte_order_marks_mean_nothing() {
    let text = "\u{feff}# MSR\r\n0x10 0x0 # \"TSC\"\r\n";
    let imported = import(MsrSafe, text).unwrap();
    assert_eq!(Guest::under(&imported, &[(0x10, 7)]).reads(0x10), Some(7));
}

#[test]
fn peers_words_do_not_leave_their_comments() {
    let name = "a\n[[rule]]\nmsr = 0x10\nboth = 'ignore'\u{1b}[31m";
    let text = format!(
        "<a><ExtraDataItem name='VBoxInternal/CPUM/MSRs/{}/First' value='0x8b'/></a>",
        name.replace('\n', "&#10;")
            .replace('\'', "&apos;")
            .replace('\u{1b}', "&#9;")
    );
    let imported = import(VirtualBox, &text).unwrap();
    assert_eq!(Guest::under(&imported, &[(0x10, 7)]).reads(0x10), Some(7));
    assert!(!imported.policy.contains("\n[[rule]]\nmsr = 0x10"));
}

#[test]
fn hostile_documents_are_refused_and_small() {
    let bomb = "<!DOCTYPE a [<!ENTITY b 'bbbbbbbbbb'><!ENTITY c '&b;&b;&b;'>]>\
                <a><msrs unknown='&c;'/></a>";
    let deep_xml = "<a>".repeat(200_000);
    let deep_json = "[".repeat(200_000);
    let names = (0..2000).map(|n| format!(" a{n}=''"));
    let many_attributes = format!("<a{}/>", names.collect::<String>());
    let long = "#".repeat((1 << 20) + 1);
    let external = "<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>";
    for (peer, text) in [
        (Libvirt, bomb),
        (Libvirt, external),
        (Libvirt, &deep_xml),
        (Libvirt, &many_attributes),
        (MsrSafe, &long),
        (VirtualBox, bomb),
        (VirtualBox, &deep_xml),
        (Firecracker, &deep_json),
        (Crosvm, &deep_json),
        (MsrSafe, &deep_xml),
    ] {
        let error = import(peer, text).expect_err("hostile").to_string();
        assert!(error.len() < 400, "{peer:?}: {} characters", error.len());
    }
}

/// Texts that begin as one of each peer's own.
const SEEDS: [(Peer, &str); 5] = [
    (
        Crosvm,
        "--userspace-msr 0x1a2,type=rw,action=emu,filter=yes\n0x10,action=r0\n",
    ),
    (
        Firecracker,
        r#"{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x0"}], "a": []}"#,
    ),
    (MsrSafe, "# MSR\n0x10 0x0 # TSC\n0x199 0xffff\n"),
    (
        Libvirt,
        "<domain><features><msrs unknown='ignore'/></features></domain>",
    ),
    (
        VirtualBox,
        "VBoxInternal/CPUM/MSRs/A/First=1\nKey: VBoxInternal/CPUM/MSRs/A/Last, Value: 2\n",
    ),
];

proptest! {
    /// What is imported at all compiles: `import` has done so, with the same handler.
    #[test]
    fn any_text_is_imported_or_refused(
        seed in 0..SEEDS.len(),
        splices in prop::collection::vec((0..200usize, 0..9usize, "[ -~\\n\\t\u{0}éx0-9a-f'\"<>=,{}]{0,6}"), 1..4),
    ) {
        let (peer, text) = SEEDS[seed];
        let mut text: Vec<char> = text.chars().collect();
        for (at, length, new) in splices {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, new.chars());
        }
        let text: String = text.into_iter().collect();
        match import(peer, &text) {
            Ok(imported) => { Guest::under(&imported, &[]); }
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
        }
    }
}
