//! Any line of `/proc/PID/syscall`, and any memory of a process that polls or selects.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps};

/// Those that are waits, and some others.
fn number() -> impl Strategy<Value = c_long> {
    let waits = [libc::SYS_accept4, libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_recvfrom, libc::SYS_read];
    prop_oneof![2 => proptest::sample::select(waits.to_vec()), 1 => 0..500_i64, 1 => 0..i64::MAX]
        .prop_map(|number| number as c_long)
}

fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![0..5000_u64, any::<u64>()]
}

fn line(call: &SystemCall) -> Vec<u8> {
    let SystemCall { number, first, second } = call;
    format!("{number} {first:#x} {second:#x} 0x0 0x80000 0x0 0x0 0x7ffe 0x7f23\n").into_bytes()
}

fn call() -> impl Strategy<Value = SystemCall> {
    (number(), argument(), argument()).prop_map(|(number, first, second)| SystemCall { number, first, second })
}

/// What is read for it is bounded.
fn check_target(call: SystemCall) {
    match call.target() {
        Some((Wait::Poll, WaitTarget::Array { address, length })) => {
            assert_eq!((address, length % size_of::<libc::pollfd>()), (call.first, 0));
            assert!(length <= POLL_ENTRIES * size_of::<libc::pollfd>());
        }
        Some((Wait::Select, WaitTarget::Array { address, length })) => {
            assert_eq!((address, length % size_of::<c_ulong>()), (call.second, 0));
            assert!(length <= SELECT_BYTES && call.first as c_int >= 0);
        }
        Some((_, target)) => assert_eq!(target, WaitTarget::Descriptor(ForeignFd(call.first as c_int))),
        None => (),
    }
}

#[test]
fn a_call_is_read_as_it_was_written() {
    hold(call(), |call| {
        assert_eq!(SystemCall::parse(&line(&call)), Some(call));
        check_target(call);
    });
}

#[test]
fn any_line_is_a_call_of_which_little_is_read_or_none() {
    let lines = prop_oneof![1 => noise(), 1 => scraps(), 4 => mutated(call().prop_map(|call| line(&call)))];
    hold(lines, |line| check(&line));
}

/// What holds of any line.
pub(crate) fn check(line: &[u8]) {
    let Some(call) = SystemCall::parse(line) else { return };
    assert!(call.number >= 0);
    check_target(call);
}

#[test]
fn an_array_is_read_as_poll_reads_it() {
    let entries = vec((-2..6_i32, any::<i16>(), any::<i16>()), 0..20);
    hold((entries, -2..6_i32, noise()), |(entries, fd, noise)| {
        let entry = |(fd, events, revents): &(i32, i16, i16)| {
            [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &revents.to_ne_bytes()].concat()
        };
        let mut array: Vec<u8> = entries.iter().flat_map(entry).collect();
        // Half an entry is none.
        array.extend(noise.iter().take(7));
        let asks = |events: i16| events & (libc::POLLIN | libc::POLLRDNORM) != 0;
        let expected = entries.iter().any(|(other, events, _)| *other == fd && asks(*events));
        assert_eq!(polls(&array, ForeignFd(fd)), expected);
        let _ = polls(&noise, ForeignFd(fd));
    });
}

#[test]
fn a_set_is_read_as_select_reads_it() {
    let fd = prop_oneof![3 => 0..300_i32, 1 => any::<i32>()];
    hold((vec(any::<c_ulong>(), 0..6), fd, vec(any::<u8>(), 0..7)), |(words, fd, rest)| {
        let mut set: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        // Nor is half a word.
        set.extend(rest.iter().take(size_of::<c_ulong>() - 1));
        let bits = c_ulong::BITS as usize;
        let place = usize::try_from(fd).ok();
        let expected = place.and_then(|fd| words.get(fd / bits).map(|word| word & (1 << (fd % bits)) != 0));
        assert_eq!(selects(&set, ForeignFd(fd)), expected.unwrap_or(false));
    });
}
