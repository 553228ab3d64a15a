//! A supervisor that sends anything, in any pieces, and any state of it.

use std::os::fd::OwnedFd;

use nix::sys::socket::socketpair;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, noise, scraps};

#[test]
fn lines_come_as_they_were_sent_however_they_were_cut() {
    let piece = prop_oneof![noise(), scraps(), (0..4096_usize).prop_map(|length| vec![b'x'; length])];
    hold(vec(piece, 0..12), |pieces| {
        // A packet is read as it was sent, but an empty one would be the end.
        let (ours, its): (OwnedFd, OwnedFd) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut its = UnixStream::from(its);
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            its.write_all(piece).unwrap();
        }
        drop(its);
        let mut replies = Replies { stream: ours.into(), path: PathBuf::new(), received: Vec::new() };
        let mut lines = Vec::new();
        while let Some(line) = replies.next().unwrap() {
            lines.push(line);
        }
        let sent = pieces.concat();
        let expected = sent.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        assert!(expected.eq(lines.iter().map(Vec::as_slice)));
        assert!(sent.ends_with(&replies.received) && !replies.received.contains(&b'\n'));
    });
}
