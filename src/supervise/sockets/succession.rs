//! Sockets that another process has, too: one that is to be succeeded, or a supervisor that is to succeed this one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::Result;

use crate::socket::group::{Group, Route};
use crate::socket::takeover::Loan;
use crate::supervise::sockets::{Listed, Share, Sockets};

impl Sockets {
    /// Another process serves on those that were taken over from it, or lent by it, and may have `used` slots besides. Nobody is
    /// to wait at the others for it.
    ///
    /// # Errors
    /// If the kernel does not take the program.
    pub(crate) fn begin_beside_predecessor(&mut self, used: &[usize]) -> Result<()> {
        self.keep_names();
        self.reserved = used.iter().copied().map(Share::Slot).collect();
        self.leave_lent_idle(used);
        let Share::Slot(successor) = self.unused(&[])? else { return Ok(()) };
        let (vacant, lowest) = (self.route.serving, self.lowest);
        let mut without = self.groups_mut().filter(|group| !group.listener(0).is_of_predecessor());
        without.try_for_each(|group| group.lead_past(vacant, successor, lowest))
    }

    /// Of what is lent, the slots that neither serve nor are `used` were left idle by the lender, and the first that gets one is
    /// given it as any other.
    fn leave_lent_idle(&mut self, used: &[usize]) {
        let serving = self.route.serving;
        for group in self.groups_mut().filter(|group| group.listener(0).is_lent()) {
            let idle = (0..group.slots()).filter(|slot| *slot != serving && !used.contains(slot));
            idle.for_each(|slot| group.give_up(slot));
        }
    }

    /// Lend them to a successor, which has to know that generations have `used` slots beside the one that serves.
    pub(crate) fn lend(&mut self, mut used: Vec<usize>) -> Loan {
        self.is_lent = true;
        used.extend(self.reserved.iter().map(|share| share.slot()));
        let (listeners, steered): (Vec<_>, Vec<_>) = self.groups().map(Group::save).unzip();
        let descriptors = self.groups().flat_map(Group::sockets).map(|socket| socket.as_fd().as_raw_fd());
        Loan { descriptors: descriptors.collect(), listeners, steered: steered.into_iter().flatten().collect(), used }
    }

    /// What is lent, in the same order.
    pub(crate) fn lent_descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.groups().flat_map(Group::sockets).map(AsFd::as_fd).collect()
    }

    pub(crate) fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// The successor is gone.
    pub(crate) fn take_back(&mut self) {
        self.is_lent = false;
        self.groups_mut().for_each(Group::refresh_idle);
    }

    /// A program has this set that no supervisor stands by any more: no generation gets it.
    pub(crate) fn reserve(&mut self, share: Share) {
        if !self.reserved.contains(&share) {
            self.reserved.push(share);
        }
    }

    /// Every set of steered sockets.
    pub(crate) fn shares(&self) -> impl Iterator<Item = Share> {
        let slots = self.groups().filter(|group| group.is_steered()).map(Group::slots).min().unwrap_or(0);
        (0..slots).map(Share::Slot)
    }

    /// Their names outlive this supervisor: another process has the sockets.
    pub(crate) fn leave_names(&mut self) {
        self.groups_mut().for_each(Group::leave_both_names);
    }

    /// That process is gone.
    pub(crate) fn keep_taken(&mut self) {
        self.reserved.clear();
        self.groups_mut().for_each(Group::own);
    }

    /// The program that is to succeed lives, and is not to get anything.
    pub(crate) fn leave_to_predecessor(self) {
        self.listed.into_iter().for_each(|Listed { group, .. }| group.leave_to_predecessor());
    }

    /// The program is gone that had a set of them: the process that it has succeeded has its own.
    pub(crate) fn let_go(&mut self) {
        self.names = None;
        self.route = Route::default();
        std::mem::take(&mut self.listed).into_iter().for_each(|Listed { group, .. }| group.let_go());
    }

    /// The program that has this set goes on alone with it.
    pub(crate) fn leave_to(self, share: Share) {
        for Listed { mut group, .. } in self.listed {
            group.own();
            group.leave_name();
            group.leave_to(share.slot());
        }
        self.beside.into_iter().for_each(|mut beside| beside.leave_name());
    }
}
