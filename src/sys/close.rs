//! close(2) of what may be another process' own, too.

use std::os::fd::OwnedFd;
use std::ptr;

use libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use nix::sys::socket::{getsockopt, sockopt};

use super::signal::change_mask;

/// How often what waits is interrupted, in microseconds.
const INTERVAL: u16 = 10_000;

extern "C" fn interrupt(_: c_int) {}

/// Close what may be the last copy of a socket with SO_LINGER: it would wait for its peer for as long as the process said
/// that set it (socket(7)). A signal ends that.
pub(crate) fn close_in_time(fd: OwnedFd) {
    if !lingers(&fd) {
        return;
    }
    let action = SigAction::new(SigHandler::Handler(interrupt), SaFlags::empty(), SigSet::empty());
    let Ok(mask) = change_mask(SigmaskHow::SIG_BLOCK, &SigSet::empty()) else { return };
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(Signal::SIGALRM, &action) };
    // With the first handler musl unblocks the signals that it keeps for itself, which kill whoever gets one: SIGRTMIN of other
    // libcs is one of them. They are blocked again at once. None of these fails for valid signals.
    let mut interruptible = mask;
    interruptible.remove(Signal::SIGALRM);
    let _ = change_mask(SigmaskHow::SIG_SETMASK, &interruptible);
    interrupt_every(INTERVAL);
    drop(fd);
    interrupt_every(0);
    let _ = change_mask(SigmaskHow::SIG_SETMASK, &mask);
    if let Ok(before) = before {
        // SAFETY: it is what was there.
        let _ = unsafe { sigaction(Signal::SIGALRM, &before) };
    }
}

/// Does its close wait? What is no socket does not.
fn lingers(fd: &OwnedFd) -> bool {
    getsockopt(fd, sockopt::Linger).is_ok_and(|linger| linger.l_onoff != 0 && linger.l_linger > 0)
}

fn interrupt_every(microseconds: u16) {
    let time = libc::timeval { tv_sec: 0, tv_usec: microseconds.into() };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the kernel reads the struct, which lives through the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}
