//! What follows when a generation ends unasked: it is started again, later and later, or everything stops.

use std::time::Duration;

use super::stages::{Cause, Serving, Starting, never};
use super::{Id, Order, Plan, Transition};
use crate::config::{Limits, Restart};
use crate::sys::Timestamp;

/// The first backoff before a generation that ended unasked is started again; each further one is twice as long.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// No backoff is longer.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A generation that served this long is no part of a crash loop: the backoff begins anew.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

impl Plan {
    /// A generation that was not ready is told to stop, or what is left of it, after this transition.
    pub(super) fn end_starting(
        &mut self,
        starting: Starting,
        transition: Transition,
        status: u8,
        limits: Limits,
        now: Timestamp,
    ) -> Vec<Order> {
        let id = starting.id;
        let mut orders = vec![Order::Report(id, transition), self.retire(id, never(), limits, now)];
        orders.extend(self.failed(starting, status, limits, now));
        orders
    }

    /// What follows when a generation did not get ready.
    pub(super) fn failed(&mut self, starting: Starting, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        match starting.cause {
            Cause::First => self.give_up_first(status).into_iter().collect(),
            Cause::Reload | Cause::Restart => {
                let queued = self.start_queued(limits, now);
                let next = queued.or_else(|| self.restart_or_stop(starting.id, failure(status), limits.restart, now));
                next.into_iter().collect()
            }
        }
    }

    /// Without the first generation there is nothing to supervise: everything stops.
    pub(super) fn give_up_first(&mut self, status: u8) -> Option<Order> {
        self.stopping.get_or_insert(failure(status));
        self.leave_earlier();
        std::mem::take(&mut self.queued).then_some(Order::Report(self.next, Transition::Cancelled))
    }

    /// The serving generation ended unasked: clients wait in the accept queue until it is started again.
    pub(super) fn crashed(&mut self, serving: Serving, status: u8, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.end_row(serving, now);
        let mut orders = vec![Order::Report(serving.id, Transition::Crashed(status))];
        match &self.trial {
            // It is all that there is.
            Some(_) => orders.extend(self.end_trial(limits, now)),
            // Whatever comes from now on waits for the one that starts.
            None => orders.extend(self.starting.as_ref().map(|starting| Order::Steer(starting.id))),
        }
        let is_replaced = self.serving.is_some() || self.starting.is_some();
        orders.extend(self.restart_or_stop(serving.id, status, limits.restart, now));
        orders.push(match is_replaced {
            // Its workers may still accept what waits for it.
            true => self.release(serving.id, serving.new_until(), now, limits, now),
            // What waits is for the one that is started again, on the same socket.
            false => self.retire(serving.id, serving.new_until(), limits, now),
        });
        orders
    }

    /// One that served for long enough is no part of a crash loop.
    pub(super) fn end_row(&mut self, served: Serving, now: Timestamp) {
        if now.saturating_sub(served.since) >= LONG_ENOUGH {
            (self.backoff, self.row) = (FIRST_BACKOFF, 0);
        }
    }

    /// After a generation that ended with `status`: where none serves and none starts, start one later, or stop. If
    /// everything stops already, as after a deploy that failed, nothing follows, and the status stays that of the failure.
    pub(super) fn restart_or_stop(&mut self, id: Id, status: u8, how: Restart, now: Timestamp) -> Option<Order> {
        if self.stopping.is_some() || self.serving.is_some() || self.starting.is_some() {
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
