//! Signals by number and in sets, real-time ones included, which nix does not have.

use std::ffi::{c_int, c_ulong};
use std::mem::MaybeUninit;
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};

/// The disposition of a signal, as far as exec keeps it: this program has no handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    Default,
    Ignored,
}

/// sigaction(2).
pub(crate) fn set_disposition(signal: Signal, disposition: Disposition) -> nix::Result<()> {
    let handler = match disposition {
        Disposition::Default => SigHandler::SigDfl,
        Disposition::Ignored => SigHandler::SigIgn,
    };
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither of the two runs a handler.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// The present disposition of the signal with this number.
pub(crate) fn disposition(number: c_int) -> Disposition {
    let mut found = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, so that nothing is changed, and the old one is written where there is room for
    // it.
    let asked = unsafe { libc::sigaction(number, ptr::null(), found.as_mut_ptr()) };
    // SAFETY: every part of it may be zero, as it is if sigaction failed.
    let ignored = asked == 0 && unsafe { found.assume_init() }.sa_sigaction == libc::SIG_IGN;
    if ignored { Disposition::Ignored } else { Disposition::Default }
}

/// The numbers of the real-time signals, which nix's enumeration of signals does not have: as glibc counts them, with
/// which most servers are built. musl keeps one more for itself.
pub(crate) fn real_time_signals() -> impl Iterator<Item = c_int> {
    34..=libc::SIGRTMAX()
}

/// The kernel's set of signals: what a libc's begins with, and without the signals that a libc keeps out of its own.
type SignalBits = [c_ulong; 64 / c_ulong::BITS as usize];

/// Where the bit of a signal is.
fn place_of(number: c_int) -> (usize, c_ulong) {
    let at = number as u32 - 1;
    ((at / c_ulong::BITS) as usize, 1 << (at % c_ulong::BITS))
}

/// The signals in `signals`, by number, real-time ones too.
pub(crate) fn numbers_of(signals: &SigSet) -> Vec<c_int> {
    let set: *const libc::sigset_t = signals.as_ref();
    // SAFETY: a libc's set is made of unsigned longs, and there are more of them than in the kernel's.
    let bits = unsafe { set.cast::<SignalBits>().read() };
    let contains = |number: &c_int| {
        let (word, bit) = place_of(*number);
        bits[word] & bit != 0
    };
    (1..=libc::SIGRTMAX()).filter(contains).collect()
}

/// The opposite; numbers of no signal are left out.
pub(crate) fn set_of(numbers: &[c_int]) -> SigSet {
    let mut bits = SignalBits::default();
    for number in numbers.iter().filter(|number| (1..=libc::SIGRTMAX()).contains(*number)) {
        let (word, bit) = place_of(*number);
        bits[word] |= bit;
    }
    let mut set: libc::sigset_t = *SigSet::empty().as_ref();
    // SAFETY: a libc's set is made of unsigned longs, and there are more of them than in the kernel's.
    unsafe { (&raw mut set).cast::<SignalBits>().write(bits) };
    // SAFETY: every combination of signals is a set, and nix initialised the rest.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// rt_sigprocmask(2): what was blocked before. A libc's own function hides the signals that it keeps for itself.
pub(crate) fn change_mask(how: SigmaskHow, signals: &SigSet) -> nix::Result<SigSet> {
    let set: *const libc::sigset_t = signals.as_ref();
    let mut old: libc::sigset_t = *SigSet::empty().as_ref();
    // SAFETY: the kernel reads and writes sets of its own size, with which those of the libc begin.
    let done =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how as c_int, set, &raw mut old, size_of::<SignalBits>()) };
    Errno::result(done)?;
    // SAFETY: nix initialised the set, and the kernel wrote one.
    Ok(unsafe { SigSet::from_sigset_t_unchecked(old) })
}
