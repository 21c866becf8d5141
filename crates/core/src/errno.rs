//! The error numbers that the KVM ioctls answer with.

use core::fmt;

/// A Linux error number (x86).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

/// One line per number: the constant, its value, its meaning in a sentence.
macro_rules! errnos {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Self = Self($number);)*

            /// The name in `errno.h`, where it is one that KVM uses.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such thing";
    EINTR = 4, "interrupted: a signal, or `immediate_exit`";
    EIO = 5, "the VM belongs to another process, or is dead";
    ENXIO = 6, "no such device (no in-kernel interrupt controller)";
    E2BIG = 7, "too many entries";
    EBADF = 9, "bad descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "access denied";
    EFAULT = 14, "a pointer leads outside the caller's memory";
    EBUSY = 16, "in use";
    EEXIST = 17, "exists already";
    ENODEV = 19, "no such device";
    EINVAL = 22, "a flag, size or state that is not allowed";
    EMFILE = 24, "too many descriptors";
    ENOTTY = 25, "no such ioctl here";
    ENOSPC = 28, "no space left";
    ENOSYS = 38, "not implemented";
    EOPNOTSUPP = 95, "not supported";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
