//! The paths that are ours: /dev/kvm and the parameters of KVM's modules, as data.
//!
//! Parameters are those of Linux 6.12 with the values that describe the embedded KVM. They cannot be
//! written, and a name that is not in the table does not exist, whatever module the machine has loaded.

use std::ffi::CStr;

/// A path that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// /dev/kvm
    Kvm,
    /// A file in /sys/module/kvm*/parameters, and what is in it.
    Parameter(&'static str),
    /// A file of those folders that is not there.
    Missing,
}

impl Device {
    /// What `path` is, if it is ours.
    pub(crate) fn at(path: &CStr) -> Option<Self> {
        let path = path.to_str().ok()?;
        if path == "/dev/kvm" {
            return Some(Self::Kvm);
        }
        let (module, parameter) = path
            .strip_prefix("/sys/module/")?
            .split_once("/parameters/")?;
        if !["kvm", "kvm_intel", "kvm_amd"].contains(&module) {
            return None;
        }
        let row = PARAMETERS
            .iter()
            .find(|row| row.0 == module && row.1 == parameter);
        Some(row.map_or(Self::Missing, |row| Self::Parameter(row.2)))
    }

    /// A real file that is like this one to `stat` and `access`.
    pub(crate) fn stand_in(self) -> &'static CStr {
        match self {
            Self::Kvm => c"/dev/null",
            Self::Parameter(_) => c"/proc/version",
            Self::Missing => c"/proc/self/missing",
        }
    }
}

/// Module, parameter, content.
type Row = (&'static str, &'static str, &'static str);

#[rustfmt::skip]
const PARAMETERS: &[Row] = &[
    ("kvm", "eager_page_split",            "N\n"),
    ("kvm", "enable_pmu",                  "N\n"),
    ("kvm", "enable_vmware_backdoor",      "N\n"),
    ("kvm", "force_emulation_prefix",      "1\n"),
    ("kvm", "halt_poll_ns",                "0\n"),
    ("kvm", "ignore_msrs",                 "N\n"),
    ("kvm", "kvmclock_periodic_sync",      "N\n"),
    ("kvm", "min_timer_period_us",         "200\n"),
    ("kvm", "mitigate_smt_rsb",            "N\n"),
    ("kvm", "mmio_caching",                "N\n"),
    ("kvm", "nx_huge_pages",               "N\n"),
    ("kvm", "report_ignored_msrs",         "Y\n"),
    ("kvm", "tdp_mmu",                     "N\n"),
    ("kvm", "tsc_tolerance_ppm",           "250\n"),
    ("kvm", "vector_hashing",              "N\n"),
    ("kvm_intel", "ept",                   "Y\n"),
    ("kvm_intel", "nested",                "N\n"),
    ("kvm_intel", "unrestricted_guest",    "Y\n"),
    ("kvm_amd", "avic",                    "N\n"),
    ("kvm_amd", "nested",                  "0\n"),
    ("kvm_amd", "npt",                     "Y\n"),
    ("kvm_amd", "sev",                     "N\n"),
    ("kvm_amd", "sev_es",                  "N\n"),
    ("kvm_amd", "sev_snp",                 "N\n"),
];
