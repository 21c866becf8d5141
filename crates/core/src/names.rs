//! What MSRs are called: [`MsrIndex::name`], and names or `0x48` back to an index with `str::parse`.
//!
//! The names are data, one row per register in `data/msr.tsv`, read by the compiler: a row out of order, a
//! name given twice, a missing column or a group that is not declared does not build.

use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::MsrIndex;

/// One MSR that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrName {
    /// Which register.
    pub index: MsrIndex,
    /// As the SDM, the APM or the Hyper-V specification calls it.
    pub name: &'static str,
    /// Other names in use, with commas between; empty if there is none.
    pub aliases: &'static str,
    /// Who defines it.
    pub vendor: Vendor,
    /// The names of its groups, with commas between; empty if it is in none.
    pub groups: &'static str,
    /// What it is, in a few words.
    pub meaning: &'static str,
}

/// MSRs that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrGroup {
    /// A policy calls it this, behind an `@`.
    pub name: &'static str,
    /// What is in it, in a few words.
    pub meaning: &'static str,
}

impl MsrGroup {
    /// The MSRs in the group, by index.
    pub fn members(&self) -> impl Iterator<Item = &'static MsrName> {
        let name = self.name;
        let is_member = move |row: &&MsrName| row.groups.split(',').any(|group| group == name);
        ROWS.iter().filter(is_member)
    }
}

/// Who defines an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Both makers of x86 processors.
    Any,
    /// Intel.
    Intel,
    /// AMD.
    Amd,
    /// KVM's paravirtual interface.
    Kvm,
    /// Hyper-V's paravirtual interface.
    HyperV,
}

/// All MSRs that have a name, by index.
#[must_use]
pub const fn msr_names() -> &'static [MsrName] {
    ROWS
}

/// All groups, by name.
///
/// ```
/// use msrgate_core::{MsrIndex, msr_groups};
///
/// let mtrr = msr_groups().iter().find(|group| group.name == "mtrr").unwrap();
/// assert!(mtrr.members().any(|msr| msr.index == MsrIndex(0x2ff)));
/// ```
#[must_use]
pub const fn msr_groups() -> &'static [MsrGroup] {
    GROUPS
}

impl MsrIndex {
    /// The row of this MSR, if it has a name.
    #[must_use]
    pub fn named(self) -> Option<&'static MsrName> {
        let row = ROWS.binary_search_by_key(&self, |row| row.index).ok()?;
        Some(&ROWS[row])
    }

    /// What the manuals call it.
    ///
    /// ```
    /// use msrgate_core::MsrIndex;
    ///
    /// assert_eq!(MsrIndex(0x48).name(), Some("IA32_SPEC_CTRL"));
    /// assert_eq!("IA32_SPEC_CTRL".parse(), Ok(MsrIndex(0x48)));
    /// assert_eq!("msr_spec_ctrl".parse(), Ok(MsrIndex(0x48)));
    /// assert_eq!("0xc000_0080".parse(), Ok(MsrIndex(0xc000_0080)));
    /// let typo = "IA32_SPEC_CTL".parse::<MsrIndex>().unwrap_err();
    /// assert_eq!(typo.to_string(), "no MSR has this name; IA32_SPEC_CTRL is near");
    /// ```
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(self.named()?.name)
    }
}

impl FromStr for MsrIndex {
    type Err = ParseMsrIndexError;

    /// A name in any case, with or without `MSR_` and `IA32_`, or `0x` and hexadecimal digits (`_` between
    /// them does not count).
    fn from_str(text: &str) -> Result<Self, ParseMsrIndexError> {
        if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            return hexadecimal(digits)
                .map(Self)
                .ok_or(ParseMsrIndexError::Hexadecimal);
        }
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(ParseMsrIndexError::NoPrefix);
        }
        let key = key_of(text);
        match KEYS.find(key) {
            Some(row) => Ok(ROWS[row].index),
            None => Err(ParseMsrIndexError::UnknownName {
                closest: closest(key),
            }),
        }
    }
}

/// Why a text is no MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseMsrIndexError {
    /// After `0x` there is something else than a hexadecimal number of at most 32 bits.
    Hexadecimal,
    /// A number without `0x`.
    NoPrefix,
    /// A name that no MSR has.
    UnknownName {
        /// The name that differs in fewest letters, if it is near enough to be meant.
        closest: Option<&'static str>,
    },
}

impl fmt::Display for ParseMsrIndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hexadecimal => f.write_str("not a hexadecimal number of at most 32 bits"),
            Self::NoPrefix => f.write_str("an MSR index is hexadecimal and begins with 0x"),
            Self::UnknownName { closest: None } => f.write_str("no MSR has this name"),
            Self::UnknownName {
                closest: Some(name),
            } => write!(f, "no MSR has this name; {name} is near"),
        }
    }
}

impl core::error::Error for ParseMsrIndexError {}

static GROUPS: &[MsrGroup] = &TABLE.groups;
static ROWS: &[MsrName] = &TABLE.rows;
static KEYS: Keys = Keys::of(ROWS);

const TEXT: &str = include_str!("../data/msr.tsv");
const TABLE: Table<{ lines_of(b'@') }, { lines_of(b'0') }> = Table::read();

fn hexadecimal(digits: &str) -> Option<u32> {
    let mut value: Option<u32> = None;
    for digit in digits.chars().filter(|&digit| digit != '_') {
        let digit = digit.to_digit(16)?;
        value = Some(value.unwrap_or(0).checked_mul(16)?.checked_add(digit)?);
    }
    value
}

/// The part of a name that counts.
const fn key_of(name: &str) -> &str {
    without_prefix(without_prefix(name, "MSR_"), "IA32_")
}

const fn without_prefix<'a>(name: &'a str, prefix: &str) -> &'a str {
    if let Some((head, tail)) = name.split_at_checked(prefix.len())
        && same_letters(head, prefix)
    {
        return tail;
    }
    name
}

/// A hash table from keys to rows, with open addressing; built by the compiler.
struct Keys {
    slots: [Option<(&'static str, u16)>; SLOTS],
}

/// At least twice as many as there are keys.
const SLOTS: usize = 4096;

impl Keys {
    const fn of(rows: &[MsrName]) -> Self {
        let mut keys = Self {
            slots: [None; SLOTS],
        };
        let mut row = 0;
        while row < rows.len() {
            keys.insert(rows[row].name, row);
            let mut aliases = rows[row].aliases;
            while !aliases.is_empty() {
                let (alias, rest) = cut(aliases, b',');
                keys.insert(alias, row);
                aliases = rest;
            }
            row += 1;
        }
        keys
    }

    const fn insert(&mut self, name: &'static str, row: usize) {
        let key = key_of(name);
        let mut slot = hash(key) % SLOTS;
        while let Some((other, _)) = self.slots[slot] {
            assert!(!same_letters(key, other), "a name is given twice");
            slot = (slot + 1) % SLOTS;
        }
        assert!(row <= u16::MAX as usize);
        #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
        let row = row as u16;
        self.slots[slot] = Some((key, row));
    }

    fn find(&self, key: &str) -> Option<usize> {
        let mut slot = hash(key) % SLOTS;
        while let Some((other, row)) = self.slots[slot] {
            if same_letters(key, other) {
                return Some(row.into());
            }
            slot = (slot + 1) % SLOTS;
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.slots
            .iter()
            .flatten()
            .map(|&(key, row)| (key, row.into()))
    }
}

/// Whether two keys differ at most in case.
const fn same_letters(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if !one[at].eq_ignore_ascii_case(&other[at]) {
            return false;
        }
        at += 1;
    }
    true
}

/// FNV-1a over the letters, without case.
const fn hash(key: &str) -> usize {
    let key = key.as_bytes();
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < key.len() {
        hash = (hash ^ key[at].to_ascii_lowercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash >> 16 ^ hash) as usize
}

/// The name whose key is at most a third of its letters away from `key`.
fn closest(key: &str) -> Option<&'static str> {
    let limit = key.len() / 3;
    let (_, row) = KEYS
        .iter()
        .filter(|(other, _)| other.len().abs_diff(key.len()) <= limit)
        .map(|(other, row)| (distance(key.as_bytes(), other.as_bytes()), row))
        .filter(|&(distance, _)| distance <= limit)
        .min()?;
    Some(ROWS[row].name)
}

/// Letters to insert, remove or replace to get from one to the other (Levenshtein).
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut costs: Vec<usize> = (0..=other.len()).collect();
    for (row, a) in one.iter().enumerate() {
        let mut diagonal = costs[0];
        costs[0] = row + 1;
        for (column, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(!a.eq_ignore_ascii_case(b));
            diagonal = costs[column + 1];
            costs[column + 1] = replaced.min(diagonal + 1).min(costs[column] + 1);
        }
    }
    costs[other.len()]
}

/// What the file holds.
struct Table<const GROUPS: usize, const ROWS: usize> {
    groups: [MsrGroup; GROUPS],
    rows: [MsrName; ROWS],
}

impl<const GROUPS: usize, const ROWS: usize> Table<GROUPS, ROWS> {
    const fn read() -> Self {
        let mut table = Self {
            groups: [MsrGroup {
                name: "",
                meaning: "",
            }; GROUPS],
            rows: [MsrName {
                index: MsrIndex(0),
                name: "",
                aliases: "",
                vendor: Vendor::Any,
                groups: "",
                meaning: "",
            }; ROWS],
        };
        let (mut group, mut row) = (0, 0);
        let mut rest = TEXT;
        while let [first, ..] = rest.as_bytes() {
            match *first {
                b'#' => rest = cut(rest, b'\n').1,
                b'@' => {
                    (table.groups[group], rest) = read_group(rest);
                    group += 1;
                }
                _ => {
                    (table.rows[row], rest) = read_row(rest, &table.groups);
                    assert!(
                        row == 0 || table.rows[row - 1].index.0 < table.rows[row].index.0,
                        "rows are not in the order of their index"
                    );
                    row += 1;
                }
            }
        }
        table
    }
}

/// How many lines of the file begin so.
const fn lines_of(first: u8) -> usize {
    let mut count = 0;
    let mut rest = TEXT;
    while let [found, ..] = rest.as_bytes() {
        if *found == first {
            count += 1;
        }
        rest = cut(rest, b'\n').1;
    }
    count
}

/// The group at the front of `rest`, and what is after it.
const fn read_group(rest: &'static str) -> (MsrGroup, &'static str) {
    let (name, rest) = cut(rest.split_at(1).1, b'\t');
    let (meaning, rest) = cut(rest, b'\n');
    assert!(!name.is_empty() && !meaning.is_empty(), "a column is empty");
    (MsrGroup { name, meaning }, rest)
}

/// The text of a column in which `-` stands for nothing.
const fn optional(column: &'static str) -> &'static str {
    match column.as_bytes() {
        b"-" => "",
        _ => column,
    }
}

const fn is_declared(name: &str, groups: &[MsrGroup]) -> bool {
    let mut at = 0;
    while at < groups.len() {
        if same_letters(name, groups[at].name) {
            return true;
        }
        at += 1;
    }
    false
}

/// The row at the front of `rest`, and what is after it.
const fn read_row(rest: &'static str, declared: &[MsrGroup]) -> (MsrName, &'static str) {
    let (index, rest) = cut(rest, b'\t');
    let (name, rest) = cut(rest, b'\t');
    let (aliases, rest) = cut(rest, b'\t');
    let (vendor, rest) = cut(rest, b'\t');
    let (groups, rest) = cut(rest, b'\t');
    let (meaning, rest) = cut(rest, b'\n');
    assert!(!name.is_empty() && !meaning.is_empty(), "a column is empty");
    let (prefix, digits) = index.split_at(2);
    assert!(same_letters(prefix, "0x"), "an index has no 0x");
    let Ok(index) = u32::from_str_radix(digits, 16) else {
        panic!("an index is not hexadecimal");
    };
    let groups = optional(groups);
    let mut names = groups;
    while !names.is_empty() {
        let (name, more) = cut(names, b',');
        assert!(is_declared(name, declared), "a group is not declared");
        names = more;
    }
    let vendor = match vendor.as_bytes() {
        b"any" => Vendor::Any,
        b"intel" => Vendor::Intel,
        b"amd" => Vendor::Amd,
        b"kvm" => Vendor::Kvm,
        b"hyperv" => Vendor::HyperV,
        _ => panic!("a vendor is none of any, intel, amd, kvm, hyperv"),
    };
    let row = MsrName {
        index: MsrIndex(index),
        name,
        aliases: optional(aliases),
        vendor,
        groups,
        meaning,
    };
    (row, rest)
}

/// The text before the first `separator` and the text after it.
const fn cut(text: &'static str, separator: u8) -> (&'static str, &'static str) {
    let bytes = text.as_bytes();
    let mut end = 0;
    while end < bytes.len() {
        if bytes[end] == separator {
            let (head, tail) = text.split_at(end);
            return (head, tail.split_at(1).1);
        }
        end += 1;
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<u32, ParseMsrIndexError> {
        text.parse::<MsrIndex>().map(|index| index.0)
    }

    #[test]
    fn well_known_names_have_the_manuals_indices() {
        for (name, index) in [
            ("IA32_TIME_STAMP_COUNTER", 0x10),
            ("IA32_APIC_BASE", 0x1b),
            ("IA32_SPEC_CTRL", 0x48),
            ("IA32_BIOS_SIGN_ID", 0x8b),
            ("MSR_PLATFORM_INFO", 0xce),
            ("IA32_MISC_ENABLE", 0x1a0),
            ("IA32_MTRR_PHYSMASK9", 0x213),
            ("IA32_PAT", 0x277),
            ("IA32_MC3_STATUS", 0x40d),
            ("IA32_TSC_DEADLINE", 0x6e0),
            ("IA32_XSS", 0xda0),
            ("HV_X64_MSR_SINT15", 0x4000_009f),
            ("MSR_KVM_STEAL_TIME", 0x4b56_4d03),
            ("IA32_EFER", 0xc000_0080),
            ("IA32_KERNEL_GS_BASE", 0xc000_0102),
            ("HWCR", 0xc001_0015),
        ] {
            assert_eq!(parse(name), Ok(index), "{name}");
            assert_eq!(MsrIndex(index).name(), Some(name));
        }
    }

    #[test]
    fn every_row_is_found_by_index_name_and_alias() {
        for row in msr_names() {
            assert_eq!(row.index.named(), Some(row));
            let aliases = row.aliases.split(',').filter(|alias| !alias.is_empty());
            for name in aliases.chain([row.name]) {
                assert_eq!(parse(name), Ok(row.index.0), "{name}");
                assert_eq!(parse(&name.to_ascii_lowercase()), Ok(row.index.0), "{name}");
            }
        }
    }

    #[test]
    fn linux_spellings_are_understood() {
        for (name, index) in [
            ("MSR_IA32_SPEC_CTRL", 0x48),
            ("MSR_IA32_TSC", 0x10),
            ("MSR_EFER", 0xc000_0080),
            ("EFER", 0xc000_0080),
            ("MSR_SYSCALL_MASK", 0xc000_0084),
            ("MSR_K7_HWCR", 0xc001_0015),
            ("MSR_MTRRfix4K_F8000", 0x26f),
            ("MSR_IA32_UCODE_REV", 0x8b),
        ] {
            assert_eq!(parse(name), Ok(index), "{name}");
        }
    }

    #[test]
    fn unnamed_index_has_no_name() {
        for index in [0x2, 0x7f, 0xdead_beef, u32::MAX] {
            assert_eq!(MsrIndex(index).name(), None);
        }
    }

    #[test]
    fn hexadecimal_indices_are_read_to_32_bits() {
        assert_eq!(parse("0x48"), Ok(0x48));
        assert_eq!(parse("0XC000_0080"), Ok(0xc000_0080));
        assert_eq!(parse("0xffffffff"), Ok(u32::MAX));
        for bad in ["0x", "0x_", "0x100000000", "0x+1", "0xg", "0x4 8"] {
            assert_eq!(parse(bad), Err(ParseMsrIndexError::Hexadecimal), "{bad}");
        }
        assert_eq!(parse("48"), Err(ParseMsrIndexError::NoPrefix));
    }

    #[test]
    fn typo_gets_the_nearest_name_and_noise_gets_none() {
        for (typo, meant) in [
            ("IA32_SPEC_CTL", "IA32_SPEC_CTRL"),
            ("IA32_MSIC_ENABLE", "IA32_MISC_ENABLE"),
            ("IA32_TSC_DEADLIN", "IA32_TSC_DEADLINE"),
            ("MSR_PLATFORM_INF", "MSR_PLATFORM_INFO"),
            ("EFR", "IA32_EFER"),
        ] {
            let closest = Some(meant);
            assert_eq!(
                parse(typo),
                Err(ParseMsrIndexError::UnknownName { closest })
            );
        }
        for noise in ["", "MSR_", "x", "SOMETHING_ELSE_ENTIRELY", "ä"] {
            let closest = None;
            assert_eq!(
                parse(noise),
                Err(ParseMsrIndexError::UnknownName { closest }),
                "{noise}"
            );
        }
    }

    #[test]
    fn groups_are_as_the_manuals_divide_the_registers() {
        let members = |name: &str| -> Vec<u32> {
            let group = msr_groups().iter().find(|group| group.name == name);
            let members = group.expect("such a group").members();
            members.map(|row| row.index.0).collect()
        };
        // SDM volume 3, "Memory Type Range Registers": capability, 10 pairs, 11 fixed ranges, the default.
        assert_eq!(members("mtrr").len(), 1 + 20 + 11 + 1);
        // SDM, "Machine-Check Architecture": CTL2 at 0x280 and four registers at 0x400 for each of 32 banks.
        let banks = (0x280..=0x29f).chain(0x400..=0x47f);
        let mca = members("mca");
        assert!(banks.clone().all(|index| mca.contains(&index)));
        assert_eq!(
            members("cppc"),
            [
                0xc001_02b0,
                0xc001_02b1,
                0xc001_02b2,
                0xc001_02b3,
                0xc001_02b4
            ]
        );
        assert_eq!(members("x2apic").first(), Some(&0x802));
        assert!(members("lbr").contains(&0x690));
    }

    #[test]
    fn no_group_is_empty_and_they_are_in_order() {
        assert!(msr_groups().is_sorted_by(|one, other| one.name < other.name));
        for group in msr_groups() {
            assert_ne!(group.members().count(), 0, "{}", group.name);
        }
    }

    #[test]
    fn half_of_the_slots_are_free() {
        assert!(KEYS.iter().count() <= SLOTS / 2);
    }
}
