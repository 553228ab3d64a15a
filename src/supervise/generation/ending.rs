//! How a generation is ended: asked to stop, and killed if need be, in all its processes.

use std::os::fd::BorrowedFd;

use log::{debug, warn};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::kernel::cgroup::Cgroup;
use crate::kernel::processes::Process;
use crate::supervise::control::borrow;
use crate::supervise::generation::Generation;
use crate::supervise::generation::descriptors::Role;
use crate::sys;

impl Generation {
    /// Send the stop signal to the main process while it runs, then to every remaining process.
    pub(crate) fn retire(&mut self, signal: Signal) {
        self.watch = None;
        // At a stop it may still run.
        self.trial_check = None;
        if self.killed {
            self.kill();
        } else if self.descriptors.get(Role::Lender).is_some_and(|lender| borrow::announce_succession(lender).is_ok()) {
            debug!("generation {}: it was told that it has been succeeded", self.id);
            // A stopped process would never read it.
            ignore_gone(self.signal(Signal::SIGCONT as i32));
        } else if self.ended.is_none() {
            if let Err(errno) = self.signal(signal as i32)
                && errno != Errno::ESRCH
            {
                warn!("generation {}: its main process cannot be sent {signal}: {errno}", self.id);
            }
            // A stopped process would never see the signal.
            ignore_gone(self.signal(Signal::SIGCONT as i32));
        } else {
            self.signal_all(signal);
            self.signal_all(Signal::SIGCONT);
        }
    }

    /// End every remaining process; to be repeated for those that are forked meanwhile.
    pub(crate) fn kill(&mut self) {
        self.watch = None;
        self.killed = true;
        let confined = self.kill_confined();
        self.signal_all(Signal::SIGKILL);
        // Another user's by now, as after setuid(2), where we may not signal those.
        let may_not = |pid: &Pid| kill(*pid, None) == Err(Errno::EPERM) && !confined.contains(pid);
        self.unkillable = self.members.alive().into_iter().filter(may_not).collect();
    }

    /// The processes that are left because they may not be killed.
    pub(crate) fn unkillable(&self) -> &[Pid] {
        &self.unkillable
    }

    /// Is it another supervisor, which takes back what it lent unless it is told that it has been succeeded?
    pub(crate) fn is_lender(&self) -> bool {
        self.descriptors.get(Role::Lender).is_some()
    }

    /// What its main process is held by.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(Role::Pidfd)
    }

    /// Send a signal to the main process.
    pub(crate) fn signal(&self, signal: i32) -> nix::Result<()> {
        let pidfd = self.descriptors.get(Role::Pidfd).ok_or(Errno::ESRCH)?;
        match self.is_foreign {
            true => sys::send_signal_by(pidfd, signal),
            // A child is not reaped before all is over: the number is its own.
            false => sys::send_signal(pidfd, self.pid, signal),
        }
    }

    /// Send a signal to every remaining process.
    fn signal_all(&self, signal: Signal) {
        if !self.is_foreign {
            // The main process, ended or not, is not reaped: the group's number is still its own.
            ignore_gone(killpg(self.pid, signal));
        }
        let others = self.members.alive_processes().filter(|process| self.is_foreign || process.group != self.pid);
        others.for_each(|process| signal_process(process, signal, self.is_foreign));
    }

    /// Is nothing left but its unreaped main process, and what may not be killed?
    pub(crate) fn is_over(&self) -> bool {
        let is_given_up = |pid: &Pid| self.unkillable.contains(pid);
        (self.ended.is_some() || is_given_up(&self.pid))
            && self.members.alive().iter().all(is_given_up)
            && self.is_vacated()
    }

    /// Reap the main process; the last thing to be done.
    pub(crate) fn reap(self) {
        // It may have been reaped already.
        let _ = waitpid(self.pid, Some(WaitPidFlag::WNOHANG));
        if let Some(Err(error)) = self.cgroup().map(Cgroup::remove) {
            debug!("generation {}: its cgroup stays: {error}", self.id);
        }
    }
}

/// Signal a process that is no child of ours and may have ended: through a descriptor that is opened while the number
/// is seen to be still its own. One that was started by others can only be signalled so.
fn signal_process(process: &Process, signal: Signal, is_foreign: bool) {
    let Ok(pidfd) = sys::pidfd_of(process.pid) else { return };
    if Process::read(process.pid).is_some_and(|now| now.started == process.started) {
        ignore_gone(match is_foreign {
            true => sys::send_signal_by(&pidfd, signal as i32),
            false => sys::send_signal(&pidfd, process.pid, signal as i32),
        });
    }
}

fn ignore_gone(sent: nix::Result<()>) {
    if let Err(errno) = sent
        && errno != Errno::ESRCH
    {
        debug!("cannot signal: {errno}");
    }
}
