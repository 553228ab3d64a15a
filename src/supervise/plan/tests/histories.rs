//! Random histories: events in any order, late, repeated or of no generation, at any pace. A model checks that every
//! order was due when it came, and that what was due was ordered.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::*;

/// What the orders so far made of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Starting {
        deadline: Timestamp,
    },
    Serving {
        since: Timestamp,
    },
    /// It has a successor or has ended, and is to be retired before the event is over.
    Due,
    Draining {
        deadline: Option<Timestamp>,
    },
    Gone,
}

/// The model, and the plan it watches.
struct World {
    plan: Plan,
    limits: Limits,
    now: Timestamp,
    lives: BTreeMap<Id, Life>,
    /// The one transition that ended each reload request and each start.
    outcomes: BTreeMap<Id, Transition>,
    promised: BTreeSet<Id>,
    killed: BTreeSet<Id>,
    /// One more generation was asked for while one was starting.
    wanted: bool,
    restart: Option<Timestamp>,
    restarts: u64,
    /// How many of them in a row.
    row: u32,
    backoff: Duration,
    /// What was reported to follow in this event, now that none serves.
    next: Option<Transition>,
    /// To be killed by the very next order.
    doomed: Option<Id>,
    status: Option<u8>,
    finished: Option<u8>,
    signalled: Option<Timestamp>,
}

impl World {
    fn begin(limits: Limits) -> World {
        let now = Duration::from_secs(5);
        let (plan, orders) = Plan::begin(limits, now);
        assert_eq!(orders, [Order::Start(1)]);
        World {
            plan,
            limits,
            now,
            lives: BTreeMap::from([(1, Life::Starting { deadline: now + limits.ready })]),
            outcomes: BTreeMap::new(),
            promised: BTreeSet::new(),
            killed: BTreeSet::new(),
            wanted: false,
            restart: None,
            restarts: 0,
            backoff: Duration::from_millis(100),
            row: 0,
            next: None,
            doomed: None,
            status: None,
            finished: None,
            signalled: None,
        }
    }

    fn happen(&mut self, event: Event) {
        let before = self.lives.clone();
        self.foresee(event);
        let orders = self.plan.handle(event, self.limits, self.now);
        if let Event::Ended(id, _) = event
            && let Some(Life::Draining { .. }) = before.get(&id)
        {
            assert!(orders.contains(&Order::Retire(id)), "what is left of {id} is not asked to stop");
        }
        for order in orders {
            assert_eq!(self.finished, None, "{order:?} after the end");
            self.obey(order, event);
        }
        self.follow_if_nothing_serves(event, &before);
        self.check(event, &before);
        self.finished = None;
    }

    fn foresee(&mut self, event: Event) {
        match (event, self.plan.answer()) {
            (Event::Reload, Answer::Refused) => assert!(self.status.is_some()),
            (Event::Reload, Answer::Generation(id)) => {
                assert_eq!((self.status, id), (None, self.lives.len() as Id + 1));
                self.promised.insert(id);
                self.wanted = true;
            }
            (Event::Stop(mode), _) => {
                if mode == StopMode::Signal {
                    self.signalled.get_or_insert(self.now);
                }
                self.status.get_or_insert(0);
                self.restart = None;
            }
            _ => (),
        }
    }

    fn obey(&mut self, order: Order, event: Event) {
        if let Some(id) = self.doomed.take() {
            assert_eq!(order, Order::Kill(id));
        }
        match order {
            Order::Start(id) => self.start(id, event),
            Order::Retire(id) => self.retire(id, event),
            Order::Kill(id) => assert!(self.killed.insert(id), "{id} is killed twice"),
            Order::Report(id, transition) => self.report(id, transition, event),
            Order::Finish(status) => {
                assert!(self.lives.values().all(|life| *life == Life::Gone), "{:?}", self.lives);
                assert_eq!(Some(status), self.status);
                self.finished = Some(status);
            }
        }
    }

    fn start(&mut self, id: Id, event: Event) {
        assert_eq!((self.status, self.starting()), (None, None), "{id} is started");
        assert_eq!(id, self.lives.len() as Id + 1);
        let restart = event == Event::Tick && self.restart.is_some_and(|at| at <= self.now);
        assert!(self.wanted || restart, "{id} was not asked for");
        self.restarts += u64::from(restart);
        self.row += u32::from(restart);
        (self.wanted, self.restart) = (false, None);
        self.lives.insert(id, Life::Starting { deadline: self.now + self.limits.ready });
    }

    fn retire(&mut self, id: Id, event: Event) {
        match self.lives[&id] {
            Life::Draining { .. } => assert!(matches!(event, Event::Ended(ended, _) if ended == id)),
            life => {
                let stopped = matches!((life, event), (Life::Serving { .. }, Event::Stop(_)));
                assert!(stopped || life == Life::Due, "{life:?} is retired");
                self.lives.insert(id, Life::Draining { deadline: Some(self.now + self.limits.drain) });
            }
        }
    }

    fn report(&mut self, id: Id, transition: Transition, event: Event) {
        if matches!(
            transition,
            Transition::Serves | Transition::Failed(_) | Transition::TimedOut | Transition::Cancelled
        ) {
            assert_eq!(self.outcomes.insert(id, transition), None, "{id} has two outcomes");
        }
        let life = self.lives.get(&id).copied();
        let next = match (transition, life) {
            (Transition::Serves, Some(Life::Starting { .. })) => {
                assert_eq!(event, Event::Ready(id));
                if let Some(old) = self.serving() {
                    self.end_row(old);
                    self.lives.insert(old, Life::Due);
                }
                Life::Serving { since: self.now }
            }
            (Transition::Failed(status), Some(Life::Starting { .. })) => {
                assert_eq!(event, Event::Ended(id, status));
                self.first_failed(id, status);
                Life::Due
            }
            (Transition::TimedOut, Some(Life::Starting { deadline })) => {
                assert!(event == Event::Tick && deadline <= self.now);
                self.first_failed(id, 137);
                self.doomed = Some(id);
                Life::Draining { deadline: None }
            }
            (Transition::Cancelled, Some(Life::Starting { .. })) => {
                assert!(matches!(event, Event::Stop(_)));
                Life::Due
            }
            (Transition::Cancelled, None) => {
                assert!(self.status.is_some() && self.wanted && self.promised.contains(&id));
                self.wanted = false;
                return;
            }
            (Transition::Crashed(status), Some(Life::Serving { .. })) => {
                assert_eq!(event, Event::Ended(id, status));
                self.end_row(id);
                Life::Due
            }
            (Transition::Restarts(_) | Transition::GivenUp, Some(life @ (Life::Due | Life::Draining { .. }))) => {
                assert_eq!(self.next.replace(transition), None);
                life
            }
            (Transition::Killed, Some(Life::Draining { deadline: Some(deadline) })) => {
                let due = event == Event::Tick && deadline <= self.now;
                assert!(due || self.is_urgent(event), "{id} had time until {deadline:?}");
                self.status = self.status.map(|status| if status == 0 { 137 } else { status });
                self.doomed = Some(id);
                Life::Draining { deadline: None }
            }
            (Transition::Gone, Some(Life::Draining { .. })) => {
                assert_eq!(event, Event::Gone(id));
                Life::Gone
            }
            _ => panic!("{transition:?} of {id}, which is {life:?}"),
        };
        self.lives.insert(id, next);
    }

    fn is_urgent(&self, event: Event) -> bool {
        let again = self.signalled.is_some_and(|at| self.now - at >= Duration::from_secs(1));
        event == Event::Stop(StopMode::Now) || event == Event::Stop(StopMode::Signal) && again
    }

    fn first_failed(&mut self, id: Id, status: u8) {
        if id == 1 {
            self.status.get_or_insert(status.max(1));
        }
    }

    fn end_row(&mut self, id: Id) {
        if matches!(self.lives[&id], Life::Serving { since } if self.now - since >= Duration::from_secs(10)) {
            (self.backoff, self.row) = (Duration::from_millis(100), 0);
        }
    }

    /// What crashed, or failed to take the place of what crashed, is started again later and later, or everything stops.
    fn follow_if_nothing_serves(&mut self, event: Event, before: &BTreeMap<Id, Life>) {
        let idle = self.starting().is_none() && self.serving().is_none();
        if self.status.is_some() || !idle || self.restart.is_some() {
            return assert_eq!(self.next.take(), None);
        }
        let status = match event {
            Event::Ended(id, status) if matches!(before[&id], Life::Serving { .. }) => status,
            Event::Ended(_, status) => status.max(1),
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

    /// What is due was ordered.
    fn check(&self, event: Event, before: &BTreeMap<Id, Life>) {
        assert_eq!(self.doomed, None);
        assert!(!self.lives.values().any(|life| *life == Life::Due), "{:?}", self.lives);
        assert!(!self.wanted || self.starting().is_some(), "a reload request was forgotten");
        assert_eq!(self.plan.starting.map(|starting| starting.id), self.starting());
        assert_eq!(self.plan.serving.map(|serving| serving.id), self.serving());
        assert_eq!((self.plan.restarts, self.plan.deadline()), (self.restarts, self.deadline()));
        let over = self.status.is_some() && self.lives.values().all(|life| *life == Life::Gone);
        assert_eq!(self.finished.is_some(), over);
        let after = |id| self.lives[&id];
        match event {
            Event::Ready(id) if matches!(before.get(&id), Some(Life::Starting { .. })) => {
                assert_eq!(after(id), Life::Serving { since: self.now });
            }
            Event::Ended(id, _) if matches!(before.get(&id), Some(Life::Starting { .. } | Life::Serving { .. })) => {
                assert!(matches!(after(id), Life::Draining { .. }));
            }
            Event::Gone(id) if matches!(before.get(&id), Some(Life::Draining { .. })) => {
                assert_eq!(after(id), Life::Gone);
            }
            Event::Stop(_) => {
                assert_eq!((self.starting(), self.serving(), self.wanted), (None, None, false));
                assert!(!self.is_urgent(event) || self.deadline().is_none());
            }
            Event::Tick => {
                let late = |id: &Id| self.lives[id] == before[id];
                let due: Vec<&Id> = before.keys().filter(|id| self.is_due(before[id]) && late(id)).collect();
                assert!(due.is_empty(), "{due:?} had no more time");
                assert!(self.deadline().is_none_or(|at| at >= self.now), "it would spin");
            }
            _ => (),
        }
    }

    fn is_due(&self, life: Life) -> bool {
        matches!(life, Life::Starting { deadline } | Life::Draining { deadline: Some(deadline) } if deadline <= self.now)
    }

    fn deadline(&self) -> Option<Timestamp> {
        let own = self.lives.values().filter_map(|life| match life {
            Life::Starting { deadline } => Some(*deadline),
            Life::Draining { deadline } => *deadline,
            _ => None,
        });
        own.chain(self.restart).min()
    }

    fn starting(&self) -> Option<Id> {
        self.the_one(|life| matches!(life, Life::Starting { .. }))
    }

    fn serving(&self) -> Option<Id> {
        self.the_one(|life| matches!(life, Life::Serving { .. }))
    }

    /// At most one generation is in such a state.
    fn the_one(&self, is: impl Fn(&Life) -> bool) -> Option<Id> {
        let those: Vec<Id> = self.lives.iter().filter(|(_, life)| is(life)).map(|(id, _)| *id).collect();
        assert!(those.len() <= 1, "{:?}", self.lives);
        those.first().copied()
    }

    /// No generation is forgotten: after a crash one serves again in time, and after a stop everything ends.
    fn settle(&mut self, mode: StopMode) {
        let idle = |world: &World| world.starting().is_none() && world.serving().is_none();
        // Each deadline passes once.
        for _ in 0..=self.lives.len() {
            if self.status.is_none() && idle(self) {
                self.now = self.now.max(self.plan.deadline().expect("something is to be started"));
                self.happen(Event::Tick);
            }
        }
        assert!(self.status.is_some() || !idle(self), "nothing was started again");
        self.happen(Event::Stop(mode));
        let left: Vec<Id> = self.lives.keys().copied().collect();
        for id in left.into_iter().rev() {
            self.happen(Event::Ended(id, 0));
            self.happen(Event::Gone(id));
        }
        assert!(self.lives.values().all(|life| *life == Life::Gone));
        for id in self.lives.keys().chain(&self.promised) {
            assert!(self.outcomes.contains_key(id), "{id} was promised or started, and nothing was reported of it");
        }
    }
}

/// The generation an event is about.
#[derive(Clone, Debug)]
enum Which {
    Starting,
    Serving,
    /// Any that was ever started, or none.
    Any(Index),
}

/// When it happens.
#[derive(Clone, Debug)]
enum Pace {
    After(Duration),
    AtTheDeadline,
    JustBeforeIt,
}

#[derive(Clone, Debug)]
enum Kind {
    Reload,
    Ready,
    Ended(u8),
    Gone,
    Stop(StopMode),
    Tick,
}

impl World {
    fn step(&mut self, (kind, which, pace): (Kind, Which, Pace)) {
        let deadline = self.plan.deadline().unwrap_or(self.now);
        self.now = match pace {
            Pace::After(time) => self.now + time,
            Pace::AtTheDeadline => self.now.max(deadline),
            Pace::JustBeforeIt => self.now.max(deadline.saturating_sub(Duration::from_nanos(1))),
        };
        let id = match which {
            Which::Starting => self.starting().unwrap_or(0),
            Which::Serving => self.serving().unwrap_or(0),
            Which::Any(index) => index.index(self.lives.len() + 3) as Id,
        };
        self.happen(match kind {
            Kind::Reload => Event::Reload,
            Kind::Ready => Event::Ready(id),
            Kind::Ended(status) => Event::Ended(id, status),
            Kind::Gone => Event::Gone(id),
            Kind::Stop(mode) => Event::Stop(mode),
            Kind::Tick => Event::Tick,
        });
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        20 => Just(Kind::Reload),
        20 => Just(Kind::Ready),
        20 => prop_oneof![Just(0), Just(1), any::<u8>()].prop_map(Kind::Ended),
        10 => Just(Kind::Gone),
        1 => Just(Kind::Stop(StopMode::Drain)),
        2 => Just(Kind::Stop(StopMode::Signal)),
        1 => Just(Kind::Stop(StopMode::Now)),
        20 => Just(Kind::Tick),
    ]
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![3 => Just(Which::Starting), 2 => Just(Which::Serving), 3 => any::<Index>().prop_map(Which::Any)]
}

fn pace() -> impl Strategy<Value = Pace> {
    let up_to = |milliseconds: u64| (0..=milliseconds).prop_map(|time| Pace::After(Duration::from_millis(time)));
    prop_oneof![
        2 => Just(Pace::After(Duration::ZERO)),
        2 => up_to(300),
        1 => up_to(30_000),
        1 => Just(Pace::After(Duration::from_secs(10))),
        2 => Just(Pace::AtTheDeadline),
        1 => Just(Pace::JustBeforeIt),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let time = || prop_oneof![Just(0), Just(1), 0..2000u64, Just(60_000)].prop_map(Duration::from_millis);
    let restart = prop_oneof![
        4 => Just(Restart::Always),
        1 => (0..4u32).prop_map(|most| Restart::OnFailure(NonZero::new(most))),
        1 => Just(Restart::No),
    ];
    (time(), time(), restart).prop_map(|(ready, drain, restart)| Limits { ready, drain, restart })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn the_promise_holds_in_every_history(
        limits in limits(),
        history in prop::collection::vec((kind(), which(), pace()), 0..50),
        mode in prop_oneof![Just(StopMode::Drain), Just(StopMode::Signal), Just(StopMode::Now)],
    ) {
        let mut world = World::begin(limits);
        history.into_iter().for_each(|step| world.step(step));
        world.settle(mode);
    }
}
