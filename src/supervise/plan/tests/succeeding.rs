//! The first generation beside the process that it succeeds.

use super::*;

impl Story {
    /// The first generation is starting since second 0, and the process that it succeeds serves.
    fn succeeding() -> Story {
        let (plan, orders) = Plan::succeed(LIMITS, seconds(0));
        assert_eq!(orders, [Order::Start(1)]);
        Story(plan, LIMITS)
    }

    /// The first generation serves since second 0, and its predecessor stands by until second 10.
    fn succeeded() -> Story {
        let mut story = Story::succeeding();
        assert_eq!(story.at(0, Event::Ready(1)), [Order::Steer(1), reported(1, Transition::Serves)]);
        assert!(story.0.is_predecessor_needed());
        story
    }
}

#[test]
fn the_predecessor_is_told_to_stop_when_its_successor_has_settled() {
    let mut story = Story::succeeded();
    assert_eq!(story.at(9, Event::Tick), []);
    assert_eq!(story.at(10, Event::Tick), [reported(1, Transition::Settled), Order::Release(PREDECESSOR)]);
    assert!(!story.0.is_predecessor_needed());
    assert_eq!(story.at(11, Event::Released(PREDECESSOR)), [Order::Retire(PREDECESSOR)]);
    assert_eq!(story.at(41, Event::Tick), killed(PREDECESSOR));
    assert_eq!(story.at(42, Event::Gone(PREDECESSOR)), [reported(PREDECESSOR, Transition::Gone)]);
    assert_eq!(story.at(43, reload()), [Order::Start(2)]);
}

#[test]
fn a_successor_that_fails_ends_everything_and_the_predecessor_is_told_nothing() {
    let mut story = Story::succeeding();
    let orders = story.at(1, Event::Ended(1, 7));
    assert_eq!(orders, [reported(1, Transition::Failed(7)), Order::Retire(1)]);
    assert_eq!(story.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(7)]);
    let mut story = Story::succeeding();
    assert_eq!(story.at(60, Event::Tick), [reported(1, Transition::TimedOut), Order::Kill(1)]);
    assert_eq!(story.at(61, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(KILLED)]);
    for (event, reason, status) in [
        (Event::Ended(1, 7), Reason::Ended(7), 7),
        (Event::Ended(1, 0), Reason::Ended(0), 1),
        (Event::Left(1), Reason::Left, 1),
        (Event::Rollback, Reason::Asked, 1),
    ] {
        let mut story = Story::succeeded();
        let orders = story.at(1, event);
        assert_eq!(orders[..2], [Order::Steer(PREDECESSOR), rolled_back(1, reason)]);
        assert!(!orders.contains(&Order::Retire(PREDECESSOR)) && !orders.contains(&Order::Release(PREDECESSOR)));
        assert_eq!(story.0.stopping, Some(status));
        story.at(2, Event::Released(1));
        assert_eq!(story.at(3, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(status)]);
        assert!(story.0.is_predecessor_needed());
    }
}

#[test]
fn a_stop_leaves_the_predecessor_serving_until_it_is_no_longer_needed() {
    let mut story = Story::succeeding();
    assert_eq!(story.at(1, STOP), [reported(1, Transition::Cancelled), Order::Retire(1)]);
    assert_eq!(story.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
    let mut story = Story::succeeded();
    let orders = story.at(1, STOP);
    assert_eq!(orders, [Order::Steer(PREDECESSOR), reported(1, Transition::Cancelled), Order::Retire(1)]);
    assert_eq!(story.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
    let mut story = Story::succeeded();
    story.at(10, Event::Tick);
    assert_eq!(story.at(11, STOP), [Order::Retire(PREDECESSOR), Order::Retire(1)]);
}

#[test]
fn where_the_predecessor_ends_by_itself_its_successor_serves_as_soon_as_it_is_ready() {
    let mut story = Story::succeeding();
    let orders = story.at(1, Event::Ended(PREDECESSOR, 1));
    let expected = [reported(PREDECESSOR, Transition::Crashed(1)), Order::Steer(1), Order::Release(PREDECESSOR)];
    assert_eq!(orders, expected);
    story.at(1, Event::Gone(PREDECESSOR));
    let orders = story.at(2, Event::Ready(1));
    assert_eq!(orders, [Order::Steer(1), reported(1, Transition::Serves), reported(1, Transition::Settled)]);
    let mut story = Story::succeeded();
    let orders = story.at(1, Event::Ended(PREDECESSOR, 1));
    assert_eq!(orders, [Order::Release(PREDECESSOR), reported(1, Transition::Settled)]);
}

// Once a generation was started again that the supervisor left behind when the failed one had drained.
#[test]
fn where_the_predecessor_ends_after_a_deploy_that_failed_nothing_is_started_and_the_status_stays() {
    for restart in [Restart::Always, Restart::OnFailure(None), Restart::No] {
        let mut story = Story::succeeded().with(Limits { restart, ..LIMITS });
        story.at(1, Event::Rollback);
        let orders = story.at(2, Event::Ended(PREDECESSOR, 0));
        assert_eq!(orders, [reported(PREDECESSOR, Transition::Crashed(0)), Order::Retire(PREDECESSOR)]);
        story.at(2, Event::Gone(PREDECESSOR));
        assert_eq!(story.at(4, Event::Tick), []);
        assert_eq!(story.at(6, Event::Tick), [Order::Retire(1)]);
        assert_eq!(story.at(7, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(1)]);
    }
}

// A state of another release may have both.
#[test]
fn what_was_due_when_everything_stopped_is_not_started_by_a_supervisor_that_goes_on() {
    let mut story = Story::serving();
    story.at(1, STOP);
    (story.0.restart, story.0.queued) = (Some(seconds(2)), true);
    story.0.resume(&[1], LIMITS, seconds(2));
    assert_eq!(story.at(2, Event::Tick), []);
    assert_eq!(story.0.restarts, 0);
}

#[test]
fn what_an_earlier_supervisor_left_drains_and_is_left_alone_if_the_deploy_fails() {
    let mut story = Story::succeeding();
    assert_eq!(story.0.add_earlier(EARLIER), Order::Release(EARLIER));
    let mut failing = story.clone();
    failing.at(1, Event::Ended(1, 7));
    assert_eq!(failing.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(7)]);
    let mut stopped = story.clone();
    stopped.at(1, STOP);
    assert_eq!(stopped.at(2, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
    story.at(1, Event::Ready(1));
    story.at(11, Event::Tick);
    assert_eq!(story.at(500, Event::Released(EARLIER)), [Order::Retire(EARLIER)]);
    assert_eq!(story.at(501, Event::Gone(EARLIER)), [reported(EARLIER, Transition::Gone)]);
}
