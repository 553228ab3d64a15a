//! Everything is asked to stop.

use super::*;

#[test]
fn a_reload_during_shutdown_is_refused() {
    let mut story = Story::serving();
    assert_eq!(story.at(1, STOP), [Order::Retire(1)]);
    assert_eq!(story.0.answer(), Answer::Refused);
    assert_eq!(story.at(2, reload()), []);
}

#[test]
fn a_stop_drains_everything_and_ends_with_0() {
    let mut story = Story::serving();
    story.at(1, reload());
    story.at(1, reload());
    let orders =
        [reported(3, Transition::Cancelled), reported(2, Transition::Cancelled), Order::Retire(2), Order::Retire(1)];
    assert_eq!(story.at(2, STOP), orders);
    assert_eq!(story.at(3, STOP), [], "asked again, it sends no second signal");
    assert_eq!(story.at(3, Event::Gone(2)), [reported(2, Transition::Gone)]);
    assert_eq!(story.at(3, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
}

#[test]
fn a_stop_while_a_new_generation_settles_tells_both_at_once() {
    let mut story = Story::settling();
    story.at(101, reload());
    let cancelled = [reported(3, Transition::Cancelled), reported(2, Transition::Cancelled)];
    assert_eq!(story.at(102, STOP), [&cancelled[..], &[Order::Retire(1), Order::Retire(2)]].concat());
    assert_eq!(story.deadline(), Some(132));
    assert_eq!(story.at(103, Event::Ended(2, 0)), [Order::Retire(2)], "nothing is rolled back");
    assert_eq!(story.at(110, Event::Tick), [], "nothing settles");
    story.at(111, Event::Gone(2));
    assert_eq!(story.at(111, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(0)]);
}

#[test]
fn a_stop_during_a_trial_tells_both_at_once() {
    for event in [Event::Promote, Event::Checked(2, true), Event::Ended(2, 0), Event::Tick] {
        let mut story = Story::on_trial(Some("true"));
        story.at(120, Event::Tick);
        assert_eq!(story.at(121, STOP), [reported(2, Transition::Cancelled), Order::Retire(2), Order::Retire(1)]);
        assert_eq!(story.deadline(), Some(151));
        let orders = story.at(150, event.clone());
        assert!(orders.is_empty() || orders == [Order::Retire(2)] && event == Event::Ended(2, 0), "{orders:?}");
    }
}

#[test]
fn a_stop_during_a_release_tells_everything_at_once_also_with_drain_idle() {
    for drain_how in [Drain::Signal, Drain::Idle] {
        let mut story = Story::settling().with(Limits { drain_how, ..LIMITS });
        story.at(110, Event::Tick);
        assert_eq!(story.at(111, STOP), [Order::Retire(1), Order::Retire(2)]);
        assert_eq!(story.at(112, Event::Released(1)), [], "it was told");
        assert_eq!(story.deadline(), Some(141));
        assert_eq!(story.at(141, Event::Tick), [killed(1), killed(2)].concat());
    }
    let mut story = Story::on_trial(None);
    story.at(110, Event::Rollback);
    assert_eq!(story.at(111, STOP), [Order::Retire(2), Order::Retire(1)]);
}

#[test]
fn what_does_not_drain_in_time_is_killed_once_and_the_status_says_so() {
    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(30, Event::Tick), []);
    assert_eq!(story.at(31, Event::Tick), killed(1));
    assert_eq!(story.at(40, Event::Tick), []);
    assert_eq!(story.0.deadline(), None);
    assert_eq!(story.at(41, Event::Gone(1)), [reported(1, Transition::Gone), Order::Finish(KILLED)]);
}

#[test]
fn an_old_generation_that_is_killed_is_no_failure_of_the_supervisor() {
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    story.at(110, Event::Released(1));
    assert_eq!(story.at(140, Event::Tick), killed(1));
    story.at(141, Event::Gone(1));
    story.at(142, STOP);
    assert_eq!(story.at(143, Event::Gone(2)), [reported(2, Transition::Gone), Order::Finish(0)]);
}

#[test]
fn a_stop_at_once_kills_whatever_there_is() {
    let now = Event::Stop(StopMode::Now);
    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(2, now.clone()), killed(1), "also what was draining");
    assert_eq!(story.at(3, now.clone()), []);

    let cancelled = reported(2, Transition::Cancelled);
    let both = [killed(1), killed(2)].concat();
    let orders = Story::settling().at(101, now.clone());
    assert_eq!(orders, [&[cancelled, Order::Retire(1), Order::Retire(2)], &both[..]].concat());
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    let orders = story.at(111, now);
    assert_eq!(orders, [&[Order::Retire(1), Order::Retire(2)], &both[..]].concat(), "also what was not told yet");
}

#[test]
fn a_signal_that_comes_again_a_second_later_stops_at_once() {
    let signal = || Event::Stop(StopMode::Signal);
    let mut story = Story::serving();
    assert_eq!(story.at(5, signal()), [Order::Retire(1)]);
    assert_eq!(story.0.handle(signal(), LIMITS, seconds(6) - Duration::from_nanos(1)), [], "some send it twice");
    let handed_on = serde_json::from_str(&serde_json::to_string(&story.0).unwrap()).unwrap();
    let mut successor = Story(handed_on, LIMITS);
    assert_eq!(successor.at(6, signal()), killed(1));
    assert_eq!(story.at(6, signal()), killed(1));
    assert_eq!(story.at(9, signal()), []);

    let mut story = Story::serving();
    story.at(1, STOP);
    assert_eq!(story.at(5, signal()), [], "it is the first signal");
    assert_eq!(story.at(6, STOP), [], "what drains is to drain");
    assert_eq!(story.at(7, signal()), killed(1));
}
