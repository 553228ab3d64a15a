//! A group that begins with a socket which another process serves on: ours join it, and leave it as it was if that process
//! is not succeeded.

use std::os::fd::RawFd;

use anyhow::{Context, Result, ensure};

use crate::kernel::descriptors::SocketInode;
use crate::socket::endpoint::Endpoint;
use crate::socket::group::repair::shut_down;
use crate::socket::group::{Group, Steered};
use crate::socket::places::Member;
use crate::socket::slot::Slot;
use crate::socket::steering::Course;
use crate::sys;

impl Group {
    /// Bind the second slot beside the first, which a process serves on. Between listen(2) and the program the kernel may lead
    /// clients to either: one that would come to the second tries again, and comes to the first. Datagrams that come to the
    /// second between bind(2) and the program wait for the successor.
    ///
    /// If there are others at that address, which of them is where is not known: then the second one gets all clients from now
    /// on, and they wait there.
    pub(super) fn join(&mut self, lowest: RawFd) -> Result<()> {
        let first = &self.slots[0];
        let others: Vec<SocketInode> =
            self.at_this_address().into_iter().filter(|inode| *inode != first.inode).collect();
        ensure!(others.is_empty() || !first.is_datagram(), "several sockets are bound to this address");
        first.listener.allow_others()?;
        let second = Slot::of(first.listener.another_closed(lowest)?)?;
        let place = if others.is_empty() { 0 } else { others.len() + 1 };
        sys::choose_by(&second.listener, &Course::straight(place as u32).program())
            .context("the kernel does not take the program")?;
        second.listener.open_door();
        self.slots.push(second);
        self.slots[1].mark();
        self.instead = (!others.is_empty()).then_some((0, 1));
        let Some(steered) = &mut self.steered else { return Ok(()) };
        if others.is_empty() {
            steered.places.join(Member::Slot(0));
            steered.places.join(Member::Slot(1));
            return Ok(());
        }
        steered.foreign = [self.slots[0].inode].into_iter().chain(others).collect();
        steered.foreign.iter().for_each(|_| steered.places.join(Member::Foreign));
        steered.places.join(Member::Slot(1));
        Ok(())
    }

    /// The sockets that are bound to just this address.
    fn at_this_address(&self) -> Vec<SocketInode> {
        let Ok(Endpoint::Inet { address, .. }) = self.slots[0].listener.endpoint() else { return vec![] };
        let here = address.to_string();
        self.beside().into_iter().filter(|(other, _)| *other == here).map(|(_, inode)| inode).collect()
    }

    /// See which of those left that were there before ours: a filler has taken the place of each.
    pub(super) fn see_foreign_leave(&mut self) {
        if self.steered.as_ref().is_none_or(|steered| steered.foreign.is_empty()) {
            return;
        }
        let there = self.at_this_address();
        let Some(steered) = &mut self.steered else { return };
        let gone = steered.foreign.extract_if(.., |inode| !there.contains(inode)).count();
        (0..gone).for_each(|_| steered.fill_gap());
    }

    /// The supervisor is gone that had them, too.
    pub(crate) fn refresh_idle(&mut self) {
        let idle = self.steered.iter_mut().flat_map(Steered::idle_mut);
        idle.chain(&mut self.slots).for_each(Slot::refresh_idle);
    }

    /// Another supervisor keeps both names.
    pub(crate) fn leave_both_names(&mut self) {
        self.slots[0].listener.leave_both_names();
    }

    /// The process that is succeeded has no socket here: what would go to its slot goes to the successor's. Further slots get
    /// numbers from `lowest` on.
    pub(crate) fn lead_past(&mut self, vacant: usize, successor: usize, lowest: RawFd) -> Result<()> {
        while self.is_steered() && self.slots() <= vacant.max(successor) {
            self.grow(lowest)?;
        }
        if let Some(steered) = &mut self.steered {
            steered.route.serving = vacant;
            self.instead = Some((vacant, successor));
        }
        self.attach()
    }

    /// Nothing but the first socket is left, as it was before others were bound beside it. A process that was given another
    /// may have it still, and is led no client.
    pub(super) fn give_up_steering(&mut self) {
        if self.is_steered() && !self.slots[0].is_datagram() {
            for other in self.sockets().skip(1) {
                // It cannot fail for one that listens; any other is shut down.
                let _ = shut_down(other);
            }
        }
        self.slots.truncate(1);
        self.instead = None;
        if self.steered.take().is_some() {
            self.restore_first();
        }
    }

    /// Nothing is to be seen of it that others were bound beside the first socket.
    fn restore_first(&mut self) {
        let first = &mut self.slots[0];
        first.engage();
        if first.listener.is_taken() {
            // A datagram socket that another process has is in the group as long as that. Without a program, to choose by hash
            // is an error that changes nothing.
            let _ = match first.is_datagram() {
                true => sys::choose_by(&first.listener, &Course::straight(0).program()),
                false => sys::choose_by_hash(&first.listener),
            };
        }
        first.listener.stay_alone();
    }

    /// The process that the first socket was taken over from is gone.
    pub(crate) fn own(&mut self) {
        let first = &mut self.slots[0];
        let unknown = |steered: &&mut Steered| steered.places.of(Member::Slot(0)).is_none();
        if first.listener.is_taken()
            && let Some(steered) = self.steered.as_mut().filter(unknown)
        {
            // Where it is is not known: it joins again, at the end, at the next look.
            let _ = shut_down(&first.listener);
            steered.foreign.retain(|inode| *inode != first.inode);
            steered.fill_gap();
        }
        first.listener.own();
    }

    /// A successor lives that is not to get anything: the process that the first socket was taken over from serves on beside it.
    /// Where others had joined before, nobody knows its place, and the kernel chooses as it did.
    pub(crate) fn leave_to_predecessor(mut self) {
        let Some(steered) = self.steered.take_if(|_| self.slots[0].listener.is_taken()) else { return };
        let is_first = steered.places.of(Member::Slot(0)) == Some(0);
        drop(steered);
        self.slots.truncate(1);
        let first = &mut self.slots[0];
        first.engage();
        // An error leaves it as it is.
        let _ = match is_first {
            true => sys::choose_by(&first.listener, &Course::straight(0).program()),
            false => sys::choose_by_hash(&first.listener),
        };
        first.listener.stay_alone();
    }

    /// Close all. Of those that others have, one that is alone is as it was before; among several the kernel chooses on as it
    /// was told.
    pub(crate) fn let_go(mut self) {
        self.slots.truncate(1);
        let first = self.slots[0].inode;
        if self.steered.take().is_some() && self.at_this_address().iter().all(|inode| *inode == first) {
            self.restore_first();
        }
    }

    /// Close all but this slot's, for the program that has it: as if it had been bound alone.
    pub(crate) fn leave_to(mut self, slot: usize) {
        if self.steered.take().is_none() {
            return;
        }
        let last = std::mem::take(&mut self.slots).swap_remove(slot);
        // One that is bound beside it later gets nothing until somebody says so.
        let _ = sys::choose_by(&last.listener, &Course::straight(0).program());
        let mut listener = last.listener;
        listener.stay_alone();
    }
}

impl Steered {
    /// One that was there before ours has left, nobody knows from where: the last has taken its place.
    fn fill_gap(&mut self) {
        if self.places.last() == Some(Member::Helm) {
            // Where it is is not known any more.
            self.places.rename(Member::Helm, Member::Filler);
            self.fillers.extend(self.helm.take());
        }
        self.places.leave(Member::Foreign);
    }

    /// How many have to be at the end that nobody has, beside the helm: as many may leave before that is noticed.
    pub(super) fn fillers_needed(&self) -> usize {
        self.foreign.len()
    }
}

/// Where the process that the first socket was taken over from was not succeeded, that is as it was before.
impl Drop for Group {
    fn drop(&mut self) {
        if !self.slots.first().is_some_and(|first| first.listener.is_taken()) {
            return;
        }
        self.give_up_steering();
    }
}
