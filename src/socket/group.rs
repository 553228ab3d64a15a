//! One address: a socket that all generations share, or a socket for each of them, among which the kernel chooses.
//!
//! The promise of the steered ones: new connections go where the route says, whatever a server does to its own socket, and
//! what waits on a socket that nobody has is reset at once.

mod beside;
mod repair;
mod save;
mod seen;

use std::os::fd::RawFd;

use anyhow::{Context, Error, Result, ensure};
use log::debug;
use nix::poll::PollFlags;

use crate::kernel::descriptors::SocketInode;
use crate::missing::Facility;
use crate::socket::listener::Listener;
use crate::socket::obeyed::is_obeyed;
use crate::socket::places::{Member, Places};
use crate::socket::slot::Slot;
use crate::socket::steering::{Choice, Client, Course, Share};
use crate::socket::takeover::LentGroup;
use crate::sys;

/// As many slots are made at the start: one serves, one is next.
const SLOTS: usize = 2;

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Group {
    /// One if it is shared, else one for each generation.
    slots: Vec<Slot>,
    steered: Option<Steered>,
    /// The process that is succeeded has no socket here, or one of which nobody knows where it is in the group: what would go
    /// to its slot goes to another one, which is the successor's.
    instead: Option<(usize, usize)>,
}

/// What steering needs beside the slots.
#[derive(Debug, Default)]
struct Steered {
    places: Places,
    /// Nobody has it, and it is the last in the group: it moves into the gap where a slot leaves, and no other place
    /// changes. The program is attached through it, for that does nothing through a slot that was shut down.
    helm: Option<Slot>,
    /// Datagram sockets that were the helm, by their numbers; nobody has them either. None is closed: while the kernel
    /// closes a member of the group, a datagram may be led there and be lost (udp_lib_unhash detaches it before it is
    /// no longer found).
    spares: Vec<(u32, Slot)>,
    /// Datagram sockets that a server has shut down, by the slot that they were; they keep their places until their
    /// generation is gone.
    discarded: Vec<(usize, Listener)>,
    route: Route,
    /// Somebody else was in the group when its order changed.
    is_unsure: bool,
    /// Sockets of other processes that were in the group before ours, and nobody knows where.
    foreign: Vec<SocketInode>,
    /// They move into the gaps that those leave, so that nothing else does.
    fillers: Vec<Slot>,
}

/// Where new connections go, by slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) serving: usize,
    pub(crate) exception: Option<(Client, usize)>,
    pub(crate) trial: Option<Trial>,
}

/// A slot that gets a share of the new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    pub(crate) slot: usize,
    pub(crate) percent: u8,
    /// A client stays on one side, which depends on the salt. Of datagrams it does in any case: they belong together.
    pub(crate) is_sticky: bool,
    pub(crate) salt: u32,
}

pub(crate) use repair::Look;
pub(crate) use save::SavedGroup;

/// Leave each alone where the kernel does not obey.
pub(crate) fn check_obedience(listeners: &mut [Listener]) {
    if listeners.iter().any(|listener| listener.options_beside().is_some()) && !is_obeyed() {
        Facility::Steering.report_missing(&"the kernel takes the program that chooses among sockets, and ignores it");
        listeners.iter_mut().for_each(Listener::stay_alone);
    }
}

impl Group {
    /// The group that `first` begins: steered where others may be bound beside it, with further sockets at numbers from
    /// `lowest` on.
    pub(crate) fn of(mut first: Listener, lowest: RawFd) -> Result<Group> {
        if let Some(LentGroup { saved, mut sockets }) = first.take_group() {
            let options = first.options_beside().cloned().unwrap_or_default();
            return Group::resume(first, saved, options, &mut sockets);
        }
        let is_steered = first.options_beside().is_some();
        let mut group = Group { slots: vec![Slot::of(first)?], steered: None, instead: None };
        if is_steered && let Err(error) = group.begin_steering(lowest) {
            Facility::Steering.report_missing(&format_args!("{error:#}"));
            group.give_up_steering();
        }
        Ok(group)
    }

    fn begin_steering(&mut self, lowest: RawFd) -> Result<()> {
        let steered = self.steered.insert(Steered::default());
        if self.slots[0].listener.is_taken() {
            self.join(lowest)?;
        } else {
            steered.places.join(Member::Slot(0));
            self.slots[0].mark();
        }
        while self.slots.len() < SLOTS {
            self.add_slot(lowest)?;
        }
        self.put_helm_last(lowest)?;
        self.attach()?;
        self.note_changes();
        Ok(())
    }

    /// Whoever has the sockets looks after their names.
    pub(crate) fn leave_name(&mut self) {
        self.slots[0].listener.leave_name();
    }

    /// Is there a socket for each generation?
    pub(crate) fn is_steered(&self) -> bool {
        self.steered.is_some()
    }

    /// The slot where new connections go.
    pub(crate) fn serving(&self) -> usize {
        self.steered.as_ref().map_or(0, |steered| steered.route.serving)
    }

    /// How many generations can have one of their own.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The socket of a slot; of a shared group the only one.
    pub(crate) fn listener(&self, slot: usize) -> &Listener {
        &self.slot(slot).listener
    }

    pub(crate) fn inode(&self, slot: usize) -> SocketInode {
        self.slot(slot).inode
    }

    fn slot(&self, slot: usize) -> &Slot {
        &self.slots[if self.is_steered() { slot } else { 0 }]
    }

    /// What is wrong with it, and cannot be repaired.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.slots[self.serving()].upkeep.problem()
    }

    /// Every socket of it.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &Listener> {
        let steered = self.steered.iter();
        let beside = steered.flat_map(|steered| {
            let discarded = steered.discarded.iter().map(|(_, listener)| listener);
            discarded.chain(steered.idle().map(|idle| &idle.listener))
        });
        self.slots.iter().map(|slot| &slot.listener).chain(beside)
    }

    /// The sockets to poll, and for what: POLLHUP comes unasked.
    pub(crate) fn polled(&self) -> impl Iterator<Item = (&Listener, PollFlags)> {
        let idle = self.steered.iter().flat_map(Steered::idle);
        self.slots.iter().chain(idle).filter_map(|slot| Some((&slot.listener, slot.polled_for()?)))
    }

    /// One more slot.
    ///
    /// # Errors
    /// If no socket can be bound beside the others.
    pub(crate) fn grow(&mut self, lowest: RawFd) -> Result<()> {
        ensure!(!self.has_strangers(), "some process listens at this address beside our sockets");
        self.settle_order(lowest);
        self.add_slot(lowest)?;
        self.put_helm_last(lowest)?;
        self.attach()?;
        self.note_changes();
        self.settle_order(lowest);
        Ok(())
    }

    fn add_slot(&mut self, lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        let mut slot = steered.place(self.slots.len(), &self.slots[0].listener, lowest)?;
        slot.leave_idle()?;
        slot.mark();
        self.slots.push(slot);
        Ok(())
    }

    /// The slot is given to a generation: what waits there is dropped, and how many that were.
    pub(crate) fn give(&mut self, slot: usize) -> usize {
        if !self.is_steered() { 0 } else { self.slots[slot].give() }
    }

    /// Nobody has the slot any more. A further socket that this may take gets a number from `lowest` on.
    pub(crate) fn free(&mut self, slot: usize, lowest: RawFd) {
        let Some(steered) = &mut self.steered else { return };
        while let Some(at) = steered.discarded.iter().position(|(other, _)| *other == slot) {
            if let Err(error) = steered.put_idle_last(&self.slots[0].listener, lowest) {
                debug!("slot {slot}: {error:#}");
            }
            steered.places.leave(Member::Discarded(slot));
            steered.discarded.remove(at);
        }
        self.instead.take_if(|(vacant, _)| *vacant == slot);
        if let Err(errno) = self.slots[slot].leave_idle() {
            debug!("slot {slot}: {errno}");
        }
    }

    /// The generation that has the slot accepts no more, though it may still hold what it shut down, which keeps its place.
    pub(crate) fn give_up(&mut self, slot: usize) {
        if self.is_steered()
            && let Err(errno) = self.slots[slot].leave_idle()
        {
            debug!("slot {slot}: {errno}");
        }
    }

    /// Let new connections go there.
    pub(crate) fn steer(&mut self, route: Route) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        steered.route = route;
        self.attach()?;
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let trial = route.trial.map(|trial| trial.slot);
            if number == route.serving || Some(number) == trial { slot.engage() } else { slot.relieve() }
        }
        Ok(())
    }

    /// Let the kernel choose as the route says.
    fn attach(&self) -> Result<()> {
        let Some(steered) = &self.steered else { return Ok(()) };
        let place = |slot: usize| {
            steered.places.of(Member::Slot(slot)).with_context(|| format!("slot {slot} has left its group"))
        };
        let Route { serving, exception, trial } = steered.route;
        let serving = match self.instead {
            Some((vacant, other)) if vacant == serving => other,
            _ => serving,
        };
        let share = trial.map(|Trial { slot, percent, is_sticky, salt }| {
            let by_address = is_sticky || self.slots[serving].is_datagram();
            let choice = if by_address { Choice::Address { salt } } else { Choice::Random };
            (Share { percent, choice }, slot)
        });
        let course = Course {
            serving: place(serving)?,
            exception: exception.map(|(client, slot)| Ok::<_, Error>((client, place(slot)?))).transpose()?,
            share: share.map(|(share, slot)| Ok::<_, Error>((share, place(slot)?))).transpose()?,
        };
        let through = steered.helm.as_ref().unwrap_or(&self.slots[serving]);
        sys::choose_by(&through.listener, &course.program()).context("the kernel does not take the program")
    }

    /// Servers call listen(2) again, which may shorten the backlog.
    pub(crate) fn restore_backlogs(&self) {
        self.slots.iter().for_each(|slot| slot.listener.restore_backlog());
    }

    /// Keep the name of the file that a predecessor made, which may have had no way to.
    pub(crate) fn keep_name(&mut self) {
        self.slots[0].listener.keep_name();
    }
}

impl Steered {
    /// Those that nobody has.
    fn idle(&self) -> impl Iterator<Item = &Slot> {
        self.helm.iter().chain(self.spares.iter().map(|(_, spare)| spare)).chain(&self.fillers)
    }

    fn idle_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let spares = self.spares.iter_mut().map(|(_, spare)| spare);
        self.helm.iter_mut().chain(spares).chain(&mut self.fillers)
    }

    /// A socket for the slot of this number, in its place: of datagrams one that is there already, if there is one, for then
    /// none has to be closed to put another one last.
    fn place(&mut self, slot: usize, first: &Listener, lowest: RawFd) -> Result<Slot> {
        let spare = self.spares.pop().map(|(number, spare)| (Member::Spare(number), spare));
        let is_datagram = self.helm.as_ref().is_some_and(Slot::is_datagram);
        let idle = spare.or_else(|| self.helm.take_if(|_| is_datagram).map(|helm| (Member::Helm, helm)));
        match idle {
            Some((member, idle)) => {
                self.places.rename(member, Member::Slot(slot));
                Ok(idle)
            }
            None => {
                let another = Slot::of(first.another(lowest)?)?;
                self.places.join(Member::Slot(slot));
                Ok(another)
            }
        }
    }

    /// See to it that no slot changes its place when one leaves.
    fn put_idle_last(&mut self, first: &Listener, lowest: RawFd) -> Result<()> {
        if !matches!(self.places.last(), Some(Member::Slot(_))) {
            return Ok(());
        }
        let mut another = Slot::of(first.another(lowest)?)?;
        another.leave_idle()?;
        if let Some(helm) = self.helm.replace(another) {
            let number = (0..).find(|number| self.spares.iter().all(|(other, _)| other != number)).unwrap_or_default();
            self.places.rename(Member::Helm, Member::Spare(number));
            self.spares.push((number, helm));
        }
        self.places.join(Member::Helm);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
