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
        trap_breakpoint: true,
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

/// DR7 for breakpoint `i`: its local enable, type and length.
const fn dr7(i: u32, bits: u64) -> u64 {
    0x400 | 1 << (2 * i) | bits << (16 + 4 * i)
}

const STORE_4: u64 = 0b1101;
const ACCESS_1: u64 = 0b0011;
const ACCESS_8: u64 = 0b1011;

/// Runs code with RDI at 0x30_0000 and one breakpoint; the stops that come of it, as (bytes behind the start, DR6).
fn stops(code: &[u8], i: u32, address: u64, bits: u64) -> Vec<(u64, u64)> {
    let mut m = trapping(code);
    m.set(|r| (r.rdi, r.rsi, r.rcx) = (0x30_0000, 0x31_0000, 3));
    // What is in the TLB already is watched too.
    m.cpu.translate_linear(&mut m.ram, 0x30_0000);
    let mut debug = DebugRegisters {
        dr7: dr7(i, bits),
        ..DebugRegisters::default()
    };
    debug.db[i as usize] = address;
    m.cpu.set_debug_registers(debug);
    let mut stops = Vec::new();
    loop {
        match m.run(20) {
            Stop::Debug { vector, rip, dr6 } => {
                assert_eq!(vector, 1);
                stops.push((rip - CODE, dr6));
            }
            _ => return stops,
        }
    }
}

#[test]
fn data_breakpoints_trap_behind_the_access() {
    let store = [0x90, 0x89, 0x07, 0x90, 0xf4]; // nop; mov [rdi], eax; nop; hlt
    let load = [0x90, 0x8b, 0x07, 0x90, 0xf4]; // nop; mov eax, [rdi]; nop; hlt
    let none = Vec::new();
    for i in 0..4 {
        assert_eq!(stops(&store, i, 0x30_0000, STORE_4), [(3, 1 << i)]);
        assert_eq!(stops(&load, i, 0x30_0000, STORE_4), none);
        assert_eq!(stops(&load, i, 0x30_0003, ACCESS_1), [(3, 1 << i)]);
        assert_eq!(stops(&load, i, 0x30_0004, ACCESS_1), none);
        // The address is that of an aligned piece of the breakpoint's length.
        assert_eq!(stops(&store, i, 0x30_0007, ACCESS_8), [(3, 1 << i)]);
        assert_eq!(stops(&store, i, 0x30_0008, ACCESS_8), none);
    }
    let exchange = [0x87, 0x07, 0xf4]; // xchg [rdi], eax; hlt
    assert_eq!(stops(&exchange, 2, 0x30_0000, STORE_4), [(2, 4)]);
    let across = [0x48, 0x89, 0x47, 0xfc, 0xf4]; // mov [rdi - 4], rax; hlt
    assert_eq!(stops(&across, 0, 0x30_0000, ACCESS_1), [(4, 1)]);
}

#[test]
fn repeated_store_traps_behind_the_element_that_meets_the_breakpoint() {
    let code = [0xf3, 0xab, 0xf4]; // rep stosd, of 3; hlt
    assert_eq!(stops(&code, 1, 0x30_0004, STORE_4), [(0, 2)]);
    assert_eq!(stops(&code, 1, 0x30_0008, STORE_4), [(2, 2)]);
}

const PORT_1: u64 = 0b0010;
const PORT_2: u64 = 0b0110;
const PORT_4: u64 = 0b1110;

/// Runs code with DX at 0x3f8, RCX at 3 and one breakpoint; what came of it, as (bytes behind the start, RCX, DR6) where
/// it trapped, and how many elements went in or out.
fn port_stops(
    code: &[u8],
    i: u32,
    address: u64,
    bits: u64,
    cr4_de: u64,
) -> (Vec<(u64, u64, u64)>, u32) {
    let mut m = trapping(code);
    let mut system = m.cpu.system_registers();
    system.cr4 |= cr4_de << 3;
    m.cpu.set_system_registers(&system);
    m.set(|r| (r.rdx, r.rdi, r.rsi, r.rcx) = (0x3f8, 0x30_0000, 0x31_0000, 3));
    let mut debug = DebugRegisters {
        dr7: dr7(i, bits),
        ..DebugRegisters::default()
    };
    debug.db[i as usize] = address;
    m.cpu.set_debug_registers(debug);
    let (mut stops, mut elements) = (Vec::new(), 0);
    loop {
        match m.run(20) {
            Stop::Debug { vector, rip, dr6 } => {
                assert_eq!(vector, 1);
                stops.push((rip - CODE, m.cpu.registers().rcx, dr6));
            }
            Stop::IoIn { .. } => m.cpu.complete_io_in(0x5a),
            Stop::IoOut { .. } => elements += 1,
            Stop::Hlt => return (stops, elements),
            stop => panic!("{stop:?}"),
        }
    }
}

/// SDM vol. 3, 19.2.4 and 19.3.1.2: with CR4.DE, R/W 10b is a port, of the breakpoint's length, and traps behind the access.
#[test]
fn port_breakpoints_trap_behind_the_access() {
    let trapped = |code: &[u8], port, bits| port_stops(code, 0, port, bits, 1).0;
    let output = [0x90, 0xee, 0x90, 0xf4]; // nop; out dx, al; nop; hlt
    let input = [0x90, 0xec, 0x90, 0xf4]; // nop; in al, dx; nop; hlt
    for i in 0..4 {
        let once = vec![(2, 3, 1 << i)];
        assert_eq!(port_stops(&output, i, 0x3f8, PORT_1, 1), (once.clone(), 1));
        assert_eq!(port_stops(&input, i, 0x3f8, PORT_1, 1), (once, 0));
        assert_eq!(port_stops(&output, i, 0x3f8, PORT_1, 0), (vec![], 1));
        assert_eq!(port_stops(&input, i, 0x3f8, PORT_1, 0), (vec![], 0));
    }
    assert_eq!(trapped(&output, 0x3f9, PORT_1), []);
    assert_eq!(trapped(&output, 0x3f9, PORT_2), [(2, 3, 1)], "0x3f8, 0x3f9");
    assert_eq!(
        trapped(&output, 0x3fb, PORT_4),
        [(2, 3, 1)],
        "its address is aligned"
    );
    assert_eq!(trapped(&output, 0x3f4, PORT_4), []);
    let wide = [0xef, 0xf4]; // out dx, eax; hlt
    assert_eq!(
        trapped(&wide, 0x3fb, PORT_1),
        [(1, 3, 1)],
        "the last of its ports"
    );
    assert_eq!(trapped(&wide, 0x3fc, PORT_1), []);
    let immediate = [0xe4, 0x60, 0xf4]; // in al, 0x60; hlt
    assert_eq!(trapped(&immediate, 0x60, PORT_1), [(2, 3, 1)]);
    // An address is no port, and a port is no address.
    assert_eq!(trapped(&output, 0x3f8, ACCESS_1), []);
    let store = [0x89, 0x07, 0xf4]; // mov [rdi], eax; hlt
    assert_eq!(trapped(&store, 0x30_0000, PORT_4), []);
}

/// SDM vol. 3, 19.3.1.2: a repeated INS or OUTS traps behind each element that meets the breakpoint.
#[test]
fn repeated_port_access_traps_behind_each_element() {
    let each = [(0, 2, 1), (0, 1, 1), (2, 0, 1)];
    for (code, out) in [(0x6c, 0), (0x6e, 3)] {
        let code = [0xf3, code, 0xf4]; // rep insb or outsb; hlt
        let (stops, elements) = port_stops(&code, 0, 0x3f8, PORT_1, 1);
        assert_eq!((&stops[..], elements), (&each[..], out), "{code:x?}");
        let (stops, elements) = port_stops(&code, 0, 0x3f8, PORT_1, 0);
        assert_eq!((&stops[..], elements), (&[][..], out), "{code:x?}");
    }
    // What OUTS reads is watched like any other load.
    let load = [0xf3, 0x6e, 0xf4];
    let (stops, elements) = port_stops(&load, 2, 0x31_0001, ACCESS_1, 0);
    assert_eq!((&stops[..], elements), (&[(0, 1, 4)][..], 3));
}

#[test]
fn tf_traps_behind_each_element_of_a_repeated_port_access() {
    for code in [0x6c, 0x6e] {
        let mut m = trapping(&[0xf3, code, 0xf4]);
        m.set(|r| (r.rdx, r.rdi, r.rsi, r.rcx) = (0x3f8, 0x30_0000, 0x31_0000, 2));
        m.set(|r| r.rflags = TF);
        let mut traps = Vec::new();
        while traps.len() < 2 {
            match m.run(20) {
                Stop::Debug { rip, dr6, .. } => traps.push((rip - CODE, dr6)),
                Stop::IoIn { .. } => m.cpu.complete_io_in(0),
                Stop::IoOut { .. } => {}
                stop => panic!("{stop:?}"),
            }
        }
        assert_eq!(traps, [(0, DR6_BS), (2, DR6_BS)], "{code:#x}");
    }
}

#[test]
fn access_that_faults_meets_no_breakpoint() {
    // mov eax, [rsi + ...] of a page that is not there, with the breakpoint on it; the handler of #PF is HLT.
    let code = [0x8b, 0x04, 0x25, 0, 0, 0, 0xf0, 0xf4];
    let mut m = trapping(&code);
    let mut debug = DebugRegisters {
        dr7: dr7(0, ACCESS_1),
        ..DebugRegisters::default()
    };
    debug.db[0] = 0xffff_ffff_f000_0000;
    m.cpu.set_debug_registers(debug);
    // Without an IDT, #PF ends in a triple fault.
    assert_eq!(m.run(5), Stop::TripleFault);
}

#[test]
fn breakpoints_of_the_host_are_in_force_in_place_of_the_guest_s() {
    let mut m = trapping(&[0x90, 0x90, 0x0f, 0x21, 0xc0, 0xf4]); // nop; nop; mov rax, dr0; hlt
    let mut own = DebugRegisters {
        dr7: dr7(0, 0),
        ..DebugRegisters::default()
    };
    own.db[0] = CODE;
    m.cpu.set_debug_registers(own);
    let mut host = DebugRegisters {
        dr7: dr7(3, 0) | 1 << 13, // and GD
        ..DebugRegisters::default()
    };
    host.db[3] = CODE + 1;
    m.cpu.set_config(Config {
        breakpoints: Some(host),
        ..m.cpu.config().clone()
    });
    let stop = |rip, dr6| Stop::Debug {
        vector: 1,
        rip,
        dr6,
    };
    assert_eq!(m.run(9), stop(CODE + 1, 8));
    assert_eq!(m.run(9), stop(CODE + 1, 8), "until the host does something");
    m.set(|r| r.rip = CODE + 2);
    assert_eq!(m.run(9), stop(CODE + 2, 1 << 13));
    assert_eq!(m.cpu.debug_registers(), own);
    m.cpu.set_config(Config {
        breakpoints: None,
        ..m.cpu.config().clone()
    });
    assert_eq!(m.run(9), Stop::Hlt);
    assert_eq!(m.cpu.registers().rax, CODE);
}

#[test]
fn single_step_goes_on_behind_an_interrupt_window() {
    let config = Config {
        single_step: true,
        ..Config::default()
    };
    let mut m = Machine::long_with(&[0x90, 0x90, 0xeb, 0xfe], config);
    m.set(|r| r.rflags = 0x202);
    m.cpu.set_interrupt_window(true);
    assert_eq!(m.run(10), Stop::InterruptWindow);
    for i in 1..3 {
        let stop = m.run(10);
        assert!(
            matches!(stop, Stop::Debug { rip, .. } if rip == CODE + i),
            "{stop:?}"
        );
    }
}
