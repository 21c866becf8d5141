//! The same loop on the embedded processor and on Bochs: a boot sector that enters 32-bit mode, counts, and stops.
//!
//! Each runs it twice, with different counts; the difference is what the loop takes, without what comes before. Time
//! is what the threads spent on a CPU. Needs Debian's `bochs`, `bochs-term` and `bochsbios`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use msrgate_core::Segment;
use msrgate_x86::{Config, Cpu, Stop};
use support::{Machine, Ram};

const ORIGIN: u16 = 0x7c00;
/// Bochs ends when "Shutdown" is written here, letter by letter.
const SHUTDOWN_PORT: u16 = 0x8900;
const COUNTS: [u32; 2] = [1 << 24, 5 << 24];
/// Where the sector has the loop, and the descriptors before it.
const LOOP: u16 = ORIGIN + 0x40;
const GDT: u16 = ORIGIN + 0x20;
/// Instructions of one turn of the loop.
const TURN: u64 = 8;

fn main() {
    let ours = instructions_a_second(ours);
    println!("{:<24} {ours:8.1} M instructions/s", "loop, here");
    if let Err(why) = installed() {
        println!("SKIP(bochs): {why}");
        return;
    }
    let bochs = instructions_a_second(bochs);
    println!("{:<24} {bochs:8.1} M instructions/s", "loop, Bochs");
    println!("{:<24} {:8.2}", "ratio", ours / bochs);
}

fn installed() -> Result<(), String> {
    let needed = [
        "/usr/bin/bochs",
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        "/usr/share/bochs/BIOS-bochs-latest",
        "/usr/bin/script",
    ];
    let missing = needed.into_iter().find(|path| !Path::new(path).exists());
    missing.map_or(Ok(()), |path| Err(format!("{path} is not there")))
}

fn instructions_a_second(run: impl Fn(&[u8]) -> f64) -> f64 {
    let fastest = |turns: u32| {
        let sector = boot_sector(turns).expect("the operands are valid");
        (0..3).map(|_| run(&sector)).fold(f64::MAX, f64::min)
    };
    let [few, many] = COUNTS.map(fastest);
    let turns = u64::from(COUNTS[1] - COUNTS[0]);
    (TURN * turns) as f64 / (many - few) / 1e6
}

/// 16-bit code that enters protected mode and jumps to the loop.
fn boot_sector(turns: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.db(&[0x31, 0xc0, 0x8e, 0xd8])?; // xor ax, ax; mov ds, ax
    let table = (GDT - 6).to_le_bytes();
    a.db(&[0x0f, 0x01, 0x16, table[0], table[1]])?; // lgdt
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    let [low, high] = LOOP.to_le_bytes();
    a.db(&[0xea, low, high, 0x08, 0x00])?; // jmp 8:LOOP
    let mut sector = a.assemble(ORIGIN.into())?;
    sector.resize(0x1a, 0);
    sector.extend(23_u16.to_le_bytes());
    sector.extend(u32::from(GDT).to_le_bytes());
    for descriptor in [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff] {
        sector.extend(descriptor.to_le_bytes());
    }
    sector.resize(0x40, 0);
    sector.extend(the_loop(turns)?.assemble(LOOP.into())?);
    assert!(sector.len() <= 510, "{}", sector.len());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

fn the_loop(turns: u32) -> Result<CodeAssembler, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(ax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(edi, 0x9000)?;
    a.mov(ecx, turns)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.mov(eax, dword_ptr(edi))?;
    a.add(eax, ecx)?;
    a.mov(dword_ptr(edi + 4), eax)?;
    a.xor(edx, eax)?;
    a.lea(esi, dword_ptr(edx + eax * 2 + 5))?;
    a.shr(edx, 3)?;
    a.dec(ecx)?;
    a.jnz(top)?;
    a.mov(dx, u32::from(SHUTDOWN_PORT))?;
    for letter in *b"Shutdown" {
        a.mov(al, u32::from(letter))?;
        a.out(dx, al)?;
    }
    a.hlt()?;
    Ok(a)
}

/// Seconds on a CPU.
fn ours(sector: &[u8]) -> f64 {
    let mut m = Machine {
        ram: Ram::new(1 << 20),
        cpu: Cpu::new(Config::default()),
    };
    m.ram.write(ORIGIN.into(), sector);
    let mut system = m.cpu.system_registers();
    system.cs = Segment {
        base: 0,
        selector: 0,
        ..system.cs
    };
    m.cpu.set_system_registers(&system);
    m.set(|r| r.rip = ORIGIN.into());
    let before = seconds().own;
    let stop = m.run(u64::MAX);
    let after = seconds().own;
    assert!(
        matches!(
            stop,
            Stop::IoOut {
                port: SHUTDOWN_PORT,
                ..
            }
        ),
        "{stop:?}: {:?}",
        m.cpu
    );
    after - before
}

/// Seconds on a CPU.
fn bochs(sector: &[u8]) -> f64 {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bochs");
    fs::create_dir_all(&folder).expect("the target folder is ours");
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).expect("the target folder is ours");
    };
    let mut floppy = sector.to_vec();
    floppy.resize(1440 * 1024, 0);
    write("floppy.img", &floppy);
    write("bochsrc", BOCHSRC.as_bytes());
    // Debian's is built with its debugger, which wants a terminal and the command to go on.
    write("debugger", b"c\n");
    let before = seconds().children;
    let status = Command::new("script")
        .args([
            "-qec",
            "timeout 300 bochs -q -f bochsrc -rc debugger",
            "/dev/null",
        ])
        .env("TERM", "vt100")
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("script is there");
    assert_ne!(status.code(), Some(124), "it did not stop");
    seconds().children - before
}

const BOCHSRC: &str = "\
megs: 32
cpu: model=corei7_haswell_4770, count=1, ips=50000000
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
floppya: 1_44=floppy.img, status=inserted
boot: floppy
display_library: term
clock: sync=none
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
";

/// What this process has spent so far, and what its children have that are gone.
fn seconds() -> Spent {
    const TICKS_A_SECOND: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").expect("/proc is there");
    // Behind the name, which ends with the last parenthesis, utime is the 12th field.
    let (_, fields) = text.rsplit_once(')').expect("the kernel's format");
    let ticks = |n| {
        let field = fields.split_whitespace().nth(n);
        field.and_then(|ticks: &str| ticks.parse::<f64>().ok())
    };
    let seconds = |n| ticks(n).expect("the kernel's format") / TICKS_A_SECOND;
    Spent {
        own: seconds(11) + seconds(12),
        children: seconds(13) + seconds(14),
    }
}

struct Spent {
    own: f64,
    children: f64,
}
