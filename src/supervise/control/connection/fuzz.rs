//! A client that sends anything, in any pieces.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps};
use crate::supervise::control::protocol::fuzz::call;

/// As much is read at once.
const PIECE: usize = 1024;

fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let sent = || call().prop_map(|call| line(&call).into_bytes());
    let piece = prop_oneof![
        2 => noise(),
        1 => scraps(),
        1 => Just(b"\n".to_vec()),
        2 => sent(),
        2 => mutated(sent()),
        // Around the longest request.
        1 => (prop_oneof![Just(b' '), any::<u8>()], 0..18_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ];
    let together = vec(piece, 0..6);
    // One request, cut anywhere.
    let apart = (sent(), 1..40_usize).prop_map(|(line, size)| line.chunks(size).map(<[u8]>::to_vec).collect());
    prop_oneof![3 => together, 1 => apart]
}

/// A request, once; or one answer that it is none; or nothing yet.
#[derive(Debug, PartialEq)]
enum Outcome {
    Called(Call),
    Refused,
    Nothing,
}

/// Those that may come of all that was sent, however it was cut.
fn expected(sent: &[u8]) -> Vec<Outcome> {
    let end = sent.iter().position(|byte| *byte == b'\n');
    let read = end.map(|end| parse_call(&sent[..end]).map_or(Outcome::Refused, Outcome::Called));
    match (end.unwrap_or(sent.len()), read) {
        (length, Some(outcome)) if length < LONGEST_REQUEST => vec![outcome],
        // As much as that is read before it is seen that it is too long.
        (length, Some(outcome)) if length < LONGEST_REQUEST + PIECE => vec![outcome, Outcome::Refused],
        (length, None) if length < LONGEST_REQUEST => vec![Outcome::Nothing],
        _ => vec![Outcome::Refused],
    }
}

#[test]
fn a_client_gets_one_answer_to_what_it_sends_however_that_is_cut() {
    let refusal =
        line(&Reply::Error("the supervisor does not understand the request".into())) + &line(&Reply::Exit(125));
    hold(pieces(), |pieces| {
        let (ours, mut its) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client::admit(ours.into(), Admits::Own, Timestamp::ZERO).unwrap();
        let mut calls = Vec::new();
        for piece in &pieces {
            its.write_all(piece).unwrap();
            for _ in 0..piece.len().div_ceil(PIECE) {
                calls.extend(client.receive());
                assert!(client.received.len() < LONGEST_REQUEST + PIECE);
            }
        }
        assert_eq!(client.receive(), None);
        let is_waiting = client.timeout.is_some();
        let saved = serde_json::to_vec(&client.save().unwrap()).unwrap();
        let read: SavedClient = saved::parse(&saved).unwrap();
        assert_eq!((&read.received, read.closing), (&client.received, client.closing));

        its.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.receive(), None);
        assert!(client.read_closed);
        assert_eq!(client.broken, is_waiting);
        drop(client);
        let mut answer = String::new();
        its.read_to_string(&mut answer).unwrap();
        assert_eq!(is_waiting, calls.is_empty() && answer.is_empty());
        let outcome = match (calls.pop(), answer.is_empty()) {
            (Some(call), true) => Outcome::Called(call),
            (None, true) => Outcome::Nothing,
            (call, false) => {
                assert_eq!((call, &answer), (None, &refusal));
                Outcome::Refused
            }
        };
        assert_eq!(calls, []);
        assert!(expected(&pieces.concat()).contains(&outcome), "{outcome:?}");
    });
}
