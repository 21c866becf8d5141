//! The terminal while it is ours: [`Raw`], without the line discipline, or with a screen of its own too. [`restore`]
//! makes it what it was.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ratatui::termion::cursor::Show;
use ratatui::termion::screen::{ToAlternateScreen, ToMainScreen};
use rustix::process::getpgrp;
use rustix::stdio::{dup2_stderr, stderr, stdin};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

/// The terminal of the standard input, raw until this is dropped.
#[derive(Debug)]
pub(crate) struct Raw;

/// What was before.
struct Before {
    modes: Termios,
    /// The standard error, where the terminal shows a screen.
    stderr: Option<OwnedFd>,
}

static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

impl Raw {
    /// `None` where the standard input is no terminal, or belongs to somebody else at the moment.
    pub(crate) fn take() -> Option<Self> {
        if !is_ours() {
            return None;
        }
        let modes = tcgetattr(stdin()).ok()?;
        let mut raw = modes.clone();
        raw.make_raw();
        // Our own lines, and a guest's that ends them with a line feed only, still begin at the left.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        *lock() = Some(Before {
            modes,
            stderr: None,
        });
        Some(Self)
    }

    /// Begins a screen on the standard output. What the program writes to its standard error goes to `errors` meanwhile.
    pub(crate) fn begin_screen(&self, errors: impl AsFd) -> io::Result<()> {
        let before = stderr().try_clone_to_owned()?;
        write!(io::stdout(), "{ToAlternateScreen}")?;
        dup2_stderr(errors)?;
        if let Some(it) = &mut *lock() {
            it.stderr = Some(before);
        }
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether the standard input is a terminal, and ours at the moment.
pub(crate) fn is_ours() -> bool {
    isatty(stdin()) && tcgetpgrp(stdin()).is_ok_and(|owner| owner == getpgrp())
}

/// Whether it is as we made it.
pub(crate) fn is_taken() -> bool {
    lock().is_some()
}

/// Makes the terminal what it was, if it is not. For ways out on which nothing is dropped, too.
pub(crate) fn restore() {
    let Some(Before { modes, stderr }) = lock().take() else {
        return;
    };
    // A terminal that is gone needs nothing.
    if let Some(stderr) = stderr {
        let _ = dup2_stderr(stderr);
        let mut out = io::stdout();
        let _ = write!(out, "{ToMainScreen}{Show}").and_then(|()| out.flush());
    }
    let _ = tcsetattr(stdin(), OptionalActions::Drain, &modes);
}

fn lock() -> MutexGuard<'static, Option<Before>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}
