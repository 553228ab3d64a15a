//! What one round of the loop waits for: a table of descriptors, and the earliest deadline.
//!
//! Every part of the supervisor adds what it waits for, and is woken by the source that it named.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::supervise::generation::descriptors::Role;
use crate::supervise::plan::Id;
use crate::sys::Timestamp;

/// Between two rounds where poll(2) itself fails.
const BACKOFF: Duration = Duration::from_millis(100);

/// The owner of a descriptor that poll(2) found ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Signals,
    Terminal,
    Generation(Id, Role),
    /// The program that a watcher has let go.
    Successor,
    /// A listener was shut down, or its file changed.
    Listener,
    /// The control socket.
    Control,
    /// A client, by its place in the list.
    Client(usize),
    /// The program that reads the state before it takes over.
    Probe,
    /// The service manager has read what it was given.
    Store,
}

/// One round's descriptors and deadline.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    sources: Vec<Source>,
    fds: Vec<PollFd<'a>>,
    deadline: Option<Timestamp>,
}

impl<'a> Table<'a> {
    pub(crate) fn new() -> Table<'a> {
        Table { sources: Vec::new(), fds: Vec::new(), deadline: None }
    }

    /// Wake `source` when `fd` can be read.
    pub(crate) fn input(&mut self, source: Source, fd: BorrowedFd<'a>) {
        self.events(source, fd, PollFlags::POLLIN);
    }

    /// Wake `source` when any of `flags` holds of `fd`.
    pub(crate) fn events(&mut self, source: Source, fd: BorrowedFd<'a>, flags: PollFlags) {
        self.sources.push(source);
        self.fds.push(PollFd::new(fd, flags));
    }

    /// Begin the next round at `deadline` at the latest.
    pub(crate) fn until(&mut self, deadline: Option<Timestamp>) {
        self.deadline = self.deadline.into_iter().chain(deadline).min();
    }

    /// One poll(2): the sources that something happened to.
    pub(crate) fn wait(mut self, now: Timestamp) -> Vec<(Source, PollFlags)> {
        match poll(&mut self.fds, timeout(self.deadline, now)) {
            Ok(_) => (),
            Err(Errno::EINTR) => return vec![],
            // As when the limit of open files was lowered below what we have. Every source is woken, for none of them
            // waits, but for one that asks for nothing: it would take that for a hang-up.
            Err(errno) => {
                debug!("poll: {errno}");
                thread::sleep(BACKOFF);
                let asked = self.fds.iter().map(PollFd::events);
                return self.sources.into_iter().zip(asked).filter(|(_, flags)| !flags.is_empty()).collect();
            }
        }
        let flags = self.fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        self.sources.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect()
    }
}

/// Rounded up, so as not to wake too early and again.
fn timeout(deadline: Option<Timestamp>, now: Timestamp) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let wait = deadline.saturating_sub(now).as_micros().div_ceil(1000);
    PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
}
