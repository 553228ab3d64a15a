//! A group in a state that is handed on, and one that a predecessor of this program held.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Error, Result, ensure};
use libc::c_int;
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::saved;
use crate::socket::group::{Group, Route, Steered};
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::options::Options;
use crate::socket::places::{Member, Places};
use crate::socket::slot::Slot;
use crate::sys::Claimed;

/// A steered group in a state that is handed on, beside its first slot.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
#[serde(default)]
pub(crate) struct SavedGroup {
    /// The descriptor of its first slot.
    pub(crate) first: RawFd,
    #[serde(deserialize_with = "saved::lenient")]
    slots: Vec<SavedListener>,
    helm: Option<SavedListener>,
    spares: Vec<(u32, SavedListener)>,
    discarded: Vec<(usize, SavedListener)>,
    /// TCP_DEFER_ACCEPT of the slots where it is turned off.
    deferred: Vec<(usize, c_int)>,
    /// The slots that show when they move.
    marked: Vec<usize>,
    places: Places,
    serving: usize,
    is_unsure: bool,
    instead: Option<(usize, usize)>,
    foreign: Vec<u64>,
    fillers: Vec<SavedListener>,
}

impl SavedGroup {
    /// The numbers of its descriptors, but for those that are of no use.
    pub(crate) fn numbers(&self) -> Vec<RawFd> {
        let slots = self.slots.iter().chain(&self.helm).chain(self.spares.iter().map(|(_, spare)| spare));
        let slots = slots.chain(&self.fillers);
        [self.first].into_iter().chain(slots.map(SavedListener::number)).collect()
    }

    /// Forget what another process says of its sockets that could do harm.
    pub(crate) fn distrust(&mut self) {
        let slots = self.slots.iter_mut().chain(&mut self.helm).chain(self.spares.iter_mut().map(|(_, spare)| spare));
        let others = self.discarded.iter_mut().map(|(_, listener)| listener).chain(&mut self.fillers);
        for listener in slots.chain(others) {
            listener.distrust();
        }
    }

    /// The slot where new connections go, and how many there are.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.serving, self.slots.len() + 1)
    }

    /// Those that are of no use, and are still in their places.
    pub(crate) fn discarded(&self) -> impl Iterator<Item = RawFd> {
        self.discarded.iter().map(|(_, listener)| listener.number())
    }

    /// The number of the descriptor where new connections go.
    pub(crate) fn serving(&self) -> Option<RawFd> {
        // Behind the slots are others.
        self.numbers().get(self.serving).copied().filter(|_| self.serving <= self.slots.len())
    }

    /// Nobody has those any more that were discarded. None if it is not known what has moved in their places.
    pub(crate) fn without_discarded(mut self) -> Option<SavedGroup> {
        let gone: Vec<_> = self.discarded.drain(..).map(|(slot, _)| Member::Discarded(slot)).collect();
        self.places = self.places.without(&gone)?;
        Some(self)
    }
}

impl Group {
    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> (SavedListener, Option<SavedGroup>) {
        let first = self.slots[0].listener.save();
        let beside = self.steered.as_ref().map(|steered| SavedGroup {
            first: self.slots[0].listener.as_fd().as_raw_fd(),
            slots: self.slots[1..].iter().map(|slot| slot.listener.save()).collect(),
            helm: steered.helm.as_ref().map(|helm| helm.listener.save()),
            spares: steered.spares.iter().map(|(number, spare)| (*number, spare.listener.save())).collect(),
            discarded: steered.discarded.iter().map(|(slot, listener)| (*slot, listener.save())).collect(),
            deferred: self.slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.deferred?))).collect(),
            marked: self.slots.iter().enumerate().filter_map(|(at, slot)| slot.is_marked.then_some(at)).collect(),
            places: steered.places.clone(),
            serving: steered.route.serving,
            is_unsure: steered.is_unsure,
            instead: self.instead,
            foreign: steered.foreign.iter().map(|inode| inode.0).collect(),
            fillers: steered.fillers.iter().map(|filler| filler.listener.save()).collect(),
        });
        (first, beside)
    }

    /// The same where nobody has a socket of it: the one where new connections go is for the next.
    pub(crate) fn renew(first: Listener, saved: SavedGroup, options: Options, claimed: &mut Claimed) -> Result<Group> {
        let mut group = Group::resume(first, saved, options, claimed)?;
        let serving = group.serving();
        for (at, slot) in group.slots.iter_mut().enumerate() {
            if at == serving { slot.renew() } else { slot.leave_idle()? }
        }
        Ok(group)
    }

    /// A steered group of a predecessor, whose further sockets are bound with `options`.
    pub(crate) fn resume(first: Listener, saved: SavedGroup, options: Options, claimed: &mut Claimed) -> Result<Group> {
        let name = first.name.clone();
        let mut resume = |saved| -> Result<Listener> {
            let mut listener = Listener::resume(saved, claimed)?.not_alone(options.clone());
            listener.name.clone_from(&name);
            Ok(listener)
        };
        let mut slots = vec![Slot::of(first.not_alone(options.clone()))?];
        for slot in saved.slots {
            slots.push(Slot::of(resume(slot)?)?);
        }
        let helm = saved.helm.map(|helm| Ok::<_, Error>(Slot::of(resume(helm)?)?)).transpose()?;
        let spares = saved.spares.into_iter().map(|(number, spare)| Ok((number, Slot::of(resume(spare)?)?)));
        let spares = spares.collect::<Result<_>>()?;
        let discarded = saved.discarded.into_iter().map(|(slot, listener)| Ok((slot, resume(listener)?)));
        let discarded = discarded.collect::<Result<_>>()?;
        let fillers = saved.fillers.into_iter().map(|filler| Ok(Slot::of(resume(filler)?)?)).collect::<Result<_>>()?;
        let foreign = saved.foreign.into_iter().map(SocketInode).collect();
        let has = |slot: usize| slot < slots.len();
        let instead = saved.instead.filter(|(_, successor)| has(*successor));
        ensure!(has(saved.serving), "slot {} serves, and there are {}", saved.serving, slots.len());
        let route = Route { serving: saved.serving, ..Route::default() };
        let (places, is_unsure) = (saved.places, saved.is_unsure);
        let mut steered = Steered { places, helm, spares, discarded, route, is_unsure, foreign, fillers };
        for (at, slot) in slots.iter_mut().enumerate() {
            let known = saved.deferred.iter().find(|(of, _)| *of == at);
            slot.resume_deferred(known.map(|(_, seconds)| *seconds));
            slot.is_marked |= saved.marked.contains(&at);
        }
        for idle in steered.idle_mut() {
            idle.leave_idle()?;
        }
        Ok(Group { slots, steered: Some(steered), instead })
    }
}
