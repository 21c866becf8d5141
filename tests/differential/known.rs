//! What is known to differ between kernels, as data with reasons: `testdata/differential/known.toml`.

use msrgate_core::Access;
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
    /// Only where a write has one of these bits.
    bits: Option<u64>,
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
        !self.has(request, What::Everything)
    }

    /// Whether what it reads is the same on every kernel.
    pub(crate) fn may_compare_value(&self, request: &Request) -> bool {
        !self.has(request, What::Value)
    }

    fn has(&self, request: &Request, what: What) -> bool {
        let (index, access) = target(request);
        let value = request.rdx << 32 | request.rax & 0xffff_ffff;
        let direction = match access {
            Access::Read => Direction::Read,
            Access::Write => Direction::Write,
        };
        self.difference.iter().any(|line| {
            let last = line.last.unwrap_or(line.first);
            (line.first..=last).contains(&index.0)
                && [direction, Direction::Any].contains(&line.access)
                && line.what == what
                && line.bits.is_none_or(|bits| bits & value != 0)
        })
    }
}
