//! Host-wide module parameters that change what a filter comes to: [`ignore_msrs`], [`writes_before_filter`].

use std::path::Path;

use msrgate_core::MsrIndex;

/// Where the kernel shows it.
const IGNORE_MSRS: &str = "/sys/module/kvm/parameters/ignore_msrs";
const PREEMPTION_TIMER: &str = "/sys/module/kvm_intel/parameters/preemption_timer";

const IA32_TSC_DEADLINE: MsrIndex = MsrIndex(0x6e0);

/// Whether `kvm.ignore_msrs` is on: unknown MSRs then read 0 and swallow writes for every VM of the
/// host, and [`UNKNOWN`](msrgate_core::ExitReason::UNKNOWN) exits never happen. `None` where the host
/// does not tell (no module, or no sysfs).
#[must_use]
pub fn ignore_msrs() -> Option<bool> {
    read_flag(Path::new(IGNORE_MSRS))
}

/// Whether KVM does a guest's writes of this MSR before it asks the filter, so that a filter cannot deny them. `None` where
/// that is not known.
///
/// It does so with `IA32_TSC_DEADLINE` where it has a timer of the hardware for it: Intel's preemption timer.
#[must_use]
pub fn writes_before_filter(index: MsrIndex) -> Option<bool> {
    if index != IA32_TSC_DEADLINE {
        return Some(false);
    }
    read_flag(Path::new(PREEMPTION_TIMER))
}

/// A boolean module parameter: `Y` or `N` (1 and 0 in older kernels).
fn read_flag(path: &Path) -> Option<bool> {
    match std::fs::read_to_string(path).ok()?.trim_end() {
        "Y" | "1" => Some(true),
        "N" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_of_a_missing_file_is_unknown() {
        assert_eq!(read_flag(Path::new("/sys/module/no-such-module")), None);
    }

    #[test]
    fn flag_of_another_text_is_unknown() {
        assert_eq!(read_flag(Path::new("/proc/self/comm")), None);
    }
}
