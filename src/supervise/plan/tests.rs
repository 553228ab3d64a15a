//! The life of a generation by examples, one for each sentence of the promise; `histories` holds it at random.

mod histories;
mod reloads;
mod restarts;
mod resume;
mod settling;
mod starts;
mod stops;
mod succeeding;

mod trial;

use std::num::NonZero;

use super::*;
use crate::config::{Drain, Restart, Stage};

const LIMITS: Limits = Limits {
    ready: seconds(60),
    drain: seconds(30),
    drain_how: Drain::Signal,
    settle: seconds(10),
    restart: Restart::Always,
};

const STOP: Event = Event::Stop(StopMode::Drain);

const fn seconds(seconds: u64) -> Timestamp {
    Duration::from_secs(seconds)
}

/// A plan, and its orders for an event at a given second.
#[derive(Clone)]
struct Story(Plan, Limits);

impl Story {
    fn begin() -> Story {
        Story(Plan::begin(LIMITS, seconds(0)).0, LIMITS)
    }

    /// The first generation serves since second 0.
    fn serving() -> Story {
        let mut story = Story::begin();
        let orders = [Order::Steer(1), reported(1, Transition::Serves), reported(1, Transition::Settled)];
        assert_eq!(story.at(0, Event::Ready(1)), orders);
        story
    }

    /// Generation 2 serves since second 100, and generation 1 stands by until second 110.
    fn settling() -> Story {
        let mut story = Story::serving();
        assert_eq!(story.at(99, reload()), [Order::Start(2)]);
        assert_eq!(story.at(100, Event::Ready(2)), [Order::Steer(2), reported(2, Transition::Serves)]);
        story
    }

    /// Generation 2 gets 5 % since second 100 for 20 seconds, and then 50 % for 30 seconds.
    fn on_trial(check: Option<&str>) -> Story {
        let mut story = Story::serving();
        assert_eq!(story.at(99, Event::Reload(canary(check))), [Order::Start(2)]);
        assert_eq!(story.at(100, Event::Ready(2)), [Order::Share(2, 5), reported(2, Transition::OnTrial(5))]);
        story
    }

    fn with(self, limits: Limits) -> Story {
        Story(self.0, limits)
    }

    /// Every listener can be reached.
    fn at(&mut self, second: u64, event: Event) -> Vec<Order> {
        let orders = self.0.handle(event, self.1, seconds(second));
        for order in &orders {
            if let Order::Report(id, transition) = *order {
                self.0.reloads.end(id, transition, &[], seconds(second));
            }
        }
        orders
    }

    /// The plan of the first generation that serves, with no trace of a second one but its number and its reload.
    fn as_before(&self) -> Plan {
        Plan { next: 3, reloads: self.0.reloads.clone(), ..Story::serving().0 }
    }

    fn deadline(&self) -> Option<u64> {
        self.0.deadline().map(|at| at.as_secs())
    }

    /// The deadline comes, and with it the order to start the next one.
    fn starts_again(&mut self) -> (Timestamp, Vec<Order>) {
        let at = self.0.deadline().unwrap();
        (at, self.0.handle(Event::Tick, self.1, at))
    }
}

fn reload() -> Event {
    Event::Reload(Rollout::default())
}

fn canary(check: Option<&str>) -> Rollout {
    let stages = [(5, 20), (50, 30)].map(|(percent, time)| Stage { percent, duration: seconds(time) });
    Rollout { stages: stages.to_vec(), sticky: false, check: check.map(str::to_owned) }
}

fn reported(id: Id, transition: Transition) -> Order {
    Order::Report(id, transition)
}

fn rolled_back(id: Id, reason: Reason) -> Order {
    reported(id, Transition::RolledBack(reason))
}

fn killed(id: Id) -> [Order; 2] {
    [reported(id, Transition::Killed), Order::Kill(id)]
}

// Once only the one that starts was asked about: TERM from a server that was seen ready just before it sent it stopped
// everything.
#[test]
fn a_generation_is_new_until_it_has_settled_or_for_a_second_whatever_becomes_of_it() {
    let mut story = Story::begin();
    assert!(story.0.is_new(1, seconds(1000)), "it is not ready");
    story.at(0, Event::Ready(1));
    story.at(0, Event::Ended(1, 0));
    assert!(!story.0.is_new(9, seconds(0)));
    let for_a_second = |story: &Story, from: u64, id: Id| {
        let (before, after) = (seconds(from + 1) - Duration::from_nanos(1), seconds(from + 1));
        assert!(story.0.is_new(id, before) && !story.0.is_new(id, after), "{:?}", story.0);
    };
    for_a_second(&Story::serving(), 0, 1);
    for_a_second(&story, 0, 1);
    for story in [Story::settling(), Story::on_trial(None)] {
        assert!(story.0.is_new(2, seconds(1000)), "it has not settled");
        for event in [Event::Ended(2, 0), Event::Left(2), Event::Rollback, STOP] {
            let mut story = story.clone();
            story.at(100, event);
            for_a_second(&story, 100, 2);
        }
    }
    let mut story = Story::settling();
    story.at(100, Event::Promote);
    story.at(100, reload());
    story.at(100, Event::Ready(3));
    assert!(story.0.is_standing_by(2));
    for event in [reload(), Event::Ended(2, 0), Event::Promote, STOP] {
        let mut story = story.clone();
        story.at(100, event);
        for_a_second(&story, 100, 2);
    }
    story.at(100, Event::Promote);
    story.at(100, reload());
    story.at(100, STOP);
    assert!(story.0.is_new(4, seconds(2000)), "it never was ready");
}

#[test]
fn late_events_and_events_of_no_generation_change_nothing() {
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    story.at(110, Event::Gone(1));
    let before = story.0.clone();
    for event in [
        Event::Ready(1),
        Event::Ready(2),
        Event::Ready(9),
        Event::Left(1),
        Event::Left(2),
        Event::Left(9),
        Event::Released(1),
        Event::Released(2),
        Event::Released(9),
        Event::Checked(1, false),
        Event::Checked(2, false),
        Event::Checked(2, true),
        Event::Ended(1, 1),
        Event::Ended(9, 1),
        Event::Gone(1),
        Event::Gone(2),
        Event::Gone(9),
        Event::Promote,
        Event::Rollback,
        Event::Tick,
    ] {
        assert_eq!(story.at(111, event.clone()), [], "{event:?}");
        assert_eq!(story.0, before, "{event:?}");
    }
}

#[test]
fn a_generation_that_is_needed_is_not_gone_while_its_main_process_runs() {
    for (story, ids) in [(Story::settling(), [1, 2]), (Story::on_trial(None), [1, 2])] {
        for id in ids {
            let mut after = story.clone();
            assert_eq!(after.at(101, Event::Gone(id)), []);
            assert_eq!(after.0, story.0);
        }
    }
}
