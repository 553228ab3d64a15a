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
use crate::socket::places::Places;
use crate::socket::slot::Slot;
use crate::sys::Claimed;

/// A steered group in a state that is handed on, beside its first slot.
#[derive(Debug, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
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
    places: Places,
    serving: usize,
    is_unsure: bool,
    instead: Option<(usize, usize)>,
    foreign: Vec<u64>,
    fillers: Vec<SavedListener>,
}

impl SavedGroup {
    /// The descriptor of the slot that serves, if that is not the first.
    pub(crate) fn serving_number(&self) -> Option<RawFd> {
        self.slots.get(self.serving.checked_sub(1)?).map(SavedListener::number)
    }

    /// The numbers of all its descriptors but the first.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        let spares = self.spares.iter().map(|(_, spare)| spare);
        let discarded = self.discarded.iter().map(|(_, listener)| listener);
        let all = self.slots.iter().chain(&self.helm).chain(spares).chain(discarded).chain(&self.fillers);
        all.map(SavedListener::number)
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
            places: steered.places.clone(),
            serving: steered.route.serving,
            is_unsure: steered.is_unsure,
            instead: self.instead,
            foreign: steered.foreign.iter().map(|inode| inode.0).collect(),
            fillers: steered.fillers.iter().map(|filler| filler.listener.save()).collect(),
        });
        (first, beside)
    }

    /// A steered group of a predecessor, whose further sockets are bound with `options`.
    pub(crate) fn resume(first: Listener, saved: SavedGroup, options: Options, claimed: &mut Claimed) -> Result<Group> {
        let mut resume =
            |saved| -> Result<Listener> { Ok(Listener::resume(saved, claimed)?.not_alone(options.clone())) };
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
        }
        for idle in steered.idle_mut() {
            idle.leave_idle()?;
        }
        Ok(Group { slots, steered: Some(steered), instead })
    }
}
