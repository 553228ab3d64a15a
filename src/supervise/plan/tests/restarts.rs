//! What ends unasked is started again, later and later, or everything stops.

use super::*;

/// The first generation serves since second 0, and is started again like this.
fn restarting(restart: Restart) -> Story {
    Story::serving().with(Limits { restart, ..LIMITS })
}

/// It has no predecessor that stands by.
fn serves(id: Id) -> [Order; 3] {
    [Order::Steer(id), reported(id, Transition::Serves), reported(id, Transition::Settled)]
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
        backoff = (backoff * 2).min(seconds(10));
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
    let mut longer = story.clone();
    let mut replaced = story.clone();
    replaced.at(13, reload());
    replaced.at(13, Event::Ready(3));
    replaced.at(13, Event::Promote);
    assert_eq!(backoff(replaced.at(14, Event::Ended(3, 1))), 100, "the one before it served for long enough");
    assert_eq!(backoff(story.at(12, Event::Ended(2, 1))), 200);
    assert_eq!(backoff(longer.at(13, Event::Ended(2, 1))), 100);
}

#[test]
fn a_successor_under_way_takes_the_place_of_one_that_crashes() {
    let mut story = Story::serving();
    story.at(1, reload());
    let orders = [reported(1, Transition::Crashed(1)), Order::Steer(2), Order::Release(1)];
    assert_eq!(story.at(2, Event::Ended(1, 1)), orders, "whatever comes from now on waits for it");
    story.at(2, Event::Gone(1));
    assert_eq!(story.0.deadline(), Some(seconds(61)), "nothing else is to be started");
    assert_eq!(story.at(3, Event::Ready(2)), serves(2));
}

#[test]
fn where_nothing_serves_any_more_a_reload_that_fails_is_tried_again() {
    let mut story = Story::serving();
    story.at(1, reload());
    story.at(2, Event::Ended(1, 1));
    story.at(2, Event::Ended(2, 1));
    assert_eq!(story.0.deadline(), Some(seconds(2) + FIRST_BACKOFF));
}

#[test]
fn a_reload_does_not_wait_for_the_backoff_of_a_restart() {
    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    assert_eq!(story.at(1, reload()), [Order::Start(2)]);
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
        let mut story = restarting(restart);
        assert_eq!(follows(&mut story, 1, status), next, "{restart} {status}");
        let last = story.at(1, Event::Gone(1)).pop();
        let finish = (next == Transition::GivenUp).then_some(Order::Finish(status));
        assert_eq!(last, finish.or(Some(reported(1, Transition::Gone))));
    }
}

#[test]
fn a_row_of_restarts_is_limited_and_ends_when_one_has_served_for_ten_seconds() {
    let mut story = restarting(Restart::OnFailure(NonZero::new(2)));
    for id in [1, 2] {
        follows(&mut story, id, 1);
        assert_eq!(story.at(2, Event::Tick), [Order::Start(id + 1)]);
        story.at(2, Event::Ready(id + 1));
    }
    let mut longer = story.clone();
    assert_eq!(longer.at(12, Event::Ended(3, 1))[1], reported(3, Transition::Restarts(FIRST_BACKOFF)));
    assert_eq!(follows(&mut story, 3, 7), Transition::GivenUp);
    assert_eq!(story.0.answer(), Answer::Refused);
    story.at(3, Event::Gone(1));
    story.at(3, Event::Gone(2));
    assert_eq!(story.at(3, Event::Gone(3)).pop(), Some(Order::Finish(7)));
}

#[test]
fn a_restart_that_fails_belongs_to_the_row_and_is_no_success() {
    let mut story = restarting(Restart::OnFailure(NonZero::new(2)));
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
    let mut story = restarting(Restart::No);
    story.at(1, reload());
    let orders = [reported(1, Transition::Crashed(0)), Order::Steer(2), Order::Release(1)];
    assert_eq!(story.at(1, Event::Ended(1, 0)), orders);
    let mut fails = story.clone();
    assert_eq!(story.at(2, Event::Ready(2)), serves(2));
    assert_eq!(fails.at(61, Event::Tick)[2], reported(2, Transition::GivenUp));
    assert_eq!(fails.0.stopping, Some(KILLED));
}
