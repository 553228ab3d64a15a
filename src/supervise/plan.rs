//! Which generation starts, serves and drains, decided without a clock, a process or a socket.
//!
//! The promise: at most one generation serves, at most one is getting ready, any number drain; the serving one drains
//! only after its successor is ready, or when everything is asked to stop. A generation that never gets ready changes
//! nothing for the one that serves.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::sys::Timestamp;

#[cfg(test)]
mod tests;

/// Counts the generations, from 1 on.
pub(crate) type Id = u64;

/// The first backoff before a generation that ended unasked is started again; each further one is twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// No backoff is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A generation that served this long is no part of a crash loop: the backoff begins anew.
const LONG_ENOUGH: Duration = Duration::from_secs(10);
/// A generation has settled when it was ready for this long: what it does on becoming ready is done.
const SETTLING: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A new generation was asked for.
    Reload,
    /// The generation serves.
    Ready(Id),
    /// Its main process ended, or could not be started, with this exit status.
    Ended(Id, u8),
    /// Nothing is left of it.
    Gone(Id),
    /// Everything is to stop.
    Stop(StopMode),
    /// The deadline may have passed.
    Tick,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// Let what is under way end.
    Drain,
    /// At once.
    Now,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start this generation.
    Start(Id),
    /// Send the stop signal to the main process while it runs, then to every remaining process.
    Retire(Id),
    /// Kill every remaining process.
    Kill(Id),
    /// Report this transition.
    Report(Id, Transition),
    /// Nothing is left to do: end with this status.
    Finish(u8),
}

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Serves,
    /// It ended before it was ready, with this exit status.
    Failed(u8),
    /// It was not ready in time.
    TimedOut,
    /// It was stopped before it was ready, or never started, because everything stops.
    Cancelled,
    /// It ended unasked, and is started again after this backoff.
    Crashed(u8, Duration),
    /// It had to be killed at its deadline.
    Killed,
    Gone,
}

/// The answer to a reload request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This one is, or will be, the new one.
    Generation(Id),
    /// Everything stops.
    Refused,
}

/// Why a generation was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    /// It is the first: if it fails, all fails.
    First,
    /// The one that served has ended: if this one fails, it is tried again.
    Restart,
    /// A new one was asked for: if it fails, the one that serves stays.
    #[default]
    #[serde(other)]
    Reload,
}

/// A generation that gets ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Starting {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) cause: Cause,
    #[serde(default = "never")]
    pub(crate) deadline: Timestamp,
}

/// The generation that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) since: Timestamp,
}

impl Serving {
    fn settled(&self) -> Timestamp {
        self.since + SETTLING
    }
}

/// A generation that was asked to stop, or of which something is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draining {
    pub(crate) id: Id,
    /// When it is killed; none once it was.
    #[serde(default = "some_never")]
    pub(crate) deadline: Option<Timestamp>,
    /// When it has settled: never, if it was not ready before it was asked to stop.
    #[serde(default)]
    pub(crate) settled: Timestamp,
}

/// The deadline of a state that has none.
fn never() -> Timestamp {
    Timestamp::MAX
}

fn some_never() -> Option<Timestamp> {
    Some(never())
}

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
    /// The status to end with, once everything stops.
    pub(crate) stopping: Option<u8>,
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
            stopping: None,
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
    pub(crate) fn resume(&mut self, left: &[Id]) {
        let known: Vec<Id> = self.generations().collect();
        let unknown = left.iter().filter(|id| !known.contains(id));
        self.draining.extend(unknown.map(|id| Draining { id: *id, deadline: some_never(), settled: Timestamp::ZERO }));
        self.next = self.next.max(left.iter().max().map_or(1, |id| id + 1));
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
            orders.extend(self.failed(starting.cause, status, limits, now));
            return orders;
        }
        if let Some(serving) = self.serving.take_if(|serving| serving.id == id) {
            return self.crashed(serving, status, limits, now);
        }
        // It drains: what is left of it is asked to stop, too.
        self.is_draining(id).then_some(Order::Retire(id)).into_iter().collect()
    }

    /// What follows when a generation did not get ready.
    fn failed(&mut self, cause: Cause, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        match cause {
            Cause::First => {
                self.stopping.get_or_insert(failure(status));
                std::mem::take(&mut self.queued)
                    .then_some(Order::Report(self.next, Transition::Cancelled))
                    .into_iter()
                    .collect()
            }
            Cause::Reload | Cause::Restart => {
                let orders: Vec<Order> = self.start_queued(limits, now).into_iter().collect();
                if orders.is_empty() && self.serving.is_none() {
                    self.back_off(now);
                }
                orders
            }
        }
    }

    /// The serving generation ended unasked: clients wait in the accept queue until it is started again.
    fn crashed(&mut self, serving: Serving, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        if now.saturating_sub(serving.since) >= LONG_ENOUGH {
            self.backoff = FIRST_BACKOFF;
        }
        let left = self.retire(serving.id, serving.settled(), limits, now);
        // A successor under way takes its place.
        let backoff = if self.starting.is_some() { Duration::ZERO } else { self.back_off(now) };
        vec![Order::Report(serving.id, Transition::Crashed(status, backoff)), left]
    }

    fn back_off(&mut self, now: Timestamp) -> Duration {
        let backoff = self.backoff;
        self.restart = Some(now + backoff);
        self.backoff = (backoff * 2).min(LONGEST_BACKOFF);
        backoff
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
        if mode == StopMode::Now {
            orders.extend(self.kill(|_| true));
        }
        orders
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
            orders.extend(self.failed(late.cause, KILLED, limits, now));
        }
        orders.extend(self.kill(|deadline| deadline <= now));
        if self.restart.take_if(|at| *at <= now).is_some() {
            self.restarts += 1;
            orders.push(self.start(Cause::Restart, limits, now));
        }
        orders
    }
}

/// The status to end with after a generation that ended with `status` before it was ready, which is no success.
fn failure(status: u8) -> u8 {
    status.max(1)
}

/// 128 and SIGKILL.
pub(crate) const KILLED: u8 = 137;
