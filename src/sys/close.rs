//! close(2) of what may be another process' own, too.

use std::os::fd::OwnedFd;
use std::ptr;

use libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

/// How often what waits is interrupted, in microseconds.
const INTERVAL: u16 = 10_000;

extern "C" fn interrupt(_: c_int) {}

/// Close what may be the last copy of a socket with SO_LINGER: it would wait for its peer for as long as the process said
/// that set it (socket(7)). A signal ends that.
pub(crate) fn close_in_time(fd: OwnedFd) {
    let (alarm, mut mask) = (SigSet::from(Signal::SIGALRM), SigSet::empty());
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(Signal::SIGALRM, &action) };
    // These cannot fail for valid signals.
    let _ = sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&alarm), Some(&mut mask));
    interrupt_every(INTERVAL);
    drop(fd);
    interrupt_every(0);
    if mask.contains(Signal::SIGALRM) {
        let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&alarm), None);
    }
    if let Ok(before) = before {
        // SAFETY: it is what was there.
        let _ = unsafe { sigaction(Signal::SIGALRM, &before) };
    }
}

fn interrupt_every(microseconds: u16) {
    let time = libc::timeval { tv_sec: 0, tv_usec: microseconds.into() };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the kernel reads the struct, which lives through the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}
