//! The sockets of a supervisor, and which of them each generation serves on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::saved;
use crate::socket::listener::{Listener, SavedListener};
use crate::sys::Claimed;
use crate::target::Program;
use crate::target::handout::Handout;

/// The listeners, at the numbers where every generation finds them.
#[derive(Debug)]
pub(crate) struct Sockets {
    listeners: Vec<Listener>,
    /// In the same order.
    inodes: Vec<SocketInode>,
    /// What was announced to us and is no socket.
    beside: Vec<Listener>,
    /// Other inherited descriptors, which every generation inherits too.
    others: Vec<OwnedFd>,
}

/// Which set of sockets a generation serves on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Share {
    /// The one that all generations share.
    #[default]
    #[serde(other)]
    One,
}

/// The sockets that one generation serves on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SocketSet<'a> {
    pub(crate) listeners: &'a [Listener],
    /// In the same order.
    pub(crate) inodes: &'a [SocketInode],
}

/// The sockets in a state that is handed on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedSockets {
    #[serde(deserialize_with = "saved::lenient")]
    listeners: Vec<SavedListener>,
    #[serde(deserialize_with = "saved::lenient")]
    beside: Vec<SavedListener>,
    /// None: everything that is not taken.
    pub(crate) others: Option<Vec<RawFd>>,
}

impl Sockets {
    pub(crate) fn new(given: Vec<Listener>, others: Vec<OwnedFd>) -> nix::Result<Sockets> {
        let (listeners, beside): (Vec<_>, _) = given.into_iter().partition(Listener::is_socket);
        let inodes = listeners.iter().map(SocketInode::of).collect::<nix::Result<_>>()?;
        Ok(Sockets { listeners, inodes, beside, others })
    }

    /// The set that the next generation is to serve on.
    pub(crate) fn next_share(&self) -> Share {
        Share::One
    }

    pub(crate) fn set(&self, share: Share) -> SocketSet<'_> {
        match share {
            Share::One => SocketSet { listeners: &self.listeners, inodes: &self.inodes },
        }
    }

    /// What a generation that serves on this set is given.
    pub(crate) fn handout(&self, share: Share, program: &Program) -> Handout<'_> {
        let mut given: Vec<&Listener> = self.set(share).listeners.iter().chain(&self.beside).collect();
        // As they were announced: each is at its number.
        given.sort_by_key(|given| given.as_fd().as_raw_fd());
        Handout::of(given, program)
    }

    /// Every listener once, as the user asked for them.
    pub(crate) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Is this the number of a descriptor that every generation has?
    pub(crate) fn has_number(&self, number: RawFd) -> bool {
        let given = self.handed_on().map(|fd| fd.as_raw_fd());
        given.chain(self.others.iter().map(AsRawFd::as_raw_fd)).any(|fd| fd == number)
    }

    /// Servers call listen(2) again, which may shorten the backlog for all generations.
    pub(crate) fn restore_backlogs(&self) {
        self.listeners.iter().for_each(Listener::restore_backlog);
    }

    /// What the supervisor that takes the place of this one needs open.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // The others were never close-on-exec.
        self.listeners.iter().chain(&self.beside).map(AsFd::as_fd)
    }

    pub(crate) fn save(&self) -> SavedSockets {
        SavedSockets {
            listeners: self.listeners.iter().map(Listener::save).collect(),
            beside: self.beside.iter().map(Listener::save).collect(),
            others: Some(self.others.iter().map(AsRawFd::as_raw_fd).collect()),
        }
    }

    /// What a predecessor held. A listener that cannot be resumed is reported and left out: the rest serves on.
    pub(crate) fn resume(saved: SavedSockets, claimed: &mut Claimed) -> Sockets {
        let mut resume = |saved| -> Result<(Listener, SocketInode)> {
            let listener = Listener::resume(saved, claimed)?;
            let inode = SocketInode::of(&listener)?;
            Ok((listener, inode))
        };
        let resumed =
            saved.listeners.into_iter().filter_map(|saved| resume(saved).map_err(|error| saved::lost(&error)).ok());
        let (listeners, inodes) = resumed.unzip();
        let mut resume = |saved| Listener::resume_beside(saved, claimed).map_err(|error| saved::lost(&error)).ok();
        let beside = saved.beside.into_iter().filter_map(&mut resume).collect();
        let others = saved.others.into_iter().flatten().filter_map(|number| claimed.take_as_it_is(number)).collect();
        Sockets { listeners, inodes, beside, others }
    }

    /// The same with `others` inherited by every generation.
    pub(crate) fn with_others(self, others: Vec<OwnedFd>) -> Sockets {
        Sockets { others, ..self }
    }
}
