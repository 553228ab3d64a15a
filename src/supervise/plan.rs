//! Which generation starts, serves and drains, decided without a clock, a process or a socket.
//!
//! The promise: at most one generation serves, at most one is getting ready, any number drain; the serving one drains
//! only after its successor is ready, or when everything is asked to stop. A generation that never gets ready changes
//! nothing for the one that serves. Where none serves and none starts, one is started again or everything stops.

mod events;
mod stages;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{Limits, Restart};
use crate::sys::Timestamp;
pub(crate) use events::{Answer, Event, Order, StopMode, Transition};
use stages::never;
pub(crate) use stages::{Cause, Draining, Serving, Starting};

/// Counts the generations, from 1 on.
pub(crate) type Id = u64;

/// The first backoff before a generation that ended unasked is started again; each further one is twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// No backoff is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A generation that served this long is no part of a crash loop: the backoff begins anew.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// A signal that comes again within this time asks for nothing more: some senders send it twice.
const REPEATED: Duration = Duration::from_secs(1);

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Plan {
    pub(crate) next: Id,
    pub(crate) starting: Option<Starting>,
    pub(crate) serving: Option<Serving>,
    pub(crate) draining: Vec<Draining>,
    /// One more generation is wanted when the one that starts has got ready or failed.
    pub(crate) queued: bool,
    /// When what ended unasked is started again.
    pub(crate) restart: Option<Timestamp>,
    /// The backoff before the next restart.
    pub(crate) backoff: Duration,
    /// How often a generation was started again.
    pub(crate) restarts: u64,
    /// How often in a row, since one served for long enough.
    pub(crate) row: u32,
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
            serving: None,
            draining: Vec::new(),
            queued: false,
            restart: None,
            backoff: FIRST_BACKOFF,
            restarts: 0,
            row: 0,
            stopping: None,
            signalled: None,
        }
    }
}

impl Plan {
    /// Begin with the first generation.
    pub(crate) fn begin(limits: Limits, now: Timestamp) -> (Plan, Vec<Order>) {
        let mut plan = Plan::default();
        let order = plan.start(Cause::First, limits, now);
        (plan, vec![order])
    }

    /// Go on in the place of a predecessor, which left these generations; those that it did not know drain.
    pub(crate) fn resume(&mut self, left: &[Id], limits: Limits, now: Timestamp) -> Vec<Order> {
        let known: Vec<Id> = self.generations().collect();
        let mut unknown: Vec<Id> = left.iter().copied().filter(|id| !known.contains(id)).collect();
        unknown.sort_unstable();
        self.next = self.next.max(left.iter().max().map_or(1, |id| id + 1));
        if self.serving.is_none() && self.stopping.is_none() {
            self.serving = unknown.pop().map(|id| Serving { id, since: now });
        }
        unknown.into_iter().map(|id| self.retire(id, Timestamp::ZERO, limits, now)).collect()
    }

    /// Every generation of which something is left.
    pub(crate) fn generations(&self) -> impl Iterator<Item = Id> {
        let starting = self.starting.map(|starting| starting.id);
        let serving = self.serving.map(|serving| serving.id);
        self.draining.iter().map(|draining| draining.id).chain(starting).chain(serving)
    }

    pub(crate) fn is_starting(&self, id: Id) -> bool {
        self.starting.is_some_and(|starting| starting.id == id)
    }

    pub(crate) fn is_serving(&self, id: Id) -> bool {
        self.serving.is_some_and(|serving| serving.id == id)
    }

    pub(crate) fn is_draining(&self, id: Id) -> bool {
        self.draining.iter().any(|draining| draining.id == id)
    }

    /// Is it getting ready, or was it ready only a moment ago?
    pub(crate) fn is_settling(&self, id: Id, now: Timestamp) -> bool {
        let draining = self.draining.iter().find(|draining| draining.id == id).map(|draining| draining.settled);
        let serving = self.serving.filter(|serving| serving.id == id).map(|serving| serving.settled());
        self.is_starting(id) || draining.or(serving).is_some_and(|settled| now < settled)
    }

    /// Which generation a reload request refers to. To be called before the request is handled.
    pub(crate) fn answer(&self) -> Answer {
        // It is the next to be started, now or after the one under way.
        if self.stopping.is_some() { Answer::Refused } else { Answer::Generation(self.next) }
    }

    /// When the next tick is due.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        let draining = self.draining.iter().filter_map(|draining| draining.deadline);
        draining.chain(self.starting.map(|starting| starting.deadline)).chain(self.restart).min()
    }

    /// Handle an event and return the orders, in sequence.
    pub(crate) fn handle(&mut self, event: Event, limits: Limits, now: Timestamp) -> Vec<Order> {
        let mut orders = match event {
            Event::Reload => self.reload(limits, now),
            Event::Ready(id) => self.ready(id, limits, now),
            Event::Ended(id, status) => self.ended(id, status, limits, now),
            Event::Gone(id) => self.gone(id),
            Event::Stop(mode) => self.stop(mode, limits, now),
            Event::Tick => self.tick(limits, now),
        };
        if let Some(status) = self.stopping.filter(|_| self.draining.is_empty()) {
            orders.push(Order::Finish(status));
        }
        orders
    }

    /// Start one more. It is also the one that was queued.
    fn start(&mut self, cause: Cause, limits: Limits, now: Timestamp) -> Order {
        let id = self.next;
        self.next += 1;
        self.queued = false;
        self.restart = None;
        self.starting = Some(Starting { id, cause, deadline: now + limits.ready });
        Order::Start(id)
    }

    fn reload(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        if self.stopping.is_some() {
            return vec![];
        }
        if self.starting.is_some() {
            // One more is remembered, not two: it will be newer than everything asked for until then.
            self.queued = true;
            return vec![];
        }
        let cause = if self.serving.is_some() { Cause::Reload } else { Cause::Restart };
        vec![self.start(cause, limits, now)]
    }

    fn ready(&mut self, id: Id, limits: Limits, now: Timestamp) -> Vec<Order> {
        // Only the generation under way can become ready; any other repeats what was handled.
        if self.starting.take_if(|starting| starting.id == id).is_none() {
            return vec![];
        }
        let old = self.serving.replace(Serving { id, since: now });
        old.iter().for_each(|old| self.end_row(*old, now));
        let mut orders = vec![Order::Report(id, Transition::Serves)];
        orders.extend(old.map(|old| self.retire(old.id, old.settled(), limits, now)));
        orders.extend(self.start_queued(limits, now));
        orders
    }

    /// Ask a generation to stop, and set its deadline.
    fn retire(&mut self, id: Id, settled: Timestamp, limits: Limits, now: Timestamp) -> Order {
        self.draining.push(Draining { id, deadline: Some(now + limits.drain), settled });
        Order::Retire(id)
    }

    fn start_queued(&mut self, limits: Limits, now: Timestamp) -> Option<Order> {
        let cause = if self.serving.is_some() { Cause::Reload } else { Cause::Restart };
        self.queued.then(|| self.start(cause, limits, now))
    }

    fn ended(&mut self, id: Id, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        if let Some(starting) = self.starting.take_if(|starting| starting.id == id) {
            let mut orders = vec![Order::Report(id, Transition::Failed(status)), self.retire(id, never(), limits, now)];
            orders.extend(self.failed(starting, status, limits, now));
            return orders;
        }
        if let Some(serving) = self.serving.take_if(|serving| serving.id == id) {
            return self.crashed(serving, status, limits, now);
        }
        // It drains: what is left of it is asked to stop, too.
        self.is_draining(id).then_some(Order::Retire(id)).into_iter().collect()
    }

    /// What follows when a generation did not get ready.
    fn failed(&mut self, starting: Starting, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        match starting.cause {
            Cause::First => {
                self.stopping.get_or_insert(failure(status));
                std::mem::take(&mut self.queued)
                    .then_some(Order::Report(self.next, Transition::Cancelled))
                    .into_iter()
                    .collect()
            }
            Cause::Reload | Cause::Restart => {
                let queued = self.start_queued(limits, now);
                let next = queued.or_else(|| self.restart_or_stop(starting.id, failure(status), limits.restart, now));
                next.into_iter().collect()
            }
        }
    }

    /// The serving generation ended unasked: clients wait in the accept queue until it is started again.
    fn crashed(&mut self, serving: Serving, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.end_row(serving, now);
        let mut orders = vec![Order::Report(serving.id, Transition::Crashed(status))];
        orders.extend(self.restart_or_stop(serving.id, status, limits.restart, now));
        orders.push(self.retire(serving.id, serving.settled(), limits, now));
        orders
    }

    /// One that served for long enough is no part of a crash loop.
    fn end_row(&mut self, served: Serving, now: Timestamp) {
        if now.saturating_sub(served.since) >= LONG_ENOUGH {
            (self.backoff, self.row) = (FIRST_BACKOFF, 0);
        }
    }

    /// After a generation that ended with `status`: where none serves and none starts, start one later, or stop.
    fn restart_or_stop(&mut self, id: Id, status: u8, how: Restart, now: Timestamp) -> Option<Order> {
        if self.serving.is_some() || self.starting.is_some() {
            return None;
        }
        if !allows(how, status, self.row) {
            self.stopping = Some(status);
            return Some(Order::Report(id, Transition::GivenUp));
        }
        let backoff = self.backoff;
        self.restart = Some(now + backoff);
        self.backoff = (backoff * 2).min(LONGEST_BACKOFF);
        Some(Order::Report(id, Transition::Restarts(backoff)))
    }

    fn gone(&mut self, id: Id) -> Vec<Order> {
        let before = self.draining.len();
        self.draining.retain(|draining| draining.id != id);
        if self.draining.len() < before { vec![Order::Report(id, Transition::Gone)] } else { vec![] }
    }

    fn stop(&mut self, mode: StopMode, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.stopping.get_or_insert(0);
        self.restart = None;
        let mut orders = Vec::new();
        if std::mem::take(&mut self.queued) {
            orders.push(Order::Report(self.next, Transition::Cancelled));
        }
        if let Some(starting) = self.starting.take() {
            let retired = self.retire(starting.id, never(), limits, now);
            orders.extend([Order::Report(starting.id, Transition::Cancelled), retired]);
        }
        orders.extend(self.serving.take().map(|serving| self.retire(serving.id, serving.settled(), limits, now)));
        if self.is_urgent(mode, now) {
            orders.extend(self.kill(|_| true));
        }
        orders
    }

    /// Is everything to stop at once?
    fn is_urgent(&mut self, mode: StopMode, now: Timestamp) -> bool {
        match mode {
            StopMode::Drain => false,
            StopMode::Signal => now - *self.signalled.get_or_insert(now) >= REPEATED,
            StopMode::Now => true,
        }
    }

    /// Kill those that drain and are `due`, once.
    fn kill(&mut self, due: impl Fn(Timestamp) -> bool) -> Vec<Order> {
        let mut orders = Vec::new();
        for draining in &mut self.draining {
            if draining.deadline.take_if(|deadline| due(*deadline)).is_some() {
                orders.extend([Order::Report(draining.id, Transition::Killed), Order::Kill(draining.id)]);
                // Asked to stop, it did not drain: the exit status shows it.
                self.stopping = self.stopping.map(|status| if status == 0 { KILLED } else { status });
            }
        }
        orders
    }

    fn tick(&mut self, limits: Limits, now: Timestamp) -> Vec<Order> {
        let mut orders = Vec::new();
        if let Some(late) = self.starting.take_if(|starting| starting.deadline <= now) {
            self.draining.push(Draining { id: late.id, deadline: None, settled: never() });
            orders.extend([Order::Report(late.id, Transition::TimedOut), Order::Kill(late.id)]);
            orders.extend(self.failed(late, KILLED, limits, now));
        }
        orders.extend(self.kill(|deadline| deadline <= now));
        if self.restart.take_if(|at| *at <= now).is_some() {
            self.restarts += 1;
            self.row += 1;
            orders.push(self.start(Cause::Restart, limits, now));
        }
        orders
    }
}

/// May a generation that ended with `status`, after this many restarts in a row, be started again?
fn allows(how: Restart, status: u8, row: u32) -> bool {
    match how {
        Restart::Always => true,
        Restart::OnFailure(most) => status != 0 && most.is_none_or(|most| row < most.get()),
        Restart::No => false,
    }
}

/// The status to end with after a generation that ended with `status` before it was ready, which is no success.
fn failure(status: u8) -> u8 {
    status.max(1)
}

/// 128 and SIGKILL.
pub(crate) const KILLED: u8 = 137;
