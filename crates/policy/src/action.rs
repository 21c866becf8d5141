//! What a rule does with an access: words, values, masks, registers that are kept, handlers.

use std::num::NonZeroU32;

use msrgate_core::{Action, HandlerId, Mask, OnViolation, Scope, Shadow, Writable};

use crate::diagnostic::Diagnostic;
use crate::document::{Kind, Table, Value};
use crate::reader::{Reader, did_you_mean};
use crate::source::Span;

const WORDS: &[(&str, Action)] = &[
    ("allow", Action::Allow),
    ("fault", Action::Fault),
    ("ignore", Action::Ignore),
];
const VIOLATIONS: &[(&str, OnViolation)] = &[
    ("fault", OnViolation::Fault),
    ("ignore", OnViolation::Ignore),
];
const SCOPES: &[(&str, Scope)] = &[("vcpu", Scope::Vcpu), ("vm", Scope::Vm)];

/// The handler that stands for the processor's own MSRs.
const HOST: &str = "host";
/// Keys that each make an action.
const ACTIONS: &[&str] = &["value", "mask", "writable", "handler"];
const ACTION_KEYS: &[&str] = &["value", "mask", "writable", "on-violation", "handler"];
const SHADOW_KEYS: &[&str] = &["scope", "reset", "writable", "on-violation"];
const EXPECTED: &str =
    "\"allow\", \"fault\", \"ignore\" or \"host\", or a table such as { value = 0x1 }";

impl Reader<'_> {
    /// What `read`, `write` or `both` says; `key` is which of them.
    pub(crate) fn action(&mut self, value: &Value<'_>, key: &str) -> Option<Action> {
        match &value.kind {
            Kind::Text(text) if text == HOST => self.host(value.span, key),
            Kind::Text(text) => self.word_action(text, value.span, key),
            Kind::Table(table) => self.table_action(table, value.span, key),
            _ => self.wrong_type(value, &format!("`{key}`"), EXPECTED),
        }
    }

    fn word_action(&mut self, text: &str, span: Span, key: &str) -> Option<Action> {
        if text == "log" {
            self.report(
                Diagnostic::error("policy::action", format!("`{key}` cannot be \"log\""))
                    .at(span, "this is a word for `unknown` and `invalid`")
                    .help("write `both = \"fault\"` and `log = true`"),
            );
            return None;
        }
        self.lookup(WORDS, text, key, span)
    }

    fn table_action(&mut self, table: &Table<'_>, span: Span, key: &str) -> Option<Action> {
        let strange_keys = self.check_keys(table, ACTION_KEYS, "an action");
        let present = |name: &&str| table.get(name).is_some();
        let mut given = ACTIONS.iter().copied().filter(present);
        let (Some(name), None) = (given.next(), given.next()) else {
            if strange_keys == 0 {
                self.report(
                    Diagnostic::error("policy::action", format!("`{key}` is not one action"))
                        .at(span, "needs one of value, mask, writable, handler")
                        .help("a table such as { value = 0x1 } says one thing"),
                );
            }
            return None;
        };
        if let Some(violation) = table.key("on-violation").filter(|_| name != "writable") {
            self.report(
                Diagnostic::error("policy::action", format!("`{name}` cannot be violated"))
                    .at(violation.span, "goes with `writable`")
                    .help("leave it out"),
            );
        }
        self.check_direction(name, span, key)?;
        let value = table.get(name)?;
        match name {
            "value" => Some(Action::Value(self.number(value, "`value`", 64)?)),
            "mask" => Some(Action::Mask(self.mask(value)?)),
            "writable" => Some(Action::Writable(self.writable(table)?)),
            _ => {
                let name = self.string(value, "`handler`", "the name of a handler")?;
                self.handler(name, value.span)
            }
        }
    }

    /// Whether the action `name` is one for what `key` speaks of.
    fn check_direction(&mut self, name: &str, span: Span, key: &str) -> Option<()> {
        let (message, help) = match (name, key) {
            ("value", "write" | "both") => (
                "a write is not answered with a value",
                "write `read = { value = … }`, and `write = \"ignore\"` to drop writes",
            ),
            ("mask", "write" | "both") => (
                "a mask is laid over what is read",
                "write `read = { mask = … }`, and `write = { writable = … }` for the bits that \
                 may change",
            ),
            ("writable", "read" | "both") => (
                "a read changes no bits",
                "write `write = { writable = … }`, and `read = { mask = … }` for the bits that \
                 are read otherwise",
            ),
            _ => return Some(()),
        };
        self.wrong_direction(message, span, key, help);
        None
    }

    fn wrong_direction(&mut self, message: &str, span: Span, key: &str, help: &str) {
        let about = match key {
            "both" => "not for both directions".to_owned(),
            key => format!("not for `{key}`"),
        };
        let diagnostic = Diagnostic::error("policy::direction", message);
        self.report(diagnostic.at(span, about).help(help));
    }

    /// The value of the processor that the guest runs on: a handler that only reads.
    fn host(&mut self, span: Span, key: &str) -> Option<Action> {
        if key == "read" {
            return self.handler(HOST, span);
        }
        let help = "write `read = \"host\"`, and `write = \"ignore\"` to drop writes";
        self.wrong_direction("the host's MSRs are only read", span, key, help);
        None
    }

    fn handler(&mut self, name: &str, span: Span) -> Option<Action> {
        let at = self.handlers.iter().position(|known| *known == name);
        if let Some(id) = at.and_then(|at| u16::try_from(at).ok()) {
            return Some(Action::Handler(HandlerId(id)));
        }
        let message = match name {
            HOST => "this program does not read the host's MSRs".to_owned(),
            name => format!("this program has no handler called \"{name}\""),
        };
        let help = match did_you_mean(name, self.handlers.iter().copied()) {
            Some(near) => near,
            None if self.handlers.is_empty() => "it has no handlers: use another action".to_owned(),
            None => format!("it has: {}", self.handlers.join(", ")),
        };
        let diagnostic = Diagnostic::error("policy::handler", message);
        self.report(diagnostic.at(span, "not there").help(help));
        None
    }

    /// A register that the gate keeps.
    pub(crate) fn shadow(&mut self, value: &Value<'_>) -> Option<Action> {
        let expected = "a table such as { reset = 0, writable = 0xffff }";
        let table = self.table(value, "`shadow`", expected)?;
        self.check_keys(table, SHADOW_KEYS, "`shadow`");
        let scope = self.choice(table, "scope", SCOPES)?;
        let reset = match table.get("reset") {
            Some(value) => self.number(value, "`reset`", 64)?,
            None => 0,
        };
        Some(Action::Shadow(Shadow {
            scope,
            reset,
            writable: self.writable(table)?,
        }))
    }

    /// The keys `writable` and `on-violation`; every bit is writable where nothing is said.
    fn writable(&mut self, table: &Table<'_>) -> Option<Writable> {
        let bits = match table.get("writable") {
            Some(value) => self.number(value, "`writable`", 64)?,
            None => u64::MAX,
        };
        Some(Writable {
            bits,
            on_violation: self.choice(table, "on-violation", VIOLATIONS)?,
        })
    }

    /// One of some words, or the default where the key is not there.
    fn choice<T: Copy + Default>(
        &mut self,
        table: &Table<'_>,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let Some(value) = table.get(key) else {
            return Some(T::default());
        };
        let what = format!("`{key}`");
        let text = self.string(value, &what, &crate::reader::quoted(words))?;
        self.lookup(words, text, key, value.span)
    }

    fn mask(&mut self, value: &Value<'_>) -> Option<Mask> {
        let text = self.string(value, "`mask`", "bits as a text, such as \"0bx…x1xx\"")?;
        match mask(text) {
            Ok(mask) => Some(mask),
            Err(why) => {
                self.report(
                    Diagnostic::error("policy::mask", "not a mask")
                        .at(value.span, why)
                        .help("write 0b and up to 64 of: 0, 1, and x for a bit that stays as it is; … repeats the digit before it"),
                );
                None
            }
        }
    }

    /// Accesses per second that one vCPU may make.
    pub(crate) fn limit(&mut self, value: &Value<'_>) -> Option<NonZeroU32> {
        const EXPECTED: &str = "accesses per second and vCPU, such as \"1000/s\"";
        let text = self.string(value, "`limit`", EXPECTED)?;
        let limit = text
            .strip_suffix("/s")
            .and_then(|number| number.trim().parse().ok());
        if limit.is_none() {
            self.report(
                Diagnostic::error("policy::limit", "not a limit")
                    .at(value.span, format!("from \"1/s\" to \"{}/s\"", u32::MAX))
                    .help(format!("write {EXPECTED}")),
            );
        }
        limit
    }
}

/// Firecracker's bits, the highest first: `0` and `1` replace a bit, `x` keeps it, and so are bits that are not written.
fn mask(text: &str) -> Result<Mask, &'static str> {
    const TOO_LONG: &str = "more than 64 bits";
    let digits = text.strip_prefix("0b").ok_or("no 0b at the front")?;
    let digits = digits.replace("...", "…");
    let count = digits
        .chars()
        .filter(|digit| !matches!(digit, '_' | '…'))
        .count();
    let missing = 64usize.checked_sub(count).ok_or(TOO_LONG)?;
    let mut mask = Mask {
        replaced: 0,
        ones: 0,
    };
    let mut last = None;
    let mut is_filled = false;
    for digit in digits.chars() {
        let (digit, repeat) = match digit {
            '_' => continue,
            '…' if is_filled => return Err("… stands for all bits that are missing, once"),
            '…' => {
                is_filled = true;
                (last.ok_or("no digit before …")?, missing)
            }
            digit => (digit, 1),
        };
        let (replaced, one) = match digit {
            'x' | 'X' => (0, 0),
            '0' => (1, 0),
            '1' => (1, 1),
            _ => return Err("a digit is none of 0, 1, x"),
        };
        for _ in 0..repeat {
            mask.replaced = mask.replaced << 1 | replaced;
            mask.ones = mask.ones << 1 | one;
        }
        last = Some(digit);
    }
    match last {
        Some(_) => Ok(mask),
        None => Err("no digits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_say_which_bits_are_replaced() {
        for (text, replaced, ones) in [
            ("0b1", 1, 1),
            ("0bx01x", 0b0110, 0b0010),
            ("0bX_0_1", 0b011, 0b001),
            ("0bx…x1xx", 0b100, 0b100),
            ("0bx...x1xx", 0b100, 0b100),
            ("0b1…x", !1, !1),
            ("0b0…", u64::MAX, 0),
            ("0bxxx", 0, 0),
        ] {
            assert_eq!(mask(text), Ok(Mask { replaced, ones }), "{text}");
        }
        let all = format!("0b1{}…", "x".repeat(63));
        assert_eq!(
            mask(&all).map(|mask| mask.ones),
            Ok(1 << 63),
            "nothing is missing"
        );
    }

    #[test]
    fn text_that_is_no_mask_is_refused() {
        let long = format!("0b{}", "x".repeat(65));
        for bad in [
            "",
            "0b",
            "0b_",
            "1",
            "0x1",
            "0b2",
            "0b…1",
            "0b1…x…",
            &long,
            "0b1é",
        ] {
            assert!(mask(bad).is_err(), "{bad}");
        }
    }
}
