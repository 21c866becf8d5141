//! A newcomer at a terminal: [`Session`], a folder in which the commands of one document run.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::block::{Block, Command as Shown, GUEST_PROMPT};
use crate::{root, shown};

/// Many times what any command takes.
const LIMIT_SECONDS: &str = "240";
/// The terminal's, and what it keeps of all that was printed.
const COLUMNS: NonZero<u16> = NonZero::new(80).expect("some");
const ROWS: NonZero<u16> = NonZero::new(3000).expect("many");

pub(crate) struct Session {
    folder: PathBuf,
}

impl Session {
    /// A folder with the examples in it, as in a clone, and the packages that were downloaded into it before.
    pub(crate) fn begin(document: &str) -> io::Result<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("docs")
            .join(document.replace('/', "-"));
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("deb") => {}
                _ if path.is_dir() && !path.is_symlink() => fs::remove_dir_all(path)?,
                _ => fs::remove_file(path)?,
            }
        }
        let examples = fs::canonicalize(root())?.join("examples");
        symlink(examples, folder.join("examples"))?;
        Ok(Self { folder })
    }

    pub(crate) fn store(&self, name: &str, text: &str) -> Result<(), String> {
        fs::write(self.folder.join(name), text).map_err(|error| format!("{name}: {error}"))
    }

    /// Runs `msrgate check` on a policy.
    pub(crate) fn check_policy(&self, block: &Block) -> Result<(), String> {
        let name = block.file.as_deref().unwrap_or("unnamed.toml");
        self.store(name, &block.text)?;
        let check = Shown {
            line: format!("msrgate check {name}"),
            shown: String::new(),
        };
        self.run(&check, block.status)
    }

    /// Runs a command, types what the document shows behind a guest's prompt, and compares what was printed.
    pub(crate) fn run(&self, command: &Shown, status: i32) -> Result<(), String> {
        let Shown { line, shown } = command;
        let (printed, ended) = self
            .type_in(command)
            .map_err(|error| format!("$ {line}\n{error}"))?;
        if ended != Some(status) {
            return Err(format!(
                "$ {line}\n{printed}\nended with {ended:?}, not {status}"
            ));
        }
        match shown::first_difference(shown, &printed) {
            Some(different) if !shown.is_empty() => Err(format!(
                "$ {line}\n{printed}\nis shown otherwise, from {different:?} on"
            )),
            _ => Ok(()),
        }
    }

    /// What the terminal shows in the end, and the exit status.
    fn type_in(&self, command: &Shown) -> io::Result<(String, Option<i32>)> {
        let mut keys = command.keys();
        let mut child = self.terminal(&command.line)?;
        let mut keyboard = child.stdin.take().expect("a pipe");
        let mut output = child.stdout.take().expect("a pipe");
        let (mut printed, mut answered) = (Vec::new(), 0);
        let mut bytes = [0; 4096];
        loop {
            let count = output.read(&mut bytes)?;
            if count == 0 {
                break;
            }
            printed.extend(&bytes[..count]);
            let is_asked = String::from_utf8_lossy(&printed[answered..]).contains(GUEST_PROMPT);
            if is_asked && let Some(keys) = keys.next() {
                answered = printed.len();
                writeln!(keyboard, "{keys}")?;
            }
        }
        let mut screen = vt100::Parser::new(ROWS, COLUMNS, 0);
        screen.process(&printed);
        Ok((screen.screen().contents(), child.wait()?.code()))
    }

    /// util-linux's `script` gives the command a terminal.
    fn terminal(&self, line: &str) -> io::Result<Child> {
        let program = Path::new(env!("CARGO_BIN_EXE_msrgate"));
        let folder = program.parent().expect("a folder");
        let others = env::var("PATH").unwrap_or_default();
        let line = format!("stty rows 24 columns {COLUMNS}; {line}");
        Command::new("timeout")
            .args(["--kill-after=5", LIMIT_SECONDS])
            .args([
                "script",
                "--quiet",
                "--return",
                "--command",
                &line,
                "/dev/null",
            ])
            .current_dir(&self.folder)
            .env("SHELL", "/bin/bash")
            .env("TERM", "xterm")
            .env("PATH", format!("{}:{others}", folder.display()))
            .env("MSRGATE_PRELOAD", folder.join("deps/libmsrgate_preload.so"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
    }
}
