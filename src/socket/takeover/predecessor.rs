//! The process that is to be succeeded, held by a pidfd so that its number cannot be another's.

use std::fmt;
use std::fs;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::kernel::holders::name_of;
use crate::kernel::processes::Process;
use crate::sys;

/// The process.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pub(crate) pid: Pid,
    /// In clock ticks since boot.
    pub(crate) started: u64,
    /// As ps(1) shows it.
    pub(crate) name: String,
    pub(crate) pidfd: OwnedFd,
    /// Generations of the same supervisor that drain, for one that was killed left them alone.
    pub(crate) earlier: Vec<Predecessor>,
    /// It is a supervisor that lent its sockets.
    pub(crate) lender: Option<Lender>,
}

/// What is needed of a supervisor that lent its sockets.
#[derive(Debug)]
pub(crate) struct Lender {
    /// It takes them back when this is closed, unless it was told to stop.
    pub(crate) connection: OwnedFd,
    /// The slots that its generations have, beside the one that serves.
    pub(crate) used: Vec<usize>,
    /// Its control socket, if it was lent, too.
    pub(crate) control: Option<OwnedFd>,
}

impl Predecessor {
    /// The process of this number, which started then if that is known; none if it has ended.
    pub(crate) fn of(pid: Pid, started: Option<u64>) -> Result<Option<Predecessor>> {
        let pidfd = match sys::pidfd_of(pid) {
            Err(Errno::ESRCH) => return Ok(None),
            // The number of a thread.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(None),
            pidfd => pidfd.with_context(|| format!("cannot take over from pid {pid}"))?,
        };
        // What is read after it was opened is of the process that it leads to, or that has ended.
        let Some(process) = Process::read(pid) else { return Ok(None) };
        let is_it = started.is_none_or(|started| started == process.started);
        Ok(is_it.then(|| Predecessor {
            pid,
            started: process.started,
            name: name_of(pid),
            pidfd,
            earlier: vec![],
            lender: None,
        }))
    }

    /// The same with every descriptor of it at a number from `lowest` on, clear of those that the program has.
    pub(crate) fn clear_of_program(self, lowest: RawFd) -> Predecessor {
        let moved = |fd| sys::moved_from(fd, lowest);
        let lender = self.lender.map(|Lender { connection, used, control }| Lender {
            connection: moved(connection),
            used,
            control: control.map(moved),
        });
        let earlier = self.earlier.into_iter().map(|earlier| earlier.clear_of_program(lowest)).collect();
        Predecessor { pidfd: moved(self.pidfd), earlier, lender, ..self }
    }

    /// Is it a supervisor of this program, as its name shows?
    pub(crate) fn is_supervisor(&self) -> bool {
        is_supervisor_name(&self.name)
    }

    /// Is it in the network namespace that we are in?
    pub(super) fn is_of_our_network(&self) -> bool {
        let network = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let its = network(&self.pid.to_string());
        its.is_none() || its == network("self")
    }
}

/// Is a process of this name one of this program, whatever release it is?
pub(crate) fn is_supervisor_name(name: &str) -> bool {
    name.starts_with("handoff-run")
}

impl fmt::Display for Predecessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Predecessor { pid, name, .. } = self;
        if name.is_empty() { write!(f, "pid {pid}") } else { write!(f, "pid {pid} ({name})") }
    }
}
