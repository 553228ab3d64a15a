//! What reports the bind(2)s of a generation.

use std::os::fd::BorrowedFd;

use log::warn;
use nix::errno::Errno;

use crate::supervise::generation::Generation;
use crate::supervise::generation::descriptors::Role;
use crate::sys;

impl Generation {
    /// Receive the notifier of its bind(2)s; at the end of the file its exec error shows why there is none.
    pub(crate) fn receive_notifier(&mut self) {
        let Some(channel) = self.descriptors.get(Role::NotifierChannel) else { return };
        match sys::receive_descriptor(channel) {
            Err(Errno::EAGAIN) => return,
            Ok(Some(notifier)) => {
                // Without it, answers are only slower.
                let _ = sys::wake_here(&notifier);
                self.descriptors.add(Role::Notifier, notifier);
            }
            Ok(None) => (),
            Err(errno) => warn!("generation {}: cannot receive what reports its bind(2)s: {errno}", self.id),
        }
        self.descriptors.close(Role::NotifierChannel);
    }

    /// Are its bind(2)s reported, or will they be?
    pub(crate) fn is_intercepted(&self) -> bool {
        [Role::Notifier, Role::NotifierChannel].into_iter().any(|role| self.descriptors.get(role).is_some())
    }

    /// What reports its bind(2)s.
    pub(crate) fn notifier(&self) -> Option<BorrowedFd<'_>> {
        self.descriptors.get(Role::Notifier)
    }

    /// Close the notifier: no process with the filter is left.
    pub(crate) fn close_notifier(&mut self) {
        self.descriptors.close(Role::Notifier);
    }
}
