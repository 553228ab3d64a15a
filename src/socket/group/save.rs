//! A group in a state that is handed on, and one that a predecessor of this program held.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Error, Result};
use libc::c_int;
use serde::{Deserialize, Serialize};

use crate::saved;
use crate::socket::group::{Group, Route, Steered};
use crate::socket::listener::{Listener, SavedListener};
use crate::socket::options::Options;
use crate::socket::places::Places;
use crate::socket::slot::Slot;
use crate::sys::Claimed;

/// A steered group in a state that is handed on, beside its first slot.
#[derive(Debug, Default, Serialize, Deserialize)]
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
    is_first_vacant: bool,
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
            is_first_vacant: self.is_first_vacant,
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
        let route = Route { serving: saved.serving, ..Route::default() };
        let mut steered = Steered { places: saved.places, helm, spares, discarded, route, is_unsure: saved.is_unsure };
        for (at, slot) in slots.iter_mut().enumerate() {
            let known = saved.deferred.iter().find(|(of, _)| *of == at);
            slot.resume_deferred(known.map(|(_, seconds)| *seconds));
        }
        for idle in steered.idle_mut() {
            idle.leave_idle()?;
        }
        Ok(Group { slots, steered: Some(steered), is_first_vacant: saved.is_first_vacant })
    }
}
