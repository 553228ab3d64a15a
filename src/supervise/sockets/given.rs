//! What generations are given of the sockets, and where they find it.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use crate::kernel::descriptors::SocketInode;
use crate::socket::group::Group;
use crate::socket::listener::Listener;
use crate::supervise::diagnosis::Whereabouts;
use crate::supervise::sockets::{Share, Sockets};
use crate::target::handout::Handout;
use crate::target::{Announce, Handing, Program};

impl Sockets {
    /// What a generation that serves on this set is given.
    pub(crate) fn handout(&self, share: Share, program: &Program) -> Handout<'_> {
        // As they were announced: the first of each address, and what is no socket, is at its number.
        let number = |listener: &Listener| listener.as_fd().as_raw_fd();
        let first = self.groups().enumerate().filter(|(at, _)| !self.is_beside(*at)).map(|(_, group)| group);
        let sockets = first.map(|group| (number(group.listener(0)), group.listener(share.slot())));
        let mut given: Vec<_> = sockets.chain(self.beside.iter().map(|beside| (number(beside), beside))).collect();
        given.sort_by_key(|(number, _)| *number);
        Handout::of(given.into_iter().map(|(_, listener)| listener), program)
    }

    /// Where a server finds them.
    pub(crate) fn whereabouts(&self, program: &Program) -> Whereabouts {
        if program.handing == Handing::Interception {
            let address = |listener: &Listener| listener.endpoint().map(|endpoint| endpoint.to_string());
            return Whereabouts::Intercepted(self.listeners().filter_map(|listener| address(listener).ok()).collect());
        }
        let announced = program.announce != Announce::Nothing;
        Whereabouts::Descriptors { first_fd: program.first_fd, count: self.listed.len(), announced }
    }

    /// Those of all sockets.
    pub(crate) fn inodes(&self) -> Vec<SocketInode> {
        self.groups().flat_map(Group::inodes).collect()
    }

    /// One listener for each address, as the user asked for them.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.groups().map(|group| group.listener(0))
    }

    /// Let go of what is no socket of ours: another process, which is to be the program, has it.
    pub(crate) fn leave_rest(&mut self) {
        self.beside.clear();
        self.others.clear();
    }

    /// Is this the number of a descriptor that every generation has from the start?
    pub(crate) fn has_number(&self, number: RawFd) -> bool {
        let given = self.listeners().chain(&self.beside).map(|listener| listener.as_fd().as_raw_fd());
        given.chain(self.others.iter().map(AsRawFd::as_raw_fd)).any(|fd| fd == number)
    }
}
