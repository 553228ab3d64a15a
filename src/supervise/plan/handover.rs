//! How one generation takes over from another: at once or on trial, with the old one standing by until the new one has
//! settled, and how the new one is rolled back.

use std::time::Duration;

use super::stages::{Draining, Serving, Standing};
use super::{Id, Order, PREDECESSOR, Plan, Reason, Transition};
use crate::config::{Drain, Limits};
use crate::sys::Timestamp;

/// What waits for a generation that has been relieved is waited for as long.
const LONGEST_RELEASE: Duration = Duration::from_secs(5);

impl Plan {
    /// This generation serves, and the one that did stands by.
    pub(super) fn promote(&mut self, id: Id, limits: Limits, now: Timestamp) -> Vec<Order> {
        let old = self.serving.replace(Serving { id, since: now });
        let mut orders = vec![Order::Steer(id), Order::Report(id, Transition::Serves)];
        if let Some(old) = old {
            self.end_row(old, now);
            let until = now + limits.settle;
            self.standing = Some(Standing { id: old.id, since: old.since, relieved: now, until });
        }
        // Where nothing is to be waited for, the next tick settles it: what goes wrong with these orders comes first.
        if old.is_none() {
            orders.extend(self.settle(limits, now));
        }
        orders
    }

    /// The one that serves has settled: its predecessor is no longer needed.
    pub(super) fn settle(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        let settled = self.serving.map(|serving| Order::Report(serving.id, Transition::Settled));
        let mut orders: Vec<Order> = settled.into_iter().collect();
        if let Some(old) = self.standing.take() {
            orders.push(self.release(old.id, old.new_until(), old.relieved, limits, now));
        }
        orders.extend(self.start_queued(limits, now));
        orders
    }

    /// Tell a generation, which was relieved by another, to stop when nothing waits for it; or what is left of it.
    pub(super) fn release(
        &mut self,
        id: Id,
        new_until: Timestamp,
        relieved: Timestamp,
        limits: Limits,
        now: Timestamp,
    ) -> Order {
        let longest = relieved + limits.drain;
        let stop = match limits.drain_how {
            Drain::Signal => longest.min(now + LONGEST_RELEASE),
            Drain::Idle => longest,
        };
        self.draining.push(Draining { id, stop: Some(stop.max(now)), deadline: None, new_until });
        Order::Release(id)
    }

    pub(super) fn released(&mut self, id: Id, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.tell(|draining| draining.id == id, limits, now)
    }

    /// Tell those that are waited for, and of which this holds, to stop now.
    pub(super) fn tell(&mut self, due: impl Fn(&Draining) -> bool, limits: Limits, now: Timestamp) -> Vec<Order> {
        let waiting = self.draining.iter_mut().filter(|draining| draining.stop.is_some());
        let told = waiting.filter(|draining| due(draining)).map(|draining| {
            (draining.stop, draining.deadline) = (None, Some(now + limits.drain));
            Order::Retire(draining.id)
        });
        told.collect()
    }

    /// The new generation, on trial or not settled, makes room for the old one again.
    pub(super) fn roll_back(&mut self, reason: Reason, limits: Limits, now: Timestamp) -> Vec<Order> {
        let (id, new_until, old) = match (self.trial.take(), self.serving, self.standing.take()) {
            (Some(trial), Some(serving), _) => (trial.id, trial.new_until(), serving),
            (None, Some(serving), Some(old)) => {
                (serving.id, serving.new_until(), Serving { id: old.id, since: old.since })
            }
            (None, Some(_), None) => return self.give_up_starting(reason, limits, now),
            _ => return vec![],
        };
        self.serving = Some(old);
        let mut orders = vec![Order::Steer(old.id), Order::Report(id, Transition::RolledBack(reason))];
        // It holds clients, or if it has ended, its workers may.
        orders.push(self.release(id, new_until, now, limits, now));
        if old.id == PREDECESSOR {
            let status = if let Reason::Ended(status) = reason { status } else { 1 };
            orders.extend(self.give_up_first(status));
        }
        orders.extend(self.start_queued(limits, now));
        orders
    }

    /// The new generation, which is not ready, is not wanted any more.
    fn give_up_starting(&mut self, reason: Reason, limits: Limits, now: Timestamp) -> Vec<Order> {
        let Some(starting) = self.starting.take() else { return vec![] };
        self.end_starting(starting, Transition::RolledBack(reason), 1, limits, now)
    }

    /// Is there one that could be rolled back?
    pub(crate) fn can_roll_back(&self) -> bool {
        self.trial.is_some() || self.standing.is_some() || self.starting.is_some() && self.serving.is_some()
    }

    /// End what is under way in favour of the new generation.
    pub(super) fn promote_early(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        if self.standing.is_some() { self.settle(limits, now) } else { self.end_trial(limits, now) }
    }

    /// The generation that is on trial, if there is one, serves.
    pub(super) fn end_trial(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.trial.take().map_or(vec![], |trial| self.promote(trial.id, limits, now))
    }

    /// The check at the end of a stage has ended.
    pub(super) fn checked(&mut self, id: Id, passed: bool, limits: Limits, now: Timestamp) -> Vec<Order> {
        match &self.trial {
            Some(trial) if trial.id == id && trial.is_checked => match passed {
                true => self.next_stage(limits, now),
                false => self.roll_back(Reason::Check, limits, now),
            },
            _ => vec![],
        }
    }

    /// A stage of the trial has passed.
    fn next_stage(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        let Some(trial) = &mut self.trial else { return vec![] };
        // A state that was handed on may have none.
        trial.rollout.stages = trial.rollout.stages.iter().copied().skip(1).collect();
        trial.is_checked = false;
        match trial.rollout.stages.first() {
            None => self.end_trial(limits, now),
            Some(stage) => {
                trial.until = now + stage.duration;
                let (id, percent) = (trial.id, stage.percent);
                vec![Order::Share(id, percent), Order::Report(id, Transition::OnTrial(percent))]
            }
        }
    }

    /// The time of a stage, or of its check, is over.
    pub(super) fn end_stage(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        match &mut self.trial {
            Some(trial) if trial.is_checked => self.roll_back(Reason::CheckTimedOut, limits, now),
            Some(trial) if trial.rollout.check.is_some() => {
                (trial.is_checked, trial.until) = (true, now + limits.ready);
                vec![Order::Check(trial.id)]
            }
            _ => self.next_stage(limits, now),
        }
    }
}
