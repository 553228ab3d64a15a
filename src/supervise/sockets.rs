//! The sockets of a supervisor, and which of them each generation serves on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::Result;
use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::saved;
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::socket_file::Created;
use crate::socket::upkeep::{Finding, Upkeep};
use crate::supervise::diagnosis::Whereabouts;
use crate::supervise::poll::{Source, Table};
use crate::sys::Claimed;
use crate::target::handout::Handout;
use crate::target::{Announce, Program};

/// The listeners, at the numbers where every generation finds them.
#[derive(Debug)]
pub(crate) struct Sockets {
    listeners: Vec<Listener>,
    /// In the same order.
    inodes: Vec<SocketInode>,
    /// What was announced to us and is no socket.
    beside: Vec<Listener>,
    /// What keeps each of them alive, in the same order.
    upkeep: Vec<Upkeep>,
    /// Reports that the names of their files change.
    names: Option<Inotify>,
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
        Ok(Sockets::looked_after(listeners, inodes, beside, others))
    }

    fn looked_after(
        mut listeners: Vec<Listener>,
        inodes: Vec<SocketInode>,
        beside: Vec<Listener>,
        others: Vec<OwnedFd>,
    ) -> Sockets {
        let upkeep = listeners.iter_mut().map(Upkeep::of).collect();
        let names = watch_names(listeners.iter().filter_map(Listener::created));
        Sockets { listeners, inodes, upkeep, names, beside, others }
    }

    /// Keep the names of the files that a predecessor made, which may have had no way to.
    pub(crate) fn keep_names(&mut self) {
        self.listeners.iter_mut().for_each(Listener::keep_name);
    }

    /// Wake when a listener is shut down or its file loses a name.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        for (listener, upkeep) in self.listeners.iter().zip(&self.upkeep) {
            if upkeep.is_watched() {
                // POLLHUP comes unasked.
                table.events(Source::Listener, listener.as_fd(), PollFlags::empty());
            }
        }
        if let Some(names) = &self.names {
            table.input(Source::Listener, names.as_fd());
        }
    }

    /// See what generations did to what they share, and repair it.
    pub(crate) fn look_after(&mut self) -> Vec<Finding> {
        // What changed is seen below, whatever the events are; they are only taken out.
        while self.names.as_ref().is_some_and(|names| names.read_events().is_ok()) {}
        let listeners = self.listeners.iter_mut().zip(&mut self.upkeep);
        listeners.flat_map(|(listener, upkeep)| upkeep.look_after(listener)).collect()
    }

    /// What could not be repaired of each listener, in their order.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Option<&str>> {
        self.upkeep.iter().map(Upkeep::problem)
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

    /// Where a server finds them.
    pub(crate) fn whereabouts(&self, program: &Program) -> Whereabouts {
        let announced = program.announce != Announce::Nothing;
        Whereabouts { first_fd: program.first_fd, count: self.listeners.len(), announced }
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
        Sockets::looked_after(listeners, inodes, beside, others)
    }

    /// The same with `others` inherited by every generation.
    pub(crate) fn with_others(self, others: Vec<OwnedFd>) -> Sockets {
        Sockets { others, ..self }
    }
}

/// Watch for changes of the files' names.
fn watch_names<'a>(files: impl Iterator<Item = &'a Created>) -> Option<Inotify> {
    let mut files = files.peekable();
    files.peek()?;
    let unwatched =
        |error| warn!("the paths of Unix sockets are looked after only when generations come and go: {error}");
    let names = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(unwatched).ok()?;
    files.for_each(|file| watch_name(&names, file).unwrap_or_else(unwatched));
    Some(names)
}

/// Watch the file itself, for its folder may be busy. One that was given to another user may not be watched; then the
/// folder has to do.
fn watch_name(names: &Inotify, file: &Created) -> nix::Result<()> {
    let of_file = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DONT_FOLLOW;
    let watched = names.add_watch(file.watched(), of_file).or_else(|errno| {
        let of_folder = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVED_TO;
        if errno == Errno::EACCES { names.add_watch(file.folder(), of_folder) } else { Err(errno) }
    });
    watched.map(|_| debug!("{} is watched", file.watched().display()))
}
