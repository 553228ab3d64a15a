//! What a child does for us: what may end the process that tries it, or needs a table of descriptors of its own.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::ForkResult;

use super::process::{Ending, exit_at_once, fork, pidfd_of, see_end_of, send_signal};
use crate::sys;

/// How long it may take, in milliseconds.
const TIMEOUT: u16 = 500;

/// Fork; the child does `act` and ends with the status that it returns; unknown if that takes too long.
pub(crate) fn in_child(act: impl FnOnce() -> u8) -> Ending {
    // SAFETY: this program has one thread.
    let child = match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            // SAFETY: this operation takes integers only. Its end is to leave no core file.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
            exit_at_once(act())
        }
        Err(_) => return Ending::Unknown,
    };
    // It ends at once, by itself or by a filter. What it looks at can hold it, or a debugger, and holds us no longer than
    // this; it is reaped with the orphans then.
    if let Ok(pidfd) = pidfd_of(child) {
        let mut end = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut end, PollTimeout::from(TIMEOUT)) == Ok(0) {
            let _ = send_signal(&pidfd, child, libc::SIGKILL);
            return Ending::Unknown;
        }
    }
    let ending = see_end_of(child).unwrap_or(Ending::Unknown);
    let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    ending
}

/// Add `socket` to `epoll`, by the `number` that it has in the process that the epoll is of: epoll_ctl(2), EPOLL_CTL_ADD.
///
/// The kernel knows a registration by the file and by the number that it had in the table of the process that registered
/// it (epoll(7), Questions and answers): it is put there first.
///
/// # Safety
/// As of `place`: what is open as `number` is closed.
pub(crate) unsafe fn add_to_epoll(
    epoll: impl AsFd,
    socket: impl AsFd,
    number: RawFd,
    events: u32,
    data: u64,
) -> nix::Result<()> {
    // SAFETY: the caller promises just this.
    unsafe { sys::place(&socket, number) }?;
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: the kernel reads the event, which lives through the call.
    let done = unsafe { libc::epoll_ctl(epoll.as_fd().as_raw_fd(), libc::EPOLL_CTL_ADD, number, &raw mut event) };
    Errno::result(done).map(drop)
}
