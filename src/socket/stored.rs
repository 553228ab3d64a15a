//! What the service manager's descriptor store gave back: sockets, in whatever order, and the state that says what the
//! steered ones of them are.
//!
//! All of one address count as one socket: the first is adopted as any other, the rest goes with it.

mod restore;

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use log::warn;
use nix::errno::Errno;
use nix::sys::socket::bind;

use crate::kernel::descriptors::SocketInode;
use crate::saved;
use crate::socket::announced::Announced;
use crate::socket::candidate::{Candidate, Candidates};
use crate::socket::endpoint::Endpoint;
use crate::socket::group::SavedGroup;
use crate::socket::interception::Versions;
use crate::socket::listener::{SavedListener, Sharing};
use crate::socket::saved_sockets::SavedSockets;
use crate::socket::spec::{FdName, Spec};
use crate::socket::state_file::StateFile;
use crate::socket::store_name;
use crate::sys::{self, Claimed};

/// Who has the sockets beside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    Nobody,
    /// The service manager, in its descriptor store.
    Manager,
}

/// What a line makes of the sockets that came back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) specs: &'a [Spec],
    pub(crate) sharing: Sharing,
    pub(crate) keeper: Keeper,
    /// What generations are not given gets numbers from here on.
    pub(crate) lowest: RawFd,
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// What the state says.
    saved: SavedSockets,
    /// What it names and is not adopted by itself, by the numbers that it has for that.
    pub(crate) members: Claimed,
    /// Steered sockets that are alone at their address by now.
    alone: Vec<SocketInode>,
    /// Where the state is.
    pub(crate) state: Option<StateFile>,
    /// What the store holds, as far as it is ours, but for that state.
    known: Vec<(FdName, SocketInode)>,
}

/// What is known of the sockets of one address.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) first: SavedListener,
    /// The other ones.
    pub(crate) group: Option<SavedGroup>,
    pub(crate) versions: Versions,
}

/// What is no socket has this in the place of its inode.
const NO_SOCKET: SocketInode = SocketInode(0);

impl Demand<'_> {
    /// Can it have a socket for each generation?
    fn is_steered(self) -> bool {
        self.sharing == Sharing::Steered && !self.specs.is_empty()
    }
}

impl Stored {
    /// Take out of `candidates` what is not to be adopted by itself, and announce the rest by the names of its SPECs.
    pub(crate) fn take_from(candidates: &mut Candidates, announced: &mut Announced, demand: Demand) -> Stored {
        let mut stored = Stored::default();
        if announced.count == 0 {
            return stored;
        }
        let state = stored.take_state(candidates, announced, demand.lowest);
        stored.know(candidates, announced, demand);
        let mut slots = take_slots(candidates, announced);
        let outcome = match state {
            None if slots.is_empty() => Ok(vec![]),
            None => Err("it is missing".to_owned()),
            Some(Err(error)) => Err(format!("{error:#}")),
            Some(Ok(state)) => stored.restore(state, candidates, &mut slots, demand),
        };
        let serving = outcome.unwrap_or_else(|why| {
            warn!("the state of the stored sockets cannot be used, they are served as far as they are known: {why}");
            vec![]
        });
        stored.put_back(slots, candidates, announced, &serving);
        if !demand.is_steered() {
            stored.alone.clear();
        }
        stored
    }

    /// Take what is no socket and ours.
    fn take_state(
        &mut self,
        candidates: &mut Candidates,
        announced: &mut Announced,
        lowest: RawFd,
    ) -> Option<Result<SavedSockets>> {
        let mut state = None;
        let numbers: Vec<RawFd> = candidates.others.iter().map(AsRawFd::as_raw_fd).collect();
        for number in numbers {
            let name = announced.name_of(number).filter(store_name::is_reserved);
            let Some((name, Ok(Some(fd)))) = name.map(|name| (name, candidates.take_other(number))) else { continue };
            announced.rename(number, None);
            let is_state = name.as_str() == store_name::STATE;
            if is_state {
                state = Some(self.open_state(out_of_the_way(fd, lowest)));
            }
            if !is_state || self.state.is_none() {
                self.known.push((name, NO_SOCKET));
            }
        }
        state
    }

    fn open_state(&mut self, fd: OwnedFd) -> Result<SavedSockets> {
        let (file, text) = StateFile::open(fd)?;
        let state = saved::parse(&text).context("it is none of this version")?;
        self.state = Some(file);
        Ok(state)
    }

    /// Note what the store holds, which without a keeper it is to close. What was announced may be of another origin, and is
    /// then unknown to the store by that name. What a server of before has shut down listens again, or is closed.
    fn know(&mut self, candidates: &mut Candidates, announced: &mut Announced, demand: Demand) {
        let is_keeping = demand.keeper == Keeper::Manager;
        let names = if is_keeping { store_name::of_specs(demand.specs) } else { vec![] };
        candidates.sockets.retain_mut(|socket| {
            let Some(name) = announced.name_of(socket.number) else { return true };
            let inode = SocketInode(socket.inode);
            let is_slot = store_name::base(&name, inode).is_some();
            let is_old = !is_slot && !socket.serves && names.contains(&name) && !socket.is_connected();
            if is_old && !revive(socket) {
                announced.rename(socket.number, None);
            } else if !(is_slot || is_keeping && socket.serves) {
                return true;
            }
            self.known.push((name, inode));
            is_slot || socket.serves
        });
    }

    /// A predecessor of this program stored its sockets with this state, which it may not have handed on: these, each by its
    /// inode and its name.
    pub(crate) fn resume(state: Option<StateFile>, held: &[String]) -> Stored {
        let known = held.iter().filter_map(|item| {
            let (inode, name) = item.split_once(' ')?;
            Some((FdName::announced(name)?, SocketInode(inode.parse().ok()?)))
        });
        let mut stored = Stored { state, known: known.collect(), ..Stored::default() };
        if stored.state.is_none() {
            stored.known.extend(no_socket(store_name::STATE));
        }
        stored
    }

    /// Is this socket one of those that generations have one each of?
    pub(crate) fn is_steered(&self, inode: SocketInode) -> bool {
        let is_it = |group: &SavedGroup| self.inode(group.first) == Some(inode);
        self.alone.contains(&inode) || self.saved.steered.iter().any(is_it)
    }

    /// Close what belongs to no socket of these; the names of what the store is to close.
    pub(crate) fn release(&mut self, adopted: &[u64]) -> Vec<FdName> {
        let mut wanted: Vec<SocketInode> = adopted.iter().copied().map(SocketInode).collect();
        for at in 0..self.saved.listeners.len() {
            let main = self.inode(self.number(self.main(at)));
            let is_adopted = main.is_some_and(|main| wanted.contains(&main));
            for number in self.numbers(at) {
                match self.inode(number) {
                    Some(inode) if is_adopted => wanted.push(inode),
                    // As far as it is there.
                    _ => drop(self.members.take(number)),
                }
            }
        }
        let is_unwanted = |known: &mut (FdName, SocketInode)| !wanted.contains(&known.1);
        self.known.extract_if(.., is_unwanted).map(|(name, _)| name).collect()
    }

    /// What is known of the address that begins with this socket, and then of those that were bound beside it.
    pub(crate) fn take(&mut self, first: SocketInode) -> Vec<Kept> {
        let mut kept = vec![];
        for at in 0..self.saved.listeners.len() {
            let number = self.number(at);
            if self.inode(self.number(self.main(at))) == Some(first) {
                let group = self.saved.steered.iter().position(|group| group.first == number);
                kept.push(Kept {
                    first: self.saved.listeners[at].clone(),
                    group: group.map(|at| self.saved.steered.swap_remove(at)),
                    versions: self.saved.versions.get(at).copied().unwrap_or_default(),
                });
            }
        }
        kept
    }

    /// What the store holds, as far as it is ours and is not taken from here.
    pub(crate) fn take_known(&mut self) -> Vec<(FdName, SocketInode)> {
        let mut known = std::mem::take(&mut self.known);
        if self.state.take().is_some() {
            known.extend(no_socket(store_name::STATE));
        }
        known
    }

    /// The number that the state has for the first socket of an address.
    fn number(&self, at: usize) -> RawFd {
        self.saved.listeners[at].number()
    }

    /// Those of all sockets of an address.
    fn numbers(&self, at: usize) -> Vec<RawFd> {
        let first = self.number(at);
        let group = self.saved.steered.iter().find(|group| group.first == first);
        group.map_or_else(|| vec![first], SavedGroup::numbers)
    }

    /// The socket of this number.
    fn inode(&self, number: RawFd) -> Option<SocketInode> {
        let inodes = &self.saved.inodes;
        inodes.iter().find(|(_, of)| *of == number).map(|(inode, _)| SocketInode(*inode as u64))
    }

    /// The first address of the same SPEC.
    fn main(&self, at: usize) -> usize {
        let spec = |at: usize| self.saved.spec_of.get(at).copied().unwrap_or(at);
        (0..at).find(|other| spec(*other) == spec(at)).unwrap_or(at)
    }
}

/// An entry for this name.
fn no_socket(name: &str) -> Option<(FdName, SocketInode)> {
    FdName::announced(name).map(|name| (name, NO_SOCKET))
}

/// The sockets that have names of slots, announced by the names of their SPECs.
fn take_slots(candidates: &mut Candidates, announced: &mut Announced) -> Vec<Candidate> {
    let is_slot = |socket: &mut Candidate| {
        let name = announced.name_of(socket.number);
        let base = name.and_then(|name| store_name::base(&name, SocketInode(socket.inode)));
        base.map(|base| announced.rename(socket.number, Some(base))).is_some()
    };
    candidates.sockets.extract_if(.., is_slot).collect()
}

/// Where generations are given nothing. A limit of open files may be lower.
fn out_of_the_way(fd: OwnedFd, lowest: RawFd) -> OwnedFd {
    sys::duplicate_from(&fd, lowest).unwrap_or(fd)
}

/// Listen again where a server has shut down a TCP socket; does it serve then?
fn revive(socket: &mut Candidate) -> bool {
    if !socket.serves
        && let Some(endpoint @ Endpoint::Inet { .. }) = &socket.endpoint
        && let Ok(address) = endpoint.to_sockaddr()
        && sys::disconnect(&socket.fd).is_ok()
    {
        // A port that the kernel chose is given up with the listening; of another one this is EINVAL.
        let bound = bind(socket.fd.as_raw_fd(), address.as_ref());
        let is_bound = bound.is_ok() || bound == Err(Errno::EINVAL);
        socket.serves = is_bound && sys::listen(&socket.fd, libc::c_int::MAX).is_ok();
    }
    socket.serves
}
