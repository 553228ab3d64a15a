//! A generation gets ready or does not, and reloads wait for it.

use super::*;

#[test]
fn it_begins_with_the_first_generation_and_a_deadline() {
    let (plan, orders) = Plan::begin(LIMITS, seconds(5));
    assert_eq!(orders, [Order::Start(1)]);
    assert_eq!(plan.deadline(), Some(seconds(65)));
}

#[test]
fn a_successor_that_fails_before_it_is_ready_changes_nothing_for_the_one_that_serves() {
    for (event, status) in [(Event::Ended(2, 3), 3), (Event::Left(2), 1)] {
        let mut story = Story::serving();
        story.at(1, reload());
        assert_eq!(story.at(2, event), [reported(2, Transition::Failed(status)), Order::Retire(2)]);
        assert_eq!(story.at(2, Event::Gone(2)), [reported(2, Transition::Gone)]);
        assert_eq!(story.0, story.as_before());
    }
}

#[test]
fn a_successor_that_is_not_wanted_before_it_is_ready_is_told_to_stop_and_the_next_one_starts() {
    let mut story = Story::serving();
    assert!(!story.0.can_roll_back());
    story.at(1, reload());
    assert!(story.0.can_roll_back());
    story.at(2, reload());
    let orders = story.at(3, Event::Rollback);
    assert_eq!(orders, [rolled_back(2, Reason::Asked), Order::Retire(2), Order::Start(3)]);
    assert_eq!(story.at(4, Event::Ready(2)), [], "too late");
    assert!(story.0.is_serving(1));
    assert_eq!(story.at(33, Event::Tick), killed(2), "it did not stop");
}

#[test]
fn a_generation_that_starts_while_none_serves_is_not_rolled_back() {
    let mut story = Story::serving();
    story.at(1, reload());
    story.at(2, Event::Ended(1, 1));
    assert!(!story.0.can_roll_back());
    assert_eq!(story.at(3, Event::Rollback), []);
    assert!(story.0.is_starting(2));
}

#[test]
fn a_successor_that_is_not_ready_in_time_is_killed_and_the_one_that_serves_stays() {
    let mut story = Story::serving();
    story.at(1, reload());
    assert_eq!(story.at(60, Event::Tick), []);
    assert_eq!(story.at(61, Event::Tick), [reported(2, Transition::TimedOut), Order::Kill(2)]);
    assert_eq!(story.at(62, Event::Ready(2)), [], "too late");
    assert_eq!(story.at(62, Event::Ended(2, KILLED)), [Order::Retire(2)]);
    story.at(62, Event::Gone(2));
    assert_eq!(story.0, story.as_before());
}

#[test]
fn a_first_generation_that_fails_ends_all_with_its_status() {
    for (event, status) in [(Event::Ended(1, 7), 7), (Event::Ended(1, 0), 1), (Event::Left(1), 1)] {
        let mut story = Story::begin();
        let orders = story.at(1, event.clone());
        assert!(matches!(orders[..], [Order::Report(1, Transition::Failed(_)), Order::Retire(1)]), "{orders:?}");
        let last = [reported(1, Transition::Gone), Order::Finish(status)];
        assert_eq!(story.at(1, Event::Gone(1)), last, "{event:?} is no success");
    }
    let mut story = Story::begin();
    assert_eq!(story.at(60, Event::Tick), [reported(1, Transition::TimedOut), Order::Kill(1)]);
    assert_eq!(story.at(60, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(KILLED)]);
}

#[test]
fn a_reload_that_waited_for_a_first_generation_which_fails_is_cancelled() {
    let mut story = Story::begin();
    assert_eq!(story.0.answer(), Answer::Generation(2));
    story.at(1, reload());
    let orders = story.at(2, Event::Ended(1, 7));
    assert_eq!(orders, [reported(1, Transition::Failed(7)), Order::Retire(1), reported(2, Transition::Cancelled)]);
    assert_eq!(story.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(7)]);
}

#[test]
fn reloads_during_a_reload_are_remembered_as_one_which_starts_when_that_has_settled() {
    let mut story = Story::serving();
    story.at(1, reload());
    for _ in 0..3 {
        assert_eq!(story.0.answer(), Answer::Generation(3));
        assert_eq!(story.at(2, reload()), []);
    }
    assert_eq!(story.at(3, Event::Ready(2)), [Order::Steer(2), reported(2, Transition::Serves)]);
    let settled = [reported(2, Transition::Settled), Order::Release(1), Order::Start(3)];
    assert_eq!(story.at(13, Event::Tick), settled);
    assert_eq!(story.at(14, Event::Ready(3)), [Order::Steer(3), reported(3, Transition::Serves)]);
    story.at(14, Event::Gone(1));
    let settled = [reported(3, Transition::Settled), Order::Release(2)];
    assert_eq!(story.at(24, Event::Tick), settled, "and nothing else is started");
}

#[test]
fn a_reload_while_the_first_generation_starts_begins_when_that_serves_as_it_has_no_predecessor() {
    let mut story = Story::begin();
    assert_eq!(story.at(1, reload()), []);
    let settled = [Order::Steer(1), reported(1, Transition::Serves), reported(1, Transition::Settled), Order::Start(2)];
    assert_eq!(story.at(2, Event::Ready(1)), settled);
    assert_eq!(story.0.starting.unwrap().cause, Cause::Reload);
}

#[test]
fn of_several_reloads_that_wait_the_first_one_says_how_to_take_over() {
    let mut story = Story::serving();
    story.at(1, reload());
    story.at(2, Event::Reload(canary(Some("true"))));
    story.at(2, reload());
    assert_eq!(story.at(3, Event::Ended(2, 1)).pop(), Some(Order::Start(3)));
    assert_eq!(story.at(4, Event::Ready(3)), [Order::Share(3, 5), reported(3, Transition::OnTrial(5))]);

    let mut story = Story::serving();
    story.at(1, Event::Reload(canary(None)));
    story.at(2, reload());
    story.at(2, Event::Reload(canary(None)));
    story.at(3, Event::Ended(2, 1));
    assert_eq!(story.at(4, Event::Ready(3)), [Order::Steer(3), reported(3, Transition::Serves)]);
}

#[test]
fn a_remembered_reload_is_done_although_the_one_before_it_failed() {
    for failure in [Event::Ended(2, 1), Event::Left(2), Event::Tick] {
        let mut story = Story::serving();
        story.at(0, reload());
        story.at(1, reload());
        assert_eq!(story.at(60, failure).pop(), Some(Order::Start(3)));
        assert_eq!(story.at(61, Event::Ended(3, 1)).pop(), Some(Order::Retire(3)), "it was one");
    }
}
