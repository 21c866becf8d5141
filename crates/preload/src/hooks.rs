//! The functions that take libc's place, as a table: signature, and what of it is ours.
//!
//! `first` may answer in libc's stead; `with` gives libc another argument; `last` sees what libc answered.
//! [`inside`] stands around each of them: it keeps errno, stops our own calls from coming back to us, and
//! keeps a panic from the program. Libc's function is called outside of it, so that a thread can be
//! cancelled there as ever.
//!
//! C's variadic functions are declared here with the arguments that the kernel would look at: on x86-64 they
//! arrive in the same registers.

// UNSAFETY: exported C functions, whose pointer arguments the program answers for.
#![expect(
    unsafe_code,
    reason = "symbols that take libc's place, and calls of the functions they replace"
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use std::{mem, ptr};

use libc::{FILE, mode_t};
use msrgate_core::Errno;
use msrgate_kvm::abi::KVM_RUN;

use crate::device::Device;
use crate::door::{self, Answer, Ioctl};
use crate::gate::Next as Step;
use crate::lower::Lower;
use crate::real::{self, Next};
use crate::session::{Kvm, Session, session};
use crate::table::{self, Entry, Role};

/// How long a process that exits may wait until its table is printed.
const PATIENCE: Duration = Duration::from_secs(2);

thread_local! {
    /// Whether this thread is in our code already.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Before the program's own first instruction: what it inherits is still there.
#[used]
// SAFETY: the loader calls what this section holds, once, when libc is ready.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

extern "C" fn start() {
    inside(|session| {
        real::at_fork(before_fork, after_fork);
        if session.channel().is_some() {
            real::at_exit(leave);
        }
    });
}

extern "C" fn leave() {
    inside(|session| {
        if let Some(channel) = session.channel() {
            channel.leave(PATIENCE);
        }
    });
}

/// The type of libc's function: variadic if there are arguments behind the `;`.
macro_rules! function {
    (($($type:ty),*) () $result:ty) => { unsafe extern "C-unwind" fn($($type),*) -> $result };
    (($($type:ty),*) ($($rest:ty),+) $result:ty) => {
        unsafe extern "C-unwind" fn($($type),*, ...) -> $result
    };
}

macro_rules! hooks {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(; $($rest:ident: $rest_type:ty),+)?) -> $result:ty
        $(, first |$own:ident| $first:expr)? $(, with $changed:ident = |$own_too:ident| $with:expr)? $(, last |$answer:pat_param| $last:expr)?;)*
    ) => {$(
        // SAFETY: the name is libc's, and so are the types.
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $name($($arg: $type,)* $($($rest: $rest_type),+)?) -> $result {
            static NEXT: Next = Next::named(concat!(stringify!($name), "\0"));
            $(if let Some(answer) = guarded(|$own| $first) {
                return answer;
            })?
            let address = NEXT.address();
            if address.is_null() {
                real::set_errno(Errno::ENOSYS);
                return <$result as Returned>::FAILURE;
            }
            type Function = function!(($($type),*) ($($($rest_type),+)?) $result);
            // SAFETY: the loader found libc's function of this name, and this is its type.
            let next = unsafe { mem::transmute::<*mut c_void, Function>(address) };
            let result = {
                $(let $changed = guarded(|$own_too| Some(Ok($with))).unwrap_or($changed);)?
                // SAFETY: the arguments are the program's own, or a path that never goes away.
                unsafe { next($($arg,)* $($($rest),+)?) }
            };
            $(guarded(|_| -> Answer<c_int> {
                let $answer = result;
                $last;
                None
            });)?
            result
        }
    )*};
}

hooks! {
    fn open(path: *const c_char, flags: c_int; mode: mode_t) -> c_int, first |session| open_path(session, path, flags);
    fn open64(path: *const c_char, flags: c_int; mode: mode_t) -> c_int, first |session| open_path(session, path, flags);
    fn openat(at: c_int, path: *const c_char, flags: c_int; mode: mode_t) -> c_int, first |session| open_path(session, path, flags);
    fn openat64(at: c_int, path: *const c_char, flags: c_int; mode: mode_t) -> c_int, first |session| open_path(session, path, flags);
    fn __open_2(path: *const c_char, flags: c_int) -> c_int, first |session| open_path(session, path, flags);
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int, first |session| open_path(session, path, flags);
    fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int, first |session| open_path(session, path, flags);
    fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int, first |session| open_path(session, path, flags);
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE, first |session| open_stream(session, path, mode);
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE, first |session| open_stream(session, path, mode);

    fn prctl(option: c_int; a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int, first |session| seccomp_by_prctl(session, option, a, b);

    fn close(fd: c_int) -> c_int, first |session| door::close(session, fd);
    fn close_range(from: c_uint, to: c_uint, flags: c_int) -> c_int, first |session| door::close_range(session, from, to, flags);
    fn closefrom(from: c_int) -> (), first |session| close_from(session, from);

    fn dup(old: c_int) -> c_int, last |new| door::duplicated(old, new);
    fn dup2(old: c_int, new: c_int) -> c_int, last |new| door::duplicated(old, new);
    fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int, last |new| door::duplicated(old, new);
    fn fcntl(fd: c_int, command: c_int; argument: c_ulong) -> c_int, last |new| controlled(fd, command, new);
    fn fcntl64(fd: c_int, command: c_int; argument: c_ulong) -> c_int, last |new| controlled(fd, command, new);

    fn access(path: *const c_char, mode: c_int) -> c_int, with path = |session| stand_in(session, path);
    fn eaccess(path: *const c_char, mode: c_int) -> c_int, with path = |session| stand_in(session, path);
    fn euidaccess(path: *const c_char, mode: c_int) -> c_int, with path = |session| stand_in(session, path);
    fn faccessat(at: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int, with path = |session| stand_in(session, path);
    fn stat(path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn stat64(path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn lstat(path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn lstat64(path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn __xstat(version: c_int, path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn __xstat64(version: c_int, path: *const c_char, to: *mut libc::stat) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn fstatat(at: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn fstatat64(at: c_int, path: *const c_char, to: *mut libc::stat, flags: c_int) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm(path, to, result);
    fn statx(at: c_int, path: *const c_char, flags: c_int, mask: c_uint, to: *mut libc::statx) -> c_int, with path = |session| stand_in(session, path), last |result| as_kvm_x(path, to, result);
}

/// What a function returns, and what it returns when it failed.
trait Returned {
    const FAILURE: Self;
}

impl Returned for c_int {
    const FAILURE: Self = -1;
}

impl<T> Returned for *mut T {
    const FAILURE: Self = ptr::null_mut();
}

impl<T> Returned for *const T {
    const FAILURE: Self = ptr::null();
}

impl Returned for () {
    const FAILURE: Self = ();
}

/// What became of a question to our side.
enum Inside<T> {
    Done(T),
    Panicked,
    /// The program is not wrapped, or this thread is on our side already.
    NotAsked,
}

/// Asks our side.
#[inline]
fn inside<T>(ask: impl FnOnce(&'static Session) -> T) -> Inside<T> {
    // A thread that is ending has no thread-locals: libc alone serves it.
    let busy = BUSY.try_with(|busy| busy.replace(true)).unwrap_or(true);
    if busy {
        return Inside::NotAsked;
    }
    let errno = real::errno();
    let answer = match session() {
        Some(session) => match catch_unwind(AssertUnwindSafe(|| ask(session))) {
            Ok(answer) => Inside::Done(answer),
            Err(_) => Inside::Panicked,
        },
        None => Inside::NotAsked,
    };
    let _ = BUSY.try_with(|busy| busy.set(false));
    real::set_errno(errno);
    answer
}

/// Asks our side; `None`: libc shall answer.
#[inline]
fn guarded<T: Returned>(ask: impl FnOnce(&'static Session) -> Answer<T>) -> Option<T> {
    match inside(ask) {
        Inside::Done(answer) => answer.map(returned),
        Inside::Panicked => Some(returned(Err(Errno::EIO))),
        Inside::NotAsked => None,
    }
}

/// A result as C has it.
fn returned<T: Returned>(result: Result<T, Errno>) -> T {
    result.unwrap_or_else(|errno| {
        real::set_errno(errno);
        T::FAILURE
    })
}

// SAFETY: the name is libc's, and so are the types.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int {
    let libc = || returned(real::ioctl(fd, request, argument));
    match inside(|session| door::ioctl(session, fd, low(request), argument)) {
        Inside::Done(Ioctl::Libc) | Inside::NotAsked => libc(),
        Inside::Done(Ioctl::Done(result)) => returned(result),
        Inside::Done(Ioctl::Run(entry)) => run(fd, &entry, argument, libc),
        Inside::Panicked => returned(Err(Errno::EIO)),
    }
}

/// `KVM_RUN` of a vCPU with a policy: runs it until there is an exit that is the program's.
fn run(fd: c_int, entry: &Entry, argument: c_ulong, libc: impl Fn() -> c_int) -> c_int {
    let (Role::Vcpu(vcpu), lower) = (&entry.role, &entry.lower) else {
        return libc();
    };
    let Inside::Done(mut call) = inside(|_| vcpu.begin(lower, fd)) else {
        return returned(Err(Errno::EIO));
    };
    loop {
        let result = match lower {
            Lower::Real => libc(),
            Lower::Soft(_) => {
                guarded(|_| Some(lower.ioctl(fd, KVM_RUN, argument).map(|it| it.value)))
                    .unwrap_or_else(|| returned(Err(Errno::EIO)))
            }
        };
        let step = match inside(|_| vcpu.after(lower, fd, &mut call, result)) {
            Inside::Done(step) => step,
            Inside::Panicked | Inside::NotAsked if result < 0 => Step::Return,
            Inside::Panicked | Inside::NotAsked => vcpu.refuse(&mut call),
        };
        if step == Step::Return {
            return result;
        }
    }
}

// SAFETY: the name is libc's, and so are the types: arguments that were not given are not looked at by the kernel.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: c_ulong,
    b: c_ulong,
    c: c_ulong,
    d: c_ulong,
    e: c_ulong,
    f: c_ulong,
) -> c_long {
    match number {
        libc::SYS_ioctl => {
            // SAFETY: the same system call, with the program's own arguments.
            let result = unsafe { ioctl(low(a).cast_signed(), b, c) };
            return result.into();
        }
        libc::SYS_seccomp => {
            inside(|session| seccomp_by_syscall(session, a, c));
        }
        _ => {}
    }
    real::syscall(number, [a, b, c, d, e, f])
}

fn open_path(session: &Session, path: *const c_char, flags: c_int) -> Answer {
    door::open(session, text(path)?, flags)
}

fn open_stream(session: &Session, path: *const c_char, mode: *const c_char) -> Answer<*mut FILE> {
    let fd = match door::open_stream(session, text(path)?, text(mode)?)? {
        Ok(fd) => fd,
        Err(errno) => return Some(Err(errno)),
    };
    // SAFETY: an open descriptor that the stream takes over, and a mode that ends with NUL.
    let stream = unsafe { libc::fdopen(fd, mode) };
    if stream.is_null() {
        return Some(Err(real::errno()));
    }
    Some(Ok(stream))
}

/// `prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)`.
fn seccomp_by_prctl(session: &Session, option: c_int, mode: c_ulong, program: c_ulong) -> Answer {
    if option == libc::PR_SET_SECCOMP && mode == c_ulong::from(libc::SECCOMP_MODE_FILTER) {
        door::lock_down(session, program);
    }
    None
}

/// `seccomp(SECCOMP_SET_MODE_FILTER, flags, program)`.
fn seccomp_by_syscall(session: &Session, operation: c_ulong, program: c_ulong) {
    if operation == c_ulong::from(libc::SECCOMP_SET_MODE_FILTER) {
        door::lock_down(session, program);
    }
}

fn close_from(session: &Session, from: c_int) -> Answer<()> {
    let from = from.max(0).cast_unsigned();
    let closed = door::close_range(session, from, c_uint::MAX, 0)?;
    Some(closed.map(drop))
}

fn controlled(fd: c_int, command: c_int, result: c_int) {
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        door::duplicated(fd, result);
    }
}

/// The path that libc is asked about instead.
fn stand_in(session: &Session, path: *const c_char) -> *const c_char {
    if session.kvm == Kvm::Real {
        return path;
    }
    text(path)
        .and_then(Device::at)
        .map_or(path, |device| device.stand_in().as_ptr())
}

/// /dev/kvm's own device number, in place of its stand-in's.
fn as_kvm(path: *const c_char, to: *mut libc::stat, result: c_int) {
    if result == 0 && text(path).and_then(Device::at) == Some(Device::Kvm) {
        // SAFETY: libc has just filled it, so the program's pointer is good.
        unsafe { (*to).st_rdev = libc::makedev(KVM_NUMBER.0, KVM_NUMBER.1) };
    }
}

fn as_kvm_x(path: *const c_char, to: *mut libc::statx, result: c_int) {
    if result == 0 && text(path).and_then(Device::at) == Some(Device::Kvm) {
        // SAFETY: as in `as_kvm`.
        let to = unsafe { &mut *to };
        (to.stx_rdev_major, to.stx_rdev_minor) = KVM_NUMBER;
    }
}

/// `MISC_MAJOR` and `KVM_MINOR`.
const KVM_NUMBER: (c_uint, c_uint) = (10, 232);

/// The program's string.
fn text<'p>(string: *const c_char) -> Option<&'p CStr> {
    if string.is_null() {
        return None;
    }
    // SAFETY: the program calls a libc function with it that reads it as a string too.
    Some(unsafe { CStr::from_ptr(string) })
}

/// The request as the kernel sees it: `unsigned int` (some programs pass a sign-extended `int`).
#[inline]
fn low(request: c_ulong) -> u32 {
    (request & 0xffff_ffff) as u32
}

extern "C" fn before_fork() {
    table::before_fork();
}

extern "C" fn after_fork() {
    table::after_fork();
}
