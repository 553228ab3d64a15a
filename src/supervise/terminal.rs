//! The controlling terminal that there was at start. A shell that loses it passes the hang-up on by kill(2), which looks
//! like a request to reload.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::supervise::poll::{Source, Table};
use crate::sys::Timestamp;

/// A SIGHUP within this time after the terminal went is for that.
const RECENT: Duration = Duration::from_secs(1);

/// The terminal, or when it went.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    /// Open while it is there; it hangs up when it goes.
    open: Option<File>,
    gone: Option<Timestamp>,
}

impl Terminal {
    /// The one that there is, if there is one.
    pub(crate) fn open() -> Terminal {
        let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        Terminal { open: OpenOptions::new().read(true).custom_flags(flags).open("/dev/tty").ok(), gone: None }
    }

    /// Go on in the place of a predecessor, which had one or not.
    pub(crate) fn resume(had_one: bool, now: Timestamp) -> Terminal {
        let terminal = if had_one { Terminal::open() } else { Terminal::default() };
        let gone = (had_one && terminal.open.is_none()).then_some(now);
        Terminal { gone, ..terminal }
    }

    /// For the supervisor that takes the place of this one: is it still there?
    pub(crate) fn is_there(&self) -> bool {
        self.open.is_some()
    }

    /// Add what is waited for to the round's table: POLLHUP, which needs no asking.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        if let Some(terminal) = &self.open {
            table.events(Source::Terminal, terminal.as_fd(), PollFlags::empty());
        }
    }

    /// See whether it went.
    pub(crate) fn observe(&mut self, now: Timestamp) {
        let has_hung_up = self.open.as_ref().is_some_and(|terminal| {
            let mut fds = [PollFd::new(terminal.as_fd(), PollFlags::empty())];
            poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].any().unwrap_or(false)
        });
        if has_hung_up {
            self.open = None;
            self.gone = Some(now);
        }
    }

    /// Did it go just now?
    pub(crate) fn went(&mut self, now: Timestamp) -> bool {
        self.observe(now);
        self.gone.is_some_and(|gone| now.saturating_sub(gone) <= RECENT)
    }
}
