//! Property tests of whatever reads what the kernel or another process wrote: some hundred inputs each, or, with
//! HANDOFF_FUZZ_SECONDS, as many as there are in that time.

pub(crate) mod targets;

use std::cell::Cell;
use std::env;
use std::io::{Write, stderr};
use std::panic::Location;
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{TestError, TestRunner};

/// Hold `property`, which panics where it does not hold, against inputs of this kind.
#[track_caller]
pub(crate) fn hold<S: Strategy>(inputs: S, property: impl Fn(S::Value)) {
    let begin = Instant::now();
    let time = env::var("HANDOFF_FUZZ_SECONDS").ok().map(|seconds| Duration::from_secs(seconds.parse().unwrap()));
    let place = Location::caller().file();
    let count = Cell::new(0_u64);
    loop {
        let mut runner = TestRunner::new(ProptestConfig::with_source_file(place));
        let result = runner.run(&inputs, |input| {
            count.set(count.get() + 1);
            property(input);
            Ok(())
        });
        match result {
            Err(TestError::Fail(why, input)) => panic!("{why}: {input:?}"),
            result => result.unwrap(),
        }
        if time.is_none_or(|time| begin.elapsed() >= time) {
            break;
        }
    }
    if time.is_some() {
        let thread = thread::current();
        let line = format!("{}: {} inputs\n", thread.name().unwrap_or_default(), count.get());
        // Not by a macro, whose words the test runner keeps from a test that passes.
        stderr().write_all(line.as_bytes()).unwrap();
    }
}

/// Any bytes, up to some hundred.
pub(crate) fn noise() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

/// What parsers look for and stumble over.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: [&str; 20] = [
        "",
        "\0",
        "\n",
        " ",
        ":",
        "-",
        "+",
        ")",
        "]",
        "0",
        "1",
        "-1",
        "0x",
        "ffffffff",
        "2147483648",
        "4294967296",
        "99999999999999999999",
        "1e9",
        "\u{e9}",
        "\"",
    ];
    prop_oneof![3 => select(&PIECES[..]).prop_map(|piece| piece.as_bytes().to_vec()), 1 => vec(any::<u8>(), 0..9)]
}

/// Text of such pieces.
pub(crate) fn scraps() -> impl Strategy<Value = Vec<u8>> {
    vec(piece(), 0..60).prop_map(|pieces| pieces.concat())
}

/// What is done to bytes.
#[derive(Clone, Debug)]
enum Change {
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Overwrite(Index, Vec<u8>),
    Repeat(Index, usize),
}

impl Change {
    fn apply(self, mut bytes: Vec<u8>) -> Vec<u8> {
        let place = |index: Index| index.index(bytes.len() + 1);
        match self {
            Change::Cut(at) => bytes.truncate(place(at)),
            Change::Remove(at, length) => {
                let at = place(at);
                bytes.drain(at..bytes.len().min(at + length));
            }
            Change::Insert(at, piece) => {
                let at = place(at);
                bytes.splice(at..at, piece);
            }
            Change::Overwrite(at, piece) => {
                let at = place(at);
                bytes.splice(at..bytes.len().min(at + piece.len()), piece);
            }
            Change::Repeat(at, length) => {
                let at = place(at);
                bytes.extend_from_within(at..bytes.len().min(at + length));
            }
        }
        bytes
    }
}

/// These bytes, changed in a few places.
pub(crate) fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let index = any::<Index>;
    let change = prop_oneof![
        1 => index().prop_map(Change::Cut),
        2 => (index(), 1..20_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        3 => (index(), piece()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        6 => (index(), piece()).prop_map(|(at, piece)| Change::Overwrite(at, piece)),
        1 => (index(), 1..100_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ];
    (bytes, vec(change, 1..5)).prop_map(|(bytes, changes)| changes.into_iter().fold(bytes, |bytes, c| c.apply(bytes)))
}

/// Bytes as text.
pub(crate) fn text(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = String> {
    bytes.prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
