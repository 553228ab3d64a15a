//! Which socket is which, by the state; and what is done with those that it does not know.

use std::os::fd::AsRawFd;

use nix::sys::socket::{Shutdown, shutdown};

use super::{Demand, Stored, out_of_the_way, revive};
use crate::kernel::descriptors::SocketInode;
use crate::socket::announced::Announced;
use crate::socket::candidate::{Candidate, Candidates};
use crate::socket::endpoint::Endpoint;
use crate::socket::group::SavedGroup;
use crate::socket::saved_sockets::SavedSockets;
use crate::socket::slot;
use crate::sys::Transport;

impl Stored {
    /// Take the sockets of the addresses that `state` knows. Of those that are not to be steered, the ones that served are
    /// returned.
    ///
    /// # Errors
    /// Why some of them are not taken.
    pub(super) fn restore(
        &mut self,
        mut state: SavedSockets,
        candidates: &mut Candidates,
        slots: &mut Vec<Candidate>,
        demand: Demand,
    ) -> Result<Vec<SocketInode>, String> {
        let groups = std::mem::take(&mut state.steered);
        self.saved = state;
        let (mut serving, mut is_whole) = (vec![], true);
        for group in groups {
            serving.extend(group.serving().and_then(|number| self.inode(number)));
            // The store has none of those that were discarded.
            let group = group.without_discarded().filter(|group| self.is_there(group, slots));
            is_whole &= group.is_some();
            self.saved.steered.extend(group.filter(|_| demand.is_steered()));
        }
        for at in 0..self.saved.listeners.len() {
            let (numbers, is_main) = (self.numbers(at), self.main(at) == at);
            for (place, number) in numbers.iter().enumerate() {
                let inode = self.inode(*number);
                let found = slots.iter().position(|slot| Some(SocketInode(slot.inode)) == inode);
                let Some(found) = found.filter(|_| !is_main || numbers.len() > 1) else { continue };
                let slot = slots.swap_remove(found);
                if is_main && place == 0 {
                    // If a server has shut it down, it listens again as soon as its place is known.
                    candidates.sockets.push(Candidate { serves: true, ..slot });
                } else {
                    self.members.add(*number, out_of_the_way(slot.fd, demand.lowest));
                }
            }
        }
        if is_whole || !demand.is_steered() { Ok(serving) } else { Err("it does not fit them".to_owned()) }
    }

    fn is_there(&self, group: &SavedGroup, slots: &[Candidate]) -> bool {
        let has = |inode: SocketInode| slots.iter().any(|slot| slot.inode == inode.0);
        group.serving().is_some() && group.numbers().into_iter().all(|number| self.inode(number).is_some_and(has))
    }

    /// Of what is left adopt one socket of each address: one of `serving`, or else the one where most wait. The others are
    /// shut down.
    pub(super) fn put_back(
        &mut self,
        mut slots: Vec<Candidate>,
        candidates: &mut Candidates,
        announced: &mut Announced,
        serving: &[SocketInode],
    ) {
        while let Some(mut best) = slots.pop() {
            while let Some(at) = slots.iter().position(|slot| slot.endpoint == best.endpoint) {
                let mut other = slots.swap_remove(at);
                if rank(&other, serving) > rank(&best, serving) {
                    std::mem::swap(&mut other, &mut best);
                }
                announced.rename(other.number, None);
                // Who waits there is not left waiting, even if others have it too.
                let _ = shutdown(other.fd.as_raw_fd(), Shutdown::Both);
            }
            if !is_datagram(&best) {
                revive(&mut best);
            }
            // Once the store has closed the others, for which is waited.
            self.alone.push(SocketInode(best.inode));
            candidates.sockets.push(best);
        }
    }
}

fn rank(slot: &Candidate, serving: &[SocketInode]) -> (bool, bool, usize) {
    (serving.contains(&SocketInode(slot.inode)), slot.serves, slot::waiting(&slot.fd, is_datagram(slot)))
}

fn is_datagram(socket: &Candidate) -> bool {
    matches!(socket.endpoint, Some(Endpoint::Inet { kind: Transport::Udp, .. }))
}
