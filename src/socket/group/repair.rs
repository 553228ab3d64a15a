//! What servers did to a steered group is seen and repaired: new connections go on to where the route leads.

use std::os::fd::{AsFd, AsRawFd, RawFd};

use anyhow::{Context, Error, Result, ensure};
use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};

use crate::socket::group::{Group, Steered};
use crate::socket::listener::Listener;
use crate::socket::places::{Member, Places};
use crate::socket::slot::Slot;
use crate::socket::upkeep::Finding;

/// A server may do something at each of them.
const MOST_ATTEMPTS: usize = 3;

/// What a look at a group has brought.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) findings: Vec<Finding>,
    /// The slots that servers have shut down.
    pub(crate) left: Vec<usize>,
    /// How many connections, or datagrams, were dropped because nobody had their socket, by the slot.
    pub(crate) dropped: Vec<(usize, usize)>,
}

/// What servers did to their slots, which changes the order.
struct Changes {
    left: Vec<usize>,
    moved: Vec<usize>,
}

/// What came of letting slots listen again.
#[derive(Default)]
struct Again {
    /// A server was first, and nobody knows whether before or after what was done here.
    overtaken: bool,
    /// Why the first of those cannot that cannot.
    failed: Option<Error>,
}

impl Group {
    /// See what servers did to it, and repair it. Further sockets get numbers from `lowest` on.
    pub(crate) fn look_after(&mut self, lowest: RawFd) -> Look {
        let mut look = self.look_once(lowest);
        for _ in 1..MOST_ATTEMPTS {
            if !self.is_unsure() || self.has_strangers() {
                break;
            }
            let again = self.look_once(lowest);
            look.findings.extend(again.findings);
            look.left.extend(again.left);
            look.dropped.extend(again.dropped);
        }
        look
    }

    fn look_once(&mut self, lowest: RawFd) -> Look {
        let mut look = Look::default();
        self.see_foreign_leave();
        let Changes { left, moved } = self.changes();
        let Some(steered) = &mut self.steered else {
            look.findings = self.slots[0].look_after();
            return look;
        };
        look.left = left;
        if let Some(helm) = steered.helm.take_if(|helm| helm.has_left()) {
            // Only we can have done that. Another is put in its place below.
            steered.places.leave(Member::Helm);
            drop(helm);
        }
        let (serving, is_helm_in_place, is_unsure) =
            (steered.route.serving, steered.is_helm_in_place(), steered.is_unsure);
        let is_in_order = look.left.is_empty() && moved.is_empty() && is_helm_in_place;
        if !is_in_order || is_unsure && !self.has_strangers() {
            let restored = self.restore(&look.left.clone(), &moved, lowest);
            look.findings = self.slots[serving].upkeep.note(restored, look.left.contains(&serving));
        } else if self.problem().is_some() {
            let restored = self.attach();
            look.findings = self.slots[serving].upkeep.note(restored, false);
        }
        let Some(steered) = &mut self.steered else { return look };
        for (number, slot) in self.slots.iter_mut().enumerate() {
            slot.listener.restore_backlog();
            look.dropped.push((number, slot.sweep()));
        }
        look.dropped.extend(steered.idle_mut().map(|idle| (serving, idle.sweep())));
        look.dropped.retain(|(_, count)| *count > 0);
        look
    }

    /// What servers have done since the order was last known.
    fn changes(&self) -> Changes {
        let slots = |which: fn(&Slot) -> bool| (0..self.slots.len()).filter(|slot| which(&self.slots[*slot])).collect();
        match self.is_steered() {
            true => Changes { left: slots(Slot::has_left), moved: slots(Slot::has_moved) },
            false => Changes { left: vec![], moved: vec![] },
        }
    }

    fn is_unsure(&self) -> bool {
        self.steered.as_ref().is_some_and(|steered| steered.is_unsure)
    }

    /// The order has been changed here. What a server did meanwhile came before that or after it, nobody knows.
    pub(super) fn note_changes(&mut self) {
        // A shutdown(2) does not move a datagram socket.
        let has_changed = !self.slots[0].is_datagram() && !self.is_as_known();
        if let Some(steered) = &mut self.steered {
            steered.is_unsure |= has_changed;
        }
    }

    /// Has no server done anything, but for those whose sockets cannot be brought back, and are in no place?
    fn is_as_known(&self) -> bool {
        let Changes { left, moved } = self.changes();
        moved.is_empty() && left.iter().all(|slot| self.slots[*slot].is_lost)
    }

    /// The order is to be changed here: what servers have done is repaired before, as far as it can be.
    pub(super) fn settle_order(&mut self, lowest: RawFd) {
        for _ in 0..MOST_ATTEMPTS {
            if self.is_as_known() && !self.is_unsure() {
                break;
            }
            let Changes { left, moved } = self.changes();
            if let Err(error) = self.restore(&left, &moved, lowest) {
                debug!("{error:#}");
                break;
            }
        }
    }

    /// Bring the slots that have left back into the group, and the group into order. Those that have moved listen again
    /// already, and are last.
    fn restore(&mut self, left: &[usize], moved: &[usize], lowest: RawFd) -> Result<()> {
        let is_crowded = self.has_strangers();
        let Some(steered) = &mut self.steered else { return Ok(()) };
        let was_unsure = steered.is_unsure;
        steered.is_unsure |= is_crowded;
        // Before anything is moved here, so that whoever moves from now on is seen.
        for (slot, it) in self.slots.iter_mut().enumerate() {
            it.mark_if(moved.contains(&slot));
        }
        let mut again = Again::default();
        if self.slots[0].is_datagram() {
            self.replace_datagram_slots(left, lowest)?;
        } else {
            // One that could not listen again before is in no place.
            let members = left.iter().copied().map(Member::Slot).filter(|member| steered.places.of(*member).is_some());
            let members: Vec<Member> = members.collect();
            let known = match moved {
                _ if was_unsure && !is_crowded => None,
                [] => steered.places.without(&members),
                [one] if members.is_empty() => Some(steered.places.with_last(Member::Slot(*one))),
                _ => None,
            };
            again = match known {
                Some(places) => {
                    steered.places = places;
                    self.listen_again(left)
                }
                None => {
                    // What has moved does not show any more.
                    steered.is_unsure = true;
                    self.line_up(left)?
                }
            };
        }
        self.steered.iter_mut().for_each(|steered| steered.is_unsure = is_crowded || again.overtaken);
        self.put_helm_last(lowest)?;
        self.attach()?;
        self.note_changes();
        again.failed.map_or(Ok(()), Err)
    }

    /// Other sockets take the place of those that were shut down, which keep their places until they are closed by all.
    fn replace_datagram_slots(&mut self, left: &[usize], lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        // A number that no slot has yet.
        let new = self.slots.len();
        for slot in left {
            let another = steered.place(new, &self.slots[0].listener, lowest)?;
            steered.places.rename(Member::Slot(*slot), Member::Discarded(*slot));
            steered.places.rename(Member::Slot(new), Member::Slot(*slot));
            steered.discarded.push((*slot, self.slots[*slot].replace(another)?));
        }
        Ok(())
    }

    /// Which place leads where is not known any more: all but the one that serves leave, and join in their order.
    ///
    /// # Errors
    /// If they cannot be made to leave.
    fn line_up(&mut self, left: &[usize]) -> Result<Again> {
        let Some(steered) = &mut self.steered else { return Ok(Again::default()) };
        ensure!(steered.foreign.is_empty(), "other processes have sockets at this address");
        let serving = steered.route.serving;
        let others: Vec<usize> = (0..self.slots.len()).filter(|slot| *slot != serving).collect();
        for slot in others.iter().filter(|slot| !left.contains(slot)) {
            match shut_down(&self.slots[*slot].listener) {
                // A server did it just now.
                Ok(()) | Err(Errno::ENOTCONN) => (),
                Err(errno) => return Err(errno.into()),
            }
        }
        // Another is put last. To close this one is not enough: the service manager may have it, too.
        for idle in steered.helm.take().into_iter().chain(steered.fillers.drain(..)) {
            shut_down(&idle.listener)?;
        }
        steered.places = Places::default();
        let mut all = vec![];
        if left.contains(&serving) {
            all.push(serving);
        } else {
            steered.places.join(Member::Slot(serving));
        }
        all.extend(others);
        Ok(self.listen_again(&all))
    }

    /// Let all of them listen again that can.
    fn listen_again(&mut self, slots: &[usize]) -> Again {
        let mut again = Again::default();
        let Some(steered) = &mut self.steered else { return again };
        for number in slots {
            let slot = &mut self.slots[*number];
            again.overtaken |= slot.listener.listens();
            let revived = slot.listen_again().context("it was shut down and cannot listen again");
            slot.is_lost = revived.is_err();
            match revived {
                Ok(()) => steered.places.join(Member::Slot(*number)),
                Err(error) => drop(again.failed.get_or_insert(error)),
            }
        }
        again
    }

    /// Put the helm behind all others.
    pub(super) fn put_helm_last(&mut self, lowest: RawFd) -> Result<()> {
        let Some(steered) = &mut self.steered else { return Ok(()) };
        if steered.is_helm_in_place() {
            return Ok(());
        }
        let helm = steered.helm.take();
        if let Some(helm) = &helm {
            steered.places.leave(Member::Helm);
            shut_down(&helm.listener)?;
        }
        while steered.places.idle_at_end() < steered.fillers_needed() {
            let mut filler = Slot::of(self.slots[0].listener.another(lowest)?)?;
            filler.leave_idle()?;
            steered.places.join(Member::Filler);
            steered.fillers.push(filler);
        }
        steered.helm = helm;
        match &mut steered.helm {
            Some(helm) => helm.listen_again()?,
            helm => {
                let mut another = Slot::of(self.slots[0].listener.another(lowest)?)?;
                another.leave_idle()?;
                *helm = Some(another);
            }
        }
        steered.places.join(Member::Helm);
        Ok(())
    }
}

impl Steered {
    /// Does no slot change its place when a server leaves? A datagram socket leaves only when we close it.
    fn is_helm_in_place(&self) -> bool {
        let has_fillers = self.places.idle_at_end() > self.fillers_needed();
        self.places.last() == Some(Member::Helm) && has_fillers || self.helm.as_ref().is_some_and(Slot::is_datagram)
    }
}

pub(super) fn shut_down(listener: &Listener) -> nix::Result<()> {
    shutdown(listener.as_fd().as_raw_fd(), Shutdown::Both)
}
