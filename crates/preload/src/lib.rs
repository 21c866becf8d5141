//! A policy around an unmodified program that uses /dev/kvm, or a /dev/kvm of msrgate's own in it, by `LD_PRELOAD`.
//!
//! `msrgate wrap` loads this library into the program; `session` reads what it asks for. With `MSRGATE_KVM=soft`,
//! /dev/kvm leads to the embedded KVM (`msrgate-soft`); with a channel, the VMs that the program makes, on either
//! KVM, are under the channel's policy. Everything else is libc's, untouched; without the variables, everything is.
//!
//! * `hooks`: the functions that take libc's place, and which question each asks.
//! * `door`: the answers. No unsafe code.
//! * `gate`: the policy between the program and KVM. The program's own filter, exit reasons and MSR exits stay its own.
//! * `lower`: what answers in the end, the kernel or the embedded KVM.
//! * `table`: which descriptor is what. `KVM_RUN` finds its vCPU there without a lock.
//! * `session`, `rules`: what is asked of this process, and the policy.
//! * `seccomp`: whether the gate can live under the filter that the program installs.
//! * `device`: the paths that are ours where the KVM is, as data.
//! * `real`: libc's own functions, errno, and what else needs them.
//!
//! A descriptor of the embedded KVM is a real one underneath, so that `mmap`, `poll`, `dup`, `fork` and limits mean
//! what they always mean: /dev/kvm is an open /dev/null, and a vCPU is a memfd that holds its `kvm_run` page.
//!
//! # What it cannot see
//!
//! * Programs without a dynamic loader (static, most of Go), set-user-ID programs, and files with
//!   capabilities: the loader ignores `LD_PRELOAD` for them. `msrgate wrap` refuses them by name.
//! * System calls that are made without libc: by assembly, or by libc inside itself (`fclose` of an `fdopen`ed
//!   descriptor). A number that was closed behind our back and means another file now is recognised by its
//!   inode, except for requests of KVM's own.
//! * VMs that another process made (descriptors over a socket, or kept by `exec`): KVM answers EIO for them anyway.
//!   After `fork`, the child's VMs and vCPUs answer EIO too.
//! * Where the KVM is ours: other spellings of the paths, such as links, relative paths, mount namespaces.
//! * `siglongjmp` or thread cancellation out of a running `KVM_RUN` of the embedded KVM.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![cfg_attr(
    test,
    expect(
        dead_code,
        unused_imports,
        reason = "the hooks, for which all is, are not in a test program"
    )
)]

mod device;
mod door;
mod gate;
#[cfg(not(test))] // they would take the place of the test program's own libc
mod hooks;
mod lower;
mod real;
mod rules;
mod seccomp;
mod session;
mod table;
