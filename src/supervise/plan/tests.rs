//! The life of a generation by examples, one for each sentence of the promise; `histories` holds it at random.

mod histories;

use std::num::NonZero;

use super::*;

const LIMITS: Limits = Limits { ready: seconds(60), drain: seconds(30), restart: Restart::Always };

const fn seconds(seconds: u64) -> Timestamp {
    Duration::from_secs(seconds)
}

/// A plan, and its orders for an event at a given second.
struct Story(Plan, Limits);

impl Story {
    fn begin() -> Story {
        Story(Plan::begin(LIMITS, seconds(0)).0, LIMITS)
    }

    /// The first generation serves since second 0, and is started again like this.
    fn restarting(restart: Restart) -> Story {
        Story(Story::serving().0, Limits { restart, ..LIMITS })
    }

    /// The first generation serves since second 0.
    fn serving() -> Story {
        let mut story = Story::begin();
        assert_eq!(story.at(0, Event::Ready(1)), [Order::Report(1, Transition::Serves)]);
        story
    }

    fn at(&mut self, second: u64, event: Event) -> Vec<Order> {
        self.0.handle(event, self.1, seconds(second))
    }

    /// The deadline comes, and with it the order to start the next one.
    fn starts_again(&mut self) -> (Timestamp, Vec<Order>) {
        let at = self.0.deadline().unwrap();
        (at, self.0.handle(Event::Tick, self.1, at))
    }
}

fn reported(id: Id, transition: Transition) -> Order {
    Order::Report(id, transition)
}

const STOP: Event = Event::Stop(StopMode::Drain);

#[test]
fn it_begins_with_the_first_generation_and_a_deadline() {
    let (plan, orders) = Plan::begin(LIMITS, seconds(5));
    assert_eq!(orders, [Order::Start(1)]);
    assert_eq!(plan.deadline(), Some(seconds(65)));
}

#[test]
fn a_successor_that_is_ready_retires_the_one_that_serves() {
    let mut story = Story::serving();
    assert_eq!(story.at(1, Event::Reload), [Order::Start(2)]);
    assert_eq!(story.0.serving.unwrap().id, 1);
    assert_eq!(story.at(2, Event::Ready(2)), [reported(2, Transition::Serves), Order::Retire(1)]);
    assert_eq!(story.at(3, Event::Ended(1, 0)), [Order::Retire(1)], "what is left of it is asked to stop, too");
    assert_eq!(story.at(3, Event::Gone(1)), [reported(1, Transition::Gone)]);
    assert_eq!(story.0.deadline(), None);
}

#[test]
fn a_successor_that_ends_before_it_is_ready_changes_nothing_for_the_one_that_serves() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    assert_eq!(story.at(2, Event::Ended(2, 3)), [reported(2, Transition::Failed(3)), Order::Retire(2)]);
    assert_eq!(story.at(2, Event::Gone(2)), [reported(2, Transition::Gone)]);
    assert_eq!(story.0, Plan { next: 3, ..Story::serving().0 });
}

#[test]
fn a_successor_that_is_not_ready_in_time_is_killed_and_the_one_that_serves_stays() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    assert_eq!(story.at(60, Event::Tick), []);
    assert_eq!(story.at(61, Event::Tick), [reported(2, Transition::TimedOut), Order::Kill(2)]);
    assert_eq!(story.at(62, Event::Ready(2)), [], "too late");
    story.at(62, Event::Ended(2, KILLED));
    story.at(62, Event::Gone(2));
    assert_eq!(story.0, Plan { next: 3, ..Story::serving().0 });
}

#[test]
fn a_first_generation_that_fails_ends_all_with_its_status() {
    let mut story = Story::begin();
    assert_eq!(story.at(1, Event::Ended(1, 7)), [reported(1, Transition::Failed(7)), Order::Retire(1)]);
    assert_eq!(story.at(1, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(7)]);

    let mut story = Story::begin();
    story.at(1, Event::Ended(1, 0));
    assert_eq!(story.at(1, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(1)], "it is no success");

    let mut story = Story::begin();
    assert_eq!(story.at(60, Event::Tick), [reported(1, Transition::TimedOut), Order::Kill(1)]);
    assert_eq!(story.at(60, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(137)]);
}

#[test]
fn a_reload_that_waited_for_a_first_generation_which_fails_is_cancelled() {
    let mut story = Story::begin();
    assert_eq!(story.0.answer(), Answer::Generation(2));
    story.at(1, Event::Reload);
    let orders = story.at(2, Event::Ended(1, 7));
    assert_eq!(orders, [reported(1, Transition::Failed(7)), Order::Retire(1), reported(2, Transition::Cancelled)]);
    assert_eq!(story.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(7)]);
}

#[test]
fn reloads_during_a_reload_are_remembered_as_one() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    for _ in 0..3 {
        assert_eq!(story.0.answer(), Answer::Generation(3));
        assert_eq!(story.at(2, Event::Reload), []);
    }
    assert_eq!(story.at(3, Event::Ready(2)), [reported(2, Transition::Serves), Order::Retire(1), Order::Start(3)]);
    assert_eq!(story.at(4, Event::Ready(3)), [reported(3, Transition::Serves), Order::Retire(2)]);
}

#[test]
fn a_remembered_reload_is_done_although_the_one_before_it_failed() {
    for failure in [Event::Ended(2, 1), Event::Tick] {
        let mut story = Story::serving();
        story.at(0, Event::Reload);
        story.at(1, Event::Reload);
        assert_eq!(story.at(60, failure).pop(), Some(Order::Start(3)));
    }
}

#[test]
fn a_reload_during_shutdown_is_refused() {
    let mut story = Story::serving();
    assert_eq!(story.at(1, STOP), [Order::Retire(1)]);
    assert_eq!(story.0.answer(), Answer::Refused);
    assert_eq!(story.at(2, Event::Reload), []);
}

#[test]
fn a_stop_drains_everything_and_ends_with_0() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    story.at(1, Event::Reload);
    let orders =
        [reported(3, Transition::Cancelled), reported(2, Transition::Cancelled), Order::Retire(2), Order::Retire(1)];
    assert_eq!(story.at(2, STOP), orders);
    assert_eq!(story.at(3, STOP), [], "asked again, it sends no second signal");
    assert_eq!(story.at(3, Event::Gone(2)), [reported(2, Transition::Gone)]);
    assert_eq!(story.at(3, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
}

#[test]
fn what_does_not_drain_in_time_is_killed_once_and_the_status_says_so() {
    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(30, Event::Tick), []);
    assert_eq!(story.at(31, Event::Tick), [reported(1, Transition::Killed), Order::Kill(1)]);
    assert_eq!(story.at(40, Event::Tick), []);
    assert_eq!(story.0.deadline(), None);
    assert_eq!(story.at(41, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(137)]);
}

#[test]
fn an_old_generation_that_is_killed_is_no_failure_of_the_supervisor() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    story.at(2, Event::Ready(2));
    assert_eq!(story.at(32, Event::Tick), [reported(1, Transition::Killed), Order::Kill(1)]);
    story.at(32, Event::Gone(1));
    story.at(33, STOP);
    assert_eq!(story.at(33, Event::Gone(2)), [reported(2, Transition::Gone), Order::Finish(0)]);
}

#[test]
fn a_stop_at_once_kills_also_what_was_draining() {
    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(2, Event::Stop(StopMode::Now)), [reported(1, Transition::Killed), Order::Kill(1)]);
    assert_eq!(story.at(3, Event::Stop(StopMode::Now)), []);
}

#[test]
fn a_signal_that_comes_again_a_second_later_stops_at_once() {
    let signal = Event::Stop(StopMode::Signal);
    let killed = [reported(1, Transition::Killed), Order::Kill(1)];
    let mut story = Story::serving();
    assert_eq!(story.at(5, signal), [Order::Retire(1)]);
    assert_eq!(story.0.handle(signal, LIMITS, seconds(6) - Duration::from_nanos(1)), [], "some send it twice");
    let handed_on = serde_json::from_str(&serde_json::to_string(&story.0).unwrap()).unwrap();
    let mut successor = Story(handed_on, LIMITS);
    assert_eq!(successor.at(6, signal), killed);
    assert_eq!(story.at(6, signal), killed);
    assert_eq!(story.at(9, signal), []);

    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(5, signal), [], "it is the first signal");
    assert_eq!(story.at(6, STOP), [], "what drains is to drain");
    assert_eq!(story.at(7, signal), killed);
}

#[test]
fn backoffs_before_a_restart_double_up_to_ten_seconds() {
    let mut story = Story::serving();
    let mut now = seconds(1);
    let mut backoffs = Vec::new();
    for id in 1..=9 {
        let orders = story.0.handle(Event::Ended(id, 1), LIMITS, now);
        let [crashed, Order::Report(_, Transition::Restarts(backoff)), Order::Retire(_)] = orders[..] else {
            panic!("{orders:?}")
        };
        assert_eq!(crashed, reported(id, Transition::Crashed(1)));
        backoffs.push(backoff.as_millis());
        story.0.handle(Event::Gone(id), LIMITS, now);
        let (at, orders) = story.starts_again();
        assert_eq!((at, &orders[..]), (now + backoff, &[Order::Start(id + 1)][..]));
        now = at;
        story.0.handle(Event::Ready(id + 1), LIMITS, now);
    }
    assert_eq!(backoffs, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    assert_eq!(story.0.restarts, 9);
}

#[test]
fn a_restart_that_fails_is_tried_again_without_end() {
    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    story.at(1, Event::Gone(1));
    let mut backoff = FIRST_BACKOFF;
    for id in 2..30 {
        let (at, orders) = story.starts_again();
        assert_eq!(orders, [Order::Start(id)]);
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
        let orders = story.0.handle(Event::Ended(id, 2), LIMITS, at);
        let next = reported(id, Transition::Restarts(backoff));
        assert_eq!(orders, [reported(id, Transition::Failed(2)), Order::Retire(id), next]);
        story.0.handle(Event::Gone(id), LIMITS, at);
    }
}

#[test]
fn backoffs_begin_anew_after_ten_seconds_of_service() {
    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    story.at(2, Event::Tick);
    story.at(3, Event::Ready(2));
    let backoff = |orders: Vec<Order>| match orders[1] {
        Order::Report(_, Transition::Restarts(backoff)) => backoff.as_millis(),
        other => panic!("{other:?}"),
    };
    let mut longer = Story(story.0.clone(), LIMITS);
    let mut replaced = Story(story.0.clone(), LIMITS);
    replaced.at(13, Event::Reload);
    replaced.at(13, Event::Ready(3));
    assert_eq!(backoff(replaced.at(14, Event::Ended(3, 1))), 100, "the one before it served for long enough");
    assert_eq!(backoff(story.at(12, Event::Ended(2, 1))), 200);
    assert_eq!(backoff(longer.at(13, Event::Ended(2, 1))), 100);
}

#[test]
fn a_successor_under_way_takes_the_place_of_one_that_crashes() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    assert_eq!(story.at(2, Event::Ended(1, 1)), [reported(1, Transition::Crashed(1)), Order::Retire(1)]);
    story.at(2, Event::Gone(1));
    assert_eq!(story.0.deadline(), Some(seconds(61)), "nothing else is to be started");
    assert_eq!(story.at(3, Event::Ready(2)), [reported(2, Transition::Serves)]);
}

#[test]
fn where_nothing_serves_any_more_a_reload_that_fails_is_tried_again() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    story.at(2, Event::Ended(1, 1));
    story.at(2, Event::Ended(2, 1));
    assert_eq!(story.0.deadline(), Some(seconds(2) + FIRST_BACKOFF));
}

#[test]
fn a_reload_does_not_wait_for_the_backoff_of_a_restart() {
    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    assert_eq!(story.at(1, Event::Reload), [Order::Start(2)]);
    assert_eq!(story.0.deadline(), Some(seconds(31)), "the deadline of the one that ended, and no restart");
}

/// What follows when the serving generation ends with this status.
fn follows(story: &mut Story, id: Id, status: u8) -> Transition {
    match story.at(1, Event::Ended(id, status))[..] {
        [Order::Report(_, Transition::Crashed(_)), Order::Report(_, next), Order::Retire(_)] => next,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn whether_it_is_started_again_is_chosen() {
    let once = Restart::OnFailure(NonZero::new(1));
    let again = Transition::Restarts(FIRST_BACKOFF);
    for (restart, status, next) in [
        (Restart::Always, 0, again),
        (Restart::Always, 1, again),
        (Restart::OnFailure(None), 0, Transition::GivenUp),
        (Restart::OnFailure(None), 1, again),
        (once, 0, Transition::GivenUp),
        (once, 1, again),
        (Restart::No, 0, Transition::GivenUp),
        (Restart::No, 3, Transition::GivenUp),
    ] {
        let mut story = Story::restarting(restart);
        assert_eq!(follows(&mut story, 1, status), next, "{restart} {status}");
        let last = story.at(1, Event::Gone(1)).pop();
        let finish = (next == Transition::GivenUp).then_some(Order::Finish(status));
        assert_eq!(last, finish.or(Some(reported(1, Transition::Gone))));
    }
}

#[test]
fn a_row_of_restarts_is_limited_and_ends_when_one_has_served_for_ten_seconds() {
    let mut story = Story::restarting(Restart::OnFailure(NonZero::new(2)));
    for id in [1, 2] {
        follows(&mut story, id, 1);
        assert_eq!(story.at(2, Event::Tick), [Order::Start(id + 1)]);
        story.at(2, Event::Ready(id + 1));
    }
    let mut longer = Story(story.0.clone(), story.1);
    assert_eq!(longer.at(12, Event::Ended(3, 1))[1], reported(3, Transition::Restarts(FIRST_BACKOFF)));
    assert_eq!(follows(&mut story, 3, 7), Transition::GivenUp);
    assert_eq!(story.0.answer(), Answer::Refused);
    story.at(3, Event::Gone(1));
    story.at(3, Event::Gone(2));
    assert_eq!(story.at(3, Event::Gone(3)).pop(), Some(Order::Finish(7)));
}

#[test]
fn a_restart_that_fails_belongs_to_the_row_and_is_no_success() {
    let mut story = Story::restarting(Restart::OnFailure(NonZero::new(2)));
    follows(&mut story, 1, 1);
    story.at(2, Event::Tick);
    let next = reported(2, Transition::Restarts(FIRST_BACKOFF * 2));
    assert_eq!(story.at(2, Event::Ended(2, 0)).pop(), Some(next));
    story.at(3, Event::Tick);
    assert_eq!(story.at(3, Event::Ended(3, 0)).pop(), Some(reported(3, Transition::GivenUp)));
    assert_eq!(story.0.stopping, Some(1));
}

#[test]
fn a_successor_under_way_takes_the_place_also_where_nothing_is_started_again() {
    let mut story = Story::restarting(Restart::No);
    story.at(1, Event::Reload);
    assert_eq!(story.at(1, Event::Ended(1, 0)), [reported(1, Transition::Crashed(0)), Order::Retire(1)]);
    let mut fails = Story(story.0.clone(), story.1);
    assert_eq!(story.at(2, Event::Ready(2)), [reported(2, Transition::Serves)]);
    assert_eq!(fails.at(61, Event::Tick)[2], reported(2, Transition::GivenUp));
    assert_eq!(fails.0.stopping, Some(KILLED));
}

// Once only the one that starts was asked about: TERM from a server that was seen ready just before it sent it stopped
// everything.
#[test]
fn a_generation_has_settled_one_second_after_it_was_ready() {
    let mut story = Story::begin();
    assert!(story.0.is_settling(1, seconds(1000)), "it is not ready");
    story.at(1000, Event::Ready(1));
    let just_before = seconds(1001) - Duration::from_nanos(1);
    assert!(story.0.is_settling(1, just_before) && !story.0.is_settling(1, seconds(1001)));
    story.at(1000, Event::Reload);
    story.at(1000, Event::Ready(2));
    assert!(story.0.is_draining(1));
    assert!(story.0.is_settling(1, just_before) && !story.0.is_settling(1, seconds(1001)), "although it drains");
    story.at(1000, Event::Reload);
    story.at(1000, STOP);
    assert!(story.0.is_settling(3, seconds(2000)), "it never was ready");
    assert!(!story.0.is_settling(9, seconds(1000)));
}

#[test]
fn late_events_and_events_of_no_generation_change_nothing() {
    let mut story = Story::serving();
    story.at(1, Event::Reload);
    story.at(2, Event::Ready(2));
    story.at(3, Event::Gone(1));
    let before = story.0.clone();
    for event in [
        Event::Ready(1),
        Event::Ready(2),
        Event::Ready(9),
        Event::Ended(1, 1),
        Event::Ended(9, 1),
        Event::Gone(1),
        Event::Gone(2),
        Event::Gone(9),
        Event::Tick,
    ] {
        assert_eq!(story.at(4, event), [], "{event:?}");
        assert_eq!(story.0, before, "{event:?}");
    }
}
