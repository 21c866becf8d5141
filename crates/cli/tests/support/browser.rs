//! Opening a page in Chromium, which Debian's package `chromium` has, and seeing what a person would.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{file, say};

/// Notes what goes wrong. Stands before the page's own script.
const WATCH: &str = "<script>window.errors = [];
addEventListener('error', (event) => errors.push(event.message));
addEventListener('securitypolicyviolation', (event) => errors.push(event.blockedURI));
console.error = console.warn = (...texts) => errors.push(texts.join(' '));</script>";
const DRIVE: &str = include_str!("drive.js");

/// What Chromium may be called.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Whether there is a browser; says so where there is none.
pub(crate) fn is_there() -> bool {
    let is_there = program().is_some();
    if !is_there {
        assert!(
            std::env::var_os("MSRGATE_REQUIRE_CHROMIUM").is_none(),
            "MSRGATE_REQUIRE_CHROMIUM is set, but there is no Chromium"
        );
        say("SKIP(chromium): it is not installed, and pages are not looked at");
    }
    is_there
}

fn program() -> Option<&'static str> {
    let path = std::env::var_os("PATH")?;
    let is_there = |name: &&str| std::env::split_paths(&path).any(|at| at.join(name).is_file());
    NAMES.into_iter().find(is_there)
}

/// Opens a page of so many pixels' width, uses it, and returns what was seen.
pub(crate) fn see(page: &Path, width: u32) -> Value {
    let html = fs::read_to_string(page).expect("a page");
    let (before, behind) = html.split_once("<meta").expect("a head");
    let (body, end) = behind.rsplit_once("</body>").expect("a body");
    let driven = format!("{before}{WATCH}<meta{body}<script>{DRIVE}</script></body>{end}");
    let name = page
        .file_name()
        .and_then(|name| name.to_str())
        .expect("UTF-8");
    let driven = file(&format!("driven-{width}-{name}"), driven.as_bytes());
    let profile = tempfile::tempdir().expect("a folder");
    let output = Command::new("timeout")
        .args(["120", program().expect("a browser")])
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", driven.display()))
        .output()
        .expect("it starts");
    let (dom, log) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let console: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .collect();
    assert!(console.is_empty(), "{console:?}");
    let seen = dom
        .split_once("<pre id=\"seen\">")
        .and_then(|(_, rest)| rest.split_once("</pre>"));
    let (seen, _) = seen.unwrap_or_else(|| panic!("the page was not shown: {log}"));
    let seen = seen
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&nbsp;", "\u{a0}");
    let seen: Value = serde_json::from_str(&seen.replace("&amp;", "&")).expect("JSON");
    assert_eq!(seen["errors"], serde_json::json!([]), "nothing goes wrong");
    assert_eq!([&seen["isReady"], &seen["isRevealed"]], [true, true]);
    seen
}
