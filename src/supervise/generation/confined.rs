//! A generation in a cgroup of its own: what the kernel shows of it, however its processes hide.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::kernel::cgroup::{Cgroup, is_populated};
use crate::supervise::generation::Generation;
use crate::supervise::generation::descriptors::Role;

impl Generation {
    /// It was started in this one, which has these events.
    pub(crate) fn confine(&mut self, cgroup: Cgroup, events: OwnedFd) {
        self.descriptors.add(Role::Cgroup, events);
        self.cgroup = Some(cgroup);
    }

    /// Its own, unless it was removed: another supervisor's may have that name by now.
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        let events = self.descriptors.get(Role::Cgroup)?;
        self.cgroup.as_ref().filter(|_| is_populated(events) != Err(Errno::ENODEV))
    }

    /// The processes that are in it. One may have moved itself out: what is known of members counts besides.
    pub(crate) fn confined(&self) -> Vec<Pid> {
        self.cgroup().map(Cgroup::processes).unwrap_or_default()
    }

    /// To be waited for by POLLPRI: only when the main process has ended does anything follow from what is left.
    pub(crate) fn awaited_events(&self) -> Option<BorrowedFd<'_>> {
        self.ended.and_then(|_| self.descriptors.get(Role::Cgroup))
    }

    /// Something came or ended: it is not reported again.
    pub(crate) fn see_events(&mut self) {
        if self.descriptors.get(Role::Cgroup).is_some_and(|events| is_populated(events) == Err(Errno::ENODEV)) {
            // Somebody has removed it when all were out of it.
            self.descriptors.close(Role::Cgroup);
            self.cgroup = None;
        }
    }

    /// Is nothing left in it but what was given up?
    pub(super) fn is_vacated(&self) -> bool {
        match self.descriptors.get(Role::Cgroup).map(is_populated) {
            None | Some(Ok(false) | Err(Errno::ENODEV)) => true,
            // Another user's, where all of a cgroup cannot be killed at once.
            Some(_) if !self.unkillable.is_empty() => {
                self.confined().iter().all(|process| self.unkillable.contains(process))
            }
            Some(_) => false,
        }
    }

    /// Does the kernel report when the last of what is left ends?
    pub(crate) fn is_end_reported(&self) -> bool {
        let confined = self.confined();
        !confined.is_empty() && self.members.alive().iter().all(|process| confined.contains(process))
    }

    /// End all in it, and return the processes that this ends, also other users'.
    pub(super) fn kill_confined(&self) -> Vec<Pid> {
        let confined = self.confined();
        let killed = self.cgroup().is_some_and(|cgroup| cgroup.kill().is_ok());
        if killed { confined } else { vec![] }
    }

    /// The bytes of memory that its processes use, and the time of the processor that they have used.
    pub(crate) fn usage(&self) -> (Option<u64>, Option<Duration>) {
        let cgroup = self.cgroup();
        (cgroup.and_then(Cgroup::memory), cgroup.and_then(Cgroup::processor_time))
    }
}
