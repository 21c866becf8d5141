//! Debian's kernel for the lab: [`Kernel`], the newest that is installed with KVM's modules, else a download
//! that stays under `target/lab/kernel`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// A kernel and its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) version: String,
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// `lib/modules/VERSION`.
    modules: PathBuf,
}

/// A module, and the arguments that it is loaded with.
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// The uncompressed file.
    pub(super) bytes: Vec<u8>,
}

impl Kernel {
    /// The kernel of `package`, or the newest.
    pub(super) fn find(package: Option<&str>, cache: &Path) -> Result<Self> {
        if let Some(package) = package {
            return Self::of_package(package, cache);
        }
        match Self::present(cache) {
            Some(kernel) => Ok(kernel),
            None => Self::of_package(&newest_package(|_| true)?, cache),
        }
    }

    /// The newest of a series, such as `6.1`.
    pub(crate) fn of_series(series: &str, cache: &Path) -> Result<Self> {
        let wanted = format!("{series}.");
        let is_wanted = |version: &str| version.starts_with(&wanted);
        if let Some(kernel) = Self::newest_present(cache, is_wanted) {
            return Ok(kernel);
        }
        Self::of_package(&newest_package(is_wanted)?, cache)
    }

    /// The newest that is installed or was downloaded before.
    pub(super) fn present(cache: &Path) -> Option<Self> {
        Self::newest_present(cache, |_| true)
    }

    fn newest_present(cache: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<Self> {
        let downloaded = fs::read_dir(cache).into_iter().flatten().flatten();
        let roots = downloaded.map(|entry| entry.path());
        roots
            .chain([PathBuf::from("/")])
            .flat_map(|root| Self::under(&root))
            .filter(|kernel| is_wanted(&kernel.version))
            .max_by_key(|kernel| numbers(&kernel.version))
    }

    fn of_package(package: &str, cache: &Path) -> Result<Self> {
        let root = cache.join(package);
        if !root.exists() {
            download(package, cache)?;
        }
        let found = Self::under(&root).pop();
        found.with_context(|| format!("{} holds no kernel with KVM's modules", root.display()))
    }

    /// The kernels in `boot` that may be read and have KVM's modules in `lib/modules`.
    fn under(root: &Path) -> Vec<Self> {
        let files = fs::read_dir(root.join("boot"))
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter_map(|file| {
                let image = file.path();
                let name = file.file_name().into_string().ok()?;
                let version = name.strip_prefix("vmlinuz-")?.to_owned();
                let modules = root.join("lib/modules").join(&version);
                let has_kvm = modules.join("kernel/arch/x86/kvm").is_dir();
                (has_kvm && fs::File::open(&image).is_ok()).then_some(Self {
                    version,
                    image,
                    modules,
                })
            })
            .collect()
    }

    /// A module after all those that it depends on.
    pub(super) fn with_dependencies(&self, name: &str) -> Result<Vec<Module>> {
        let mut files = Vec::new();
        collect(&self.modules.join("kernel"), &mut files)?;
        let mut modules = Vec::new();
        load(name, &files, &mut modules)?;
        Ok(modules)
    }
}

/// Appends a module behind its dependencies, unless it is there.
fn load(name: &str, files: &[PathBuf], modules: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files
        .iter()
        .find(|file| module_name(file).is_some_and(|found| found == name))
        .with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => decompressed("xz", file)?,
        Some("zst") => decompressed("zstd", file)?,
        _ => fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
    };
    for dependency in dependencies(&bytes) {
        load(&dependency, files, modules)?;
    }
    modules.push(Module { name, bytes });
    Ok(())
}

/// `kvm-amd.ko.xz` is `kvm_amd`.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (stem, _) = name.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

/// What the module's own `.modinfo` says: `depends=kvm,irqbypass`.
fn dependencies(module: &[u8]) -> Vec<String> {
    let strings = module.split(|&byte| byte == 0);
    let list = strings
        .into_iter()
        .find_map(|string| string.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default());
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn decompressed(program: &str, file: &Path) -> Result<Vec<u8>> {
    let output = Command::new(program)
        .arg("--decompress")
        .arg("--stdout")
        .arg(file)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} cannot read {}",
        file.display()
    );
    Ok(output.stdout)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.context("cannot read the kernel's modules")?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The newest kernel for clouds: few drivers, so it starts fast.
fn newest_package(is_wanted: impl Fn(&str) -> bool) -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", "linux-image-"])
        .output()
        .context("there is no kernel with KVM's modules here, and no apt-cache to get one")?;
    let names = String::from_utf8_lossy(&output.stdout);
    names
        .lines()
        .filter_map(|name| Some((package_version(name)?, name)))
        .filter(|(version, _)| is_wanted(version))
        .map(|(version, name)| (numbers(version), name))
        .max()
        .map(|(_, name)| name.to_owned())
        .context("apt knows no linux-image-*-cloud-amd64: apt-get update")
}

/// `6.12.117+deb12` of `linux-image-6.12.117+deb12-cloud-amd64`; the packages that only depend on another have
/// none, or a shorter one.
fn package_version(name: &str) -> Option<&str> {
    let version = name.strip_prefix("linux-image-")?;
    version.strip_suffix("-cloud-amd64")
}

/// The numbers in a version, to be compared.
fn numbers(name: &str) -> Vec<u32> {
    let release = name.split('+').next().unwrap_or_default();
    let digits = release.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

/// Gets and unpacks a package; a download that was interrupted leaves nothing that looks whole.
fn download(package: &str, cache: &Path) -> Result<()> {
    let parts = cache.join("download");
    let _ = fs::remove_dir_all(&parts);
    fs::create_dir_all(&parts).context("cannot make the download folder")?;
    let mut apt = Command::new("apt-get");
    apt.args(["download", "--quiet", package])
        .current_dir(&parts);
    shell::run(&mut apt)
        .with_context(|| format!("cannot get {package}: apt-get update may help"))?;
    let archive = fs::read_dir(&parts)
        .context("cannot read the download folder")?
        .find_map(|entry| entry.ok().map(|entry| entry.path()))
        .context("apt-get left no package")?;
    let root = parts.join("root");
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(&archive).arg(&root);
    shell::run(&mut extract)?;
    fs::rename(&root, cache.join(package)).context("cannot move the kernel into its place")?;
    fs::remove_dir_all(&parts).context("cannot remove the download")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_is_one_with_a_kernel_in_it() {
        let names = [
            "linux-image-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
        ];
        let versions = names.iter().filter_map(|name| package_version(name));
        assert_eq!(
            versions.max_by_key(|version| numbers(version)),
            Some("6.12.117+deb12")
        );
    }
}
