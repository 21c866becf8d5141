//! Running other programs: printed before they run, ended when they take too long.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .expect("xtask is a folder of the workspace")
        .to_owned()
}

/// Where builds put what git does not see.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The first of `PATH` that has a program of this name.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Prints the command as a person would type it.
pub(crate) fn announce(command: &Command) {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    println!("$ {}", line.join(" "));
}

/// Runs a command whose output the reader wants to see.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = start(command.stdin(Stdio::null()))?
        .wait()
        .context("wait")?;
    ensure!(
        status.success(),
        "{} ended with {status}",
        command.get_program().to_string_lossy()
    );
    Ok(())
}

/// Runs a command whose output matters only when it fails: it goes to `log`.
pub(crate) fn run_quietly(command: &mut Command, log: &Path) -> Result<()> {
    announce(command);
    let status = start(capture(command, log)?)?.wait().context("wait")?;
    ensure!(
        status.success(),
        "{} ended with {status}; its output is in {}:\n{}",
        command.get_program().to_string_lossy(),
        log.display(),
        last_lines(log, 20)
    );
    Ok(())
}

/// Runs a command into `log`, and ends its whole process group after `limit`; `None` then.
pub(crate) fn run_for(
    command: &mut Command,
    log: &Path,
    limit: Duration,
) -> Result<Option<ExitStatus>> {
    let mut child = start_group(command, log)?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("wait")? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            end_group(&mut child)?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a command in a process group of its own; its output goes to `log`.
pub(crate) fn start_group(command: &mut Command, log: &Path) -> Result<Child> {
    start(capture(command, log)?.process_group(0))
}

fn start(command: &mut Command) -> Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

fn capture<'c>(command: &'c mut Command, log: &Path) -> Result<&'c mut Command> {
    let output = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let errors = output.try_clone().context("cannot share the log file")?;
    Ok(command.stdin(Stdio::null()).stdout(output).stderr(errors))
}

/// Ends a process group: a program's own children outlive it otherwise.
pub(crate) fn end_group(child: &mut Child) -> Result<()> {
    let group = format!("-{}", child.id());
    Command::new("kill")
        .args(["-KILL", "--", &group])
        .stderr(Stdio::null()) // it may have ended by itself
        .status()
        .context("cannot start kill")?;
    child.wait().context("wait")?;
    Ok(())
}

fn last_lines(log: &Path, count: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
