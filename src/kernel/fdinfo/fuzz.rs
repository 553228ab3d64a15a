//! What fdinfo shows of epolls and rings as the kernel writes it, the same changed, and any text.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps, text};

const SOCKFS: u64 = 8;
const SOCKET: SocketInode = SocketInode(0xb4ad);

/// A registration, and the inode and the device of what is registered.
type Entry = (Registration, u64, u64);

fn entry() -> impl Strategy<Value = Entry> {
    let registration = (0..=c_int::MAX, any::<u32>(), any::<u64>()).prop_map(|(number, events, data)| Registration {
        number: ForeignFd(number),
        events,
        data,
    });
    let inode = prop_oneof![Just(SOCKET.0), any::<u64>()];
    let device = prop_oneof![3 => Just(SOCKFS), 1 => any::<u32>().prop_map(u64::from)];
    (registration, inode, device)
}

/// fs/eventpoll.c: ep_show_fdinfo.
fn epoll(entries: &[Entry]) -> String {
    let line = |(Registration { number: ForeignFd(number), events, data }, inode, device): &Entry| {
        format!("tfd: {number:8} events: {events:8x} data: {data:16x}  pos:0 ino:{inode:x} sdev:{device:x}\n")
    };
    format!("pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t7\n{}", entries.iter().map(line).collect::<String>())
}

#[test]
fn an_epoll_is_read_as_it_was_written() {
    hold(vec(entry(), 0..12), |entries| {
        let text = epoll(&entries);
        let is_socket = |(_, inode, device): &&Entry| (*inode, *device) == (SOCKET.0, SOCKFS);
        let registered = entries.iter().filter(is_socket).map(|(registration, ..)| *registration);
        assert_eq!(registrations(&text, SOCKFS, SOCKET), registered.collect::<Vec<_>>());
        let has_input = |events: u32| events & (libc::EPOLLIN | libc::EPOLLRDNORM) as u32 != 0;
        let asked = entries.iter().filter(|(known, _, device)| *device == SOCKFS && has_input(known.events));
        assert!(watched(&text, SOCKFS).eq(asked.map(|(_, inode, _)| SocketInode(*inode))));
    });
}

fn texts() -> impl Strategy<Value = String> {
    let epoll = vec(entry(), 0..4).prop_map(|entries| epoll(&entries).into_bytes());
    let ring = vec(0..20_u8, 0..6).prop_map(|operations| {
        operations.iter().map(|number| format!("  op={number}, task_works=0\n")).collect::<String>().into_bytes()
    });
    text(prop_oneof![1 => noise(), 1 => scraps(), 4 => mutated(epoll), 1 => mutated(ring)])
}

#[test]
fn any_text_is_read_line_by_line() {
    hold((texts(), texts()), |(one, other)| check(&one, &other));
}

/// What holds of any two texts.
pub(crate) fn check(one: &str, other: &str) {
    let both = format!("{one}\n{other}");
    let lines = both.lines().count();
    let read = |text: &str| registrations(text, SOCKFS, SOCKET);
    assert_eq!(read(&both), [read(one), read(other)].concat());
    assert!(read(&both).iter().all(|registration| registration.number.0 >= 0));
    assert!(watched(&both, SOCKFS).eq(watched(one, SOCKFS).chain(watched(other, SOCKFS))));
    assert!(watched(&both, SOCKFS).count() <= lines);
    assert_eq!(pending_accepts(&both), pending_accepts(one) + pending_accepts(other));
    assert!(pending_accepts(&both) <= lines);
    let _ = flags(&both);
}

#[test]
fn flags_are_read_as_they_were_written() {
    hold((0..=c_int::MAX, texts()), |(expected, behind)| {
        let text = format!("pos:\t0\nflags:\t0{expected:o}\nmnt_id:\t15\n{behind}");
        assert_eq!(flags(&text), Some(expected));
        let _ = flags(&behind);
    });
}
