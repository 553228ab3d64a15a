//! A new generation serves, the old one stands by until it has settled, and is then told to stop.

use super::*;

/// Generation 2 has settled at second 110, and generation 1 waits to be told to stop.
fn released(limits: Limits) -> Story {
    let mut story = Story::settling().with(limits);
    assert_eq!(story.at(110, Event::Tick), [reported(2, Transition::Settled), Order::Release(1)]);
    story
}

#[test]
fn the_old_generation_stands_by_until_the_new_one_has_settled_and_is_then_released() {
    let mut story = Story::settling();
    assert!(story.0.is_serving(2) && story.0.is_unsettled(2) && story.0.is_standing_by(1));
    assert_eq!(story.deadline(), Some(110));
    assert_eq!(story.at(109, Event::Tick), []);
    assert_eq!(story.at(110, Event::Tick), [reported(2, Transition::Settled), Order::Release(1)]);
    assert!(!story.0.is_unsettled(2) && story.0.is_draining(1));
    assert_eq!(story.at(111, Event::Released(1)), [Order::Retire(1)]);
    assert_eq!(story.at(111, Event::Released(1)), [], "it is told once");
    assert_eq!(story.at(112, Event::Ended(1, 0)), [Order::Retire(1)], "what is left of it is asked to stop, too");
    assert_eq!(story.at(112, Event::Gone(1)), [reported(1, Transition::Gone)]);
    assert_eq!(story.0.deadline(), None);
}

#[test]
fn without_settling_the_old_generation_is_released_at_once() {
    let mut story = Story::serving().with(Limits { settle: Duration::ZERO, ..LIMITS });
    story.at(1, reload());
    assert_eq!(story.at(2, Event::Ready(2)), [Order::Steer(2), reported(2, Transition::Serves)]);
    // What goes wrong with these orders comes first.
    assert_eq!(story.deadline(), Some(2));
    assert_eq!(story.at(2, Event::Tick), [reported(2, Transition::Settled), Order::Release(1)]);
    assert_eq!(story.at(2, Event::Released(1)), [Order::Retire(1)]);
}

#[test]
fn what_waits_for_a_relieved_generation_is_waited_for_five_seconds() {
    let mut story = released(LIMITS);
    assert_eq!(story.deadline(), Some(115));
    assert_eq!(story.at(114, Event::Tick), []);
    assert_eq!(story.at(115, Event::Tick), [Order::Retire(1)]);
    assert_eq!(story.deadline(), Some(145));
    assert_eq!(story.at(144, Event::Tick), []);
    assert_eq!(story.at(145, Event::Tick), killed(1));
    assert_eq!(story.deadline(), None);
}

#[test]
fn what_waits_for_a_relieved_generation_is_waited_for_no_longer_than_the_drain_timeout_from_its_relief() {
    let mut story = released(Limits { drain: seconds(12), ..LIMITS });
    assert_eq!(story.deadline(), Some(112));
    assert_eq!(story.at(112, Event::Tick), [Order::Retire(1)]);
    assert_eq!(story.deadline(), Some(124));

    let mut story = Story::settling().with(Limits { drain: seconds(3), ..LIMITS });
    let orders = [reported(2, Transition::Settled), Order::Release(1), Order::Retire(1)];
    assert_eq!(story.at(110, Event::Tick), orders, "it is past already");
    assert_eq!(story.deadline(), Some(113));
    assert_eq!(story.at(113, Event::Tick), killed(1));

    let mut story = Story::settling().with(Limits { drain: seconds(3), ..LIMITS });
    story.at(105, Event::Promote);
    assert_eq!(story.deadline(), Some(105), "now, and not before");
}

#[test]
fn with_drain_idle_connections_are_waited_for_the_drain_timeout_from_its_relief_and_it_is_killed_one_more_later() {
    let mut story = released(Limits { drain_how: Drain::Idle, ..LIMITS });
    let mut idle = story.clone();
    assert_eq!(story.deadline(), Some(130));
    assert_eq!(story.at(129, Event::Tick), []);
    assert_eq!(story.at(130, Event::Tick), [Order::Retire(1)]);
    assert_eq!(story.at(159, Event::Tick), []);
    assert_eq!(story.at(160, Event::Tick), killed(1));

    assert_eq!(idle.at(120, Event::Released(1)), [Order::Retire(1)]);
    assert_eq!(idle.deadline(), Some(150));
    assert_eq!(idle.at(150, Event::Tick), killed(1));
}

#[test]
fn what_is_left_of_a_generation_that_ends_while_it_is_waited_for_is_told_when_nothing_waits() {
    let mut story = released(LIMITS);
    assert_eq!(story.at(111, Event::Ended(1, 0)), []);
    assert_eq!(story.at(111, Event::Released(1)), [Order::Retire(1)]);
    assert_eq!(story.deadline(), Some(141));
    assert_eq!(story.at(112, Event::Gone(1)), [reported(1, Transition::Gone)]);
}

#[test]
fn a_new_generation_that_ends_before_it_has_settled_is_rolled_back() {
    for restart in [Restart::Always, Restart::No] {
        let mut story = Story::settling().with(Limits { restart, ..LIMITS });
        let orders = [Order::Steer(1), rolled_back(2, Reason::Ended(3)), Order::Release(2)];
        assert_eq!(story.at(109, Event::Ended(2, 3)), orders);
        assert_eq!(story.deadline(), Some(114));
        assert_eq!(story.at(110, Event::Gone(2)), [reported(2, Transition::Gone)]);
        assert_eq!(story.0, story.as_before(), "nothing is started again");
    }
}

#[test]
fn a_new_generation_that_accepts_no_more_or_is_not_wanted_before_it_has_settled_is_rolled_back_and_released() {
    for (event, reason) in [(Event::Left(2), Reason::Left), (Event::Rollback, Reason::Asked)] {
        let mut story = Story::settling();
        assert_eq!(story.at(109, event.clone()), [Order::Steer(1), rolled_back(2, reason), Order::Release(2)]);
        assert!(story.0.is_serving(1) && !story.0.is_unsettled(1));
        assert_eq!(story.deadline(), Some(114));
        assert_eq!(story.at(110, event), [], "once");
        assert_eq!(story.at(110, Event::Released(2)), [Order::Retire(2)]);
        assert_eq!(story.at(111, Event::Ended(2, 0)), [Order::Retire(2)]);
        story.at(111, Event::Gone(2));
        assert_eq!(story.0, story.as_before());
    }
    let mut idle = Story::settling().with(Limits { drain_how: Drain::Idle, ..LIMITS });
    idle.at(109, Event::Rollback);
    assert_eq!(idle.deadline(), Some(139), "it is relieved only now");
}

#[test]
fn to_one_that_accepts_no_more_nothing_is_rolled_back() {
    let orders = [reported(2, Transition::Settled), Order::Release(1)];
    assert_eq!(Story::settling().at(109, Event::Left(1)), orders);
}

#[test]
fn the_one_that_serves_again_is_as_old_as_it_was() {
    let mut story = Story::settling();
    story.at(105, Event::Rollback);
    assert_eq!(story.0.serving, Some(Serving { id: 1, since: seconds(0) }));
    assert_eq!(story.at(106, Event::Ended(1, 1))[0], reported(1, Transition::Crashed(1)));
}

#[test]
fn a_new_generation_that_has_settled_is_not_rolled_back() {
    for event in [Event::Left(2), Event::Rollback, Event::Promote] {
        assert_eq!(released(LIMITS).at(110, event), []);
    }
    assert_eq!(released(LIMITS).at(110, Event::Ended(2, 1))[0], reported(2, Transition::Crashed(1)));
}

#[test]
fn where_the_old_generation_ends_while_it_stands_by_the_new_one_has_settled() {
    let mut story = Story::settling();
    assert_eq!(story.at(101, Event::Ended(1, 1)), [Order::Release(1), reported(2, Transition::Settled)]);
    assert_eq!(story.deadline(), Some(106), "until what is left of the old one is told");
    assert_eq!(story.at(101, Event::Rollback), [], "there is nothing to roll back to");
    assert_eq!(story.at(102, Event::Ended(2, 1))[0], reported(2, Transition::Crashed(1)));
}

#[test]
fn a_promotion_by_hand_ends_the_settling() {
    let mut story = Story::settling();
    assert_eq!(story.at(101, Event::Promote), [reported(2, Transition::Settled), Order::Release(1)]);
    assert_eq!(story.deadline(), Some(106));
    assert_eq!(story.at(102, Event::Promote), []);
}

#[test]
fn a_reload_while_a_new_generation_settles_starts_when_it_has_settled_or_was_rolled_back() {
    for event in [Event::Tick, Event::Promote, Event::Rollback, Event::Left(2), Event::Ended(2, 1), Event::Ended(1, 1)]
    {
        let mut story = Story::settling();
        assert_eq!(story.0.answer(), Answer::Generation(3));
        assert_eq!(story.at(101, reload()), []);
        assert_eq!(story.at(102, Event::Reload(canary(None))), [], "one more is remembered, not two");
        assert_eq!(story.at(110, event.clone()).pop(), Some(Order::Start(3)), "{event:?}");
        assert_eq!(story.0.starting.as_ref().unwrap().cause, Cause::Reload);
        assert_eq!(story.at(111, Event::Ready(3))[0], Order::Steer(3));
    }
}
