//! The answers to the program's calls. `None` means: not ours, ask libc.
//!
//! Nothing here holds the table's lock while KVM, the kernel's or ours, does something.

use std::ffi::{CStr, c_int};
use std::fmt::Display;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::Arc;

use msrgate_core::{Errno, VcpuId};
use msrgate_kvm::RunPage;
use msrgate_kvm::abi::{
    KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_ENABLE_CAP, KVM_GET_VCPU_MMAP_SIZE, KVM_RUN,
    KVM_SET_SIGNAL_MASK, KVM_X86_SET_MSR_FILTER,
};
use msrgate_soft::{Handle, SystemConfig};
use msrgate_trace::channel::Claim;

use crate::device::Device;
use crate::gate::{VcpuGate, VmGate};
use crate::lower::{Borrowed, Lower};
use crate::real;
use crate::seccomp;
use crate::session::{Kvm, Session, say};
use crate::table::{Entry, Role, TABLE};

/// What a call that is ours returns; `Err` becomes -1 and errno.
pub(crate) type Answer<T = c_int> = Option<Result<T, Errno>>;

/// The type byte of KVM's ioctls (`KVMIO`).
const KVM_TYPE: u32 = 0xae;

/// Ioctls that the kernel answers for every file before it asks the file (`do_vfs_ioctl`).
const FILE_IOCTLS: [u32; 5] = [
    0x5421, // FIONBIO
    0x5450, // FIONCLEX
    0x5451, // FIOCLEX
    0x5452, // FIOASYNC
    0x5460, // FIOQSIZE
];

/// `open` and its kin.
pub(crate) fn open(session: &Session, path: &CStr, flags: c_int) -> Answer {
    if session.kvm == Kvm::Real {
        return None;
    }
    let device = Device::at(path)?;
    Some(
        open_device(device, flags).and_then(|(fd, handle)| match handle {
            Some(handle) => publish(fd, Lower::Soft(handle), Role::Other),
            None => Ok(fd.into_raw_fd()),
        }),
    )
}

/// `fopen`: the descriptor that the stream is to be made of.
pub(crate) fn open_stream(session: &Session, path: &CStr, mode: &CStr) -> Answer {
    let mode = mode.to_bytes();
    let access = match (mode.first(), mode.contains(&b'+')) {
        (Some(b'r'), false) => libc::O_RDONLY,
        (_, true) => libc::O_RDWR,
        (_, false) => libc::O_WRONLY,
    };
    let close_on_exec = if mode.contains(&b'e') {
        libc::O_CLOEXEC
    } else {
        0
    };
    open(session, path, access | close_on_exec)
}

/// What becomes of an ioctl.
pub(crate) enum Ioctl {
    /// It is libc's.
    Libc,
    /// This is what it returns.
    Done(Result<c_int, Errno>),
    /// `KVM_RUN` of a vCPU with a policy.
    Run(Arc<Entry>),
}

/// `ioctl`.
#[inline]
pub(crate) fn ioctl(session: &Session, fd: RawFd, request: u32, argument: u64) -> Ioctl {
    let known = TABLE.with(fd, |entry| {
        if request == KVM_RUN && matches!(entry.role, Role::Vcpu(_)) {
            return Ioctl::Run(Arc::clone(entry));
        }
        if is_for_file(entry, fd, request) {
            return Ioctl::Libc;
        }
        match on_known(session, entry, fd, request, argument) {
            Some(result) => Ioctl::Done(result),
            None => Ioctl::Libc,
        }
    });
    match known {
        Some(done) => done,
        // Nobody but KVM has this request, so a descriptor that takes it is /dev/kvm's, however it was opened.
        None if request == KVM_CREATE_VM && session.kvm == Kvm::Real && session.has_policy() => {
            Ioctl::Done(create_vm(session, &Lower::Real, fd, argument))
        }
        None => Ioctl::Libc,
    }
}

fn on_known(session: &Session, entry: &Entry, fd: RawFd, request: u32, argument: u64) -> Answer {
    let Entry { lower, role, .. } = entry;
    Some(match (role, request) {
        (Role::Other, KVM_CREATE_VM) => create_vm(session, lower, fd, argument),
        (Role::Vm(vm), KVM_CREATE_VCPU) => create_vcpu(session, vm, lower, fd, argument),
        (Role::Vm(vm), KVM_ENABLE_CAP) => vm.enable_cap(lower, fd, argument),
        (Role::Vm(vm), KVM_X86_SET_MSR_FILTER) => vm.set_filter(lower, fd, argument),
        (Role::Vcpu(vcpu), KVM_SET_SIGNAL_MASK) => vcpu.set_signal_mask(lower, fd, argument),
        _ => match lower {
            Lower::Real => return None,
            Lower::Soft(_) => lower
                .ioctl(fd, request, argument)
                .and_then(|done| match done.made {
                    Some(made) => publish(real::owned(done.value)?, made, Role::Other),
                    None => Ok(done.value),
                }),
        },
    })
}

/// Whether the request is not KVM's business, as the number may mean another file by now.
fn is_for_file(entry: &Entry, fd: RawFd, request: u32) -> bool {
    request >> 8 & 0xff != KVM_TYPE
        && (FILE_IOCTLS.contains(&request) || real::file_id(fd) != Some(entry.file))
}

/// `close`: the number may mean something else as soon as it is closed. The channel is none that the program has.
pub(crate) fn close(session: &Session, fd: RawFd) -> Answer {
    if session.channel_fd() == Some(fd) {
        return Some(Err(Errno::EBADF));
    }
    TABLE.remove(fd);
    None
}

/// `close_range` and `closefrom`, around the channel.
pub(crate) fn close_range(session: &Session, from: u32, to: u32, flags: c_int) -> Answer {
    if flags.cast_unsigned() & libc::CLOSE_RANGE_CLOEXEC != 0 {
        return None;
    }
    let number = |fd: u32| RawFd::try_from(fd).unwrap_or(RawFd::MAX);
    TABLE.remove_range(number(from), number(to));
    let channel = session.channel_fd()?.cast_unsigned();
    if !(from..=to).contains(&channel) {
        return None;
    }
    let below = channel.checked_sub(1).map(|last| (from, last));
    let above = channel.checked_add(1).map(|first| (first, to));
    let parts = [below, above].into_iter().flatten();
    let mut parts = parts.filter(|(first, last)| first <= last);
    Some(parts.try_fold(0, |_, (first, last)| real::close_range(first, last, flags)))
}

/// After libc has made `new` of `old`: `new` leads to the same, and no more to what it was.
pub(crate) fn duplicated(old: RawFd, new: RawFd) {
    match TABLE.with(old, Arc::clone) {
        Some(_) if old == new => {}
        Some(entry) => {
            TABLE.share(new, entry);
        }
        None => TABLE.remove(new),
    }
}

/// A VM, with the policy in force before the program has its descriptor.
fn create_vm(session: &Session, lower: &Lower, fd: RawFd, argument: u64) -> Result<c_int, Errno> {
    let rules = match session.rules() {
        None => None,
        Some(Ok(rules)) => Some(rules),
        Some(Err(why)) => return Err(refuse("VM", &why, Errno::EPERM)),
    };
    let page_bytes = lower.ioctl(fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    let (vm, lower) = create(lower, fd, KVM_CREATE_VM, argument)?;
    let Some((rules, channel)) = rules.zip(session.channel()) else {
        return publish(vm, lower, Role::Other);
    };
    let page_bytes = page_bytes.map_err(|errno| refuse("VM", &"KVM_GET_VCPU_MMAP_SIZE", errno))?;
    let page_bytes = usize::try_from(page_bytes.value).unwrap_or(0);
    let number = channel.next_vm();
    let gate = VmGate::install(number, page_bytes, rules, &lower, vm.as_raw_fd());
    let gate = gate.map_err(|error| refuse("VM", &error, error.errno))?;
    publish(vm, lower, Role::Vm(Arc::new(gate)))
}

fn create_vcpu(
    session: &Session,
    vm: &Arc<VmGate>,
    lower: &Lower,
    fd: RawFd,
    argument: u64,
) -> Result<c_int, Errno> {
    let (vcpu, lower) = create(lower, fd, KVM_CREATE_VCPU, argument)?;
    let id = VcpuId(u32::try_from(argument).unwrap_or(u32::MAX));
    let page = RunPage::map(&Borrowed(vcpu.as_raw_fd()), vm.run_page_bytes)
        .map_err(|errno| refuse("vCPU", &"its kvm_run cannot be mapped", errno))?;
    let claim = Claim {
        pid: process::id(),
        vm: vm.number,
        vcpu: id,
    };
    let recorder = session.channel().and_then(|channel| channel.claim(claim));
    let gate = VcpuGate::new(id, vm, page, session.on_failure, recorder);
    publish(vcpu, lower, Role::Vcpu(Box::new(gate)))
}

/// A new descriptor from an ioctl.
fn create(
    lower: &Lower,
    fd: RawFd,
    request: u32,
    argument: u64,
) -> Result<(OwnedFd, Lower), Errno> {
    let done = lower.ioctl(fd, request, argument)?;
    let made = real::owned(done.value)?;
    Ok((made, done.made.unwrap_or(Lower::Real)))
}

/// Says why the program does not get what KVM would give it. The new descriptor is closed on the way out.
fn refuse(what: &str, why: &impl Display, errno: Errno) -> Errno {
    say(format_args!("the program gets no {what}: {why}"));
    errno
}

/// Before the program installs the seccomp filter at `program`: one that would end it later, in the middle of the
/// guest, ends it now.
pub(crate) fn lock_down(session: &Session, program: u64) {
    if session.has_policy()
        && let Err(call) = seccomp::check(program)
    {
        say(format_args!(
            "the program's own seccomp filter forbids {call}, which the policy needs: turn that filter off \
             (with Cloud Hypervisor: --seccomp false), or run the program without a policy"
        ));
        process::exit(2);
    }
}

fn open_device(device: Device, flags: c_int) -> Result<(OwnedFd, Option<Handle>), Errno> {
    match device {
        Device::Kvm => {
            let fd = real::open(device.stand_in(), flags)?;
            Ok((fd, Some(Handle::open(config()))))
        }
        Device::Parameter(_) if flags & libc::O_ACCMODE != libc::O_RDONLY => Err(Errno::EACCES),
        Device::Parameter(content) => {
            let fd = real::file_with(content, flags & libc::O_CLOEXEC != 0)?;
            Ok((fd, None))
        }
        Device::Missing => Err(Errno::ENOENT),
    }
}

/// As the parameters in [`crate::device`] say.
fn config() -> SystemConfig {
    let mut config = SystemConfig::default();
    config.forced_emulation_prefix = true;
    config
}

/// Gives the program `fd`, behind which `lower` stands from now on.
fn publish(fd: OwnedFd, lower: Lower, role: Role) -> Result<c_int, Errno> {
    let file = real::file_id(fd.as_raw_fd()).ok_or(Errno::EBADF)?;
    if TABLE.insert(fd.as_raw_fd(), Entry { lower, role, file }) {
        Ok(fd.into_raw_fd())
    } else {
        Err(Errno::EMFILE)
    }
}
