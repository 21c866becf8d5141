//! How long a boot takes on the embedded KVM and under QEMU's TCG: the same kernel, initramfs and command line, by turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::shell;

const COMMAND_LINE: &str = "console=ttyS0 cryptomgr.notests";
const MEMORY: &str = "512M";

/// Who boots it.
struct Contender {
    name: &'static str,
    words: &'static [&'static str],
}

/// Not the microvm: on a busy host, Linux cannot calibrate its TSC there, and does not boot.
const QEMU: [Contender; 1] = [Contender {
    name: "qemu tcg, q35",
    words: &["-M", "q35"],
}];

/// What a boot took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    /// The largest resident set.
    memory_kib: u64,
}

/// Boots the guest so often with each, by turns, and prints the medians side by side.
pub(super) fn compare(guest: &Guest, times: u32) -> Result<()> {
    let msrgate = build()?;
    let mut costs = vec![Vec::new(); 1 + QEMU.len()];
    for _ in 0..times.max(1) {
        costs[0].push(measure(embedded(&msrgate, guest), guest)?);
        for (contender, costs) in QEMU.iter().zip(&mut costs[1..]) {
            costs.push(measure(emulator(contender, guest), guest)?);
        }
    }
    println!(
        "Linux {}, {times} times each, median:",
        guest.kernel.version
    );
    let names = ["msrgate run, soft"].into_iter();
    let names = names.chain(QEMU.iter().map(|contender| contender.name));
    let first = median(&costs[0]);
    for (name, costs) in names.zip(&costs) {
        let cost = median(costs);
        println!(
            "  {name:<20} {:>6.2} s  {:>5.2} x  {:>5} MiB",
            cost.wall.as_secs_f64(),
            cost.wall.as_secs_f64() / first.wall.as_secs_f64(),
            cost.memory_kib / 1024,
        );
    }
    Ok(())
}

/// The program as users have it.
fn build() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["build", "--release", "-p", "msrgate"]))?;
    Ok(shell::target_dir().join("release/msrgate"))
}

fn embedded(msrgate: &Path, guest: &Guest) -> Command {
    let mut run = Command::new(msrgate);
    run.args(["run", "--backend", "soft", "--mem", MEMORY]);
    run.arg("--initrd").arg(&guest.initrd).arg("--append");
    run
}

fn emulator(contender: &Contender, guest: &Guest) -> Command {
    let mut run = Command::new("qemu-system-x86_64");
    run.args(["-accel", "tcg"]).args(contender.words);
    run.args(["-m", MEMORY, "-nographic", "-net", "none", "-vga", "none"]);
    run.arg("-no-reboot")
        .arg("-kernel")
        .arg(&guest.kernel.image);
    run.arg("-initrd").arg(&guest.initrd).arg("-append");
    run
}

/// Runs it with what it does not have yet at its end.
fn measure(mut run: Command, guest: &Guest) -> Result<Cost> {
    run.arg(COMMAND_LINE);
    if run.get_program() != "qemu-system-x86_64" {
        run.arg(&guest.kernel.image);
    }
    let console = guest.folder.join("bench.log");
    let output = fs::File::create(&console).context("cannot write the console")?;
    run.stdin(Stdio::null());
    run.stderr(output.try_clone().context("cannot share the console")?);
    run.stdout(output);
    let start = Instant::now();
    let mut child = run.spawn().context("cannot start the guest")?;
    let memory = Path::new("/proc")
        .join(child.id().to_string())
        .join("status");
    let mut memory_kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait")? {
            break status;
        }
        memory_kib = peak(&memory).unwrap_or(memory_kib);
        std::thread::sleep(Duration::from_millis(5));
    };
    let wall = start.elapsed();
    let text = fs::read(&console).context("cannot read the console")?;
    let is_done = String::from_utf8_lossy(&text).contains("guest: end");
    ensure!(
        status.success() && is_done,
        "the guest did not end well ({status}): {}",
        console.display()
    );
    Ok(Cost { wall, memory_kib })
}

/// `VmHWM:   156508 kB`
fn peak(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn median(costs: &[Cost]) -> Cost {
    let mut sorted = costs.to_vec();
    sorted.sort_by_key(|cost| cost.wall);
    sorted[sorted.len() / 2]
}
