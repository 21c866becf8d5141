//! MSRs whose host path differs from the guest's: what cannot be forwarded is not deflected to be logged.

use msrgate_core::MsrIndex;

/// First MSR, last MSR, and what the host path does differently.
const UNFAITHFUL: &[(u32, u32, &str)] = &[
    (0x10, 0x10, "sets the TSC's offset"),
    (0x1b, 0x1b, "moves the APIC without the guest's checks"),
    (0x3b, 0x3b, "does not move the TSC"),
    (0x8b, 0x8b, "lets the guest's revision be changed"),
    (0xc1, 0xc8, "sets the whole counter"),
    (0x10a, 0x10a, "lets features be changed"),
    (0x186, 0x18d, "programs the PMU without the guest's checks"),
    (0x309, 0x30c, "sets the whole counter"),
    (0x345, 0x345, "lets features be changed"),
    (0x38d, 0x390, "programs the PMU without the guest's checks"),
    (0x480, 0x491, "lets features be changed"),
    (0x4c1, 0x4c8, "sets the whole counter"),
    (0x6e0, 0x6e0, "arms the timer as a restore does"),
    (
        0xc000_0080,
        0xc000_0080,
        "changes modes without the guest's checks",
    ),
    (
        0xc001_0000,
        0xc001_0007,
        "programs the PMU without the guest's checks",
    ),
    (
        0xc001_0200,
        0xc001_020b,
        "programs the PMU without the guest's checks",
    ),
    (0xc001_1029, 0xc001_1029, "lets features be changed"),
];

/// The first MSR of `first..=last` that KVM's host path does not do as the guest's, and how.
pub(crate) fn unfaithful(first: u32, last: u32) -> Option<(MsrIndex, &'static str)> {
    UNFAITHFUL
        .iter()
        .find(|row| row.0 <= last && first <= row.1)
        .map(|row| (MsrIndex(row.0.max(first)), row.2))
}

/// Every MSR that KVM's host path does not do as the guest's.
pub(crate) fn unfaithful_msrs() -> impl Iterator<Item = MsrIndex> {
    UNFAITHFUL
        .iter()
        .flat_map(|&(first, last, _)| first..=last)
        .map(MsrIndex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_that_touches_a_row_is_found() {
        assert_eq!(
            unfaithful(0, 0x20).map(|found| found.0),
            Some(MsrIndex(0x10))
        );
        assert_eq!(
            unfaithful(0xc5, 0xff).map(|found| found.0),
            Some(MsrIndex(0xc5))
        );
        assert_eq!(unfaithful(0x48, 0x49), None);
    }
}
