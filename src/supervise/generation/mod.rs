//! One generation of the server: its processes, from the fork to the last of them.

pub(crate) mod child;
pub(crate) mod notify_socket;
pub(crate) mod ready;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;
use log::debug;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id as WaitId, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpgid};

use crate::kernel::members::{Members, strangers};
use crate::kernel::processes::{Process, State, Table};
use crate::supervise::generation::child::{Child, Start};
use crate::supervise::generation::notify_socket::Inbox;
use crate::supervise::generation::ready::Watch;
use crate::supervise::plan::{Id, Moment};
use crate::sys;

/// A generation that has been started and of which something may be left.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: Id,
    pub(crate) child: Child,
    pub(crate) inbox: Inbox,
    /// While it gets ready.
    pub(crate) watch: Option<Watch>,
    pub(crate) members: Members,
    pub(crate) started: Moment,
    /// Everything of it is to end at once.
    pub(crate) killed: bool,
    /// How its main process ended; it stays unreaped until nothing is left, so that its group keeps its number.
    pub(crate) ended: Option<Ending>,
    /// Somebody else sent a message to its notify socket.
    pub(crate) heard_stranger: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(u8),
    /// By this signal, real-time ones included.
    Signaled(i32),
}

impl Ending {
    /// As the shell has it.
    pub(crate) fn status(self) -> u8 {
        match self {
            Ending::Exited(status) => status,
            Ending::Signaled(signal) => 128 + signal as u8,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Exited(status) => write!(f, "ended with status {status}"),
            Ending::Signaled(signal) => match Signal::try_from(*signal) {
                Ok(signal) => write!(f, "was ended by {signal}"),
                Err(_) => write!(f, "was ended by signal {signal}"),
            },
        }
    }
}

impl Generation {
    /// Start one.
    pub(crate) fn start(mut start: Start, mut watch: Watch, now: Moment) -> Result<Generation> {
        let inbox = Inbox::open()?;
        start.variables.push(CString::new(format!("NOTIFY_SOCKET={}", inbox.address()?))?);
        let id = start.generation;
        let child = start.start(watch.pipe_for_child())?;
        watch.started(child.pid);
        let members = Members::of(child.pid);
        Ok(Generation {
            id,
            child,
            inbox,
            watch: Some(watch),
            members,
            started: now,
            killed: false,
            heard_stranger: false,
            ended: None,
        })
    }

    /// One that a predecessor of this supervisor started. Who belongs to it is found out anew.
    pub(crate) fn resumed(
        id: Id,
        child: Child,
        inbox: Inbox,
        watch: Option<Watch>,
        started: Moment,
        ended: Option<Ending>,
    ) -> Generation {
        let mut members = Members::of(child.pid);
        if ended.is_some() {
            members.end_main();
        }
        Generation { id, child, inbox, watch, members, started, killed: false, heard_stranger: false, ended }
    }

    /// What becomes readable when the main process ends, until that was seen.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.ended.is_none().then(|| self.child.pidfd.as_fd())
    }

    /// How the main process ended, if it just did. It is not reaped.
    pub(crate) fn see_end(&mut self) -> Option<Ending> {
        if self.ended.is_some() {
            return None;
        }
        let ending = match sys::see_end(&self.child.pidfd) {
            Ok(None) => return None,
            Ok(Some((libc::CLD_EXITED, status))) => Ending::Exited(status as u8),
            Ok(Some((_, signal))) => Ending::Signaled(signal),
            // Somebody else reaped it: how it ended is not to be known.
            Err(errno) => {
                debug!("generation {}: {errno}", self.id);
                Ending::Exited(0)
            }
        };
        self.members.end_main();
        self.ended = Some(ending);
        self.ended
    }

    /// Ask it to stop: its main process, or when that has ended, whatever is left of it.
    pub(crate) fn retire(&mut self, signal: Signal) {
        if self.killed {
            self.kill();
        } else if self.ended.is_none() {
            let sent = sys::send_signal(&self.child.pidfd, signal as i32);
            // A stopped process would never see the signal.
            let continued = sys::send_signal(&self.child.pidfd, Signal::SIGCONT as i32);
            debug!("generation {}: {signal}: {sent:?}, continued: {continued:?}", self.id);
        } else {
            self.signal_all(signal);
            self.signal_all(Signal::SIGCONT);
        }
    }

    /// End everything that is left of it; to be repeated for who was born meanwhile.
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        self.signal_all(Signal::SIGKILL);
    }

    /// Signal everything that is left of it.
    fn signal_all(&self, signal: Signal) {
        // The main process, ended or not, is not reaped: the group's number is still its own.
        ignore_gone(killpg(self.child.pid, signal));
        for process in self.members.alive_processes().filter(|process| process.group != self.child.pid) {
            signal_process(process, signal);
        }
    }

    /// Is anything left of it but its unreaped main process?
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some() && self.members.alive().is_empty()
    }

    /// Reap the main process; the last thing to be done.
    pub(crate) fn reap(self) {
        // Somebody else may have.
        let _ = waitpid(self.child.pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Signal a process that is no child of ours and may have ended: through a descriptor that is opened while the number
/// is seen to be still its own.
fn signal_process(process: &Process, signal: Signal) {
    let Ok(pidfd) = sys::pidfd_of(process.pid) else { return };
    if Process::read(process.pid).is_some_and(|now| now.started == process.started) {
        ignore_gone(sys::send_signal(&pidfd, signal as i32));
    }
}

fn ignore_gone(sent: nix::Result<()>) {
    if let Err(errno) = sent
        && errno != Errno::ESRCH
    {
        debug!("cannot signal: {errno}");
    }
}

/// Learn who belongs to whom, and reap what nobody else will: orphans that came to us as their reaper.
pub(crate) fn survey(generations: &mut [Generation], checks: &[Pid]) {
    let held = |pid: Pid, generations: &[Generation]| {
        checks.contains(&pid) || generations.iter().any(|generation| generation.child.pid == pid)
    };
    // Without /proc only the main processes are known.
    let Ok(table) = Table::read() else { return reap_unseen(|pid| held(pid, generations)) };
    for generation in generations.iter_mut() {
        generation.members.learn(&table);
    }
    let own = Pid::this();
    let all: Vec<&Members> = generations.iter().map(|generation| &generation.members).collect();
    let unknown: Vec<Process> = strangers(&table, own, &all).copied().collect();
    for stranger in unknown {
        adopt(generations, &stranger);
    }
    for orphan in table.children(own).filter(|child| child.state == State::Zombie && !held(child.pid, generations)) {
        let _ = waitpid(orphan.pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// Reap who has ended, up to the first that is `held`: it hides those behind it until it is reaped itself.
fn reap_unseen(held: impl Fn(Pid) -> bool) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(WaitId::All, flags)
        && let Some(pid) = status.pid().filter(|pid| !held(*pid))
    {
        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
    }
}

/// A process that broke all ties still has the environment of its generation, whose notify socket is like no other.
fn adopt(generations: &mut [Generation], stranger: &Process) {
    let Ok(environment) = std::fs::read(format!("/proc/{}/environ", stranger.pid)) else { return };
    let owner = generations.iter_mut().find(|generation| {
        generation.inbox.address().is_ok_and(|address| {
            let variable = format!("NOTIFY_SOCKET={address}");
            environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
        })
    });
    if let Some(generation) = owner {
        generation.members.adopt(stranger);
    }
}

/// Is `pid` one of this process' generation, and not merely a number that was?
pub(crate) fn has_member(generation: &Generation, pid: Pid) -> bool {
    // The group is the kernel's word also on a process that is too new to be known, or that /proc hides.
    let in_group = getpgid(Some(pid)) == Ok(generation.child.pid);
    in_group || generation.members.alive().contains(&pid) && kill(pid, None) != Err(Errno::ESRCH)
}
