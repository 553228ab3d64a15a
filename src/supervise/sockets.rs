//! The sockets of a supervisor, and which of them each generation serves on.

mod begin;
mod given;
pub(crate) mod intercepted;
mod names;
mod save;
mod succession;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::Result;
use nix::sys::inotify::Inotify;
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{Peer, States};
use crate::socket::group::{Group, Look, Route, Trial};
use crate::socket::interception::Versions;
use crate::socket::listener::Listener;
use crate::socket::steering::Client;
use crate::supervise::plan::Id;
use crate::supervise::poll::{Source, Table};
use names::watch_names;

/// The sockets of all addresses; the first of each is at the number where every generation finds it.
#[derive(Debug)]
pub(crate) struct Sockets {
    listed: Vec<Listed>,
    /// What was announced to us and is no socket.
    beside: Vec<Listener>,
    /// Reports that the names of their files change.
    names: Option<Inotify>,
    /// Other inherited descriptors, which every generation inherits too.
    others: Vec<OwnedFd>,
    /// Where new connections go.
    route: Route,
    /// How a generation can be asked that does not serve yet.
    reach: Reach,
    /// The last generation that had each slot.
    owners: Vec<Option<Id>>,
    /// Sets that generations of the supervisor have which is succeeded.
    reserved: Vec<Share>,
    /// A successor has them, too, and alone decides what becomes of them.
    is_lent: bool,
    /// Sockets that no generation has at this number are here or above.
    lowest: RawFd,
}

/// The sockets of one address.
#[derive(Debug)]
struct Listed {
    group: Group,
    /// Whether its IP versions are still to be chosen.
    versions: Versions,
    /// The place of its SPEC; one that was bound beside another has the same.
    spec: usize,
}

/// Which set of sockets a generation serves on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Share {
    /// Of each address this one, or the only one.
    Slot(usize),
    /// The one that all generations share.
    #[default]
    #[serde(other)]
    One,
}

/// The sockets that one generation serves on.
#[derive(Clone, Debug)]
pub(crate) struct SocketSet<'a> {
    pub(crate) listeners: Vec<&'a Listener>,
    /// In the same order.
    pub(crate) inodes: Vec<SocketInode>,
}

/// How a generation can be asked that does not serve yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Its first socket, if that is its own.
    pub(crate) first: Option<SocketAddr>,
    /// The address from which its own sockets are reached, while others reach those of the one that serves.
    pub(crate) source: Option<Ipv4Addr>,
}

impl Share {
    pub(crate) fn slot(self) -> usize {
        match self {
            Share::One => 0,
            Share::Slot(slot) => slot,
        }
    }
}

impl Sockets {
    fn looked_after(listed: Vec<Listed>, beside: Vec<Listener>, others: Vec<OwnedFd>, lowest: RawFd) -> Sockets {
        let groups = || listed.iter().map(|listed| &listed.group);
        let names = watch_names(groups().filter_map(|group| group.listener(0).created()));
        // One that was bound just now begins at the first slot, whatever the others do.
        let serving = groups().map(Group::serving).max().unwrap_or(0);
        let route = Route { serving, ..Route::default() };
        let reach = reach(groups());
        Sockets {
            listed,
            beside,
            names,
            others,
            route,
            reach,
            owners: vec![],
            reserved: vec![],
            is_lent: false,
            lowest,
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        self.listed.iter().map(|listed| &listed.group)
    }

    fn groups_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.listed.iter_mut().map(|listed| &mut listed.group)
    }

    /// Keep the names of the files that a predecessor made, which may have had no way to.
    pub(crate) fn keep_names(&mut self) {
        self.groups_mut().for_each(Group::keep_name);
    }

    /// Wake when a listener is shut down, its file loses a name, or somebody waits where nobody is.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        if self.is_lent {
            return;
        }
        for (listener, flags) in self.groups().flat_map(Group::polled) {
            table.events(Source::Listener, listener.as_fd(), flags);
        }
        if let Some(names) = &self.names {
            table.input(Source::Listener, names.as_fd());
        }
    }

    /// See what generations did to their sockets, and repair it.
    pub(crate) fn look_after(&mut self) -> Vec<Look> {
        if self.is_lent {
            return vec![];
        }
        // What changed is seen below, whatever the events are; they are only taken out.
        while self.names.as_ref().is_some_and(|names| names.read_events().is_ok()) {}
        let lowest = self.lowest;
        self.groups_mut().map(|group| group.look_after(lowest)).collect()
    }

    /// What could not be repaired of each listener, in their order.
    pub(crate) fn problems(&self) -> impl Iterator<Item = Option<&str>> {
        self.groups().map(Group::problem)
    }

    /// Has each generation a socket of its own at some address?
    pub(crate) fn is_any_steered(&self) -> bool {
        self.groups().any(Group::is_steered)
    }

    /// Has it at every address?
    pub(crate) fn is_all_steered(&self) -> bool {
        self.groups().all(Group::is_steered)
    }

    /// The addresses at which all generations share a socket.
    pub(crate) fn shared(&self) -> impl Iterator<Item = &Listener> {
        self.groups().filter(|group| !group.is_steered()).map(|group| group.listener(0))
    }

    /// The set where new connections go.
    pub(crate) fn serving(&self) -> Share {
        if self.is_any_steered() { Share::Slot(self.route.serving) } else { Share::One }
    }

    /// A set that is none of `used`, nor the one where new connections go.
    ///
    /// # Errors
    /// If all are used and no further socket can be bound.
    pub(crate) fn unused(&mut self, used: &[Share]) -> Result<Share> {
        let Some(slots) = self.groups().find(|group| group.is_steered()).map(Group::slots) else {
            return Ok(Share::One);
        };
        let has = |used: &[Share], slot: usize| used.contains(&Share::Slot(slot));
        let is_used = |slot: usize| slot == self.route.serving || has(used, slot) || has(&self.reserved, slot);
        let unused = (0..slots).find(|slot| !is_used(*slot)).unwrap_or(slots);
        let lowest = self.lowest;
        for group in self.groups_mut() {
            // One that failed here before may have grown already.
            if group.is_steered() && group.slots() <= unused {
                group.grow(lowest)?;
            }
        }
        Ok(Share::Slot(unused))
    }

    /// This set is given to a generation. What waits there is dropped, unless that generation is what it waits for; how
    /// much that was.
    pub(crate) fn give(&mut self, share: Share, id: Id) -> usize {
        let dropped = match share {
            Share::Slot(slot) => self.groups_mut().map(|group| group.give(slot)).sum(),
            Share::One => 0,
        };
        self.assign(share, id);
        dropped
    }

    /// This generation has this set.
    pub(crate) fn assign(&mut self, share: Share, id: Id) {
        let slot = share.slot();
        self.owners.resize(self.owners.len().max(slot + 1), None);
        self.owners[slot] = Some(id);
    }

    /// The last generation that had a slot.
    pub(crate) fn owner(&self, slot: usize) -> Option<Id> {
        self.owners.get(slot).copied().flatten()
    }

    /// Listeners of others, at the address of a steered socket, whom new connections may go to.
    pub(crate) fn strangers(&self) -> Vec<(String, SocketInode)> {
        let ours = self.inodes();
        let strangers = self.groups().flat_map(Group::beside);
        strangers.filter(|(_, inode)| !ours.contains(inode)).collect()
    }

    /// How many connections, or whether datagrams, wait for this set.
    pub(crate) fn waiting(&self, share: Share) -> usize {
        self.groups().map(|group| group.waiting(share.slot())).sum()
    }

    /// The clients whose connections to a steered address are in these states.
    ///
    /// # Errors
    /// If the kernel does not list them, as where no descriptor is left.
    pub(crate) fn peers(&self, states: States) -> nix::Result<Vec<Peer>> {
        let lists: Vec<Vec<Peer>> = self.groups().map(|group| group.peers(states)).collect::<nix::Result<_>>()?;
        Ok(lists.concat())
    }

    /// Of this set nobody has the sockets that are not `held`.
    pub(crate) fn free_closed(&mut self, share: Share, held: &[SocketInode]) {
        let slot = share.slot();
        self.groups_mut().filter(|group| !held.contains(&group.inode(slot))).for_each(|group| group.give_up(slot));
    }

    /// Nobody has any but the sets in `used`, and the one where new connections go.
    pub(crate) fn free_all_but(&mut self, used: &[Share]) {
        let (Route { serving, .. }, lowest, is_lent) = (self.route, self.lowest, self.is_lent);
        let used: Vec<Share> = used.iter().chain(&self.reserved).copied().collect();
        for group in self.groups_mut().filter(|_| !is_lent) {
            let free = (0..group.slots()).filter(|slot| *slot != serving && !used.contains(&Share::Slot(*slot)));
            free.collect::<Vec<_>>().into_iter().for_each(|slot| group.free(slot, lowest));
        }
    }

    /// Let all new connections go to this set.
    ///
    /// # Errors
    /// If the kernel refuses that at some address, of which the others are steered nevertheless.
    pub(crate) fn steer(&mut self, share: Share) -> Result<()> {
        self.follow(Route { serving: share.slot(), ..Route::default() })
    }

    /// Let `trial` get its share of new connections, and the set `serving` the rest.
    ///
    /// # Errors
    /// As of `steer`.
    pub(crate) fn try_out(&mut self, serving: Share, trial: Trial) -> Result<()> {
        self.follow(Route { serving: serving.slot(), trial: Some(trial), ..self.route })
    }

    /// Let this client reach this set, and no other that did before.
    ///
    /// # Errors
    /// As of `steer`.
    pub(crate) fn except(&mut self, exception: Option<(Client, Share)>) -> Result<()> {
        let exception = exception.map(|(client, share)| (client, share.slot()));
        if self.route.exception == exception { Ok(()) } else { self.follow(Route { exception, ..self.route }) }
    }

    /// The TCP and UDP sockets that are not reached from the source of `reach`.
    pub(crate) fn beyond_source(&self) -> impl Iterator<Item = &Listener> {
        let beyond = self.groups().filter(|group| group.is_steered() && !group.takes_local_v4());
        beyond.map(|group| group.listener(0))
    }

    /// How a generation can be asked that does not serve yet.
    pub(crate) fn reach(&self) -> Reach {
        self.reach
    }

    fn follow(&mut self, route: Route) -> Result<()> {
        // Each of them, whatever became of the others.
        if self.is_lent {
            return Ok(());
        }
        let outcomes: Vec<Result<()>> = self.groups_mut().map(|group| group.steer(route)).collect();
        let outcome: Result<()> = outcomes.into_iter().collect();
        // A probe must not go out where it cannot be led: the next round tries again.
        self.route = if outcome.is_ok() { route } else { Route { exception: None, ..route } };
        outcome
    }

    pub(crate) fn set(&self, share: Share) -> SocketSet<'_> {
        let groups = || self.groups();
        SocketSet {
            listeners: groups().map(|group| group.listener(share.slot())).collect(),
            inodes: groups().map(|group| group.inode(share.slot())).collect(),
        }
    }

    /// Servers call listen(2) again, which may shorten the backlog for all generations.
    pub(crate) fn restore_backlogs(&self) {
        self.groups().for_each(Group::restore_backlogs);
    }

    /// What the supervisor that takes the place of this one needs open.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // The others were never close-on-exec.
        let also = self.groups().flat_map(|group| group.listener(0).also());
        self.groups().flat_map(Group::sockets).chain(&self.beside).map(AsFd::as_fd).chain(also.map(AsFd::as_fd))
    }

    /// The same with `others` inherited by every generation.
    pub(crate) fn with_others(self, others: Vec<OwnedFd>) -> Sockets {
        Sockets { others, ..self }
    }
}

fn reach<'a>(groups: impl Iterator<Item = &'a Group> + Clone) -> Reach {
    let takes_v4 = groups.clone().any(Group::takes_local_v4);
    let first = groups.clone().next().and_then(Group::reached_at);
    Reach { first, source: takes_v4.then(own_source).flatten() }
}

/// An address of this machine that clients do not have, where it can be used.
fn own_source() -> Option<Ipv4Addr> {
    let address = Ipv4Addr::new(127, 0, 0, 2);
    UdpSocket::bind((address, 0)).is_ok().then_some(address)
}
