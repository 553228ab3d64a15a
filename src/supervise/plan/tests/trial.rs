//! A new generation gets a share of the new connections, in stages, before it serves.

use super::*;

/// The check at the end of the first stage runs since second 120.
fn checked() -> Story {
    let mut story = Story::on_trial(Some("true"));
    assert_eq!(story.at(120, Event::Tick), [Order::Check(2)]);
    story
}

#[test]
fn a_trial_goes_through_its_stages_and_ends_in_service() {
    let mut story = Story::on_trial(None);
    assert!(story.0.is_on_trial(2) && story.0.is_unsettled(2) && story.0.is_serving(1) && !story.0.is_unsettled(1));
    assert_eq!(story.deadline(), Some(120));
    assert_eq!(story.at(119, Event::Tick), []);
    assert_eq!(story.at(120, Event::Tick), [Order::Share(2, 50), reported(2, Transition::OnTrial(50))]);
    assert_eq!(story.deadline(), Some(150));
    assert_eq!(story.at(149, Event::Tick), []);
    assert_eq!(story.at(150, Event::Tick), [Order::Steer(2), reported(2, Transition::Serves)]);
    assert_eq!(story.deadline(), Some(160));
    assert_eq!(story.at(160, Event::Tick), [reported(2, Transition::Settled), Order::Release(1)]);
}

#[test]
fn a_check_has_to_pass_at_the_end_of_each_stage() {
    let mut story = checked();
    assert_eq!(story.deadline(), Some(180), "a check may take as long as getting ready");
    assert_eq!(story.at(130, Event::Tick), [], "it is run once");
    let second = [Order::Share(2, 50), reported(2, Transition::OnTrial(50))];
    assert_eq!(story.at(140, Event::Checked(2, true)), second);
    assert_eq!(story.deadline(), Some(170), "the stage begins when the one before it has passed");
    assert_eq!(story.at(150, Event::Checked(2, false)), [], "none runs");
    assert_eq!(story.at(170, Event::Tick), [Order::Check(2)]);
    let serves = [Order::Steer(2), reported(2, Transition::Serves)];
    assert_eq!(story.at(171, Event::Checked(2, true)), serves);
}

#[test]
fn a_check_that_fails_or_does_not_end_in_time_rolls_back() {
    for (second, event, reason) in
        [(121, Event::Checked(2, false), Reason::Check), (180, Event::Tick, Reason::CheckTimedOut)]
    {
        let mut story = checked();
        assert_eq!(story.at(second, Event::Checked(1, false)), [], "of another");
        assert_eq!(story.at(second, event), [Order::Steer(1), rolled_back(2, reason), Order::Release(2)]);
        assert_eq!(story.at(second, Event::Checked(2, true)), [], "too late");
        assert_eq!(story.at(second, Event::Released(2)), [Order::Retire(2)]);
        story.at(second, Event::Gone(2));
        assert_eq!(story.0, story.as_before());
    }
    assert_eq!(checked().at(179, Event::Tick), []);
}

#[test]
fn a_generation_on_trial_that_ends_changes_nothing_for_the_one_that_serves() {
    for mut story in [Story::on_trial(None), checked()] {
        let orders = [Order::Steer(1), rolled_back(2, Reason::Ended(3)), Order::Release(2)];
        assert_eq!(story.at(121, Event::Ended(2, 3)), orders);
        story.at(121, Event::Gone(2));
        assert_eq!(story.0, story.as_before());
    }
}

#[test]
fn a_generation_on_trial_that_accepts_no_more_or_is_not_wanted_is_rolled_back_and_released() {
    for (event, reason) in [(Event::Left(2), Reason::Left), (Event::Rollback, Reason::Asked)] {
        for mut story in [Story::on_trial(None), checked()] {
            assert_eq!(story.at(121, event.clone()), [Order::Steer(1), rolled_back(2, reason), Order::Release(2)]);
            assert_eq!(story.deadline(), Some(126));
        }
    }
}

#[test]
fn a_serving_generation_that_accepts_no_more_ends_the_trial_in_favour_of_the_new_one() {
    let serves = [Order::Steer(2), reported(2, Transition::Serves), reported(2, Transition::Settled)];
    assert_eq!(Story::on_trial(None).at(121, Event::Left(1)), [&serves[..], &[Order::Release(1)]].concat());
}

#[test]
fn a_promotion_by_hand_ends_the_trial_and_the_old_generation_stands_by() {
    for mut story in [Story::on_trial(Some("true")), checked()] {
        assert_eq!(story.at(121, Event::Promote), [Order::Steer(2), reported(2, Transition::Serves)]);
        assert_eq!(story.at(121, Event::Checked(2, false)), [], "what was checked does not matter any more");
        assert!(story.0.is_standing_by(1));
        assert_eq!(story.deadline(), Some(131));
    }
}

#[test]
fn a_promotion_or_a_rollback_where_nothing_is_on_trial_or_stands_by_changes_nothing() {
    let mut crashed = Story::serving();
    crashed.at(1, Event::Ended(1, 1));
    let mut stopped = Story::on_trial(None);
    stopped.at(101, STOP);
    for story in [Story::begin(), Story::serving(), crashed, stopped] {
        for event in [Event::Promote, Event::Rollback] {
            let mut after = story.clone();
            assert_eq!(after.at(102, event), []);
            assert_eq!(after.0, story.0);
        }
    }
    let mut starting = Story::serving();
    starting.at(1, Event::Reload(canary(None)));
    assert_eq!(starting.at(2, Event::Promote), [], "it is not ready");
    assert!(starting.0.is_starting(2));
}

#[test]
fn where_the_serving_one_ends_during_a_trial_the_one_on_trial_serves_at_once() {
    for restart in [Restart::Always, Restart::No] {
        for story in [Story::on_trial(None), checked()] {
            let mut story = story.with(Limits { restart, ..LIMITS });
            let orders = [
                reported(1, Transition::Crashed(1)),
                Order::Steer(2),
                reported(2, Transition::Serves),
                reported(2, Transition::Settled),
                Order::Release(1),
            ];
            assert_eq!(story.at(121, Event::Ended(1, 1)), orders);
            assert_eq!(story.0.serving, Some(Serving { id: 2, since: seconds(121) }));
            assert_eq!(story.deadline(), Some(126), "until what is left of the old one is told");
        }
    }
}

#[test]
fn a_reload_during_a_trial_starts_after_it() {
    for event in [Event::Rollback, Event::Left(2), Event::Ended(2, 1), Event::Checked(2, false)] {
        let mut story = checked();
        assert_eq!(story.0.answer(), Answer::Generation(3));
        assert_eq!(story.at(121, reload()), []);
        assert_eq!(story.at(122, event.clone()).pop(), Some(Order::Start(3)), "{event:?}");
    }
    let mut story = checked();
    story.at(121, reload());
    assert_eq!(story.at(122, Event::Promote), [Order::Steer(2), reported(2, Transition::Serves)]);
    let settled = [reported(2, Transition::Settled), Order::Release(1), Order::Start(3)];
    assert_eq!(story.at(132, Event::Tick), settled, "when it has settled");

    let mut story = checked();
    story.at(121, reload());
    assert!(story.at(122, Event::Ended(1, 1)).contains(&Order::Start(3)));
}

#[test]
fn a_trial_is_against_one_that_serves() {
    let mut story = Story::serving();
    story.at(1, Event::Reload(canary(Some("true"))));
    story.at(2, Event::Ended(1, 1));
    let orders = [Order::Steer(2), reported(2, Transition::Serves), reported(2, Transition::Settled)];
    assert_eq!(story.at(3, Event::Ready(2)), orders);
}

#[test]
fn what_was_started_again_is_not_on_trial() {
    let mut story = Story::on_trial(None);
    story.at(121, Event::Promote);
    story.at(131, Event::Tick);
    story.at(132, Event::Ended(2, 1));
    assert_eq!(story.at(133, Event::Tick).pop(), Some(Order::Start(3)));
    assert_eq!(story.at(134, Event::Ready(3))[0], Order::Steer(3));
}
