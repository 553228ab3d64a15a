//! Datagrams of any kind: empty, huge, of any bytes, with descriptors or without.

use std::io::{IoSlice, Read};
use std::iter;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, socketpair};
use nix::unistd::{Pid, getuid};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps};

/// What is looked for.
const ASSIGNMENTS: [&str; 2] = ["READY=1", "WATCHDOG=1"];

fn lines() -> impl Strategy<Value = Vec<u8>> {
    let others = ["", "READY=10", "READY=", "STATUS=x\r", "FDSTORE=1", "BARRIER=1", "READY=1\r"];
    let line = select([&ASSIGNMENTS[..], &others].concat());
    vec(line, 0..6).prop_map(|lines| lines.join("\n").into_bytes())
}

fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let filler = |length: usize| iter::repeat_n(*b"x\n", length.div_ceil(2)).flatten().take(length);
    prop_oneof![
        2 => noise(),
        1 => scraps(),
        2 => lines(),
        2 => mutated(lines()),
        // What counts may be cut where reading ends.
        2 => (LONGEST - 20..=LONGEST, lines()).prop_map(move |(length, lines)| filler(length).chain(lines).collect()),
        1 => (any::<u8>(), 0..20_000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

/// Send it with copies of this descriptor.
fn send(socket: impl AsFd, datagram: &[u8], fd: impl AsFd, copies: usize) {
    let numbers = vec![fd.as_fd().as_raw_fd(); copies];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights = if copies == 0 { &[][..] } else { &rights };
    let sent = sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(datagram)], rights, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(datagram.len()));
}

/// What holds of any datagram and of what was read of it.
fn check_received(received: &Notification, datagram: &[u8]) {
    let text = String::from_utf8_lossy(datagram);
    for assignment in ASSIGNMENTS {
        let is_sent = text.lines().any(|line| line == assignment);
        match datagram.len() <= LONGEST {
            true => assert_eq!(received.has(assignment), is_sent),
            false => assert!(is_sent || !received.has(assignment)),
        }
    }
    if datagram.len() <= LONGEST {
        assert_eq!(received.text, text);
    }
    // Each byte that is no text is replaced by three.
    assert!(received.text.len() <= 3 * LONGEST);
}

/// The two ends of a notify socket.
fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, its) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags).unwrap();
    setsockopt(&ours, sockopt::PassCred, &true).unwrap();
    (ours, its)
}

/// Send it, read it, and check what was read.
pub(crate) fn check(datagram: &[u8]) {
    let (ours, its) = pair();
    send(&its, datagram, &its, 0);
    check_received(&receive(&ours).unwrap(), datagram);
}

#[test]
fn a_datagram_is_one_notification_whatever_it_holds() {
    // A user who is not root may have as many on their way as files open, 1024 as a rule.
    let copies = prop_oneof![3 => Just(0_usize), 2 => 1..4_usize, 1 => Just(100)];
    hold(vec((datagram(), copies), 0..6), |datagrams| {
        let (ours, its) = pair();
        let mut kept = Vec::new();
        for (datagram, copies) in &datagrams {
            let (watched, sent) = UnixStream::pair().unwrap();
            watched.set_nonblocking(true).unwrap();
            send(&its, datagram, sent, *copies);
            kept.push(watched);
        }
        for ((datagram, _), mut watched) in datagrams.iter().zip(kept) {
            let received = receive(&ours).unwrap();
            assert_eq!((received.pid, received.uid), (Pid::this().as_raw(), getuid().as_raw()));
            // Nobody has what was sent along, which answers a barrier.
            assert_eq!(watched.read(&mut [0]).unwrap(), 0);
            check_received(&received, datagram);
        }
        assert!(receive(&ours).is_none());
    });
}
