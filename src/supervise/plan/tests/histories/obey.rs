//! Every order has to be due when it comes; what is reported, `reports` sees.

use std::collections::BTreeMap;

use super::super::super::*;
use super::lives::Life;
use super::model::{Target, World};
use crate::config::Drain;

type Lives = BTreeMap<Id, Life>;

impl World {
    pub(super) fn obey(&mut self, order: Order, event: &Event, before: &Lives) {
        let killed = if let Order::Kill(id) = order { Some(id) } else { None };
        assert_eq!(self.doomed.take(), killed, "{order:?}");
        match order {
            Order::Start(id) => self.start(id, event),
            Order::Steer(id) => self.steer(Target::All(id), id),
            Order::Share(id, percent) => self.steer(Target::Share(id, percent), id),
            Order::Check(id) => self.run_check(id, event),
            Order::Release(id) => self.release(id),
            Order::Retire(id) => self.retire(id, event),
            Order::Kill(id) => assert!(self.killed.insert(id), "{id} is killed twice"),
            Order::Report(id, transition) => {
                self.plan.reloads.end(id, transition, &[], self.now);
                self.report(id, transition, event, before);
            }
            Order::Finish(status) => {
                assert!(self.is_nothing_left(), "{:?}", self.lives);
                assert_eq!(Some(status), self.status);
                self.finished = Some(status);
            }
        }
    }

    fn start(&mut self, id: Id, event: &Event) {
        let under_way = (self.starting(), self.trial(), self.standing());
        assert_eq!((self.status, under_way), (None, (None, None, None)), "{id} is started");
        assert_eq!(id, self.next_id());
        let restart = self.wanted.is_none();
        assert!(!restart || self.is_tick(event, self.restart), "{id} was not asked for");
        self.restarts += u64::from(restart);
        self.restarted = if restart { Some(self.now) } else { self.restarted };
        self.row += u32::from(restart);
        self.restart = None;
        self.rollouts.insert(id, self.wanted.take().unwrap_or_default());
        self.lives.insert(id, Life::Starting { deadline: self.now + self.limits.ready });
        if self.serving().is_none() {
            // It is given the sockets where connections wait.
            self.target = Some(Target::All(id));
        }
    }

    fn steer(&mut self, target: Target, id: Id) {
        assert!(self.status.is_none() || id == PREDECESSOR);
        assert!(!self.lives[&id].is_leaving() && self.lives[&id] != Life::Gone);
        self.target = Some(target);
    }

    fn run_check(&mut self, id: Id, event: &Event) {
        let Life::OnTrial { stage, until, checked: false } = self.lives[&id] else { panic!("{id} is checked") };
        assert!(self.rollouts[&id].check.is_some() && self.is_tick(event, Some(until)));
        self.lives.insert(id, Life::OnTrial { stage, until: self.now + self.limits.ready, checked: true });
    }

    fn release(&mut self, id: Id) {
        let Life::ToRelease { relieved } = self.lives[&id] else { panic!("{:?} is released", self.lives[&id]) };
        let longest = relieved + self.limits.drain;
        let stop = match self.limits.drain_how {
            Drain::Idle => longest,
            Drain::Signal => longest.min(self.now + Duration::from_secs(5)),
        };
        self.lives.insert(id, Life::Waiting { stop: stop.max(self.now) });
    }

    fn retire(&mut self, id: Id, event: &Event) {
        let (ended, stops) = (is_end_of(event, id), matches!(event, Event::Stop(_)));
        match self.lives[&id] {
            Life::Draining { .. } => return assert!(ended),
            Life::ToRetire => (),
            Life::Standing { .. } | Life::Serving { .. } => assert!(stops),
            Life::Waiting { stop } => {
                assert!(stops || *event == Event::Released(id) || self.is_tick(event, Some(stop)));
            }
            life => panic!("{life:?} is retired"),
        }
        self.lives.insert(id, Life::Draining { deadline: Some(self.now + self.limits.drain) });
    }

    pub(super) fn is_tick(&self, event: &Event, due: Option<Timestamp>) -> bool {
        *event == Event::Tick && due.is_some_and(|at| at <= self.now)
    }
}

pub(super) fn is_end_of(event: &Event, id: Id) -> bool {
    matches!(event, Event::Ended(ended, _) if *ended == id)
}
