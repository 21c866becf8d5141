//! The live view on a terminal: [`View`]. It draws what others count; it counts nothing itself.
//!
//! While it is there, nobody else can write to the terminal. [`Window::writer`] is for what they have to say: its last lines
//! are shown below the table, and printed when the view is over.

mod keys;
mod output;
mod screen;
mod table;

use std::io::{self, IsTerminal, PipeWriter, Stdout};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anstream::{AutoStream, ColorChoice};
use anyhow::{Context, bail};
use ratatui::Terminal;
use ratatui::backend::TermionBackend;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;

use self::keys::{Key, keys};
use self::output::Output;
use self::screen::{Palette, draw};
use self::table::{COLUMNS, Order, Table};
use crate::observe::printable;
use crate::seen::Shared;
use crate::terminal::{self, Raw};

/// Between two looks at what was counted.
const PERIOD: Duration = Duration::from_millis(500);
/// Between two drawings, if no key is pressed.
const FRAME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Of a filter; no word in the table is longer.
const FILTER_LIMIT: usize = 40;

/// Where a view can be, before there is something to see.
#[derive(Debug)]
pub(crate) struct Window {
    output: Arc<Output>,
}

/// What is to be seen, and who is told that it shall end.
pub(crate) struct Subject<Q> {
    pub(crate) title: String,
    pub(crate) seen: Shared,
    /// Called each time that the user wants to quit, and once if the terminal goes away.
    pub(crate) quit: Q,
    /// What the user is told then.
    pub(crate) ending: &'static str,
}

/// The live view, from a thread of its own until this is dropped.
#[derive(Debug)]
pub(crate) struct View {
    thread: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    output: Arc<Output>,
    _raw: Raw,
}

impl Window {
    /// # Errors
    /// There is no terminal, or it is somebody else's at the moment.
    pub(crate) fn find() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            bail!("the live view needs a terminal as standard input and standard output");
        }
        if !terminal::is_ours() {
            bail!("the live view needs the terminal, which is another program's at the moment");
        }
        let output = Output::new().context("cannot start the live view")?;
        Ok(Self {
            output: Arc::new(output),
        })
    }

    /// For those who would have written to the terminal.
    pub(crate) fn writer(&self) -> anyhow::Result<PipeWriter> {
        let writer = self.output.writer();
        writer.context("cannot start the live view")
    }

    /// Takes the terminal, and shows the subject.
    pub(crate) fn begin<Q>(self, subject: Subject<Q>) -> anyhow::Result<View>
    where
        Q: FnMut() + Send + 'static,
    {
        let raw = Raw::take().context("the terminal is gone")?;
        let then = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            terminal::restore();
            then(panic);
        }));
        let cannot = "cannot show the live view";
        raw.begin_screen(self.writer()?).context(cannot)?;
        let terminal = Terminal::new(TermionBackend::new(io::stdout())).context(cannot)?;
        let is_over = Arc::default();
        let showing = Showing {
            live: Live::new(printable(&subject.title), subject.ending),
            seen: subject.seen,
            quit: subject.quit,
            output: Arc::clone(&self.output),
            is_over: Arc::clone(&is_over),
        };
        let thread = thread::Builder::new().name("view".to_owned());
        let thread = thread.spawn(move || showing.show(terminal));
        Ok(View {
            thread: Some(thread.context(cannot)?),
            is_over,
            output: self.output,
            _raw: raw,
        })
    }
}

impl View {
    /// Gives the terminal back, and prints the last lines of what was written meanwhile.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.close();
        self.output.print(&mut io::stdout().lock())
    }

    fn close(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has said what there is to say.
            let _ = thread.join();
        }
        terminal::restore();
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the thread has.
struct Showing<Q> {
    live: Live,
    seen: Shared,
    quit: Q,
    output: Arc<Output>,
    is_over: Arc<AtomicBool>,
}

impl<Q: FnMut()> Showing<Q> {
    fn show(mut self, mut terminal: Terminal<TermionBackend<Stdout>>) {
        let palette = match AutoStream::choice(&io::stdout()) {
            ColorChoice::Never => Palette::Plain,
            _ => Palette::Colors,
        };
        let start = Instant::now();
        let mut next_look = Duration::ZERO;
        while !self.is_over.load(Ordering::Relaxed) && terminal::is_taken() {
            let time = start.elapsed();
            if time >= next_look {
                self.live.table.look(&self.seen.lock(), time);
                next_look = time + PERIOD;
            }
            let output = self.output.last();
            let drawn = terminal.draw(|frame| draw(frame, &mut self.live, &output, time, palette));
            let Some(typed) = drawn.ok().and_then(|_| typed()) else {
                return (self.quit)();
            };
            for key in keys(&typed) {
                if self.live.press(key) == Pressed::Quit {
                    (self.quit)();
                }
            }
        }
    }
}

/// What was typed until it is time to draw again; `None` where the terminal is gone.
fn typed() -> Option<Vec<u8>> {
    let mut stdin = [PollFd::from_borrowed_fd(stdin(), PollFlags::IN)];
    if poll(&mut stdin, Some(&FRAME)).unwrap_or(0) == 0 {
        return Some(Vec::new());
    }
    let mut bytes = [0; 256];
    match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
        Ok(0) => None,
        Ok(count) => Some(bytes[..count].to_vec()),
        Err(Errno::INTR) => Some(Vec::new()),
        Err(_) => None,
    }
}

/// What is shown, and how.
#[derive(Debug)]
struct Live {
    title: String,
    table: Table,
    /// The first row that is shown, and for how many there is room.
    first: usize,
    height: usize,
    /// Keys are for the filter.
    is_typing: bool,
    /// How often the user wanted to quit.
    quits: u32,
    ending: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
enum Pressed {
    Nothing,
    Quit,
}

impl Live {
    fn new(title: String, ending: &'static str) -> Self {
        Self {
            title,
            table: Table::default(),
            first: 0,
            height: 1,
            is_typing: false,
            quits: 0,
            ending,
        }
    }

    fn press(&mut self, key: Key) -> Pressed {
        if key == Key::Interrupt || key == Key::Char('q') && !self.is_typing {
            self.quits += 1;
            return Pressed::Quit;
        }
        if self.is_typing {
            self.type_filter(key);
        } else {
            self.command(key);
        }
        Pressed::Nothing
    }

    fn type_filter(&mut self, key: Key) {
        let filter = &mut self.table.filter;
        match key {
            Key::Char(c) if filter.chars().count() < FILTER_LIMIT => filter.push(c),
            Key::Backspace => drop(filter.pop()),
            Key::Escape => filter.clear(),
            _ => {}
        }
        self.is_typing = !matches!(key, Key::Enter | Key::Escape);
    }

    fn command(&mut self, key: Key) {
        let order = &mut self.table.order;
        match key {
            Key::Char('/') => self.is_typing = true,
            Key::Char(' ') => self.table.is_paused ^= true,
            Key::Char('i') => order.is_inverse ^= true,
            Key::Right => *order = Order::by((order.column + 1) % COLUMNS.len()),
            Key::Left => *order = Order::by((order.column + COLUMNS.len() - 1) % COLUMNS.len()),
            Key::Escape => self.table.filter.clear(),
            Key::Up => self.first = self.first.saturating_sub(1),
            Key::PageUp => self.first = self.first.saturating_sub(self.height),
            Key::Home => self.first = 0,
            // Drawing knows where the last one is.
            Key::Down => self.first = self.first.saturating_add(1),
            Key::PageDown => self.first = self.first.saturating_add(self.height),
            Key::End => self.first = usize::MAX,
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "../tests/support/screen.rs"]
#[expect(dead_code, reason = "it is for more tests than this one")]
mod terminal_for_tests;

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::{Command, exit};

    use super::terminal_for_tests::Terminal;
    use super::*;
    use crate::log::Log;
    use crate::seen::Seen;
    use crate::tally::Tally;

    #[test]
    fn panic_gives_the_terminal_back() {
        const ON_TERMINAL: &str = "MSRGATE_TEST_ON_TERMINAL";
        if env::var_os(ON_TERMINAL).is_some() {
            // This test again, on the terminal.
            let mut view = Window::find().unwrap().begin(Subject {
                title: "a view".to_owned(),
                seen: Shared::new(Seen::new(Tally::default(), Log::new(None))),
                quit: || panic!("on purpose"),
                ending: "",
            });
            let thread = view.as_mut().unwrap().thread.take().unwrap();
            thread.join().unwrap_err();
            // Nothing is dropped.
            exit(7);
        }
        let mut test = Command::new(env::current_exe().unwrap());
        test.args([
            "--exact",
            "--nocapture",
            "view::tests::panic_gives_the_terminal_back",
        ]);
        test.env(ON_TERMINAL, "1");
        let mut terminal = Terminal::start(test, 80, 24);
        terminal.wait_for_text("a view");
        terminal.press("q");
        let (status, printed) = terminal.end();
        assert_eq!(status.code(), Some(7), "{printed}");
        assert!(printed.contains("on purpose"), "{printed}");
    }
}
