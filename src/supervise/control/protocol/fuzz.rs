//! Any line, on either side of the control socket.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::config::{Form, Rollout, Stage, Until};
use crate::fuzz::{hold, mutated, noise, scraps};

/// What a client may send.
pub(crate) fn call() -> impl Strategy<Value = Call> {
    let stage = (1..=100_u8, 1..86_400_000_u64);
    let stage =
        stage.prop_map(|(percent, milliseconds)| Stage { percent, duration: Duration::from_millis(milliseconds) });
    let rollout = (vec(stage, 0..4), any::<bool>(), option::of(any::<String>()))
        .prop_map(|(stages, sticky, check)| Rollout { stages, sticky, check });
    let until = prop_oneof![Just(Until::Serving), Just(Until::OldGone)];
    let request = prop_oneof![
        4 => (until, rollout).prop_map(|(until, rollout)| Request::Reload { until, rollout }),
        1 => Just(Request::Promote),
        1 => Just(Request::Rollback),
        1 => prop_oneof![Just(Form::Table), Just(Form::Json)].prop_map(Request::Status),
        1 => Just(Request::Stop),
        1 => any::<bool>().prop_map(|control| Request::Lend { control }),
        1 => prop_oneof![Just(Request::Descriptors), Just(Request::Succeeded)],
    ];
    (request, any::<bool>()).prop_map(|(request, live)| Call { request, live })
}

/// A reload with any numbers, as no client of ours sends it.
fn odd_call() -> impl Strategy<Value = Vec<u8>> {
    let number = || prop_oneof![0..=100_u64, any::<u64>(), Just(u64::MAX), Just(u64::from(u32::MAX))];
    let stage = (number(), number(), number()).prop_map(|(percent, seconds, nanoseconds)| {
        format!(r#"{{"percent":{percent},"duration":{{"secs":{seconds},"nanos":{nanoseconds}}}}}"#)
    });
    vec(stage, 0..4).prop_map(|stages| {
        let stages = stages.join(",");
        format!(r#"{{"request":{{"reload":{{"until":"serving","rollout":{{"stages":[{stages}]}}}}}}}}"#).into_bytes()
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let text = any::<String>;
    prop_oneof![
        (any::<Id>(), text()).prop_map(|(generation, text)| Reply::Progress { generation, text }),
        (any::<Id>(), text()).prop_map(|(generation, text)| Reply::Live { generation, text }),
        text().prop_map(Reply::Output),
        text().prop_map(Reply::Error),
        any::<u8>().prop_map(Reply::Exit),
    ]
}

/// A message as a line without its end; the only one there is.
fn bytes(message: &impl Serialize) -> Vec<u8> {
    let mut line = line(message).into_bytes();
    assert_eq!(line.pop(), Some(b'\n'));
    assert!(!line.contains(&b'\n'));
    line
}

#[test]
fn a_message_is_read_as_it_was_sent() {
    hold((call(), reply()), |(call, reply)| {
        assert_eq!(saved::parse::<Reply>(&bytes(&reply)).unwrap(), reply);
        assert_eq!(parse_call(&bytes(&call)), Some(call));
    });
}

// A stage of a time that no clock reaches, which no command line has, once ended the supervisor.
#[test]
fn what_is_a_request_could_have_been_on_a_command_line() {
    let lines = prop_oneof![noise(), scraps(), mutated(call().prop_map(|call| bytes(&call))), odd_call()];
    hold(lines, |line| check_call(&line));
}

/// What holds of any line that a client sends.
pub(crate) fn check_call(line: &[u8]) {
    let Some(call) = parse_call(line) else { return };
    if let Request::Reload { rollout, .. } = &call.request {
        for Stage { percent, duration } in &rollout.stages {
            assert!((1..=100).contains(percent), "{percent}");
            assert!(*duration > Duration::ZERO && *duration <= Duration::from_hours(24_000), "{duration:?}");
        }
    }
    assert_eq!(parse_call(&bytes(&call)), Some(call));
}

#[test]
fn what_is_a_reply_is_one_again_when_it_is_sent_on() {
    hold(prop_oneof![noise(), scraps(), mutated(reply().prop_map(|reply| bytes(&reply)))], |line| check_reply(&line));
}

/// What holds of any line that a supervisor sends.
pub(crate) fn check_reply(line: &[u8]) {
    if let Ok(reply) = saved::parse::<Reply>(line) {
        assert_eq!(saved::parse::<Reply>(&bytes(&reply)).unwrap(), reply);
    }
}
