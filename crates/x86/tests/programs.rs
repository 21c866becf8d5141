//! C programs, compiled now: the guest's checksums are those of the host's processor.

#[path = "support/programs.rs"]
mod programs;
mod support;

use std::io::{self, Write};

use msrgate_x86::Stop;
use support::Machine;

#[test]
fn checksums_of_c_programs_are_the_hosts() {
    let (code, expected) = match (programs::guest(), programs::host_checksums()) {
        (Ok(code), Ok(expected)) => (code, expected),
        (Err(why), _) | (_, Err(why)) => {
            // Not by a macro: the test harness keeps back what those print.
            let _ = writeln!(io::stderr(), "SKIP(cc): {why}");
            return;
        }
    };
    for (number, (name, expected)) in programs::NAMES.into_iter().zip(expected).enumerate() {
        let mut m = Machine::long(&code);
        m.set(|r| (r.rdi, r.rsp) = (number as u64, 0x300_0000));
        let stop = m.run(1 << 32);
        assert_eq!(stop, Stop::Hlt, "{name}: {:?}", m.cpu);
        assert_eq!(m.cpu.registers().rax, expected, "{name}");
    }
}
