//! What a child does for us: what may end the process that tries it, or needs a table of descriptors of its own.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid};

use super::fd::{duplicate_from, place};
use super::process::{Ending, exit_at_once, fork, pidfd_of, see_end_of, send_signal, state_of};
use super::signal::{Disposition, disposition, set_disposition};

/// How often a child is looked at, in milliseconds.
const INTERVAL: u16 = 50;
/// It is held if it was not running at so many looks in a row.
const HELD: u32 = 10;
/// So many looks are enough, also where it never gets a processor: three seconds, for a supervisor does nothing else then.
const LOOKS: u32 = 60;

/// Fork; the child does `act` and ends with the status that it returns.
///
/// # Errors
/// ETIMEDOUT if something holds it, and what fork(2) says.
pub(crate) fn in_child(act: impl FnOnce() -> u8) -> nix::Result<Ending> {
    // Where SIGCHLD is ignored, as whoever started us may do, there is nothing to wait for (wait(2), Notes).
    let before = disposition(libc::SIGCHLD);
    if before == Disposition::Ignored {
        set_disposition(Signal::SIGCHLD, Disposition::Default)?;
    }
    // SAFETY: this program has one thread.
    let ending = match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => await_in_time(child),
        Ok(ForkResult::Child) => {
            // SAFETY: this operation takes integers only. Its end is to leave no core file.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
            exit_at_once(act())
        }
        Err(errno) => Err(errno),
    };
    if before == Disposition::Ignored {
        set_disposition(Signal::SIGCHLD, before)?;
    }
    ending
}

/// It ends at once, by itself or by a filter. What it looks at can hold it, or a debugger, and holds us no longer than
/// this. On a busy machine it may only be late.
fn await_in_time(child: Pid) -> nix::Result<Ending> {
    if let Ok(pidfd) = pidfd_of(child) {
        let mut held = 0;
        for _ in 0..LOOKS {
            if ends_within(&pidfd, INTERVAL) {
                return reaped(child);
            }
            // Running, or waiting for a processor.
            held = if state_of(child) == Some(b'R') { 0 } else { held + 1 };
            if held == HELD {
                break;
            }
        }
        let _ = send_signal(&pidfd, child, libc::SIGKILL);
        if ends_within(&pidfd, INTERVAL) {
            let _ = reaped(child);
        }
        // If it still cannot end, a supervisor reaps it with the orphans.
        return Err(Errno::ETIMEDOUT);
    }
    reaped(child)
}

fn ends_within(pidfd: impl AsFd, milliseconds: u16) -> bool {
    poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(milliseconds)) == Ok(1)
}

fn reaped(child: Pid) -> nix::Result<Ending> {
    let ending = see_end_of(child);
    let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    ending.ok_or(Errno::ETIMEDOUT)
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
///
/// # Errors
/// As `in_child`.
pub(crate) fn add_to_epolls(entries: Vec<EpollEntry>, socket: impl AsFd) -> nix::Result<Ending> {
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
