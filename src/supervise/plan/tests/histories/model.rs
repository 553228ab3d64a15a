//! The model, and the plan it watches.

use std::collections::{BTreeMap, BTreeSet};

use super::super::super::*;
use super::lives::Life;

/// Where new connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// All of them.
    All(Id),
    /// This percentage, and the rest to the one that serves.
    Share(Id, u8),
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) limits: Limits,
    pub(super) now: Timestamp,
    pub(super) lives: BTreeMap<Id, Life>,
    /// How each of them was to take over.
    pub(super) rollouts: BTreeMap<Id, Rollout>,
    /// The one transition that ended each reload request and each start.
    pub(super) outcomes: BTreeMap<Id, Transition>,
    pub(super) served: BTreeSet<Id>,
    pub(super) promised: BTreeSet<Id>,
    pub(super) killed: BTreeSet<Id>,
    pub(super) target: Option<Target>,
    /// The one that crashed or failed last.
    pub(super) ended_last: Option<Id>,
    /// One more generation was asked for while one was under way, and how it is to take over.
    pub(super) wanted: Option<Rollout>,
    pub(super) restart: Option<Timestamp>,
    pub(super) restarts: u64,
    pub(super) restarted: Option<Timestamp>,
    pub(super) refused: u64,
    /// How many of them in a row.
    pub(super) row: u32,
    pub(super) backoff: Duration,
    /// What was reported to follow in this event, now that none serves.
    pub(super) next: Option<Transition>,
    /// To be killed by the very next order.
    pub(super) doomed: Option<Id>,
    pub(super) status: Option<u8>,
    pub(super) finished: Option<u8>,
    pub(super) signalled: Option<Timestamp>,
}

impl World {
    pub(super) fn begin(limits: Limits) -> World {
        let now = Duration::from_secs(5);
        let (plan, orders) = Plan::begin(limits, now);
        assert_eq!(orders, [Order::Start(1)]);
        World {
            plan,
            limits,
            now,
            lives: BTreeMap::from([(1, Life::Starting { deadline: now + limits.ready })]),
            rollouts: BTreeMap::from([(1, Rollout::default())]),
            outcomes: BTreeMap::new(),
            served: BTreeSet::new(),
            promised: BTreeSet::new(),
            killed: BTreeSet::new(),
            target: Some(Target::All(1)),
            ended_last: None,
            wanted: None,
            restart: None,
            restarts: 0,
            restarted: None,
            refused: 0,
            backoff: Duration::from_millis(100),
            row: 0,
            next: None,
            doomed: None,
            status: None,
            finished: None,
            signalled: None,
        }
    }

    /// The same beside a predecessor.
    pub(super) fn succeed(limits: Limits) -> World {
        let mut world = World::begin(limits);
        let (plan, orders) = Plan::succeed(limits, world.now);
        assert_eq!(orders, [Order::Start(1)]);
        world.lives.insert(PREDECESSOR, Life::Serving { since: world.now });
        World { plan, target: Some(Target::All(PREDECESSOR)), ..world }
    }

    pub(super) fn happen(&mut self, event: Event) {
        let before = self.lives.clone();
        self.foresee(&event);
        let orders = self.plan.handle(event.clone(), self.limits, self.now);
        if let Event::Ended(id, _) = event
            && matches!(before.get(&id), Some(Life::Draining { .. }))
        {
            assert!(orders.contains(&Order::Retire(id)), "what is left of {id} is not asked to stop");
        }
        for order in orders {
            assert_eq!(self.finished, None, "{order:?} after the end");
            self.obey(order, &event, &before);
        }
        if matches!(event, Event::Stop(_)) && self.is_predecessor_needed() {
            // It serves on, and is left alone.
            self.lives.insert(PREDECESSOR, Life::Gone);
        }
        self.follow_if_nothing_serves(&event, &before);
        self.check(&event, &before);
        self.finished = None;
    }

    fn foresee(&mut self, event: &Event) {
        match (event, self.plan.answer()) {
            (Event::Reload(_), Answer::Refused) => {
                assert!(self.status.is_some());
                self.refused += 1;
            }
            (Event::Reload(rollout), Answer::Generation(id)) => {
                assert_eq!((self.status, id), (None, self.next_id()));
                self.promised.insert(id);
                // The first that waits says how to take over.
                self.wanted.get_or_insert_with(|| rollout.clone());
            }
            (Event::Stop(mode), _) => {
                if *mode == StopMode::Signal {
                    self.signalled.get_or_insert(self.now);
                }
                self.status.get_or_insert(0);
                self.restart = None;
            }
            (Event::Ended(id, _), _) => {
                if let Some(Life::Standing { relieved, .. }) = self.lives.get(id).copied() {
                    self.lives.insert(*id, Life::ToRelease { relieved });
                }
            }
            _ => (),
        }
    }

    /// Another supervisor goes on, which was handed the plan as JSON.
    pub(super) fn hand_on(&mut self) {
        let json = serde_json::to_string(&self.plan).unwrap();
        let before = std::mem::replace(&mut self.plan, serde_json::from_str(&json).unwrap());
        let left = self.those(|life| life != Life::Gone);
        let mut orders = self.plan.resume(&left, self.limits, self.now);
        assert_eq!(self.plan, before);

        let target = match (self.trial(), self.serving().or(self.starting())) {
            (Some(id), _) => Some(Order::Share(id, self.percent(id))),
            (None, id) => id.map(Order::Steer),
        };
        let checked = self.those(|life| matches!(life, Life::OnTrial { checked: true, .. }));
        let expected: Vec<Order> = target.into_iter().chain(checked.into_iter().map(Order::Check)).collect();
        let mut released = orders.split_off(expected.len().min(orders.len()));
        assert_eq!(orders, expected);
        for id in self.those(|life| matches!(life, Life::Waiting { .. })) {
            released.remove(released.iter().position(|order| *order == Order::Release(id)).expect("it is waited for"));
        }
        assert_eq!(released, []);
    }

    /// The percentage that its present stage gives it.
    pub(super) fn percent(&self, id: Id) -> u8 {
        let Life::OnTrial { stage, .. } = self.lives[&id] else { panic!("{id} is {:?}", self.lives[&id]) };
        self.rollouts[&id].stages[stage].percent
    }

    /// Does it serve while its predecessor stands by?
    pub(super) fn is_unsettled(&self, id: Id) -> bool {
        self.serving() == Some(id) && self.standing().is_some()
    }

    fn is_predecessor_needed(&self) -> bool {
        self.lives.get(&PREDECESSOR).is_some_and(|life| life.is_serving() || life.is_standing())
    }

    /// Is nothing left but a predecessor to which everything was rolled back?
    pub(super) fn is_nothing_left(&self) -> bool {
        self.those(|life| life != Life::Gone).iter().all(|id| *id == PREDECESSOR && self.is_predecessor_needed())
    }

    /// Of the generation that is started next.
    pub(super) fn next_id(&self) -> Id {
        self.lives.keys().max().map_or(1, |id| id + 1)
    }

    pub(super) fn is_urgent(&self, event: &Event) -> bool {
        let again = self.signalled.is_some_and(|at| self.now - at >= Duration::from_secs(1));
        *event == Event::Stop(StopMode::Now) || *event == Event::Stop(StopMode::Signal) && again
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.lives.values().filter_map(|life| life.deadline()).chain(self.restart).min()
    }

    pub(super) fn starting(&self) -> Option<Id> {
        self.the_one(Life::is_starting)
    }

    pub(super) fn trial(&self) -> Option<Id> {
        self.the_one(Life::is_on_trial)
    }

    pub(super) fn serving(&self) -> Option<Id> {
        self.the_one(Life::is_serving)
    }

    pub(super) fn standing(&self) -> Option<Id> {
        self.the_one(Life::is_standing)
    }

    pub(super) fn those(&self, are: impl Fn(Life) -> bool) -> Vec<Id> {
        self.lives.iter().filter(|(_, life)| are(**life)).map(|(id, _)| *id).collect()
    }

    /// At most one generation is in such a state.
    fn the_one(&self, is: impl Fn(Life) -> bool) -> Option<Id> {
        let mut those = self.lives.iter().filter(|(_, life)| is(**life));
        let one = those.next().map(|(id, _)| *id);
        assert_eq!(those.next(), None, "{:?}", self.lives);
        one
    }
}
