//! What is watched of a generation while another takes over from it, or it from another: whether something still waits for
//! it, and whether it still has its sockets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Drain;
use crate::kernel::connections::{held_by, open_connections};
use crate::kernel::descriptors::{SocketInode, are_open_to_us, sockets};
use crate::kernel::socket_info::{States, addresses};
use crate::supervise::generation::Generation;
use crate::supervise::plan::EARLIER;
use crate::supervise::sockets::Sockets;
use crate::sys::Timestamp;

/// The first look comes at once, each further one after half as long again, up to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(2);
const LAST_BACKOFF: Duration = Duration::from_millis(500);
/// How often it is seen whether one that has not settled still has its sockets.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Looks take at most this part of the processor's time, unless that would make them rarer than this.
const COST_RATIO: u32 = 50;
const LONGEST_SPARING: Duration = Duration::from_secs(60);
/// What was seen once is looked at again after this.
const SECOND_LOOK: Duration = Duration::from_millis(10);

/// What is being watched.
#[derive(Debug)]
pub(super) struct Handover {
    what: What,
    /// The last look showed what counts when it is seen twice: a process that ends, or forks, is in between for a moment.
    was_seen: bool,
    /// When to look again.
    next: Timestamp,
    backoff: Duration,
}

#[derive(Debug)]
enum What {
    /// It serves, or is on trial: whether it still has these sockets.
    Sockets(Vec<SocketInode>),
    /// It was told to stop while clients waited for it: whether it still has its sockets.
    Waiting,
    /// It was relieved: whether something still waits for it, or is connected to it.
    Release(Drain),
}

impl Generation {
    /// It can serve, and has its sockets: watch whether it keeps them.
    pub(crate) fn note_sockets(&mut self, all: &Sockets) {
        let had = self.held(&all.set(self.share).inodes);
        self.watch_for(What::Sockets(had), Timestamp::ZERO);
    }

    /// Those of `inodes` that its processes have open.
    fn held(&self, inodes: &[SocketInode]) -> Vec<SocketInode> {
        let open: Vec<SocketInode> = self.members.alive().into_iter().flat_map(sockets).collect();
        inodes.iter().copied().filter(|inode| open.contains(inode)).collect()
    }

    /// Those of its sockets that its processes have, where that can be seen.
    pub(crate) fn still_held(&self, all: &Sockets) -> Option<Vec<SocketInode>> {
        are_open_to_us(&self.members.alive()).then(|| self.held(&all.set(self.share).inodes))
    }

    /// It was relieved just now: these clients are its own, but for the few that came since.
    pub(crate) fn note_present(&mut self, all: &Sockets) {
        self.present = all.peers(States::BEGUN).map(addresses).ok();
    }

    /// It has settled.
    pub(crate) fn settle(&mut self) {
        self.handover = None;
    }

    /// It was relieved: watch until nothing waits for it, or with `idle` until it has no connection.
    pub(crate) fn begin_release(&mut self, how: Drain, now: Timestamp) {
        self.watch_for(What::Release(how), now);
    }

    fn watch_for(&mut self, what: What, next: Timestamp) {
        self.handover = Some(Handover { what, was_seen: false, next, backoff: FIRST_BACKOFF });
    }

    /// It is told to stop: how many clients still wait for it, if it was watched.
    pub(crate) fn end_release(&mut self, all: &Sockets) -> usize {
        let waiting = match self.handover.take().map(|handover| handover.what) {
            Some(What::Release(_)) => all.waiting(self.share) + self.still_made(all),
            _ => 0,
        };
        if waiting > 0 {
            self.watch_for(What::Waiting, Timestamp::ZERO);
        }
        waiting
    }

    /// It was told to stop by a predecessor of this supervisor: clients may wait for it.
    pub(crate) fn resume_waiting(&mut self, all: &Sockets) {
        if all.waiting(self.share) > 0 {
            self.watch_for(What::Waiting, Timestamp::ZERO);
        }
    }

    /// It was relieved, and clients wait for it: has it given up a socket that they may wait on? Then those that it still has.
    pub(crate) fn given_up(&mut self, all: &Sockets, now: Timestamp) -> Option<Vec<SocketInode>> {
        // What clients wait on is none of its sockets.
        if self.is_earlier() {
            return None;
        }
        let is_told = match self.handover.as_ref()?.what {
            What::Sockets(_) => return None,
            What::Release(_) => false,
            What::Waiting => true,
        };
        let is_waited_for = all.waiting(self.share) + self.still_made(all) > 0;
        let held = self.still_held(all).filter(|_| is_waited_for);
        let handover = self.handover.as_mut()?;
        if is_told {
            handover.next = now + LOOK_INTERVAL;
            if !is_waited_for {
                self.handover = None;
                return None;
            }
        }
        let is_missing = held.as_ref().is_some_and(|held| held.len() < all.set(self.share).inodes.len());
        held.filter(|_| is_missing && std::mem::replace(&mut handover.was_seen, is_missing))
    }

    /// When to look at it again.
    pub(crate) fn next_look(&self) -> Option<Timestamp> {
        self.handover.as_ref().map(|handover| handover.next)
    }

    /// That look took so much of the processor.
    pub(crate) fn spare_looks(&mut self, cost: Duration, now: Timestamp) {
        if let Some(handover) = self.handover.as_mut().filter(|handover| !handover.was_seen) {
            handover.next = handover.next.max(now + (cost * COST_RATIO).min(LONGEST_SPARING));
        }
    }

    /// It has not settled: has it given up a socket that it had?
    pub(crate) fn has_left(&mut self, all: &Sockets, now: Timestamp) -> bool {
        if !matches!(&self.handover, Some(Handover { what: What::Sockets(_), .. })) {
            return false;
        }
        let held = self.held(&all.set(self.share).inodes);
        let is_seen = are_open_to_us(&self.members.alive());
        let connections = self.connections(all);
        let Some(Handover { what: What::Sockets(had), was_seen, next, .. }) = &mut self.handover else { return false };
        let is_missing = is_seen && had.iter().any(|inode| !held.contains(inode));
        if !is_missing {
            self.last_held = connections;
        }
        *next = now + if is_missing { SECOND_LOOK } else { LOOK_INTERVAL };
        // A process that ends closes everything first; its end is seen before the second look.
        std::mem::replace(was_seen, is_missing) && is_missing
    }

    /// It was relieved: may it be told to stop?
    pub(crate) fn is_released(&mut self, all: &Sockets, now: Timestamp) -> bool {
        let Some(handover) = &mut self.handover else { return false };
        let What::Release(how) = handover.what else { return false };
        handover.backoff = (handover.backoff * 3 / 2).min(LAST_BACKOFF);
        handover.next = now + handover.backoff;
        // The queue is looked at once more: a connection that has been made since is in it.
        let is_waited_for = !self.is_earlier()
            && (all.waiting(self.share) > 0 || self.still_made(all) > 0 || all.waiting(self.share) > 0);
        if is_waited_for || how == Drain::Signal {
            return !is_waited_for;
        }
        // A server that forks for each connection may just have closed its own copy.
        let is_idle = self.is_idle(all);
        let Some(handover) = &mut self.handover else { return false };
        if is_idle {
            handover.next = now + SECOND_LOOK;
        }
        std::mem::replace(&mut handover.was_seen, is_idle) && is_idle
    }

    /// Is it one that a supervisor left which is gone, before the one that served?
    fn is_earlier(&self) -> bool {
        self.id >= EARLIER
    }

    /// How many of the connections that were being made when it was relieved still are.
    fn still_made(&mut self, all: &Sockets) -> usize {
        if !self.handshakes.is_empty()
            && let Ok(now) = all.peers(States::HANDSHAKE).map(addresses)
        {
            self.handshakes.retain(|client| now.contains(client));
        }
        self.handshakes.len()
    }

    /// Has it no connection any more? Where it cannot be seen what its processes hold: none of those that there were when it
    /// was relieved.
    fn is_idle(&mut self, all: &Sockets) -> bool {
        let listeners = all.set(self.share).listeners;
        // Of sockets that were let go of, it is not known.
        let Some(open) = open_connections(&listeners).ok().filter(|_| !listeners.is_empty()) else { return false };
        let members = self.members.alive();
        if are_open_to_us(&members) {
            return held_by(&members, &open) == 0;
        }
        let (Some(present), Ok(now)) = (&mut self.present, all.peers(States::CONNECTED)) else { return false };
        let now = now.into_iter().filter(|peer| peer.is_accepted);
        let now: BTreeSet<SocketAddr> = now.map(|peer| peer.address).collect();
        present.retain(|client| now.contains(client));
        present.is_empty()
    }
}
