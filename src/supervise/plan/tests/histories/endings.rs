//! Nothing is forgotten: what ends is started again, what is under way comes to an end, and after a stop everything does.

use std::collections::BTreeMap;

use super::super::super::*;
use super::lives::Life;
use super::model::World;
use crate::config::Restart;

impl World {
    /// What crashed, or failed to take the place of what crashed, is started again later and later, or everything stops.
    pub(super) fn follow_if_nothing_serves(&mut self, event: &Event, before: &BTreeMap<Id, Life>) {
        let idle = self.starting().is_none() && self.serving().is_none();
        if self.status.is_some() || !idle || self.restart.is_some() {
            return assert_eq!(self.next.take(), None);
        }
        let status = match event {
            Event::Ended(id, status) if before[id].is_serving() => *status,
            Event::Ended(_, status) => *status.max(&1),
            Event::Left(_) => 1,
            _ => 137,
        };
        let again = match self.limits.restart {
            Restart::Always => true,
            Restart::OnFailure(None) => status != 0,
            Restart::OnFailure(Some(most)) => status != 0 && self.row < most.get(),
            Restart::No => false,
        };
        if again {
            assert_eq!(self.next.take(), Some(Transition::Restarts(self.backoff)));
            self.restart = Some(self.now + self.backoff);
            self.backoff = (self.backoff * 2).min(Duration::from_secs(10));
        } else {
            assert_eq!(self.next.take(), Some(Transition::GivenUp));
            self.status = Some(status);
        }
    }

    /// Whatever starts gets ready, and every deadline passes: one serves in the end that was asked for last.
    pub(super) fn come_to_rest(&mut self) {
        while let Some(event) = self.what_comes() {
            self.now = self.now.max(self.plan.deadline().unwrap_or_default());
            self.happen(event);
        }
        assert!(self.status.is_some() || self.serving().is_some(), "nothing was started again");
        let known = self.outcomes.len() as Id;
        assert_eq!(known, self.lives.keys().chain(&self.promised).max().copied().unwrap_or(0), "{:?}", self.outcomes);
        let told = |life: &Life| matches!(life, Life::Serving { .. } | Life::Draining { deadline: None } | Life::Gone);
        assert!(self.lives.values().all(told), "{:?}", self.lives);
    }

    fn what_comes(&self) -> Option<Event> {
        match self.starting() {
            Some(id) => Some(Event::Ready(id)),
            None => self.deadline().map(|_| Event::Tick),
        }
    }

    pub(super) fn end(&mut self, mode: StopMode) {
        self.happen(Event::Stop(mode));
        let left: Vec<Id> = self.lives.keys().copied().collect();
        for id in left.into_iter().rev() {
            self.happen(Event::Ended(id, 0));
            self.happen(Event::Gone(id));
        }
        assert!(self.lives.values().all(|life| *life == Life::Gone));
        for id in self.lives.keys().filter(|id| **id != PREDECESSOR).chain(&self.promised) {
            assert!(self.outcomes.contains_key(id), "{id} was promised or started, and nothing was reported of it");
        }
    }
}
