//! `cargo xtask picture`: the README's pictures, of a real boot: the table in the terminal, and the page of `report`.
//!
//! They go into `docs/pictures`. A boot has other times each time: look at the pictures before they are committed.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anstyle::RgbColor;
use anstyle_svg::{Term, WIN10_CONSOLE};
use anyhow::{Context, Result, ensure};

use crate::boot;
use crate::shell;

const POLICY: &str = include_str!("picture/policy.toml");
/// What the page's picture leaves out.
const STYLE: &str = include_str!("picture/picture.css");
/// On a processor that is the same on every host.
const RUN: &str =
    "msrgate run --backend soft --processor fixed --policy policy.toml --initrd initrd.img vmlinuz";
const REPORT: &str = "msrgate report boot.msrtrace -o report.html";
const LIMIT: Duration = Duration::from_secs(120);
/// What is kept of the console: its beginning, and what stands before the table.
const FIRST_LINES: usize = 5;
const LAST_LINES: usize = 4;
const COLUMNS: usize = 96;
/// Pixels of the page.
const PAGE: &str = "1200,1250";
/// Chromium's numbers for what the reader prefers.
const SCHEMES: [(&str, u8); 2] = [("dark", 0), ("light", 1)];

pub(crate) fn run() -> Result<ExitCode> {
    let folder = shell::target_dir().join("picture");
    fs::create_dir_all(&folder).context("cannot make the guest's folder")?;
    boot::write_initrd(&folder.join("initrd.img"))?;
    let kernel = boot::kernel("6.1")?;
    fs::copy(kernel.image, folder.join("vmlinuz")).context("cannot copy the kernel")?;
    fs::write(folder.join("policy.toml"), POLICY).context("cannot write the policy")?;
    shell::run(shell::cargo().args(["build", "--release", "-p", "msrgate"]))?;

    let pictures = shell::root().join("docs/pictures");
    let text = terminal(&folder, RUN)?;
    let screen = Term::new()
        .palette(WIN10_CONSOLE)
        .fg_color(RgbColor(0xd8, 0xde, 0xe6).into())
        .bg_color(RgbColor(0x11, 0x15, 0x1b).into());
    let svg = screen.render_svg(&abridged(&text)?);
    fs::write(pictures.join("run.svg"), svg).context("cannot write the picture")?;

    terminal(&folder, &RUN.replace("run", "run --trace boot.msrtrace"))?;
    terminal(&folder, REPORT)?;
    let page = folder.join("report.html");
    let html = fs::read_to_string(&page).context("cannot read the page")?;
    let html = html.replace("</style>", &format!("{STYLE}</style>"));
    fs::write(&page, html).context("cannot write the page")?;
    for (name, scheme) in SCHEMES {
        photograph(&page, scheme, &pictures.join(format!("report-{name}.png")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a command prints on a terminal, which util-linux's `script` gives it.
fn terminal(folder: &Path, line: &str) -> Result<String> {
    let log = folder.join("terminal.log");
    let programs = shell::target_dir().join("release");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--command"])
        .arg(format!("stty rows 24 columns {COLUMNS}; {line}"))
        .arg("/dev/null")
        .env("TERM", "xterm")
        .env("PATH", format!("{}:{path}", programs.display()))
        .current_dir(folder);
    println!("$ {line}");
    let status = shell::run_for(&mut script, &log, LIMIT)?;
    let printed = fs::read_to_string(&log).context("cannot read what was printed")?;
    ensure!(
        status.is_some_and(|status| status.success()),
        "it failed:\n{printed}"
    );
    Ok(printed.replace('\r', ""))
}

/// The command and what it printed, with most of the console left out.
fn abridged(printed: &str) -> Result<String> {
    let lines: Vec<&str> = printed.lines().collect();
    let table = lines
        .iter()
        .position(|line| line.contains("OUTCOME"))
        .context("there is no table")?;
    let mut kept = format!("$ {RUN}\n");
    let mut is_gap = false;
    for (place, line) in lines.iter().enumerate() {
        let is_console = place >= FIRST_LINES && place + LAST_LINES < table;
        if is_console && !line.starts_with("msrgate:") {
            is_gap = true;
            continue;
        }
        if std::mem::take(&mut is_gap) {
            kept += "…\n";
        }
        // The table is narrower, so that no escape sequence is cut.
        kept.extend(line.chars().take(COLUMNS));
        kept.push('\n');
    }
    Ok(kept)
}

/// A picture of a page, as large as a window.
fn photograph(page: &Path, scheme: u8, picture: &Path) -> Result<()> {
    let log = page.with_extension("log");
    let mut chromium = Command::new("chromium");
    chromium
        .args(["--headless", "--no-sandbox", "--disable-gpu"])
        .args([
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ])
        .arg(format!(
            "--user-data-dir={}",
            page.with_extension("profile").display()
        ))
        .arg(format!("--blink-settings=preferredColorScheme={scheme}"))
        .arg(format!("--window-size={PAGE}"))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", page.display()));
    shell::run_quietly(&mut chromium, &log)
}
