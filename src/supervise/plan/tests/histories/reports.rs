//! Every transition has to be due when it is reported.

use std::collections::BTreeMap;

use super::super::super::*;
use super::lives::Life;
use super::model::World;
use super::obey::is_end_of;

type Lives = BTreeMap<Id, Life>;

impl World {
    pub(super) fn report(&mut self, id: Id, transition: Transition, event: &Event, before: &Lives) {
        if is_outcome(transition) {
            assert_eq!(self.outcomes.insert(id, transition), None, "{id} has two outcomes");
        }
        let Some(life) = self.lives.get(&id).copied() else {
            assert_eq!(transition, Transition::Cancelled, "{id} never was");
            assert!(self.status.is_some() && self.wanted.take().is_some() && self.promised.contains(&id));
            return;
        };
        let next = match transition {
            Transition::OnTrial(percent) => self.advance(id, life, percent, event),
            Transition::Serves => self.take_over(id, life, event, before),
            Transition::Settled => self.settle(id, life, event),
            Transition::RolledBack(reason) => self.roll_back(id, life, reason, event),
            Transition::Failed(_) | Transition::TimedOut => self.fail(id, life, transition, event),
            Transition::Cancelled => self.cancel(id, life, event),
            Transition::Crashed(status) => self.crash(id, life, status, event),
            Transition::Restarts(_) | Transition::GivenUp => {
                assert!(matches!(life, Life::ToRetire | Life::Draining { .. }));
                assert_eq!(self.next.replace(transition), None);
                life
            }
            Transition::Killed => self.kill(id, life, event),
            Transition::Gone => {
                assert!(life.is_leaving() && *event == Event::Gone(id));
                Life::Gone
            }
        };
        self.lives.insert(id, next);
    }

    /// A trial begins, or its next stage does.
    fn advance(&self, id: Id, life: Life, percent: u8, event: &Event) -> Life {
        assert!(self.serving().is_some(), "{id} is on trial against nobody");
        let stage = match life {
            Life::Starting { .. } => {
                assert_eq!(*event, Event::Ready(id));
                0
            }
            Life::OnTrial { stage, .. } => {
                assert!(self.passes(id, life, event));
                stage + 1
            }
            _ => panic!("{id} is on trial, which is {life:?}"),
        };
        let present = self.rollouts[&id].stages[stage];
        assert_eq!(present.percent, percent);
        Life::OnTrial { stage, until: self.now + present.duration, checked: false }
    }

    /// Does this event end the present stage of its trial well?
    fn passes(&self, id: Id, life: Life, event: &Event) -> bool {
        match life {
            Life::OnTrial { checked: true, .. } => *event == Event::Checked(id, true),
            Life::OnTrial { until, .. } => self.rollouts[&id].check.is_none() && self.is_tick(event, Some(until)),
            _ => false,
        }
    }

    fn take_over(&mut self, id: Id, life: Life, event: &Event, before: &Lives) -> Life {
        assert!(self.served.insert(id), "{id} serves twice");
        let stages = &self.rollouts[&id].stages;
        let due = match life {
            Life::Starting { .. } => *event == Event::Ready(id) && (stages.is_empty() || self.serving().is_none()),
            Life::OnTrial { stage, .. } => {
                let last = stage + 1 == stages.len() && self.passes(id, life, event);
                let alone = before.iter().any(|(old, life)| life.is_serving() && is_end_of(event, *old));
                let left = before.iter().any(|(old, life)| life.is_serving() && *event == Event::Left(*old));
                last || alone || left || *event == Event::Promote
            }
            _ => false,
        };
        assert!(due, "{id} serves, which is {life:?}");
        if let Some(old) = self.serving() {
            let Life::Serving { since } = self.lives[&old] else { unreachable!() };
            self.end_row(since);
            self.lives.insert(old, Life::Standing { since, relieved: self.now, until: self.now + self.limits.settle });
        }
        Life::Serving { since: self.now }
    }

    /// Nobody stands by for it from now on.
    fn settle(&mut self, id: Id, life: Life, event: &Event) -> Life {
        assert!(self.served.contains(&id) && life.is_serving());
        let Some(old) = self.standing() else { return life };
        let Life::Standing { relieved, until, .. } = self.lives[&old] else { unreachable!() };
        let due = self.is_tick(event, Some(until)) || [Event::Promote, Event::Left(old)].contains(event);
        assert!(due, "{id} had to settle until {until:?}");
        self.lives.insert(old, Life::ToRelease { relieved });
        life
    }

    fn roll_back(&mut self, id: Id, life: Life, reason: Reason, event: &Event) -> Life {
        let due = match (reason, life) {
            (Reason::Ended(status), _) => *event == Event::Ended(id, status),
            (Reason::Left, _) => *event == Event::Left(id),
            (Reason::Asked, _) => *event == Event::Rollback,
            (Reason::Check, Life::OnTrial { checked, .. }) => checked && *event == Event::Checked(id, false),
            (Reason::CheckTimedOut, Life::OnTrial { checked, until, .. }) => {
                checked && self.is_tick(event, Some(until))
            }
            _ => false,
        };
        assert!(due, "{id} is rolled back");
        if life.is_starting() {
            assert!(reason == Reason::Asked && self.serving().is_some());
            return self.end_starting(id, 1, Life::ToRetire);
        }
        assert!(life.is_on_trial() || self.is_unsettled(id), "{id} is rolled back, which is {life:?}");
        if let Some(old) = self.standing() {
            let Life::Standing { since, .. } = self.lives[&old] else { unreachable!() };
            // First it, so that never two serve.
            self.lives.insert(id, Life::ToRelease { relieved: self.now });
            self.lives.insert(old, Life::Serving { since });
            if old == PREDECESSOR {
                let status = if let Reason::Ended(status) = reason { status.max(1) } else { 1 };
                self.status.get_or_insert(status);
            }
        }
        Life::ToRelease { relieved: self.now }
    }

    fn fail(&mut self, id: Id, life: Life, transition: Transition, event: &Event) -> Life {
        let Life::Starting { deadline } = life else { panic!("{transition:?} of {id}, which is {life:?}") };
        let (status, next) = match transition {
            Transition::Failed(status) => {
                assert!(*event == Event::Ended(id, status) || (event, status) == (&Event::Left(id), 1));
                (status.max(1), Life::ToRetire)
            }
            _ => {
                assert!(self.is_tick(event, Some(deadline)));
                self.doomed = Some(id);
                (137, Life::Draining { deadline: None })
            }
        };
        self.end_starting(id, status, next)
    }

    /// One that was not ready gets no further.
    fn end_starting(&mut self, id: Id, status: u8, next: Life) -> Life {
        self.ended_last = Some(id);
        if id == 1 {
            self.status.get_or_insert(status);
            // What is left of a predecessor that ended by itself is not waited for.
            self.lives.entry(PREDECESSOR).and_modify(|life| *life = if life.is_serving() { *life } else { Life::Gone });
        }
        next
    }

    fn cancel(&self, id: Id, life: Life, event: &Event) -> Life {
        assert!(matches!(event, Event::Stop(_)));
        if life.is_starting() || life.is_on_trial() {
            return Life::ToRetire;
        }
        assert!(self.is_unsettled(id));
        life
    }

    fn crash(&mut self, id: Id, life: Life, status: u8, event: &Event) -> Life {
        let Life::Serving { since } = life else { panic!("{id} crashed, which is {life:?}") };
        assert_eq!((event, self.standing()), (&Event::Ended(id, status), None));
        self.end_row(since);
        self.ended_last = Some(id);
        let is_replaced = self.starting().or(self.trial()).is_some();
        if is_replaced { Life::ToRelease { relieved: self.now } } else { Life::ToRetire }
    }

    fn kill(&mut self, id: Id, life: Life, event: &Event) -> Life {
        let Life::Draining { deadline: Some(deadline) } = life else { panic!("{id} is killed, which is {life:?}") };
        let due = self.is_tick(event, Some(deadline)) || self.is_urgent(event);
        assert!(due, "{id} had time until {deadline:?}");
        self.status = self.status.map(|status| if status == 0 { 137 } else { status });
        self.doomed = Some(id);
        Life::Draining { deadline: None }
    }

    fn end_row(&mut self, since: Timestamp) {
        if self.now - since >= Duration::from_secs(10) {
            (self.backoff, self.row) = (Duration::from_millis(100), 0);
        }
    }
}

fn is_outcome(transition: Transition) -> bool {
    matches!(
        transition,
        Transition::Settled
            | Transition::RolledBack(_)
            | Transition::Failed(_)
            | Transition::TimedOut
            | Transition::Cancelled
    )
}
