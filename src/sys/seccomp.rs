//! A filter of system calls that reports some of them to another process, and that process' side: seccomp_unotify(2).

use std::ffi::{c_int, c_ulong};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_ushort, sock_filter, sock_fprog};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::Pid;

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingCall {
    /// Until it is answered, or its thread is killed.
    pub(crate) id: u64,
    /// The thread that made it; none where our PID namespace does not show it.
    pub(crate) thread: Option<Pid>,
    pub(crate) arguments: [u64; 6],
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The kernel carries it out, as if it had not been asked about.
    Continue,
    /// It returns 0.
    Done,
    /// It fails.
    Fails(Errno),
}

/// What a notifier has.
#[derive(Debug)]
pub(crate) enum Notice {
    Call(PendingCall),
    /// Not now.
    Nothing,
    /// Nor ever again: every process with the filter has ended.
    End,
}

/// What the kernel may lack, tried from all flags to none: the flag for an interrupt that must not restart a
/// call which has been received (Linux 5.19), and the one that leaves speculative loads as they are (4.17).
const OPTIONAL: [c_ulong; 3] = [
    libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    0,
];

/// Filter the system calls of this process, and of all that it starts and becomes; the notifier of those that `program`
/// reports, close-on-exec. Without CAP_SYS_ADMIN this process gives up what exec could add to its privileges
/// (PR_SET_NO_NEW_PRIVS).
///
/// # Errors
/// EBUSY where a filter with a notifier is in force already, EINVAL where the kernel has none, and what a sandbox
/// answers.
pub(crate) fn filter_calls(program: &[sock_filter]) -> nix::Result<OwnedFd> {
    match install(program) {
        Err(Errno::EACCES) => {
            set_no_new_privs()?;
            install(program)
        }
        installed => installed,
    }
}

fn install(program: &[sock_filter]) -> nix::Result<OwnedFd> {
    let length = c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel does not write to it.
    let program = sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let mut outcome = Err(Errno::EINVAL);
    for optional in OPTIONAL {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | optional;
        let operation = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel copies the struct and the instructions that it points to, which live through the call.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
        outcome = Errno::result(fd);
        if outcome != Err(Errno::EINVAL) {
            break;
        }
    }
    // SAFETY: the kernel just made it for us alone.
    outcome.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Can a descriptor be put into a process whose call was reported (Linux 5.9)?
///
/// # Errors
/// EINVAL if not.
pub(crate) fn try_put(notifier: impl AsFd) -> nix::Result<()> {
    match put(&notifier, 0, &notifier, 0, 0) {
        // There is no such call.
        Err(Errno::ENOENT) => Ok(()),
        done => done,
    }
}

/// Wake us on the processor of the caller, since that waits (Linux 6.6).
pub(crate) fn wake_here(notifier: impl AsFd) -> nix::Result<()> {
    // linux/seccomp.h; libc has no name for it.
    const SYNC_WAKE_UP: libc::c_ulong = 1;
    let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
    // SAFETY: this request takes an integer.
    let done = unsafe { libc::ioctl(notifier.as_fd().as_raw_fd(), request, SYNC_WAKE_UP) };
    Errno::result(done).map(drop)
}

/// The next call that is reported; does not wait.
pub(crate) fn next_call(notifier: impl AsFd) -> nix::Result<Notice> {
    let mut fds = [PollFd::new(notifier.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let flags = fds[0].revents().unwrap_or(PollFlags::empty());
    if !flags.contains(PollFlags::POLLIN) {
        // POLLERR is an interrupted look.
        return Ok(if flags.contains(PollFlags::POLLHUP) { Notice::End } else { Notice::Nothing });
    }
    // SAFETY: the kernel wants zeroes, which every part of it may be.
    let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
    // There is one: this does not wait. Where it has been killed since, the kernel says ENOENT.
    // SAFETY: the kernel fills the struct, whose size is part of the request's number.
    match unsafe { control(&notifier, libc::SECCOMP_IOCTL_NOTIF_RECV, (&raw mut call).cast()) } {
        Err(Errno::ENOENT | Errno::EINTR) => Ok(Notice::Nothing),
        Err(errno) => Err(errno),
        Ok(()) => {
            let thread = (call.pid != 0).then(|| Pid::from_raw(call.pid as i32));
            Ok(Notice::Call(PendingCall { id: call.id, thread, arguments: call.data.args }))
        }
    }
}

/// Does the call still wait, so that what was read of its thread is that thread's?
pub(crate) fn is_pending(notifier: impl AsFd, mut id: u64) -> bool {
    // SAFETY: the kernel reads the number, which lives through the call.
    unsafe { control(notifier, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, (&raw mut id).cast()) }.is_ok()
}

/// Put a copy of `fd` into the caller at `number`, in place of what is there, with these flags of the descriptor.
///
/// # Errors
/// ENOENT if the call does not wait any more.
pub(crate) fn put(notifier: impl AsFd, id: u64, fd: impl AsFd, number: RawFd, flags: c_int) -> nix::Result<()> {
    let mut request = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: fd.as_fd().as_raw_fd() as u32,
        newfd: number as u32,
        newfd_flags: flags as u32,
    };
    // SAFETY: the kernel reads the struct, which lives through the call; the table that is written to is another's.
    unsafe { control(notifier, libc::SECCOMP_IOCTL_NOTIF_ADDFD, (&raw mut request).cast()) }
}

/// Answer a call.
///
/// # Errors
/// ENOENT if it does not wait any more.
pub(crate) fn answer(notifier: impl AsFd, id: u64, verdict: Verdict) -> nix::Result<()> {
    let (error, flags) = match verdict {
        Verdict::Continue => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE),
        Verdict::Done => (0, 0),
        Verdict::Fails(errno) => (-(errno as i32), 0),
    };
    let mut response = libc::seccomp_notif_resp { id, val: 0, error, flags: flags as u32 };
    // SAFETY: the kernel reads the struct, which lives through the call.
    unsafe { control(notifier, libc::SECCOMP_IOCTL_NOTIF_SEND, (&raw mut response).cast()) }
}

/// ioctl(2) of a notifier.
///
/// # Safety
/// `argument` must be what `request` wants.
unsafe fn control(notifier: impl AsFd, request: libc::Ioctl, argument: *mut libc::c_void) -> nix::Result<()> {
    // SAFETY: the caller promises just this.
    Errno::result(unsafe { libc::ioctl(notifier.as_fd().as_raw_fd(), request, argument) }).map(drop)
}
