//! What happens next, at random.

use std::num::NonZero;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::super::*;
use super::lives::Life;
use super::model::World;
use crate::config::{Drain, Restart, Stage};

/// The generation an event is about.
#[derive(Clone, Debug)]
pub(super) enum Which {
    Starting,
    OnTrial,
    Serving,
    Standing,
    Waiting,
    /// Any that was ever started, or none.
    Any(Index),
}

/// When it happens.
#[derive(Clone, Debug)]
pub(super) enum Pace {
    After(Duration),
    AtTheDeadline,
    JustBeforeIt,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Reload(Rollout),
    Ready,
    Left,
    Released,
    Checked(bool),
    Promote,
    Rollback,
    Ended(u8),
    Gone,
    Stop(StopMode),
    Tick,
    /// The supervisor hands on to another.
    Upgrade,
}

pub(super) type Step = (Kind, Which, Pace);

impl World {
    pub(super) fn step(&mut self, (kind, which, pace): Step) {
        let deadline = self.plan.deadline().unwrap_or(self.now);
        self.now = match pace {
            Pace::After(time) => self.now + time,
            Pace::AtTheDeadline => self.now.max(deadline),
            Pace::JustBeforeIt => self.now.max(deadline.saturating_sub(Duration::from_nanos(1))),
        };
        let id = self.choose(which);
        self.happen(match kind {
            Kind::Reload(rollout) => Event::Reload(rollout),
            Kind::Ready => Event::Ready(id),
            Kind::Left => Event::Left(id),
            Kind::Released => Event::Released(id),
            Kind::Checked(passed) => Event::Checked(id, passed),
            Kind::Promote => Event::Promote,
            Kind::Rollback => Event::Rollback,
            Kind::Ended(status) => Event::Ended(id, status),
            Kind::Gone => Event::Gone(id),
            Kind::Stop(mode) => Event::Stop(mode),
            Kind::Tick => Event::Tick,
            Kind::Upgrade => return self.hand_on(),
        });
    }

    fn choose(&self, which: Which) -> Id {
        let waiting = || self.those(|life| matches!(life, Life::Waiting { .. })).first().copied();
        let chosen = match which {
            Which::Starting => self.starting(),
            Which::OnTrial => self.trial(),
            Which::Serving => self.serving(),
            Which::Standing => self.standing(),
            Which::Waiting => waiting(),
            Which::Any(index) => Some(index.index(self.lives.len() + 3) as Id),
        };
        chosen.unwrap_or(Id::MAX)
    }
}

/// By itself, or beside a predecessor.
pub(super) fn begin() -> impl Strategy<Value = fn(Limits) -> World> {
    prop::sample::select(vec![World::begin as fn(Limits) -> World, World::succeed])
}

/// Most begin well.
pub(super) fn history() -> impl Strategy<Value = Vec<Step>> {
    let ready = Just(vec![(Kind::Ready, Which::Starting, Pace::After(Duration::ZERO))]);
    let begin = prop_oneof![1 => Just(vec![]), 5 => ready];
    (begin, prop::collection::vec(step(), 0..60)).prop_map(|(begin, steps)| [begin, steps].concat())
}

fn step() -> impl Strategy<Value = Step> {
    let index = || any::<Index>().prop_map(Which::Any);
    let of = |which: Which| prop_oneof![3 => Just(which), 1 => index()];
    let status = prop_oneof![Just(0), Just(1), any::<u8>()].prop_map(Kind::Ended);
    let living = prop_oneof![
        2 => Just(Which::Starting),
        2 => Just(Which::OnTrial),
        3 => Just(Which::Serving),
        2 => Just(Which::Standing),
        1 => Just(Which::Waiting),
        2 => index(),
    ];
    let left = prop_oneof![Just(Which::Starting), Just(Which::OnTrial), Just(Which::Serving), index()];
    let stop = prop_oneof![1 => Just(StopMode::Drain), 2 => Just(StopMode::Signal), 1 => Just(StopMode::Now)];
    let kind_and_which = prop_oneof![
        60 => (rollout().prop_map(Kind::Reload), index()),
        90 => (Just(Kind::Ready), of(Which::Starting)),
        12 => (Just(Kind::Left), left),
        25 => (Just(Kind::Released), of(Which::Waiting)),
        60 => (any::<bool>().prop_map(Kind::Checked), of(Which::OnTrial)),
        12 => (prop_oneof![Just(Kind::Promote), Just(Kind::Rollback)], index()),
        30 => (status, living),
        25 => (Just(Kind::Gone), index()),
        1 => (stop.prop_map(Kind::Stop), index()),
        90 => (Just(Kind::Tick), index()),
        20 => (Just(Kind::Upgrade), index()),
    ];
    (kind_and_which, pace()).prop_map(|((kind, which), pace)| (kind, which, pace))
}

fn pace() -> impl Strategy<Value = Pace> {
    let up_to = |milliseconds: u64| (0..=milliseconds).prop_map(|time| Pace::After(Duration::from_millis(time)));
    prop_oneof![
        4 => Just(Pace::After(Duration::ZERO)),
        4 => up_to(300),
        1 => up_to(30_000),
        1 => Just(Pace::After(Duration::from_secs(10))),
        4 => Just(Pace::AtTheDeadline),
        2 => Just(Pace::JustBeforeIt),
    ]
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![Just(0), Just(1), 0..2000u64, Just(60_000)].prop_map(Duration::from_millis)
}

fn rollout() -> impl Strategy<Value = Rollout> {
    let duration = time().prop_map(|time| time.max(Duration::from_millis(1)));
    let stage = (1..=100u8, duration).prop_map(|(percent, duration)| Stage { percent, duration });
    let stages = prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(stage, 1..4)];
    let check = prop_oneof![Just(None), Just(Some("true".to_owned()))];
    (stages, any::<bool>(), check).prop_map(|(stages, sticky, check)| Rollout { stages, sticky, check })
}

pub(super) fn limits() -> impl Strategy<Value = Limits> {
    let restart = prop_oneof![
        4 => Just(Restart::Always),
        1 => (0..4u32).prop_map(|most| Restart::OnFailure(NonZero::new(most))),
        1 => Just(Restart::No),
    ];
    let ready = prop_oneof![1 => time(), 2 => Just(Duration::from_secs(60))];
    let drain_how = prop_oneof![Just(Drain::Signal), Just(Drain::Idle)];
    (ready, time(), drain_how, time(), restart).prop_map(|(ready, drain, drain_how, settle, restart)| Limits {
        ready,
        drain,
        drain_how,
        settle,
        restart,
    })
}
