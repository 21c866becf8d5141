//! The host-wide module parameter that hides unknown MSRs.

use std::path::Path;

/// Where the kernel shows it.
const IGNORE_MSRS: &str = "/sys/module/kvm/parameters/ignore_msrs";

/// Whether `kvm.ignore_msrs` is on: unknown MSRs then read 0 and swallow writes for every VM of the
/// host, and [`UNKNOWN`](msrgate_core::ExitReason::UNKNOWN) exits never happen. `None` where the host
/// does not tell (no module, or no sysfs).
#[must_use]
pub fn ignore_msrs() -> Option<bool> {
    read_flag(Path::new(IGNORE_MSRS))
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
