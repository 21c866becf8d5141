//! One instruction at a time: TF, breakpoints, the host's single-stepping, and the forced emulation prefix.

mod support;

use msrgate_x86::{Config, DebugRegisters, Stop};
use support::{CODE, Machine};

const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;
const DR6_BS: u64 = 1 << 14;

/// Stops at #DB instead of delivering it.
fn trapping(code: &[u8]) -> Machine {
    let config = Config {
        trap_debug: true,
        ..Config::default()
    };
    Machine::long_with(code, config)
}

#[test]
fn tf_traps_after_each_instruction() {
    let mut m = trapping(&[0x90, 0x90, 0x90]);
    m.set(|r| r.rflags = TF);
    for i in 1..3 {
        let rip = CODE + i;
        assert_eq!(
            m.run(10),
            Stop::Debug {
                vector: 1,
                rip,
                dr6: DR6_BS
            }
        );
        assert_eq!(m.cpu.retired(), i);
    }
}

#[test]
fn popf_that_sets_tf_traps_after_the_next_instruction() {
    let mut m = trapping(&[0x9d, 0x90, 0x90]); // popfq; nop; nop
    m.ram.write_u64(support::STACK, TF);
    assert_eq!(
        m.run(10),
        Stop::Debug {
            vector: 1,
            rip: CODE + 2,
            dr6: DR6_BS
        }
    );
}

#[test]
fn answered_rdmsr_traps_like_any_other_instruction() {
    let mut m = trapping(&[0x0f, 0x32, 0x90]);
    m.set(|r| r.rflags = TF);
    assert_eq!(m.run(10), Stop::Rdmsr { index: 0 });
    m.cpu.complete_rdmsr(Ok(u64::MAX));
    assert_eq!(
        (m.cpu.registers().rax, m.cpu.registers().rdx),
        (0xffff_ffff, 0xffff_ffff)
    );
    assert_eq!(
        m.run(10),
        Stop::Debug {
            vector: 1,
            rip: CODE + 2,
            dr6: DR6_BS
        }
    );
}

#[test]
fn breakpoint_stops_before_the_instruction_unless_rf_is_set() {
    let mut m = trapping(&[0x90, 0x90, 0xeb, 0xfe]);
    let mut debug = DebugRegisters {
        dr7: 0x404,
        ..DebugRegisters::default()
    };
    debug.db[1] = CODE + 1;
    m.cpu.set_debug_registers(debug);
    assert_eq!(
        m.run(10),
        Stop::Debug {
            vector: 1,
            rip: CODE + 1,
            dr6: 2
        }
    );
    assert_eq!(m.cpu.retired(), 1);
    m.set(|r| r.rflags |= RF);
    assert_eq!(m.run(10), Stop::Budget);
    assert_eq!(m.cpu.registers().rflags & RF, 0);
}

#[test]
fn hosts_single_step_stops_after_one_instruction() {
    let config = Config {
        single_step: true,
        ..Config::default()
    };
    let mut m = Machine::long_with(&[0xff, 0xc0, 0xff, 0xc0], config); // inc eax, twice
    for i in 1..3 {
        let rip = CODE + 2 * i;
        assert_eq!(
            m.run(10),
            Stop::Debug {
                vector: 1,
                rip,
                dr6: DR6_BS
            }
        );
        assert_eq!(m.cpu.registers().rax, i);
    }
}

#[test]
fn forced_emulation_prefix_is_five_bytes_of_nothing() {
    let code = b"\x0f\x0bkvm\xff\xc0"; // inc eax behind it
    let config = Config {
        forced_emulation_prefix: true,
        ..Config::default()
    };
    let mut m = Machine::long_with(code, config);
    assert_eq!(m.run(2), Stop::Budget);
    assert_eq!(
        (m.cpu.registers().rax, m.cpu.registers().rip),
        (1, CODE + 7)
    );
    let mut m = Machine::long(code);
    assert_eq!(m.run(2), Stop::TripleFault);
    assert_eq!(m.cpu.last_exception().unwrap().vector, 6);
}

#[test]
fn refused_msr_queues_gp_at_the_instruction() {
    let mut m = Machine::long(&[0x0f, 0x30]); // wrmsr
    m.set(|r| (r.rcx, r.rdx, r.rax) = (0x1234, 0xaaaa_5555_0000_0001, 0xffff_ffff_0000_0002));
    assert_eq!(
        m.run(10),
        Stop::Wrmsr {
            index: 0x1234,
            value: 1 << 32 | 2
        }
    );
    m.cpu.complete_wrmsr(Err(msrgate_core::Gp));
    let pending = m.cpu.pending().unwrap();
    assert_eq!((pending.vector, pending.error_code), (13, Some(0)));
    assert_eq!((m.cpu.registers().rip, m.cpu.retired()), (CODE, 0));
}
