//! What was due has to have been ordered.

use std::collections::BTreeMap;

use super::super::super::*;
use super::lives::Life;
use super::model::{Target, World};

impl World {
    pub(super) fn check(&self, event: &Event, before: &BTreeMap<Id, Life>) {
        assert_eq!(self.doomed, None);
        assert!(!self.lives.values().any(|life| life.is_owed()), "{:?}", self.lives);
        self.check_plan();
        self.check_target();
        let under_way = [self.starting(), self.trial(), self.standing()].into_iter().flatten().count();
        assert!(under_way <= 1, "{:?}", self.lives);
        assert!(self.wanted.is_none() || under_way == 1, "a reload request was forgotten");
        assert!(self.serving().is_some() || self.trial().or(self.standing()).is_none(), "{:?}", self.lives);
        if let Some(id) = self.serving() {
            let has_settled = id == PREDECESSOR || self.outcomes.get(&id) == Some(&Transition::Settled);
            assert_eq!(has_settled, self.standing().is_none(), "{id} serves: {:?}", self.lives);
        }
        let over = self.status.is_some() && self.is_nothing_left();
        assert_eq!(self.finished.is_some(), over);
        self.check_effect(event, before);
    }

    fn check_plan(&self) {
        let plan = &self.plan;
        assert_eq!(plan.starting.as_ref().map(|starting| starting.id), self.starting());
        assert_eq!(plan.trial.as_ref().map(|trial| trial.id), self.trial());
        let serving = self.serving().map(|id| (id, self.lives[&id]));
        assert_eq!(plan.serving.map(|serving| (serving.id, Life::Serving { since: serving.since })), serving);
        assert_eq!(plan.standing.map(|standing| standing.id), self.standing());
        let mut draining: Vec<Id> = plan.draining.iter().map(|draining| draining.id).collect();
        draining.sort_unstable();
        assert_eq!(draining, self.those(Life::is_leaving));
        assert_eq!(plan.queued.then_some(&plan.queued_rollout), self.wanted.as_ref());
        assert_eq!((plan.restarts, plan.row, plan.backoff), (self.restarts, self.row, self.backoff));
        assert_eq!((plan.restarted, plan.reloads.counts), (self.restarted, self.counts()));
        assert_eq!((plan.stopping, plan.deadline()), (self.status, self.deadline()));
    }

    /// Every generation that was asked for, by the one transition that ended it.
    fn counts(&self) -> Counts {
        let mut counts = Counts { refused: self.refused, ..Counts::default() };
        for outcome in self.promised.iter().filter_map(|id| self.outcomes.get(id)) {
            *match outcome {
                Transition::Settled => &mut counts.succeeded,
                Transition::Failed(_) => &mut counts.failed,
                Transition::TimedOut => &mut counts.timed_out,
                Transition::RolledBack(_) => &mut counts.rolled_back,
                Transition::Cancelled => &mut counts.cancelled,
                _ => unreachable!("{outcome:?} ends nothing"),
            } += 1;
        }
        counts
    }

    /// New connections go to one that takes them, or will.
    fn check_target(&self) {
        if self.status.is_some() {
            return;
        }
        let target = match (self.trial(), self.serving().or(self.starting())) {
            (Some(id), _) => Some(Target::Share(id, self.percent(id))),
            // It is started again in its place.
            (None, id) => id.or(self.ended_last).map(Target::All),
        };
        assert_eq!(self.target, target, "{:?}", self.lives);
    }

    fn check_effect(&self, event: &Event, before: &BTreeMap<Id, Life>) {
        let earlier = |id: &Id| before.get(id).copied().unwrap_or(Life::Gone);
        let after = |id: &Id| self.lives[id];
        let outcome = |id: &Id| self.outcomes.get(id).copied();
        match event {
            Event::Ready(id) if earlier(id).is_starting() => {
                let on_trial = !self.rollouts[id].stages.is_empty() && before.values().any(|life| life.is_serving());
                assert!(if on_trial { after(id).is_on_trial() } else { after(id).is_serving() });
            }
            Event::Left(id) if earlier(id).is_starting() => assert_eq!(outcome(id), Some(Transition::Failed(1))),
            Event::Left(id) if is_unsettled(*id, before) => {
                assert_eq!(outcome(id), Some(Transition::RolledBack(Reason::Left)));
            }
            Event::Left(id) if earlier(id).is_standing() => assert!(after(id).is_leaving()),
            Event::Left(id) if earlier(id).is_serving() && before.values().any(|life| life.is_on_trial()) => {
                assert!(after(id).is_leaving());
            }
            Event::Ended(id, _) if earlier(id) != Life::Gone => assert!(after(id).is_leaving()),
            Event::Released(id) if earlier(id).is_leaving() => assert!(matches!(after(id), Life::Draining { .. })),
            Event::Checked(id, passed) if matches!(earlier(id), Life::OnTrial { checked: true, .. }) => {
                let failed = outcome(id) == Some(Transition::RolledBack(Reason::Check));
                assert!(after(id) != earlier(id) && failed != *passed);
            }
            Event::Gone(id) if earlier(id).is_leaving() => assert_eq!(after(id), Life::Gone),
            Event::Promote => {
                assert!(before.keys().all(|id| !earlier(id).is_on_trial() || after(id).is_serving()));
                assert!(before.keys().all(|id| !earlier(id).is_standing() || !after(id).is_standing()));
            }
            Event::Rollback => {
                let serves = before.values().any(|life| life.is_serving());
                let is_new = |id: &&Id| is_unsettled(**id, before) || earlier(id).is_starting() && serves;
                let mut new = before.keys().filter(is_new);
                assert!(new.all(|id| outcome(id) == Some(Transition::RolledBack(Reason::Asked))));
            }
            Event::Stop(_) => {
                assert!(self.lives.values().all(|life| matches!(life, Life::Draining { .. } | Life::Gone)));
                assert!(!self.is_urgent(event) || self.deadline().is_none());
            }
            Event::Tick => {
                let is_due = |id: &&Id| earlier(id).deadline().is_some_and(|at| at <= self.now);
                let late: Vec<&Id> = before.keys().filter(is_due).filter(|id| after(id) == earlier(id)).collect();
                assert!(late.is_empty(), "{late:?} had no more time");
                assert!(self.deadline().is_none_or(|at| at >= self.now), "it would spin");
            }
            _ => (),
        }
    }
}

/// Was it on trial, or did it serve while its predecessor stood by?
fn is_unsettled(id: Id, lives: &BTreeMap<Id, Life>) -> bool {
    let stood_by = lives.values().any(|life| life.is_standing());
    lives.get(&id).is_some_and(|life| life.is_on_trial() || life.is_serving() && stood_by)
}
