//! What the host says of itself in /proc.

use std::fs;

use msrgate_policy::SurfaceHost;

/// The kernel and the first processor. What cannot be read stays empty.
pub(super) fn describe() -> SurfaceHost {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    SurfaceHost {
        kernel: read("/proc/sys/kernel/osrelease").trim_end().to_owned(),
        ..processor(&read("/proc/cpuinfo"))
    }
}

fn processor(cpuinfo: &str) -> SurfaceHost {
    let value = |key| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(name, _)| name.trim_end() == key);
        found.map_or("", |(_, value)| value.trim())
    };
    SurfaceHost {
        vendor: value("vendor_id").to_owned(),
        processor: value("model name").to_owned(),
        family: value("cpu family").parse().ok(),
        model: value("model").parse().ok(),
        stepping: value("stepping").parse().ok(),
        ..SurfaceHost::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_processor_is_described() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n\
            model name\t: Xeon: a brand\nstepping\t: 7\n\nprocessor\t: 1\nvendor_id\t: Other\n";
        let host = processor(cpuinfo);
        assert_eq!(host.vendor, "GenuineIntel");
        assert_eq!(host.processor, "Xeon: a brand");
        assert_eq!(
            (host.family, host.model, host.stepping),
            (Some(6), Some(85), Some(7))
        );
        assert_eq!(processor(""), SurfaceHost::default());
    }
}
