//! The kernel's own record: `kvm:kvm_msr`, read from tracefs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use msrgate_core::{Access, MsrIndex};

/// How often each access was seen.
pub(crate) type Accesses = BTreeMap<(MsrIndex, Access), u64>;

const TRACEFS: &str = "/sys/kernel/tracing";
/// Ten thousand accesses.
const BUFFER_KB: &str = "2048";

/// Does `work`, and tells which accesses of guests KVM did meanwhile. What the hardware did without it is not among
/// them, and neither is what left to user space.
pub(crate) fn watch<T>(work: impl FnOnce() -> T) -> (T, Accesses) {
    let tracefs = Path::new(TRACEFS);
    if !tracefs.join("trace").exists() {
        let mounted = Command::new("mount")
            .args(["-t", "tracefs", "tracefs", TRACEFS])
            .status();
        assert!(mounted.expect("there is mount").success());
    }
    let write = |name: &str, text: &str| {
        let written = fs::write(tracefs.join(name), text);
        written.unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    write("buffer_size_kb", BUFFER_KB);
    write("trace", "");
    write("events/kvm/kvm_msr/enable", "1");
    let result = work();
    write("events/kvm/kvm_msr/enable", "0");
    let trace = fs::read_to_string(tracefs.join("trace")).expect("tracefs is readable");
    assert!(is_whole(&trace), "the buffer is too small");
    (result, accesses(&trace))
}

/// `# entries-in-buffer/entries-written: 1500/1500   #P:1`.
fn is_whole(trace: &str) -> bool {
    let counts = trace
        .lines()
        .find_map(|line| line.strip_prefix("# entries-in-buffer/entries-written: "));
    let counts = counts.and_then(|line| line.split_whitespace().next());
    let (held, written) = counts
        .and_then(|counts| counts.split_once('/'))
        .expect("a count");
    held == written
}

/// Lines that end in `kvm_msr: msr_read 8b = 0x100006500000000`, with ` (#GP)` where it faulted.
fn accesses(trace: &str) -> Accesses {
    let mut accesses = Accesses::new();
    let lines = trace.lines().filter(|line| !line.starts_with('#'));
    for access in lines.filter_map(|line| line.split_once("kvm_msr: msr_")) {
        let mut words = access.1.split(' ');
        let direction = match words.next() {
            Some("read") => Access::Read,
            Some("write") => Access::Write,
            other => panic!("{other:?} is no direction"),
        };
        let index = words.next().expect("an index");
        let index = u32::from_str_radix(index, 16).expect("a hexadecimal index");
        *accesses.entry((MsrIndex(index), direction)).or_default() += 1;
    }
    accesses
}

#[test]
fn lines_of_the_tracepoint_are_counted() {
    let trace = "\
# entries-in-buffer/entries-written: 3/3   #P:1
 qemu-system-x86-144     [000] .....     4.524276: kvm_msr: msr_write 4b564d01 = 0xe8c21
 qemu-system-x86-144     [000] .....     4.561297: kvm_msr: msr_read fe = 0x508
 qemu-system-x86-144     [000] .....     4.561297: kvm_msr: msr_read fe = 0x0 (#GP)
";
    assert!(is_whole(trace));
    let expected = [
        ((MsrIndex(0xfe), Access::Read), 2),
        ((MsrIndex(0x4b56_4d01), Access::Write), 1),
    ];
    assert_eq!(accesses(trace), expected.into());
}
