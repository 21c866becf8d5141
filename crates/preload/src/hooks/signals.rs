//! Signal handlers, so that a signal ends `KVM_RUN` with EINTR as it does on the real KVM.
//!
//! The kernel runs a handler in the middle of the embedded KVM and goes on. So each handler of the program is
//! installed as [`relay`], which tells the embedded KVM and then calls it. The program sees its own handlers
//! when it asks.

// UNSAFETY: a signal handler, and the program's pointers to `struct sigaction`.
#![expect(
    unsafe_code,
    reason = "calls of the program's handlers, and of the functions that install them"
)]

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{mem, ptr};

use libc::{SIG_DFL, SIG_ERR, SIG_IGN, sighandler_t, siginfo_t};

/// Signals are 1 to 64 (`_NSIG`).
const SIGNALS: usize = 65;

/// The program's handlers.
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(SIG_DFL) }; SIGNALS];

/// The type of libc's `sigaction`.
type Sigaction =
    unsafe extern "C-unwind" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
/// The type of libc's `signal`.
type Signal = unsafe extern "C-unwind" fn(c_int, sighandler_t) -> sighandler_t;
/// The type of a handler with SA_SIGINFO; one without it does not look at the rest.
type Handler = unsafe extern "C-unwind" fn(c_int, *mut siginfo_t, *mut c_void);

/// `sigaction`, with `next` as libc's.
pub(super) fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
    next: Sigaction,
) -> c_int {
    let before = handler(signal);
    // SAFETY: the program's pointer, which libc would read as well.
    let mut relayed = unsafe { new.as_ref() }.copied();
    if let Some(relayed) = &mut relayed {
        relayed.sa_sigaction = install(signal, relayed.sa_sigaction);
    }
    let new = relayed.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `new` is null or ours, and `old` is the program's.
    let result = unsafe { next(signal, new, old) };
    if result != 0 {
        restore(signal, before);
        return result;
    }
    // SAFETY: null, or the program's, which libc has just filled.
    if let Some(old) = unsafe { old.as_mut() }
        && is_relay(old.sa_sigaction)
    {
        old.sa_sigaction = before;
    }
    result
}

/// `signal` and its kin, with `next` as libc's.
pub(super) fn signal(signal: c_int, new: sighandler_t, next: Signal) -> sighandler_t {
    let before = handler(signal);
    let new = install(signal, new);
    // SAFETY: two numbers.
    let old = unsafe { next(signal, new) };
    if old == SIG_ERR {
        restore(signal, before);
    }
    if is_relay(old) { before } else { old }
}

/// Remembers the program's handler; what to install in its place. A signal that the program stops to handle
/// keeps its last entry: a child of `vfork`, which does just that, shares this table with its parent.
fn install(signal: c_int, new: sighandler_t) -> sighandler_t {
    let Some(place) = place(signal).filter(|_| new != SIG_DFL && new != SIG_IGN && !is_relay(new))
    else {
        return new;
    };
    place.store(new, Ordering::Release);
    relay as *const () as sighandler_t
}

fn restore(signal: c_int, before: sighandler_t) {
    if let Some(place) = place(signal) {
        place.store(before, Ordering::Release);
    }
}

fn handler(signal: c_int) -> sighandler_t {
    place(signal).map_or(SIG_DFL, |place| place.load(Ordering::Acquire))
}

fn place(signal: c_int) -> Option<&'static AtomicUsize> {
    HANDLERS.get(usize::try_from(signal).ok()?)
}

fn is_relay(handler: sighandler_t) -> bool {
    handler == relay as *const () as sighandler_t
}

/// The handler of all signals that the program handles. On x86-64 the kernel passes all three arguments,
/// whether SA_SIGINFO is set or not.
extern "C-unwind" fn relay(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    msrgate_soft::note_signal();
    let address = handler(signal);
    if address == SIG_DFL {
        return;
    }
    // SAFETY: the program installed this address as a handler.
    let handler = unsafe { mem::transmute::<usize, Handler>(address) };
    // SAFETY: the arguments are the kernel's.
    unsafe { handler(signal, info, context) };
}
