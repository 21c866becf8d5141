//! The initramfs: busybox, modules, programs with their libraries, and an init that runs the jobs.
//!
//! Everything stands where it stands outside, so that paths that were compiled into a test are right.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use cpio::newc::{Builder, ModeFileType};

use super::job::Job;
use super::kernel::{Kernel, Module};

/// Writes the initramfs of a machine whose KVM is `vendor`'s module.
pub(super) fn write(path: &Path, kernel: &Kernel, vendor: &str, jobs: &[Job]) -> Result<()> {
    let scratch = path.with_extension("stripped");
    let modules = kernel.with_dependencies(vendor)?;
    let mut image = Image::with_busybox(&scratch)?;
    image.add("/init", 0o755, init(&modules, jobs).into_bytes());
    for module in modules {
        image.add(module_path(&module.name), 0o644, module.bytes);
    }
    for job in jobs {
        image.folder(&job.folder);
        image.folder(&job.scratch);
        for program in &job.programs {
            image.program(program, &scratch)?;
        }
        for data in &job.data {
            image.copy(data)?;
        }
    }
    image.store(path)
}

/// Where a module stands in an image.
pub(super) fn module_path(name: &str) -> String {
    format!("/modules/{name}.ko")
}

/// The first program: it brings up /dev/kvm, runs the jobs, and tells of each on the second serial line.
fn init(modules: &[Module], jobs: &[Job]) -> String {
    let mut script = String::from(
        r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t devtmpfs devtmpfs /dev
stty -F /dev/ttyS1 115200
exec </dev/null >/dev/ttyS1 2>&1
ip link set lo up
milliseconds() { read up _ </proc/uptime; echo "${up%.*}${up#*.}0"; }
# job NUMBER LIMIT FOLDER COMMAND...
job() {
    number=$1 limit=$2; cd "$3"; shift 3
    echo "lab: begin $number"
    began=$(milliseconds)
    timeout -s KILL "$limit" env "$@"
    status=$?
    echo
    echo "lab: end $number $status $(($(milliseconds) - began))"
}
"#,
    );
    for Module { name, .. } in modules {
        let path = module_path(name);
        script += &format!("insmod {path} || echo \"lab: broken: {name} does not load\"\n");
    }
    script += "[ -c /dev/kvm ] || echo 'lab: broken: there is no /dev/kvm'\necho 'lab: booted'\n";
    for (number, job) in jobs.iter().enumerate() {
        let words: Vec<_> = job.words().map(quoted).collect();
        script += &format!(
            "job {number} {} {} {}\n",
            job.limit.as_secs(),
            quoted(&job.folder.display().to_string()),
            words.join(" ")
        );
    }
    // Closing the line waits until all is sent.
    script += "echo 'lab: whole'\nexec >/dev/null 2>&1\npoweroff -f\n";
    script
}

/// A word as the shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Files by their path, folders before what is in them.
#[derive(Default)]
pub(crate) struct Image {
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Folder,
    File { permissions: u32, bytes: Vec<u8> },
}

impl Image {
    /// Busybox, and the folders that an init mounts something on. `scratch` is a file that is written and removed.
    pub(crate) fn with_busybox(scratch: &Path) -> Result<Self> {
        let mut image = Self::default();
        for folder in ["/proc", "/sys", "/dev", "/tmp", "/root"] {
            image.folder(Path::new(folder));
        }
        image.program(Path::new("/bin/busybox"), scratch)?;
        Ok(image)
    }

    fn folder(&mut self, path: &Path) {
        for folder in path.ancestors().filter(|folder| *folder != Path::new("/")) {
            self.entries
                .entry(folder.to_owned())
                .or_insert(Entry::Folder);
        }
    }

    /// A file.
    pub(crate) fn add(&mut self, path: impl AsRef<Path>, permissions: u32, bytes: Vec<u8>) {
        let path = path.as_ref();
        self.folder(path.parent().unwrap_or(path));
        self.entries
            .insert(path.to_owned(), Entry::File { permissions, bytes });
    }

    /// A file, or a folder with all that is in it.
    fn copy(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            self.folder(path);
            for entry in
                fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?
            {
                self.copy(&entry.context("cannot read a folder")?.path())?;
            }
            return Ok(());
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(path, 0o644, bytes);
        Ok(())
    }

    /// A program without its debug information, and the libraries that `ldd` names.
    fn program(&mut self, path: &Path, scratch: &Path) -> Result<()> {
        if self.entries.contains_key(path) {
            return Ok(());
        }
        let stripped = Command::new("strip")
            .arg("-o")
            .arg(scratch)
            .arg(path)
            .status()
            .context("cannot start strip")?;
        ensure!(stripped.success(), "strip cannot read {}", path.display());
        self.add(
            path,
            0o755,
            fs::read(scratch).context("cannot read what strip wrote")?,
        );
        fs::remove_file(scratch).context("cannot remove what strip wrote")?;
        let output = Command::new("ldd")
            .arg(path)
            .output()
            .context("cannot start ldd")?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout))? {
            let bytes = fs::read(library).with_context(|| format!("cannot read {library}"))?;
            self.add(library, 0o755, bytes);
        }
        Ok(())
    }

    /// Writes the archive.
    pub(crate) fn store(self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = BufWriter::new(file);
        for (number, (path, entry)) in (1u32..).zip(self.entries) {
            let name = path
                .strip_prefix("/")
                .unwrap_or(&path)
                .display()
                .to_string();
            let header = Builder::new(&name).ino(number);
            let (header, bytes) = match entry {
                Entry::Folder => (
                    header
                        .mode(0o755)
                        .set_mode_file_type(ModeFileType::Directory),
                    vec![],
                ),
                Entry::File { permissions, bytes } => (
                    header
                        .mode(permissions)
                        .set_mode_file_type(ModeFileType::Regular),
                    bytes,
                ),
            };
            let size =
                u32::try_from(bytes.len()).context("a file of the initramfs is too large")?;
            let mut writer = header.write(archive, size);
            writer
                .write_all(&bytes)
                .context("cannot write the initramfs")?;
            archive = writer.finish().context("cannot write the initramfs")?;
        }
        let mut archive = cpio::newc::trailer(archive).context("cannot write the initramfs")?;
        archive.flush().context("cannot write the initramfs")
    }
}

/// The paths in `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries(ldd: &str) -> Result<Vec<&str>> {
    let mut paths = Vec::new();
    for line in ldd.lines() {
        if line.contains("not found") {
            bail!("a library is missing here: {}", line.trim());
        }
        paths.extend(line.split_whitespace().find(|word| word.starts_with('/')));
    }
    Ok(paths)
}
