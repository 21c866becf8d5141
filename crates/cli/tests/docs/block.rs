//! The fenced blocks of a document: [`Block`]. Its language, the first word behind the fence, says what is tried.
//!
//! | language | is |
//! |---|---|
//! | `console` | commands behind `$ `, and what they print: `…` is any text, and a line of its own any lines. Where nothing is shown, anything may be printed. What is behind `/ # ` is typed into the guest |
//! | `toml` | a policy, for `msrgate check` |
//! | `rust` | a doc-test of the crate `msrgate-tests` |
//! | `text`, `json`, `xml` | nothing to try |
//! | another | a program's text, for a command of a later block: it has a `file` |
//!
//! More words say how, and GitHub does not show them: `file=NAME` keeps the text for later blocks, `status=N` is the exit status
//! of the commands, or of the check, where it is not 0; `needs=A,B` has programs, `apt` or `kvm`, without which the block is skipped;
//! `not run: REASON` stands last.

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag};

/// What a guest's shell prints when it can be typed to.
pub(crate) const GUEST_PROMPT: &str = "/ # ";

#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) class: Class,
    pub(crate) needs: Vec<String>,
    pub(crate) file: Option<String>,
    /// The exit status of its commands.
    pub(crate) status: i32,
    pub(crate) text: String,
}

#[derive(Debug, Default)]
pub(crate) enum Class {
    Commands,
    Policy,
    Doctest,
    #[default]
    Sample,
    NotRun(String),
}

/// A command, and what it prints.
#[derive(Debug, Default)]
pub(crate) struct Command {
    pub(crate) line: String,
    /// Nothing, where anything may be printed.
    pub(crate) shown: String,
}

impl Block {
    /// The blocks of a document, each with its line, or what is wrong with one.
    pub(crate) fn all(document: &str) -> Vec<(usize, Result<Self, String>)> {
        let mut blocks = Vec::new();
        let mut events = Parser::new(document).into_offset_iter();
        while let Some((event, range)) = events.next() {
            let Event::Start(Tag::CodeBlock(kind)) = event else {
                continue;
            };
            let line = document[..range.start].lines().count() + 1;
            let text = events
                .by_ref()
                .map_while(|(event, _)| match event {
                    Event::Text(text) => Some(text.into_string()),
                    _ => None,
                })
                .collect();
            let block = match kind {
                CodeBlockKind::Fenced(info) => Self::new(&info, text),
                CodeBlockKind::Indented => Err("a block without a fence".to_owned()),
            };
            blocks.push((line, block));
        }
        blocks
    }

    fn new(info: &str, text: String) -> Result<Self, String> {
        let mut block = Self {
            text,
            ..Self::default()
        };
        let (info, reason) = match info.split_once(" not run: ") {
            Some((info, reason)) => (info, Some(reason)),
            None => (info, None),
        };
        let mut words = info.split_whitespace();
        let language = words.next().unwrap_or_default();
        for word in words {
            match word.split_once('=') {
                Some(("file", name)) => block.file = Some(name.to_owned()),
                Some(("needs", needs)) => {
                    block.needs = needs.split(',').map(str::to_owned).collect();
                }
                Some(("status", status)) => {
                    block.status = status.parse().map_err(|_| format!("{word}: no number"))?;
                }
                _ => return Err(format!("{word}: not a word that a block can have")),
            }
        }
        block.class = match (language, reason) {
            (_, Some(reason)) => Class::NotRun(reason.to_owned()),
            ("console", None) => Class::Commands,
            ("toml", None) => Class::Policy,
            ("rust", None) => Class::Doctest,
            ("text" | "json" | "xml", None) => Class::Sample,
            (_, None) if block.file.is_some() => Class::Sample,
            _ => return Err(format!("{language:?} does not say what is to be tried")),
        };
        Ok(block)
    }

    /// The commands of a console. One that ends in a backslash goes on in the next line.
    pub(crate) fn commands(&self) -> Result<Vec<Command>, String> {
        let mut commands: Vec<Command> = Vec::new();
        let mut goes_on = false;
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (_, Some(command)) if goes_on => command.line += &format!("\n{line}"),
                (Some(line), _) => commands.push(Command {
                    line: line.to_owned(),
                    shown: String::new(),
                }),
                (None, Some(command)) => command.shown += &format!("{line}\n"),
                (None, None) => return Err("something is shown before a command".to_owned()),
            }
            let command = commands.last().expect("there is one");
            goes_on = command.shown.is_empty() && command.line.ends_with('\\');
        }
        let before_last = commands.split_last().map_or(&[][..], |(_, before)| before);
        if before_last
            .iter()
            .any(|command| command.keys().count() != 0)
        {
            return Err("who pastes this types the next command into the guest".to_owned());
        }
        Ok(commands)
    }
}

impl Command {
    /// What is typed into the guest.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let lines = self.shown.lines();
        lines.filter_map(|line| line.strip_prefix(GUEST_PROMPT))
    }
}
