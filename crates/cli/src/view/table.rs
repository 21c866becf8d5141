//! The rows of the view, with rates, in an order and as many as a filter leaves: [`Table`], and its [`COLUMNS`].

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use msrgate_core::Outcome;

use crate::seen::Seen;
use crate::tally::{Count, Key};

/// What is known of a row of the tally.
#[derive(Clone, Debug)]
pub(super) struct Row {
    key: Key,
    count: Count,
    /// Accesses a second, of late.
    rate: f64,
}

impl Row {
    fn name(&self) -> &'static str {
        self.key.index.name().unwrap_or("-")
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.key.outcome
    }
}

/// A column, and what it orders by.
pub(super) struct Column {
    pub(super) title: &'static str,
    /// The first column takes what the others leave, but not less.
    pub(super) width: usize,
    /// Where there is no room for all, those of a higher rank go first.
    pub(super) rank: u8,
    pub(super) is_number: bool,
    pub(super) text: fn(&Row) -> String,
    order: fn(&Row, &Row) -> Ordering,
}

/// The column that rows are ordered by at first.
const RATE: usize = 2;
const OUTCOME: &str = "OUTCOME";

impl Column {
    pub(super) fn is_outcome(&self) -> bool {
        self.title == OUTCOME
    }
}

pub(super) const COLUMNS: [Column; 10] = [
    Column {
        title: "MSR",
        width: 16,
        rank: 0,
        is_number: false,
        text: |row| row.name().to_owned(),
        // What has no name comes last.
        order: |a, b| (a.name() == "-", a.name()).cmp(&(b.name() == "-", b.name())),
    },
    Column {
        title: "INDEX",
        width: 10,
        rank: 1,
        is_number: false,
        text: |row| row.key.index.to_string(),
        order: |a, b| a.key.index.cmp(&b.key.index),
    },
    Column {
        title: "PER SEC",
        width: 8,
        rank: 2,
        is_number: true,
        text: |row| rate(row.rate),
        order: |a, b| b.rate.total_cmp(&a.rate),
    },
    Column {
        title: "TOTAL",
        width: 7,
        rank: 7,
        is_number: true,
        text: |row| count(row.count.accesses()),
        order: |a, b| b.count.accesses().cmp(&a.count.accesses()),
    },
    Column {
        title: "READS",
        width: 7,
        rank: 4,
        is_number: true,
        text: |row| count(row.count.reads),
        order: |a, b| b.count.reads.cmp(&a.count.reads),
    },
    Column {
        title: "WRITES",
        width: 7,
        rank: 4,
        is_number: true,
        text: |row| count(row.count.writes),
        order: |a, b| b.count.writes.cmp(&a.count.writes),
    },
    Column {
        title: "VCPU",
        width: 5,
        rank: 6,
        is_number: true,
        text: |row| match row.count.vcpus {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        },
        order: |a, b| b.count.vcpus.cmp(&a.count.vcpus),
    },
    Column {
        title: "REASON",
        width: 7,
        rank: 5,
        is_number: false,
        text: |row| row.key.reason.to_string(),
        order: |a, b| a.key.reason.cmp(&b.key.reason),
    },
    Column {
        title: OUTCOME,
        width: 9,
        rank: 3,
        is_number: false,
        text: |row| match row.key.outcome {
            Outcome::Fault => "#GP".to_owned(),
            outcome => outcome.to_string(),
        },
        order: |a, b| a.key.outcome.cmp(&b.key.outcome),
    },
    Column {
        title: "LAST READ",
        width: 18,
        rank: 8,
        is_number: true,
        text: |row| {
            row.count
                .answered
                .map_or_else(String::new, |value| format!("{value:#x}"))
        },
        order: |a, b| b.count.answered.cmp(&a.count.answered),
    },
];

/// What is shown of a tally.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Row>,
    /// Of all rows, shown or not.
    pub(super) accesses: u64,
    pub(super) rate: f64,
    pub(super) lost: u64,
    pub(super) order: Order,
    /// Rows without this text are not shown.
    pub(super) filter: String,
    pub(super) is_paused: bool,
    last: Look,
}

/// By which of [`COLUMNS`] rows are ordered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) column: usize,
    pub(super) is_inverse: bool,
}

impl Order {
    pub(super) const fn by(column: usize) -> Self {
        Self {
            column,
            is_inverse: false,
        }
    }
}

impl Default for Order {
    fn default() -> Self {
        Self::by(RATE)
    }
}

/// What was counted at a time.
#[derive(Debug, Default)]
struct Look {
    time: Duration,
    accesses: u64,
    rows: BTreeMap<Key, u64>,
}

impl Table {
    /// Looks at what was counted; it is `time` since the view began. While it is paused, what is shown stays.
    pub(super) fn look(&mut self, seen: &Seen, time: Duration) {
        let tally = &seen.tally;
        let seconds = time.saturating_sub(self.last.time).as_secs_f64();
        let rate = |now: u64, before: u64| match seconds {
            0.0 => 0.0,
            #[expect(clippy::cast_precision_loss, reason = "it is shown in a few digits")]
            _ => now.saturating_sub(before) as f64 / seconds,
        };
        let before = |key| self.last.rows.get(key).copied().unwrap_or(0);
        let rows = tally.rows().map(|(key, count)| Row {
            key: *key,
            count: *count,
            rate: rate(count.accesses(), before(key)),
        });
        let rows: Vec<Row> = rows.collect();
        let look = Look {
            time,
            accesses: tally.event_count(),
            rows: rows
                .iter()
                .map(|row| (row.key, row.count.accesses()))
                .collect(),
        };
        if !self.is_paused {
            self.rate = rate(look.accesses, self.last.accesses);
            self.accesses = look.accesses;
            self.lost = seen.lost;
            self.rows = rows;
        }
        self.last = look;
    }

    /// The rows that the filter leaves, in order; those that are equal in it, as the printed table has them.
    pub(super) fn shown(&self) -> Vec<&Row> {
        let filter = self.filter.to_lowercase();
        let matches = |row: &&Row| {
            let texts = COLUMNS.iter().filter(|column| !column.is_number);
            texts
                .map(|column| (column.text)(row).to_lowercase())
                .any(|text| text.contains(&filter))
        };
        let mut rows: Vec<&Row> = self.rows.iter().filter(matches).collect();
        let Order { column, is_inverse } = self.order;
        let order = COLUMNS[column].order;
        rows.sort_by(|a, b| if is_inverse { order(b, a) } else { order(a, b) });
        rows
    }

    /// How many rows there are, shown or not.
    pub(super) fn count(&self) -> usize {
        self.rows.len()
    }
}

/// A number in at most seven characters.
pub(super) fn count(number: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if number < 10_000_000 {
        return number.to_string();
    }
    let (mut tenths, mut unit) = (number / 100, 0);
    while tenths >= 10_000 {
        (tenths, unit) = (tenths / 1000, unit + 1);
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

/// So many a second.
pub(super) fn rate(rate: f64) -> String {
    if rate < 9.95 {
        return format!("{rate:.1}");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a conversion of floats saturates"
    )]
    count(rate.round() as u64)
}

#[cfg(test)]
mod tests {
    use msrgate_core::{Access, Event, ExitReason, MsrIndex, Recorder, VcpuId};

    use super::*;
    use crate::log::Log;
    use crate::tally::Tally;

    fn event(index: u32, access: Access, vcpu: u32) -> Event {
        Event {
            vcpu: VcpuId(vcpu),
            index: MsrIndex(index),
            access,
            reason: ExitReason::FILTER,
            rip: None,
            value: 7,
            outcome: Outcome::Value,
            log: false,
        }
    }

    /// What a column shows of all shown rows.
    fn column(table: &Table, title: &str) -> Vec<String> {
        let column = COLUMNS.iter().find(|column| column.title == title).unwrap();
        table.shown().into_iter().map(column.text).collect()
    }

    /// Three reads of IA32_BIOS_SIGN_ID, a write of it by another vCPU, and 20 reads of 0x474f4f00 in two seconds.
    fn table() -> (Table, Seen) {
        let mut seen = Seen::new(Tally::default(), Log::new(None));
        let mut table = Table::default();
        for _ in 0..3 {
            seen.record(&event(0x8b, Access::Read, 0));
        }
        table.look(&seen, Duration::ZERO);
        seen.record(&event(0x8b, Access::Write, 2));
        for _ in 0..20 {
            seen.record(&event(0x474f_4f00, Access::Read, 1));
        }
        table.look(&seen, Duration::from_secs(2));
        (table, seen)
    }

    fn order_by(table: &mut Table, title: &str, is_inverse: bool) {
        let column = COLUMNS
            .iter()
            .position(|column| column.title == title)
            .unwrap();
        table.order = Order { column, is_inverse };
    }

    #[test]
    fn rate_is_of_the_time_between_two_looks() {
        let (mut table, seen) = table();
        assert_eq!(column(&table, "PER SEC"), ["10", "0.5"]);
        assert_eq!(column(&table, "TOTAL"), ["20", "4"]);
        assert_eq!(column(&table, "VCPU"), ["1", "0-2"]);
        assert_eq!((table.accesses, table.rate), (24, 10.5));
        table.look(&seen, Duration::from_secs(3));
        assert_eq!(column(&table, "PER SEC"), ["0.0", "0.0"]);
        table.look(&seen, Duration::from_secs(3));
        assert_eq!(table.rate, 0.0);
    }

    #[test]
    fn order_is_of_the_column_either_way() {
        let (mut table, _) = table();
        for (title, is_inverse, expected) in [
            ("TOTAL", false, ["0x474f4f00", "0x8b"]),
            ("TOTAL", true, ["0x8b", "0x474f4f00"]),
            ("MSR", false, ["0x8b", "0x474f4f00"]),
            ("WRITES", false, ["0x8b", "0x474f4f00"]),
            ("INDEX", true, ["0x474f4f00", "0x8b"]),
            // Equal in it.
            ("REASON", true, ["0x8b", "0x474f4f00"]),
        ] {
            order_by(&mut table, title, is_inverse);
            assert_eq!(column(&table, "INDEX"), expected, "{title} {is_inverse}");
        }
    }

    #[test]
    fn filter_is_a_part_of_any_text_in_any_case() {
        let (mut table, _) = table();
        for (filter, expected) in [
            ("sign_id", 1),
            ("474F", 1),
            ("filter", 2),
            ("0x474f4f001", 0),
            ("", 2),
        ] {
            filter.clone_into(&mut table.filter);
            assert_eq!(table.shown().len(), expected, "{filter}");
        }
    }

    #[test]
    fn pause_holds_and_what_comes_after_is_the_latest() {
        let (mut table, mut seen) = table();
        table.is_paused = true;
        seen.record(&event(0x10, Access::Read, 0));
        table.look(&seen, Duration::from_secs(60));
        assert_eq!((table.accesses, table.shown().len()), (24, 2));
        table.is_paused = false;
        seen.record(&event(0x10, Access::Read, 0));
        table.look(&seen, Duration::from_secs(61));
        assert_eq!((table.accesses, table.rate), (26, 1.0));
    }

    #[test]
    fn numbers_fit() {
        for (number, expected) in [
            (9_999_999, "9999999"),
            (10_000_000, "10.0M"),
            (999_949_999, "999.9M"),
            (1_000_000_000, "1.0G"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), expected);
        }
        assert_eq!(rate(9.96), "10");
        assert_eq!(rate(f64::MAX), "18.4E");
    }
}
