//! Every reload that was asked for is counted once, by how it ended.

use super::*;

fn counts(story: &Story) -> Counts {
    story.0.reloads.counts
}

fn last(story: &Story) -> Option<(Outcome, Timestamp)> {
    story.0.reloads.last.zip(story.0.reloads.last_at)
}

#[test]
fn a_reload_is_counted_when_it_ends_and_by_how_it_ends() {
    let none = Counts::default();
    let ends = [
        (Story::settling(), Event::Promote, Counts { succeeded: 1, ..none }, Outcome::Succeeded),
        (Story::settling(), Event::Rollback, Counts { rolled_back: 1, ..none }, Outcome::RolledBack),
        (Story::on_trial(None), Event::Ended(2, 1), Counts { rolled_back: 1, ..none }, Outcome::RolledBack),
        (Story::on_trial(None), STOP, Counts { cancelled: 1, ..none }, Outcome::Cancelled),
    ];
    for (mut story, event, expected, outcome) in ends {
        assert_eq!((counts(&story), last(&story)), (none, None), "it is under way");
        story.at(105, event);
        assert_eq!((counts(&story), last(&story)), (expected, Some((outcome, seconds(105)))));
    }
    let starting = [
        (2, Event::Ended(2, 3), Counts { failed: 1, ..none }, Outcome::Failed),
        (61, Event::Tick, Counts { timed_out: 1, ..none }, Outcome::TimedOut),
    ];
    for (second, event, expected, outcome) in starting {
        let mut story = Story::serving();
        story.at(1, reload());
        story.at(second, event);
        assert_eq!((counts(&story), last(&story)), (expected, Some((outcome, seconds(second)))));
    }
}

#[test]
fn requests_that_one_generation_answers_are_one_reload() {
    let mut story = Story::serving();
    (0..5).for_each(|_| drop(story.at(1, reload())));
    story.at(2, Event::Ended(2, 1));
    story.at(3, Event::Ready(3));
    story.at(13, Event::Tick);
    assert_eq!(counts(&story), Counts { failed: 1, succeeded: 1, ..Counts::default() });
}

#[test]
fn a_start_that_nobody_asked_for_is_no_reload_and_one_that_was_asked_for_where_none_serves_is_one() {
    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    let (_, orders) = story.starts_again();
    assert_eq!(orders, [Order::Start(2)]);
    assert_eq!(story.0.restarted, Some(seconds(1) + Duration::from_millis(100)));
    story.at(2, Event::Ended(2, 1));
    assert_eq!(counts(&story), Counts::default());
    story.at(2, reload());
    story.at(3, Event::Ready(3));
    assert_eq!(counts(&story), Counts { succeeded: 1, ..Counts::default() });
}

#[test]
fn a_reload_that_leaves_a_listener_unreachable_is_no_success() {
    let mut story = Story::settling();
    let broken = ["its path is another file's now".to_owned()];
    assert_eq!(story.0.reloads.end(2, Transition::Settled, &broken, seconds(110)), Some(Outcome::Unreachable));
    assert_eq!(counts(&story), Counts { unreachable: 1, ..Counts::default() });
}

// It changes nothing, so the last one is still that before it.
#[test]
fn a_refused_reload_is_counted_and_is_not_the_last_one() {
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    let before = last(&story);
    story.at(111, STOP);
    story.at(112, reload());
    assert_eq!(counts(&story), Counts { succeeded: 1, refused: 1, ..Counts::default() });
    assert_eq!(last(&story), before);
}

#[test]
fn a_state_without_reloads_or_with_a_way_to_end_that_is_not_known_is_read() {
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    story.at(111, reload());
    let mut state = serde_json::to_value(&story.0).unwrap();
    state["reloads"]["last"] = "postponed".into();
    let read: Plan = serde_json::from_value(state.clone()).unwrap();
    let mut expected = story.0.clone();
    expected.reloads.last = None;
    assert_eq!(read, expected);
    state.as_object_mut().unwrap().remove("reloads");
    let mut read: Plan = serde_json::from_value(state).unwrap();
    assert_eq!(read, Plan { reloads: Reloads::default(), ..story.0.clone() });
    // Such a predecessor left which generation was asked for, beside the plan.
    read.reloads.resume(story.0.reloads.first_asked());
    read.reloads.end(3, Transition::TimedOut, &[], seconds(171));
    assert_eq!(read.reloads.counts, Counts { timed_out: 1, ..Counts::default() });
}
