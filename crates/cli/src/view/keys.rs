//! What is typed, as keys.

/// A key that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
    Char(char),
}

/// What terminals send for those that are no letters.
const SEQUENCES: [(&str, Key); 19] = [
    ("\x1b[A", Key::Up),
    ("\x1bOA", Key::Up),
    ("\x1b[B", Key::Down),
    ("\x1bOB", Key::Down),
    ("\x1b[C", Key::Right),
    ("\x1bOC", Key::Right),
    ("\x1b[D", Key::Left),
    ("\x1bOD", Key::Left),
    ("\x1b[5~", Key::PageUp),
    ("\x1b[6~", Key::PageDown),
    ("\x1b[H", Key::Home),
    ("\x1b[1~", Key::Home),
    ("\x1b[F", Key::End),
    ("\x1b[4~", Key::End),
    ("\r", Key::Enter),
    ("\n", Key::Enter),
    ("\x7f", Key::Backspace),
    ("\x08", Key::Backspace),
    ("\x03", Key::Interrupt),
];

/// The keys behind these bytes. What nobody knows is passed over.
pub(super) fn keys(typed: &[u8]) -> Vec<Key> {
    let typed = String::from_utf8_lossy(typed);
    let mut rest = &*typed;
    let mut keys = Vec::new();
    while let Some(first) = rest.chars().next() {
        let (key, length) = key(rest, first);
        keys.extend(key);
        rest = &rest[length..];
    }
    keys
}

/// The key at the beginning of `typed`, and how long it is.
fn key(typed: &str, first: char) -> (Option<Key>, usize) {
    if let Some((text, key)) = SEQUENCES.iter().find(|(text, _)| typed.starts_with(text)) {
        return (Some(*key), text.len());
    }
    if let Some(sequence) = typed.strip_prefix("\x1b[") {
        let last = sequence.find(|c| matches!(c, '@'..='~'));
        return (
            None,
            last.map_or(typed.len(), |last| "\x1b[".len() + last + 1),
        );
    }
    let key = match first {
        '\x1b' => Some(Key::Escape),
        other if other.is_control() => None,
        other => Some(Key::Char(other)),
    };
    (key, first.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_terminals_send() {
        // ECMA-48, and xterm's and the Linux console's own.
        use Key::{Backspace, Char, Down, Enter, Escape, Home, Interrupt, PageUp, Up};
        assert_eq!(
            keys(b"\x1b[A\x1bOB\x1b[1~\x1b[5~"),
            [Up, Down, Home, PageUp]
        );
        assert_eq!(
            keys("a\u{e4}\r\x7f\x03".as_bytes()),
            [Char('a'), Char('\u{e4}'), Enter, Backspace, Interrupt]
        );
        assert_eq!(keys(b"\x1b"), [Escape]);
        assert_eq!(keys(b"\x1bx"), [Escape, Char('x')]);
    }

    #[test]
    fn what_nobody_knows_is_passed_over() {
        assert_eq!(
            keys(b"\x1b[<0;1;2Mq\x1b[1;5Aq\0\x1b["),
            [Key::Char('q'), Key::Char('q')]
        );
        assert_eq!(keys(b"\x1b[\xff\x80"), []);
        assert_eq!(keys("\x1b[\u{e4}~q".as_bytes()), [Key::Char('q')]);
    }

    #[test]
    fn nothing_that_is_typed_panics() {
        const BYTES: [u8; 8] = [0x1b, b'[', b'O', b'1', b'~', b'<', 0xc3, 0xa4];
        for number in 0..BYTES.len().pow(5) {
            let digit = |place: u32| BYTES[number / BYTES.len().pow(place) % BYTES.len()];
            let typed = [0, 1, 2, 3, 4].map(digit);
            assert!(keys(&typed).len() <= typed.len());
        }
    }
}
