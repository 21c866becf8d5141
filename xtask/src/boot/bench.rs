//! How long a boot takes on the embedded KVM and under QEMU's TCG: the same kernel, initramfs and command line, by turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use crate::shell;

const COMMAND_LINE: &str = "console=ttyS0 cryptomgr.notests";
const MEMORY: &str = "512M";
const MEMORY_BYTES: u64 = 512 << 20;

/// Who boots it.
struct Contender {
    name: &'static str,
    words: &'static [&'static str],
}

const QEMU: [Contender; 2] = [
    Contender {
        name: "qemu tcg, q35",
        words: &["-M", "q35"],
    },
    Contender {
        name: "qemu tcg, microvm",
        words: &["-M", "microvm"],
    },
];

/// After this, it will not come to an end: on a busy host, Linux cannot calibrate its TSC in the microvm, and waits for ever.
const LIMIT: Duration = Duration::from_secs(60);
/// How often memory is looked at. That costs the guest nothing where there is a second processor.
const GLANCE: Duration = Duration::from_millis(50);

/// What a boot took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    /// The most that was resident beside the guest's RAM.
    overhead_kib: u64,
}

/// Boots the guest so often with each, by turns, and prints the medians side by side.
pub(super) fn compare(guest: &Guest, times: u32) -> Result<()> {
    let msrgate = build()?;
    let mut costs = vec![Vec::new(); 1 + QEMU.len()];
    for _ in 0..times.max(1) {
        costs[0].extend(measure(embedded(&msrgate, guest), guest)?);
        for (contender, costs) in QEMU.iter().zip(&mut costs[1..]) {
            costs.extend(measure(emulator(contender, guest), guest)?);
        }
    }
    println!(
        "Linux {}, {times} times each, median, {MEMORY} of RAM:",
        guest.kernel.version
    );
    let names = ["msrgate run, soft"].into_iter();
    let names = names.chain(QEMU.iter().map(|contender| contender.name));
    let first = median(&costs[0]).context("the embedded KVM did not boot it")?;
    for (name, costs) in names.zip(&costs) {
        let Some(cost) = median(costs) else {
            println!("  {name:<20} never came to an end");
            continue;
        };
        println!(
            "  {name:<20} {:>6.2} s  {:>5.2} x  {:>5} MiB beside its RAM",
            cost.wall.as_secs_f64(),
            cost.wall.as_secs_f64() / first.wall.as_secs_f64(),
            cost.overhead_kib / 1024,
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

/// Runs it with what it does not have yet at its end; `None` if that takes too long.
fn measure(mut run: Command, guest: &Guest) -> Result<Option<Cost>> {
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
    let maps = Path::new("/proc")
        .join(child.id().to_string())
        .join("smaps");
    let mut overhead_kib = 0;
    let mut glanced = start;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait")? {
            break status;
        }
        if start.elapsed() > LIMIT {
            child.kill().context("cannot end the guest")?;
            child.wait().context("wait")?;
            return Ok(None);
        }
        if glanced.elapsed() > GLANCE {
            glanced = Instant::now();
            overhead_kib = overhead_kib.max(overhead(&maps).unwrap_or(0));
        }
        thread::sleep(Duration::from_millis(2));
    };
    let wall = start.elapsed();
    let text = fs::read(&console).context("cannot read the console")?;
    let is_done = String::from_utf8_lossy(&text).contains("guest: end");
    ensure!(
        status.success() && is_done,
        "the guest did not end well ({status}): {}",
        console.display()
    );
    Ok(Some(Cost { wall, overhead_kib }))
}

/// What is resident but for mappings as large as the guest's RAM, of which it is one; QEMU's buffer of translated code is
/// another. Nothing while there is none: a loader's memory becomes the guest's.
fn overhead(maps: &Path) -> Option<u64> {
    let text = fs::read_to_string(maps).ok()?;
    let mut is_ram = false;
    let mut has_ram = false;
    let mut overhead_kib = 0;
    for line in text.lines() {
        let (word, rest) = line.split_once(char::is_whitespace)?;
        if let Some((start, end)) = word.split_once('-') {
            let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16));
            is_ram = end.ok()? - start.ok()? >= MEMORY_BYTES;
        } else if word == "Rss:" {
            let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
            has_ram |= is_ram && kib > 0;
            overhead_kib += if is_ram { 0 } else { kib };
        }
    }
    has_ram.then_some(overhead_kib)
}

fn median(costs: &[Cost]) -> Option<Cost> {
    let mut sorted = costs.to_vec();
    sorted.sort_by_key(|cost| cost.wall);
    sorted.get(sorted.len() / 2).copied()
}
