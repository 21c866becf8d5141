//! Opening `/dev/kvm`, and saying why it cannot be used where it cannot.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES,
};
use msrgate_core::VmError;

use crate::vm::refused;

/// The capabilities without which an MSR policy cannot be enforced, and the kernel that brought them.
const NEEDED: [(u32, &str); 2] = [
    (KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR"),
    (KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER"),
];

/// The KVM device, open and able to filter and deflect.
#[derive(Debug)]
pub struct Kvm {
    pub(crate) fd: kvm_ioctls::Kvm,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// What is missing: the device, the permission, or a capability of the kernel.
    pub fn open() -> Result<Self, OpenError> {
        Self::open_at(Path::new("/dev/kvm"))
    }

    /// Opens the KVM device under another name.
    ///
    /// # Errors
    /// As for [`Kvm::open`].
    pub fn open_at(path: &Path) -> Result<Self, OpenError> {
        let open_failed = |errno: i32| OpenError::new(path, io::Error::from_raw_os_error(errno));
        let name =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| open_failed(libc::ENOENT))?;
        let fd = kvm_ioctls::Kvm::new_with_path(name).map_err(|e| open_failed(e.errno()))?;
        let version = fd.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(OpenError::NotKvm {
                path: path.to_owned(),
            });
        }
        for (capability, name) in NEEDED {
            if fd.check_extension_raw(libc::c_ulong::from(capability)) <= 0 {
                return Err(OpenError::Capability { name });
            }
        }
        Ok(Self { fd })
    }

    /// The CPUID that this kernel can give a guest (`KVM_GET_SUPPORTED_CPUID`).
    pub(crate) fn supported_cpuid(&self) -> Result<CpuId, VmError> {
        self.fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("KVM_GET_SUPPORTED_CPUID"))
    }
}

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such device.
    #[error("{} does not exist: no KVM module is loaded, or the device is not visible here", path.display())]
    Missing {
        /// What was opened.
        path: PathBuf,
    },
    /// The device is there, but not for this user.
    #[error("{} may not be opened by this user: it usually belongs to group kvm", path.display())]
    Permission {
        /// What was opened.
        path: PathBuf,
    },
    /// Opening failed for another reason.
    #[error("cannot open {}", path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not a KVM device, or speaks an interface that no stable kernel has.
    #[error("{} does not answer KVM_GET_API_VERSION with {KVM_API_VERSION}", path.display())]
    NotKvm {
        /// What was opened.
        path: PathBuf,
    },
    /// The kernel cannot filter or deflect.
    #[error("this kernel's KVM has no {name} (Linux 5.10 and later have it)")]
    Capability {
        /// The capability in the UAPI.
        name: &'static str,
    },
}

impl OpenError {
    fn new(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Permission { path },
            _ => Self::Open { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_device_is_named() {
        let error = Kvm::open_at(Path::new("/dev/no-such-kvm")).unwrap_err();
        assert!(matches!(error, OpenError::Missing { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("/dev/no-such-kvm does not exist")
        );
    }

    #[test]
    fn device_that_is_not_kvm_is_refused() {
        let error = Kvm::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::NotKvm { .. }), "{error}");
    }

    #[test]
    fn path_with_a_nul_is_missing() {
        let error = Kvm::open_at(Path::new("/dev/\0kvm")).unwrap_err();
        assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    }
}
