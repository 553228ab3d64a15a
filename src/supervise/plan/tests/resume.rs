//! A supervisor goes on in the place of another, which handed its plan on as JSON.

use super::*;

/// The one that goes on at this second, and its orders.
fn handed_on(story: &Story, second: u64) -> (Story, Vec<Order>) {
    let mut plan: Plan = serde_json::from_str(&serde_json::to_string(&story.0).unwrap()).unwrap();
    assert_eq!(plan, story.0);
    let left: Vec<Id> = plan.generations().collect();
    let orders = plan.resume(&left, story.1, seconds(second));
    assert_eq!(plan, story.0, "it knows everything that is left");
    (Story(plan, story.1), orders)
}

#[test]
fn new_connections_go_where_they_went() {
    assert_eq!(handed_on(&Story::begin(), 1).1, [Order::Steer(1)], "also those that come while it starts");
    assert_eq!(handed_on(&Story::serving(), 1).1, [Order::Steer(1)]);
    let mut story = Story::serving();
    story.at(1, reload());
    assert_eq!(handed_on(&story, 2).1, [Order::Steer(1)]);
    story.at(2, Event::Ended(1, 1));
    assert_eq!(handed_on(&story, 3).1, [Order::Steer(2), Order::Release(1)]);
    assert_eq!(handed_on(&Story::settling(), 101).1, [Order::Steer(2)]);
    assert_eq!(handed_on(&Story::on_trial(None), 101).1, [Order::Share(2, 5)]);

    let mut story = Story::serving();
    story.at(1, Event::Ended(1, 1));
    assert_eq!(handed_on(&story, 2).1, [], "none serves, and none starts");
    let mut story = Story::settling();
    story.at(101, STOP);
    assert_eq!(handed_on(&story, 102).1, [], "everything stops");
}

#[test]
fn a_new_generation_settles_or_is_rolled_back_after_a_change_of_the_supervisor() {
    let (mut story, _) = handed_on(&Story::settling(), 105);
    assert_eq!(story.deadline(), Some(110));
    let mut ends = story.clone();
    assert_eq!(ends.at(106, Event::Ended(2, 1))[0], Order::Steer(1));
    assert_eq!(story.at(111, Event::Tick), [reported(2, Transition::Settled), Order::Release(1)]);
}

#[test]
fn a_trial_goes_on_in_its_stage_after_a_change_of_the_supervisor() {
    let mut story = Story::on_trial(None);
    story.at(120, Event::Tick);
    let (mut story, orders) = handed_on(&story, 130);
    assert_eq!(orders, [Order::Share(2, 50)]);
    assert_eq!(story.at(149, Event::Tick), []);
    assert_eq!(story.at(150, Event::Tick)[0], Order::Steer(2));
}

#[test]
fn a_check_that_ended_with_its_supervisor_is_run_again_within_the_same_time() {
    let mut story = Story::on_trial(Some("true"));
    story.at(120, Event::Tick);
    let (mut story, orders) = handed_on(&story, 130);
    assert_eq!(orders, [Order::Share(2, 5), Order::Check(2)]);
    assert_eq!(story.deadline(), Some(180));
    assert_eq!(story.at(131, Event::Checked(2, true))[0], Order::Share(2, 50));
}

#[test]
fn what_was_not_told_to_stop_yet_is_waited_for_again() {
    let mut story = Story::settling();
    story.at(110, Event::Tick);
    let (mut successor, orders) = handed_on(&story, 111);
    assert_eq!(orders, [Order::Steer(2), Order::Release(1)]);
    assert_eq!(successor.at(115, Event::Tick), [Order::Retire(1)]);
    assert_eq!(handed_on(&successor, 116).1, [Order::Steer(2)], "it was told");

    let mut story = Story::on_trial(None);
    story.at(110, Event::Rollback);
    assert_eq!(handed_on(&story, 111).1, [Order::Steer(1), Order::Release(2)]);
}

#[test]
fn a_remembered_reload_is_not_forgotten() {
    let mut story = Story::settling();
    story.at(101, Event::Reload(canary(None)));
    let (mut story, _) = handed_on(&story, 102);
    assert_eq!(story.at(110, Event::Tick).pop(), Some(Order::Start(3)));
    assert_eq!(story.at(111, Event::Ready(3)), [Order::Share(3, 5), reported(3, Transition::OnTrial(5))]);
}

#[test]
fn generations_that_the_predecessor_did_not_know_drain_and_the_newest_serves_where_none_does() {
    let mut story = Story::settling();
    let orders = story.0.resume(&[4, 1, 2, 3], LIMITS, seconds(101));
    assert_eq!(orders, [Order::Steer(2), Order::Retire(3), Order::Retire(4)]);
    assert_eq!(story.0.answer(), Answer::Generation(5));

    let mut plan = Plan::default();
    assert_eq!(plan.resume(&[3, 2], LIMITS, seconds(101)), [Order::Steer(3), Order::Retire(2)]);
    assert_eq!(plan.serving, Some(Serving { id: 3, since: seconds(101) }));
    assert_eq!(plan.answer(), Answer::Generation(4));
}

// Once the next generation had the number behind those, and drained like one of them.
#[test]
fn what_an_earlier_supervisor_left_gives_no_number_to_the_next_generation() {
    let mut story = Story::serving();
    story.0.add_earlier(EARLIER);
    story.0.add_earlier(EARLIER + 1);
    let (mut story, orders) = handed_on(&story, 1);
    assert_eq!(orders, [Order::Steer(1), Order::Release(EARLIER), Order::Release(EARLIER + 1)]);
    assert_eq!(story.at(2, reload()), [Order::Start(2)]);

    let mut plan = Plan::default();
    assert_eq!(plan.resume(&[PREDECESSOR, 2, EARLIER], LIMITS, seconds(1)), [Order::Steer(2)]);
    assert_eq!(plan.answer(), Answer::Generation(3));
    let mut plan = Plan::default();
    assert_eq!(plan.resume(&[PREDECESSOR, EARLIER], LIMITS, seconds(1)), []);
    assert_eq!((plan.serving, plan.answer()), (None, Answer::Generation(1)));
}

// Once it was told to stop by the supervisor that went on.
#[test]
fn what_was_let_go_of_when_everything_stopped_stays_so_after_a_change_of_the_supervisor() {
    let (mut plan, _) = Plan::succeed(LIMITS, seconds(0));
    plan.add_earlier(EARLIER);
    plan.handle(STOP, LIMITS, seconds(1));
    let before = plan.clone();
    assert_eq!(plan.resume(&[PREDECESSOR, 1, EARLIER], LIMITS, seconds(2)), []);
    assert_eq!(plan, before);
}

#[test]
fn a_trial_of_a_state_without_its_stages_ends_in_service() {
    let mut story = Story::on_trial(None);
    let trial = serde_json::from_str(r#"{ "id": 2, "rollout": {}, "until": { "secs": 120, "nanos": 0 } }"#);
    story.0.trial = trial.unwrap();
    assert_eq!(story.at(120, Event::Tick), [Order::Steer(2), reported(2, Transition::Serves)]);
}
