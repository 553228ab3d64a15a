//! The descriptors of one generation: the one list from which polling, waking, handing on and resuming all follow.
//!
//! A new one is a role here and a line where it is woken.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::sys::Claimed;

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The main process; readable when it has ended.
    Pidfd,
    /// The pipe that carries the exec error, if exec failed.
    ExecError,
    /// The notify socket.
    Notify,
    /// The pipe of `--ready fd:N`.
    Ready,
    /// The socket over which the notifier of its bind(2)s comes.
    NotifierChannel,
    /// What reports its bind(2)s.
    Notifier,
    /// The events of its cgroup.
    Cgroup,
    /// The control socket's connection to a supervisor that lent its sockets.
    Lender,
    /// The request of `--ready http:PATH`, which is never handed on.
    #[serde(skip)]
    Probe,
    /// One that another version of this program had.
    #[serde(other)]
    Other,
}

/// All of them, close-on-exec.
#[derive(Debug, Default)]
pub(crate) struct Descriptors(Vec<(Role, OwnedFd)>);

/// One of them in a state that is handed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedDescriptor {
    role: Role,
    fd: RawFd,
}

impl Descriptors {
    pub(crate) fn add(&mut self, role: Role, fd: OwnedFd) {
        self.0.push((role, fd));
    }

    pub(crate) fn get(&self, role: Role) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|(other, _)| *other == role).map(|(_, fd)| fd.as_fd())
    }

    pub(crate) fn close(&mut self, role: Role) {
        self.0.retain(|(other, _)| *other != role);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        self.0.iter().map(|(role, fd)| (*role, fd.as_fd()))
    }

    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> Vec<SavedDescriptor> {
        self.iter().map(|(role, fd)| SavedDescriptor { role, fd: fd.as_raw_fd() }).collect()
    }

    /// What a predecessor saved; one that this version has no use for is closed.
    ///
    /// # Errors
    /// EBADF if one is not there.
    pub(crate) fn resume(saved: Vec<SavedDescriptor>, claimed: &mut Claimed) -> nix::Result<Descriptors> {
        let mut descriptors = Descriptors::default();
        for SavedDescriptor { role, fd } in saved {
            let fd = claimed.take(fd)?;
            if role != Role::Other {
                descriptors.add(role, fd);
            }
        }
        Ok(descriptors)
    }
}
