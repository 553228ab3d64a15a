//! Answers of a server as RFC 9112 has them, in any pieces, the same changed, and any bytes.

use std::iter;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps};

/// How it is known where the body ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Length,
    Chunks,
    Close,
}

/// An answer, and what it is read as.
#[derive(Clone, Debug)]
struct Answer {
    bytes: Vec<u8>,
    status: u16,
    end: End,
}

fn answer() -> impl Strategy<Value = Answer> {
    let field = select(vec!["Server: x", "X: \u{e9}", "Date:", "Content-Type: text/html; charset=utf-8", "nonsense"]);
    let end = select(vec![End::Length, End::Chunks, End::Close]);
    let interim = vec(100..200_u16, 0..3);
    let body = prop_oneof![noise(), Just(b"0\r\n\r\n".to_vec()), Just(LAST_CHUNK.repeat(3))];
    (interim, 200..600_u16, vec(field, 0..4), end, body).prop_map(|(interim, status, mut fields, end, body)| {
        let length = format!("Content-Length: {}", body.len());
        let mut sent = body.clone();
        match end {
            End::Length => fields.push(&length),
            End::Chunks => {
                fields.push("Transfer-Encoding: gzip, Chunked");
                let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
                sent = body.chunks(100).flat_map(chunk).chain(LAST_CHUNK.iter().copied()).collect();
            }
            End::Close => (),
        }
        let header = |status: u16, fields: &[&str]| {
            let lines = fields.iter().map(|field| format!("{field}\r\n")).collect::<String>();
            format!("HTTP/1.1 {status} Reason\r\n{lines}\r\n").into_bytes()
        };
        let interim = interim.iter().flat_map(|status| header(*status, &["Link: x"]));
        let bytes = interim.chain(header(status, &fields)).chain(sent).collect();
        Answer { bytes, status, end }
    })
}

/// What comes of these bytes when they arrive in pieces of these lengths; none if more is to come.
fn read(bytes: &[u8], lengths: &[usize]) -> (Get, Option<Outcome>) {
    let mut get = Get::begin("127.0.0.1:9".parse().unwrap(), "/", Timestamp::ZERO).unwrap();
    let mut rest = bytes;
    for length in lengths.iter().copied().chain(iter::repeat(READ)) {
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        if piece.is_empty() {
            break;
        }
        rest = behind;
        get.received.extend(piece);
        if let Some(outcome) = get.answer() {
            return (get, Some(outcome));
        }
        assert!(get.received.len() <= LONGEST_HEADER);
    }
    (get, None)
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..4_usize, 1..200_usize], 0..60)
}

#[test]
fn an_answer_has_its_status_however_it_is_cut() {
    hold((answer(), lengths()), |(Answer { bytes, status, end }, lengths)| {
        let (get, outcome) = read(&bytes, &lengths);
        let has_no_body = [204, 304].contains(&status);
        assert!(outcome.is_some() || end == End::Close && !has_no_body, "{outcome:?}");
        assert_eq!(outcome.unwrap_or_else(|| get.end()), Outcome::Answered(status));
    });
}

#[test]
fn any_bytes_are_an_answer_or_none() {
    let bytes = prop_oneof![
        1 => noise(),
        1 => scraps(),
        6 => mutated(answer().prop_map(|answer| answer.bytes)),
        1 => (any::<u8>(), 0..40_000_usize).prop_map(|(byte, length)| {
            [b"HTTP/1.1 200 OK\r\nX: ", vec![byte; length].as_slice()].concat()
        }),
    ];
    hold((bytes, lengths()), |(bytes, lengths)| {
        let (get, outcome) = read(&bytes, &lengths);
        match outcome.unwrap_or_else(|| get.end()) {
            Outcome::Answered(status) => assert!((200..1000).contains(&status)),
            Outcome::Failed(why) => assert!(!why.is_empty()),
        }
    });
}
