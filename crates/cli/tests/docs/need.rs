//! What the commands of a document need beside `msrgate`, and whether it is here.

use std::env;
use std::process::Command;
use std::sync::LazyLock;

/// Whether Debian's packages can be had; tried with a small one.
static HAS_PACKAGES: LazyLock<bool> = LazyLock::new(|| {
    let mut apt = Command::new("apt-get");
    apt.args(["--quiet", "download", "busybox-static"])
        .current_dir(env!("CARGO_TARGET_TMPDIR"));
    apt.output().is_ok_and(|output| output.status.success())
});

/// The first that is missing, and why.
///
/// With `MSRGATE_REQUIRE_DOCS` (and for `kvm`, `MSRGATE_REQUIRE_KVM`) that is a failure.
pub(crate) fn first_missing<'n>(
    mut needs: impl Iterator<Item = &'n str>,
) -> Option<(&'n str, String)> {
    let (need, why) = needs.find_map(|need| Some((need, missing(need)?)))?;
    let variable = match need {
        "kvm" => "MSRGATE_REQUIRE_KVM",
        _ => "MSRGATE_REQUIRE_DOCS",
    };
    assert!(
        env::var_os(variable).is_none(),
        "{variable} is set, but {why}"
    );
    Some((need, why))
}

fn missing(need: &str) -> Option<String> {
    match need {
        "kvm" => msrgate_kvm::Kvm::open().err().map(|why| why.to_string()),
        "apt" => (!*HAS_PACKAGES).then(|| "apt-get is not here, or gets no package".to_owned()),
        program => {
            let path = env::var_os("PATH").unwrap_or_default();
            let is_there = env::split_paths(&path).any(|folder| folder.join(program).is_file());
            (!is_there).then(|| format!("there is no {program}"))
        }
    }
}
