//! How everything stops: all generations are told at once, and killed when they do not drain in time or the stop is urgent.

use std::time::Duration;

use super::stages::never;
use super::{KILLED, Order, PREDECESSOR, Plan, StopMode, Transition};
use crate::config::Limits;
use crate::sys::Timestamp;

/// A signal that comes again within this time asks for nothing more: some senders send it twice.
const REPEATED: Duration = Duration::from_secs(1);

impl Plan {
    pub(super) fn stop(&mut self, mode: StopMode, limits: Limits, now: Timestamp) -> Vec<Order> {
        self.stopping.get_or_insert(0);
        self.restart = None;
        let mut orders = Vec::new();
        if std::mem::take(&mut self.queued) {
            orders.push(Order::Report(self.next, Transition::Cancelled));
        }
        let starting = self.starting.take().map(|starting| (starting.id, never()));
        let trial = self.trial.take().map(|trial| (trial.id, trial.new_until()));
        for (id, new_until) in starting.into_iter().chain(trial) {
            orders.extend([Order::Report(id, Transition::Cancelled), self.retire(id, new_until, limits, now)]);
        }
        if self.is_predecessor_needed() {
            self.leave_earlier();
        }
        self.serving.take_if(|serving| serving.id == PREDECESSOR);
        if let (Some(old), Some(serving)) = (self.standing.take_if(|old| old.id == PREDECESSOR), self.serving) {
            orders.extend([Order::Steer(old.id), Order::Report(serving.id, Transition::Cancelled)]);
        }
        if let (Some(old), Some(serving)) = (self.standing.take(), self.serving) {
            let retired = self.retire(old.id, old.new_until(), limits, now);
            orders.extend([Order::Report(serving.id, Transition::Cancelled), retired]);
        }
        orders.extend(self.tell(|_| true, limits, now));
        orders.extend(self.serving.take().map(|serving| self.retire(serving.id, serving.new_until(), limits, now)));
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
    pub(super) fn kill(&mut self, due: impl Fn(Timestamp) -> bool) -> Vec<Order> {
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
}
