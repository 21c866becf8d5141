//! A /dev/kvm of msrgate's own inside an unmodified program, by `LD_PRELOAD`.
//!
//! `msrgate wrap --kvm soft -- PROGRAM` loads this library into PROGRAM with `MSRGATE_KVM=soft` in its
//! environment. Opening /dev/kvm then gives a descriptor of the embedded KVM (`msrgate-soft`), and ioctls on
//! it and on its VMs and vCPUs are answered in the process. Everything else is libc's, untouched; without
//! the variable, everything is.
//!
//! A descriptor of ours is a real one underneath, so that `mmap`, `poll`, `dup`, `fork` and limits mean what
//! they always mean: /dev/kvm is an open /dev/null, and a vCPU is a memfd that holds its `kvm_run` page.
//!
//! * `hooks`: the functions that take libc's place, and which question each asks.
//! * `door`: the answers. No unsafe code.
//! * `table`: which descriptor is what. `KVM_RUN` finds its vCPU there without a lock.
//! * `device`: the paths that are ours, as data.
//! * `real`: libc's own functions, errno, and what else needs them.
//!
//! # What it cannot see
//!
//! * Programs without a dynamic loader (static, most of Go), set-user-ID programs, and files with
//!   capabilities: the loader ignores `LD_PRELOAD` for them. `msrgate wrap` refuses the first two by name.
//! * System calls that are made without libc: by `syscall(2)`, by assembly, or by libc inside itself
//!   (`fclose` of an `fdopen`ed descriptor). A number that was closed behind our back and means another
//!   file now is recognised by its inode, except for requests of KVM's own.
//! * Descriptors that another process opened (over a socket, or by `exec`): they are plain files here. After
//!   `fork`, the child's VMs and vCPUs answer EIO, as those of the real KVM do.
//! * Other spellings of the paths: links, relative paths, mount namespaces.
//! * `siglongjmp` or thread cancellation out of a running `KVM_RUN`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod device;
mod door;
mod hooks;
mod real;
mod table;
