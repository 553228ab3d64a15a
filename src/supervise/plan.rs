//! Which generation starts, serves and drains, decided without a clock, a process or a socket.
//!
//! The promise: at most one generation serves, at most one is getting ready or on trial, at most one stands by, any
//! number drain; the serving one is told to stop only after its successor has settled, or when everything is asked to
//! stop. A generation that never gets ready, fails its trial, or ends before it has settled changes nothing for the one
//! that served. Where none serves and none starts, one is started again or everything stops.

mod events;
mod handover;
mod reloads;
mod restart;
mod stages;
mod stop;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Limits, Rollout};
use crate::sys::Timestamp;
pub(crate) use events::{Answer, Event, Order, Reason, StopMode, Transition};
pub(crate) use reloads::{Counts, Outcome, Reloads};
use restart::FIRST_BACKOFF;
use stages::never;
pub(crate) use stages::{Cause, Draining, Serving, Standing, Starting, Trial};

/// Counts the generations, from 1 on.
pub(crate) type Id = u64;

/// The process that the first generation succeeds. It is somebody else's: it is told to stop only when its successor has
/// settled, and never if that fails, or when everything stops before.
pub(crate) const PREDECESSOR: Id = 0;

/// Numbers from here on are those of generations that a supervisor left which was killed: they drain, and are told to stop
/// when they have no connection, for nobody knows whether they were told before.
pub(crate) const EARLIER: Id = 1 << 32;

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Plan {
    pub(crate) next: Id,
    pub(crate) starting: Option<Starting>,
    pub(crate) trial: Option<Trial>,
    pub(crate) serving: Option<Serving>,
    /// The predecessor of the one that serves, until that has settled.
    pub(crate) standing: Option<Standing>,
    pub(crate) draining: Vec<Draining>,
    /// One more generation is wanted when the one under way has settled or failed.
    pub(crate) queued: bool,
    /// How that one is to take over.
    pub(crate) queued_rollout: Rollout,
    /// When what ended unasked is started again.
    pub(crate) restart: Option<Timestamp>,
    /// The backoff before the next restart.
    pub(crate) backoff: Duration,
    /// How often a generation was started again.
    pub(crate) restarts: u64,
    /// When that was for the last time.
    pub(crate) restarted: Option<Timestamp>,
    /// How often in a row, since one served for long enough.
    pub(crate) row: u32,
    pub(crate) reloads: Reloads,
    /// The status to end with, once everything stops.
    pub(crate) stopping: Option<u8>,
    /// When the first signal asked to stop.
    pub(crate) signalled: Option<Timestamp>,
}

/// Before anything was started.
impl Default for Plan {
    fn default() -> Plan {
        Plan {
            next: 1,
            starting: None,
            trial: None,
            serving: None,
            standing: None,
            draining: Vec::new(),
            queued: false,
            queued_rollout: Rollout::default(),
            restart: None,
            backoff: FIRST_BACKOFF,
            restarts: 0,
            restarted: None,
            row: 0,
            reloads: Reloads::default(),
            stopping: None,
            signalled: None,
        }
    }
}

impl Plan {
    /// Begin with the first generation.
    pub(crate) fn begin(limits: Limits, now: Timestamp) -> (Plan, Vec<Order>) {
        let mut plan = Plan::default();
        let order = plan.start(Cause::First, Rollout::default(), limits, now);
        (plan, order.into_iter().collect())
    }

    /// Begin with the first generation beside the process that it succeeds.
    pub(crate) fn succeed(limits: Limits, now: Timestamp) -> (Plan, Vec<Order>) {
        let mut plan = Plan { serving: Some(Serving { id: PREDECESSOR, since: now }), ..Plan::default() };
        let order = plan.start(Cause::First, Rollout::default(), limits, now);
        (plan, order.into_iter().collect())
    }

    /// One more drains that an earlier supervisor left.
    pub(crate) fn add_earlier(&mut self, id: Id) -> Order {
        self.draining.push(Draining { id, stop: Some(never()), deadline: None, new_until: Timestamp::ZERO });
        Order::Release(id)
    }

    /// Those are told to stop when it is time, too.
    pub(crate) fn limit_earlier(&mut self, limits: Limits, now: Timestamp) {
        let earlier = self.draining.iter_mut().filter(|draining| draining.id >= EARLIER && draining.stop.is_some());
        earlier.for_each(|draining| draining.stop = Some(now + limits.drain));
    }

    /// The deploy has failed: what was there before it goes on as it was.
    fn leave_earlier(&mut self) {
        self.draining.retain(|draining| draining.id != PREDECESSOR && draining.id < EARLIER);
    }

    /// Does the predecessor serve, or could it again?
    pub(crate) fn is_predecessor_needed(&self) -> bool {
        self.is_serving(PREDECESSOR) || self.is_standing_by(PREDECESSOR)
    }

    /// Go on in the place of a predecessor, which left these generations; those that it did not know drain.
    pub(crate) fn resume(&mut self, left: &[Id], limits: Limits, now: Timestamp) -> Vec<Order> {
        let known: Vec<Id> = self.generations().collect();
        // What was succeeded, and is not known any more, is somebody else's: it was let go of when the deploy failed.
        let ours = left.iter().copied().filter(|id| (PREDECESSOR + 1..EARLIER).contains(id));
        self.next = self.next.max(ours.clone().max().map_or(1, |id| id + 1));
        let mut unknown: Vec<Id> = ours.filter(|id| !known.contains(id)).collect();
        unknown.sort_unstable();
        if self.serving.is_none() && self.stopping.is_none() {
            self.serving = unknown.pop().map(|id| Serving { id, since: now });
            self.restart.take_if(|_| self.serving.is_some());
        }
        let mut orders: Vec<Order> = self.steering().into_iter().collect();
        // A check of a trial ended with its supervisor.
        orders.extend(self.trial.as_ref().filter(|trial| trial.is_checked).map(|trial| Order::Check(trial.id)));
        let waiting = self.draining.iter().filter(|draining| draining.stop.is_some());
        orders.extend(waiting.map(|draining| Order::Release(draining.id)));
        orders.extend(unknown.into_iter().map(|id| self.retire(id, Timestamp::ZERO, limits, now)));
        orders
    }

    /// Where new connections go.
    fn steering(&self) -> Option<Order> {
        let starting = self.starting.as_ref().map(|starting| starting.id);
        match (&self.trial, self.serving) {
            (Some(trial), _) => Some(Order::Share(trial.id, trial.percent())),
            (None, serving) => serving.map(|serving| serving.id).or(starting).map(Order::Steer),
        }
    }

    /// Is one generation about to take over from another?
    pub(crate) fn is_handing_over(&self) -> bool {
        self.starting.is_some() || self.trial.is_some() || self.standing.is_some() || self.queued
    }

    /// Every generation of which something is left.
    pub(crate) fn generations(&self) -> impl Iterator<Item = Id> {
        let starting = self.starting.as_ref().map(|starting| starting.id);
        let trial = self.trial.as_ref().map(|trial| trial.id);
        let serving = self.serving.map(|serving| serving.id);
        let standing = self.standing.map(|standing| standing.id);
        let draining = self.draining.iter().map(|draining| draining.id);
        draining.chain(starting).chain(trial).chain(serving).chain(standing)
    }

    pub(crate) fn is_starting(&self, id: Id) -> bool {
        self.starting.as_ref().is_some_and(|starting| starting.id == id)
    }

    pub(crate) fn is_on_trial(&self, id: Id) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.id == id)
    }

    pub(crate) fn is_standing_by(&self, id: Id) -> bool {
        self.standing.is_some_and(|standing| standing.id == id)
    }

    pub(crate) fn is_serving(&self, id: Id) -> bool {
        self.serving.is_some_and(|serving| serving.id == id)
    }

    /// Is it on trial, or does it serve while its predecessor stands by?
    pub(crate) fn is_unsettled(&self, id: Id) -> bool {
        self.is_on_trial(id) || self.is_serving(id) && self.standing.is_some()
    }

    /// Does something follow if it accepts no more? Not if there is no other that could take its place.
    pub(crate) fn is_watched(&self, id: Id) -> bool {
        self.is_unsettled(id) || self.is_standing_by(id) || self.is_serving(id) && self.trial.is_some()
    }

    pub(crate) fn is_draining(&self, id: Id) -> bool {
        self.draining.iter().any(|draining| draining.id == id)
    }

    /// Is it getting ready, or was it ready only a moment ago?
    pub(crate) fn is_new(&self, id: Id, now: Timestamp) -> bool {
        let draining = self.draining.iter().find(|draining| draining.id == id).map(|draining| draining.new_until);
        let trial = self.trial.as_ref().filter(|trial| trial.id == id).map(Trial::new_until);
        let serving = self.serving.filter(|serving| serving.id == id).map(|serving| serving.new_until());
        let standing = self.standing.filter(|standing| standing.id == id).map(|standing| standing.new_until());
        let until = draining.or(trial).or(serving).or(standing);
        self.is_starting(id) || self.is_unsettled(id) || until.is_some_and(|until| now < until)
    }

    /// Which generation a reload request refers to. To be called before the request is handled.
    pub(crate) fn answer(&self) -> Answer {
        // It is the next to be started, now or after the one under way.
        if self.stopping.is_some() { Answer::Refused } else { Answer::Generation(self.next) }
    }

    /// When the next tick is due.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let draining = self.draining.iter().flat_map(|draining| draining.stop.or(draining.deadline));
        let starting = self.starting.as_ref().map(|starting| starting.deadline);
        let trial = self.trial.as_ref().map(|trial| trial.until);
        let standing = self.standing.map(|standing| standing.until);
        draining.chain(starting).chain(trial).chain(standing).chain(self.restart).min()
    }

    /// Handle an event and return the orders, in sequence.
    pub(crate) fn handle(&mut self, event: Event, limits: Limits, now: Timestamp) -> Vec<Order> {
        let mut orders = match event {
            Event::Reload(rollout) => self.reload(rollout, limits, now),
            Event::Ready(id) => self.ready(id, limits, now),
            Event::Left(id) => self.left(id, limits, now),
            Event::Ended(id, status) => self.ended(id, status, limits, now),
            Event::Released(id) => self.released(id, limits, now),
            Event::Checked(id, passed) => self.checked(id, passed, limits, now),
            Event::Promote => self.promote_early(limits, now),
            Event::Rollback => self.roll_back(Reason::Asked, limits, now),
            Event::Gone(id) => self.gone(id),
            Event::Stop(mode) => self.stop(mode, limits, now),
            Event::Tick => self.tick(limits, now),
        };
        if let Some(status) = self.stopping.filter(|_| self.draining.is_empty()) {
            orders.push(Order::Finish(status));
        }
        orders
    }

    /// Start one more, unless everything stops. It is also the one that was queued.
    fn start(&mut self, cause: Cause, rollout: Rollout, limits: Limits, now: Timestamp) -> Option<Order> {
        if self.stopping.is_some() {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.queued = false;
        self.restart = None;
        self.starting = Some(Starting { id, cause, deadline: now + limits.ready, rollout });
        Some(Order::Start(id))
    }

    fn reload(&mut self, rollout: Rollout, limits: Limits, now: Timestamp) -> Vec<Order> {
        if self.stopping.is_some() {
            self.reloads.refuse();
            return vec![];
        }
        self.reloads.ask(self.next);
        if self.starting.is_some() || self.trial.is_some() || self.standing.is_some() {
            // One more is remembered, not two: it will be newer than everything asked for until then.
            if !self.queued {
                self.queued_rollout = rollout;
            }
            self.queued = true;
            return vec![];
        }
        let cause = if self.serving.is_some() { Cause::Reload } else { Cause::Restart };
        self.start(cause, rollout, limits, now).into_iter().collect()
    }

    fn ready(&mut self, id: Id, limits: Limits, now: Timestamp) -> Vec<Order> {
        // Only the generation under way can become ready; any other repeats what was handled.
        let Some(starting) = self.starting.take_if(|starting| starting.id == id) else { return vec![] };
        // A trial is against somebody.
        match starting.rollout.stages.first().copied().filter(|_| self.serving.is_some()) {
            None => self.promote(id, limits, now),
            Some(stage) => {
                let until = now + stage.duration;
                self.trial = Some(Trial { id, rollout: starting.rollout, since: now, until, is_checked: false });
                vec![Order::Share(id, stage.percent), Order::Report(id, Transition::OnTrial(stage.percent))]
            }
        }
    }

    /// Ask a generation to stop, and set its deadline.
    fn retire(&mut self, id: Id, new_until: Timestamp, limits: Limits, now: Timestamp) -> Order {
        self.draining.push(Draining { id, stop: None, deadline: Some(now + limits.drain), new_until });
        Order::Retire(id)
    }

    fn start_queued(&mut self, limits: Limits, now: Timestamp) -> Option<Order> {
        let cause = if self.serving.is_some() { Cause::Reload } else { Cause::Restart };
        if !self.queued {
            return None;
        }
        let rollout = std::mem::take(&mut self.queued_rollout);
        self.start(cause, rollout, limits, now)
    }

    /// It accepts no more, though it has not ended.
    fn left(&mut self, id: Id, limits: Limits, now: Timestamp) -> Vec<Order> {
        if let Some(starting) = self.starting.take_if(|starting| starting.id == id) {
            return self.end_starting(starting, Transition::Failed(1), 1, limits, now);
        }
        if self.is_unsettled(id) {
            return self.roll_back(Reason::Left, limits, now);
        }
        // Nothing can be rolled back to it.
        let mut orders = if self.is_serving(id) { self.end_trial(limits, now) } else { vec![] };
        if self.is_standing_by(id) {
            orders.extend(self.settle(limits, now));
        }
        orders
    }

    fn ended(&mut self, id: Id, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        if let Some(starting) = self.starting.take_if(|starting| starting.id == id) {
            return self.end_starting(starting, Transition::Failed(status), status, limits, now);
        }
        if self.is_unsettled(id) {
            return self.roll_back(Reason::Ended(status), limits, now);
        }
        if let Some(standing) = self.standing.take_if(|standing| standing.id == id) {
            // There is nothing to roll back to.
            let released = self.release(id, standing.new_until(), standing.relieved, limits, now);
            return [released].into_iter().chain(self.settle(limits, now)).collect();
        }
        if let Some(serving) = self.serving.take_if(|serving| serving.id == id) {
            return self.crashed(serving, status, limits, now);
        }
        // It drains: what is left of it is asked to stop, too, unless something is still waited for.
        let is_told = |draining: &Draining| draining.id == id && draining.stop.is_none();
        self.draining.iter().any(is_told).then_some(Order::Retire(id)).into_iter().collect()
    }

    fn gone(&mut self, id: Id) -> Vec<Order> {
        let before = self.draining.len();
        self.draining.retain(|draining| draining.id != id);
        if self.draining.len() < before { vec![Order::Report(id, Transition::Gone)] } else { vec![] }
    }

    fn tick(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        let mut orders = Vec::new();
        if let Some(late) = self.starting.take_if(|starting| starting.deadline <= now) {
            self.draining.push(Draining { id: late.id, stop: None, deadline: None, new_until: never() });
            orders.extend([Order::Report(late.id, Transition::TimedOut), Order::Kill(late.id)]);
            orders.extend(self.failed(late, KILLED, limits, now));
        }
        if self.trial.as_ref().is_some_and(|trial| trial.until <= now) {
            orders.extend(self.end_stage(limits, now));
        }
        if self.standing.is_some_and(|standing| standing.until <= now) {
            orders.extend(self.settle(limits, now));
        }
        orders.extend(self.tell(|draining| draining.stop.is_some_and(|at| at <= now), limits, now));
        orders.extend(self.kill(|deadline| deadline <= now));
        if self.restart.take_if(|at| *at <= now).is_some() {
            let order = self.start(Cause::Restart, Rollout::default(), limits, now);
            self.restarts += u64::from(order.is_some());
            self.restarted = order.map_or(self.restarted, |_| Some(now));
            self.row += u32::from(order.is_some());
            orders.extend(order);
        }
        orders
    }
}

/// 128 and SIGKILL.
pub(crate) const KILLED: u8 = 137;
