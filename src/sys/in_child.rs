//! What a child does for us: what may end the process that tries it, or needs a table of descriptors of its own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::ForkResult;

use super::fd::{duplicate_from, place};
use super::process::{Ending, exit_at_once, fork, pidfd_of, see_end_of, send_signal};

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

/// How an epoll of another process knows a socket.
#[derive(Debug)]
pub(crate) struct EpollEntry {
    pub(crate) epoll: OwnedFd,
    /// Of the socket, in that process.
    pub(crate) number: RawFd,
    pub(crate) events: u32,
    pub(crate) data: u64,
}

/// Add `socket` to these epolls in a child: EPOLL_CTL_ADD of epoll_ctl(2). It ends with 0, or with an errno.
///
/// The kernel knows an entry by the file and by the number that it had in the table of the process that added it (epoll(7),
/// Questions and answers): the child has it at that number.
pub(crate) fn add_to_epolls(entries: Vec<EpollEntry>, socket: impl AsFd) -> Ending {
    // An epoll may have the number of a socket: they are put above those.
    let above = entries.iter().map(|entry| entry.number).max().unwrap_or(0) + 1;
    in_child(|| {
        let moved =
            entries.into_iter().map(|entry| Ok(EpollEntry { epoll: duplicate_from(&entry.epoll, above)?, ..entry }));
        let added = moved.collect::<nix::Result<Vec<EpollEntry>>>().and_then(|entries| {
            // SAFETY: the child ends, and no owner of what was there uses it any more.
            entries.iter().try_for_each(|entry| unsafe { add(entry, &socket) })
        });
        added.err().map_or(0, |errno| errno as u8)
    })
}

/// # Safety
/// As of `place`: what is open at the number of the entry is closed.
unsafe fn add(entry: &EpollEntry, socket: impl AsFd) -> nix::Result<()> {
    // SAFETY: the caller promises just this.
    unsafe { place(&socket, entry.number) }?;
    let mut event = libc::epoll_event { events: entry.events, u64: entry.data };
    let (epoll, operation) = (entry.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD);
    // SAFETY: the kernel reads the event, which lives through the call.
    match Errno::result(unsafe { libc::epoll_ctl(epoll, operation, entry.number, &raw mut event) }) {
        // By a call that was interrupted, or by another number of the same epoll.
        Err(Errno::EEXIST) => Ok(()),
        added => added.map(drop),
    }
}
