//! Signals by number and in sets, real-time ones included, which nix does not have.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;

use nix::sys::signal::{SigAction, SigSet, Signal, sigaction};

/// sigaction(2) to an action that runs no code: the default, ignoring, or what was found before.
pub(crate) fn set_action(signal: Signal, action: &SigAction) -> nix::Result<SigAction> {
    // SAFETY: this program installs no handler, so whatever the action is, no handler of its own runs.
    unsafe { sigaction(signal, action) }
}

/// Is a signal of this number ignored?
pub(crate) fn is_ignored(number: c_int) -> bool {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, so that nothing is changed, and the old one is written where there is room for it.
    let asked = unsafe { libc::sigaction(number, ptr::null(), found.as_mut_ptr()) };
    // SAFETY: every part of it may be zero, as it is if sigaction failed.
    asked == 0 && unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// The numbers of the real-time signals, which nix's enumeration of signals does not have.
pub(crate) fn real_time_signals() -> impl Iterator<Item = c_int> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// The signals in `signals`, by number, real-time ones too.
pub(crate) fn numbers_of(signals: &SigSet) -> Vec<c_int> {
    let set: libc::sigset_t = *signals.as_ref();
    // SAFETY: `set` is an initialised set, and the numbers are of signals.
    (1..=libc::SIGRTMAX()).filter(|number| unsafe { libc::sigismember(&raw const set, *number) } == 1).collect()
}

/// The opposite; numbers of no signal are left out.
pub(crate) fn set_of(numbers: &[c_int]) -> SigSet {
    let mut set: libc::sigset_t = *SigSet::empty().as_ref();
    for number in numbers {
        // SAFETY: `set` is an initialised set; a wrong number is refused with EINVAL.
        unsafe { libc::sigaddset(&raw mut set, *number) };
    }
    // SAFETY: the set was initialised by nix and sigaddset keeps it so.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}
