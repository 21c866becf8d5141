//! The terminal as the console of a Linux guest: raw, with Ctrl-A as the key to us; and what is typed, on its way into
//! the guest.

use std::io::{self, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use msrgate_core::{Kick, Vm};
use msrgate_machine::{Keyboard, StopCause, Stopper};
use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr,
};

use crate::console::Console;

const CTRL_A: u8 = 1;
/// A guest that does not read is asked again so often.
const PATIENCE: Duration = Duration::from_millis(10);

/// What the terminal was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal, raw until this is dropped.
pub(super) struct RawTerminal;

impl RawTerminal {
    /// `None` where the standard input is no terminal, or belongs to somebody else at the moment.
    pub(super) fn take() -> Option<Self> {
        if !isatty(stdin()) || tcgetpgrp(stdin()).ok()? != getpgrp() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // Our own lines, and a guest's that ends them with a line feed only, still begin at the left.
        raw.output_modes |= OutputModes::OPOST;
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        *lock() = Some(before);
        Some(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was, if it is not. For ways out on which nothing is dropped.
pub(super) fn restore() {
    if let Some(before) = lock().take() {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

fn lock() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where keys go.
pub(super) struct TypedTo<V: Vm, K> {
    pub(super) keyboard: Keyboard<V, Console>,
    pub(super) stopper: Stopper<K>,
    pub(super) console: Console,
}

/// Types what comes from the standard input into the guest, from a thread of its own. `is_terminal`: Ctrl-A is a key to
/// us.
pub(super) fn type_input<V, K>(guest: TypedTo<V, K>, is_terminal: bool)
where
    V: Vm + Send + Sync + 'static,
    K: Kick + 'static,
{
    thread::spawn(move || {
        let mut keys = Keys::default();
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            let mut typed = buffer[..count].to_vec();
            if is_terminal {
                typed.retain(|&key| match keys.press(key) {
                    Pressed::Guest => true,
                    Pressed::Nothing => false,
                    Pressed::Quit => {
                        guest.stopper.stop(StopCause::Interrupt);
                        guest.console.abandon();
                        false
                    }
                });
            }
            guest.type_all(&typed);
        }
    });
}

impl<V: Vm, K: Kick> TypedTo<V, K> {
    /// As fast as the guest reads, or until it ends.
    fn type_all(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.stopper.cause().is_none() {
            bytes = &bytes[self.keyboard.type_bytes(bytes)..];
            if !bytes.is_empty() {
                thread::sleep(PATIENCE);
            }
        }
    }
}

/// What the keys before were.
#[derive(Debug, Default)]
struct Keys {
    /// Ctrl-A was the last one.
    escaped: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    /// It is the guest's.
    Guest,
    /// It was for us.
    Nothing,
    /// The guest shall end.
    Quit,
}

impl Keys {
    fn press(&mut self, key: u8) -> Pressed {
        match (std::mem::take(&mut self.escaped), key) {
            (false, CTRL_A) => {
                self.escaped = true;
                Pressed::Nothing
            }
            (true, b'x' | b'X') => Pressed::Quit,
            // Ctrl-A twice is one for the guest.
            (false, _) | (true, CTRL_A) => Pressed::Guest,
            (true, _) => Pressed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_quits_and_ctrl_a_twice_is_one() {
        let mut keys = Keys::default();
        let mut press = |text: &[u8]| text.iter().map(|&key| keys.press(key)).collect::<Vec<_>>();
        use Pressed::{Guest, Nothing, Quit};
        assert_eq!(press(b"x\x01x"), [Guest, Nothing, Quit]);
        assert_eq!(press(b"\x01\x01x"), [Nothing, Guest, Guest]);
        assert_eq!(press(b"\x01hx"), [Nothing, Nothing, Guest]);
    }
}
