//! The Linux that QEMU boots inside the lab, on the KVM under test: [`Linux`].
//!
//! The kernel is the lab's own. What its init does and says is `linux-init.sh`; what is made of that is the test's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::image::{self, Image};
use super::kernel::Kernel;

const INIT: &str = include_str!("linux-init.sh");

/// The emulator with KVM, where Debian puts it, and the files that it reads for a machine without devices.
pub(super) const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const FIRMWARE: [&str; 3] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
];

/// A folder with `vmlinuz` and `initramfs`.
pub(super) struct Linux {
    pub(super) folder: PathBuf,
}

impl Linux {
    /// Writes it.
    pub(super) fn write(kernel: &Kernel, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).context("cannot make the folder of the Linux inside")?;
        let folder = folder
            .canonicalize()
            .context("cannot find the lab's folder")?;
        fs::copy(&kernel.image, folder.join("vmlinuz")).context("cannot copy the kernel")?;
        let mut image = Image::with_busybox(&folder.join("stripped"))?;
        image.add("/init", 0o755, INIT.into());
        for module in kernel.with_dependencies("msr")? {
            image.add(image::module_path(&module.name), 0o644, module.bytes);
        }
        image.store(&folder.join("initramfs"))?;
        Ok(Self { folder })
    }

    /// What a job reads that boots it.
    pub(super) fn data(&self) -> impl Iterator<Item = PathBuf> {
        let firmware = FIRMWARE.map(PathBuf::from);
        [self.folder.clone()].into_iter().chain(firmware)
    }
}
