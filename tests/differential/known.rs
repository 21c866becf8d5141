//! What is known to differ between kernels, as data with reasons: `testdata/differential/known.toml`.

use msrgate_core::{Access, MsrIndex};
use msrgate_tests::guest::Request;
use serde::Deserialize;

use crate::round::target;

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    difference: Vec<Difference>,
}

/// One line of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    first: u32,
    /// None: only `first`.
    last: Option<u32>,
    access: Direction,
    what: What,
    reason: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Direction {
    Read,
    Write,
    Any,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// The value that is read.
    Value,
    /// Whether KVM does it, or the reason why not: the access is not made.
    Everything,
}

impl Known {
    /// Reads the list.
    pub(crate) fn load() -> Self {
        let text = include_str!("../../testdata/differential/known.toml");
        let known: Self = toml::from_str(text).expect("the list of differences is well-formed");
        for difference in &known.difference {
            assert!(
                !difference.reason.is_empty(),
                "{:#x}: no reason",
                difference.first
            );
        }
        known
    }

    /// Whether the access gives the same on every kernel.
    pub(crate) fn may_compare(&self, request: &Request) -> bool {
        let (index, access) = target(request);
        !self.has(index, access, What::Everything)
    }

    /// Whether what it reads is the same on every kernel.
    pub(crate) fn may_compare_value(&self, request: &Request) -> bool {
        let (index, access) = target(request);
        !self.has(index, access, What::Value)
    }

    fn has(&self, index: MsrIndex, access: Access, what: What) -> bool {
        let direction = match access {
            Access::Read => Direction::Read,
            Access::Write => Direction::Write,
        };
        self.difference.iter().any(|line| {
            let last = line.last.unwrap_or(line.first);
            (line.first..=last).contains(&index.0)
                && [direction, Direction::Any].contains(&line.access)
                && line.what == what
        })
    }
}
