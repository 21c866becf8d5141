//! What is typed, on its way into a Linux guest; on a terminal, with Ctrl-A as the key to us.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use msrgate_core::{Kick, Vm};
use msrgate_machine::{Keyboard, StopCause, Stopper};

use crate::console::Console;

const CTRL_A: u8 = 1;
/// A guest that does not read is asked again so often.
const PATIENCE: Duration = Duration::from_millis(10);

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
