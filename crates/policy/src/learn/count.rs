//! Counts for people: [`Counts`] is the comment of one line of a learned policy.

use std::collections::BTreeMap;
use std::fmt;

use msrgate_core::{Access, Outcome};

use super::choice::{Choice, Msr};

/// How often some MSRs were accessed.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// By [`Access`]: answered as the rule says.
    answered: [u64; 2],
    /// Answered otherwise.
    others: BTreeMap<(Access, Outcome), u64>,
}

impl Counts {
    /// Counts the accesses of which `is` is true.
    pub(super) fn of(msrs: &[&Msr], is: fn(&Choice) -> bool) -> Self {
        let mut counts = Self::default();
        for (_, choices) in msrs {
            for access in Access::ALL {
                let choice = &choices[access as usize];
                if !is(choice) {
                    continue;
                }
                let answered = &mut counts.answered[access as usize];
                *answered = answered.saturating_add(choice.count);
                for (&outcome, &count) in &choice.others {
                    let sum = counts.others.entry((access, outcome)).or_default();
                    *sum = sum.saturating_add(count);
                }
            }
        }
        counts
    }
}

/// Such as `12 reads, 3 writes; 1 write #GP`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |access: Access, count| counted(count, access_word(access), words(access));
        let answered = Access::ALL
            .into_iter()
            .filter(|&access| self.answered[access as usize] != 0)
            .map(|access| part(access, self.answered[access as usize]));
        let others = self.others.iter().map(|(&(access, outcome), &count)| {
            let outcome = match outcome {
                Outcome::Fault => "#GP",
                other => other.word(),
            };
            format!("{} {outcome}", part(access, count))
        });
        let answered = answered.collect::<Vec<_>>().join(", ");
        let others = others.collect::<Vec<_>>().join(", ");
        f.write_str(&answered)?;
        if !answered.is_empty() && !others.is_empty() {
            f.write_str("; ")?;
        }
        f.write_str(&others)
    }
}

const fn access_word(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

const fn words(access: Access) -> &'static str {
    match access {
        Access::Read => "reads",
        Access::Write => "writes",
    }
}

/// Such as `1 read` and `1,234 reads`.
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position != 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let word = if count == 1 { one } else { many };
    format!("{text} {word}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_told_apart() {
        let text = |count| counted(count, "read", "reads");
        assert_eq!(text(0), "0 reads");
        assert_eq!(text(1), "1 read");
        assert_eq!(text(999), "999 reads");
        assert_eq!(text(1_000), "1,000 reads");
        assert_eq!(text(1_234_567), "1,234,567 reads");
    }
}
