//! Answers of the kernel as netlink(7) has them, the same changed, and any bytes.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise};

/// A message with its header, padded as netlink(7) wants it.
fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The end of a dump.
fn done() -> Vec<u8> {
    message(libc::NLMSG_DONE as u16, &[0; 4])
}

/// A struct nlattr and its value.
fn attribute((kind, value): &(u16, Vec<u8>)) -> Vec<u8> {
    let mut bytes = ((ATTRIBUTE + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Attributes that nobody asked for.
fn others() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
    vec((2..20_u16, vec(any::<u8>(), 0..12)), 0..3)
}

#[derive(Clone, Debug)]
struct Inet {
    local: SocketAddr,
    peer: SocketAddr,
    inode: u32,
    others: Vec<(u16, Vec<u8>)>,
}

impl Inet {
    /// struct inet_diag_msg, with attributes.
    fn bytes(&self) -> Vec<u8> {
        let octets = |ip| match ip {
            IpAddr::V4(ip) => [&ip.octets()[..], &[0; 12]].concat(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let family = if self.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let ports = [self.local.port().to_be_bytes(), self.peer.port().to_be_bytes()].concat();
        let mut bytes = [vec![family as u8, 1, 0, 0], ports, octets(self.local.ip()), octets(self.peer.ip())].concat();
        bytes.resize(68, 0xff);
        bytes.extend(self.inode.to_ne_bytes());
        bytes.extend(self.others.iter().flat_map(attribute));
        bytes
    }
}

fn inet() -> impl Strategy<Value = Inet> {
    let v4 = || (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from);
    let v6 = || (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from);
    let ends = prop_oneof![(v4(), v4()), (v6(), v6())];
    let inode = prop_oneof![1 => Just(0), 3 => any::<u32>()];
    (ends, inode, others()).prop_map(|((local, peer), inode, others)| Inet { local, peer, inode, others })
}

#[derive(Clone, Debug)]
struct Unix {
    kind: u8,
    state: u8,
    inode: u32,
    name: Option<Vec<u8>>,
    file: Option<(u32, u32)>,
    user: Option<u32>,
    others: Vec<(u16, Vec<u8>)>,
}

impl Unix {
    /// struct unix_diag_msg, with attributes.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![libc::AF_UNIX as u8, self.kind, self.state, 0];
        bytes.extend(self.inode.to_ne_bytes());
        bytes.extend([0xff; 8]);
        bytes.extend(self.others.iter().flat_map(attribute));
        bytes.extend(self.name.iter().flat_map(|name| attribute(&(UNIX_DIAG_NAME, name.clone()))));
        let file = |(inode, device): &(u32, u32)| [inode.to_ne_bytes(), device.to_ne_bytes()].concat();
        bytes.extend(self.file.iter().flat_map(|numbers| attribute(&(UNIX_DIAG_VFS, file(numbers)))));
        bytes.extend(self.user.iter().flat_map(|user| attribute(&(UNIX_DIAG_UID, user.to_ne_bytes().into()))));
        bytes
    }

    fn expected(&self) -> Option<UnixSocket> {
        let mut name = self.name.clone().unwrap_or_default();
        if name.first().is_some_and(|first| *first != 0) && name.ends_with(&[0]) {
            name.pop();
        }
        let file = self.file.map(|(inode, device)| BoundFile { inode, device });
        let connected = self.state == TCP_ESTABLISHED && i32::from(self.kind) != libc::SOCK_DGRAM;
        (self.inode != 0).then_some(UnixSocket {
            inode: SocketInode(self.inode.into()),
            name,
            file,
            connected,
            user: self.user,
        })
    }
}

fn unix() -> impl Strategy<Value = Unix> {
    let kind = prop_oneof![Just(1_u8), Just(2), Just(5)];
    let name = prop_oneof![vec(any::<u8>(), 0..108), "/[a-z/]{0,40}\0?".prop_map(String::into_bytes)];
    let inode = prop_oneof![1 => Just(0), 3 => any::<u32>()];
    let all =
        (kind, 0..13_u8, inode, option::of(name), option::of(any::<(u32, u32)>()), option::of(any::<u32>()), others());
    all.prop_map(|(kind, state, inode, name, file, user, mut others)| {
        others.retain(|(kind, _)| *kind != UNIX_DIAG_UID);
        Unix { kind, state, inode, name, file, user, others }
    })
}

/// The payloads of these datagrams, and whether the dump has ended.
fn read_all(datagrams: &[Vec<u8>]) -> (Vec<Vec<u8>>, nix::Result<bool>) {
    let mut payloads = Vec::new();
    for datagram in datagrams {
        match read_messages(datagram, &mut |payload| payloads.push(payload.to_vec())) {
            Ok(false) => (),
            ended => return (payloads, ended),
        }
    }
    (payloads, Ok(false))
}

#[test]
fn a_dump_is_read_as_it_was_written_whatever_its_datagrams_are() {
    hold(vec(vec((inet(), unix()), 0..6), 0..4), |datagrams| {
        let both = |(inet, unix): &(Inet, Unix)| {
            [message(SOCK_DIAG_BY_FAMILY, &inet.bytes()), message(SOCK_DIAG_BY_FAMILY, &unix.bytes())].concat()
        };
        let mut dump: Vec<Vec<u8>> = datagrams.iter().map(|sockets| sockets.iter().flat_map(both).collect()).collect();
        let (payloads, ended) = read_all(&dump);
        assert_eq!(ended, Ok(false));
        dump.push(done());
        // Nothing of what follows the end counts.
        dump.push(message(SOCK_DIAG_BY_FAMILY, &[0xff; 100]));
        assert_eq!(read_all(&dump), (payloads.clone(), Ok(true)));
        assert_eq!(payloads.len(), datagrams.iter().map(Vec::len).sum::<usize>() * 2);
        for ((inet, unix), payloads) in datagrams.iter().flatten().zip(payloads.chunks(2)) {
            let inode = SocketInode(inet.inode.into());
            let is_held = inet.inode != 0;
            assert_eq!(read_inet(&payloads[0]), is_held.then_some(InetSocket { inode, local: inet.local }));
            assert_eq!(read_peer(&payloads[0]), Some(Peer { address: inet.peer, is_accepted: is_held }));
            assert_eq!(read_unix(&payloads[1]), unix.expected());
        }
    });
}

// netlink(7), NLMSG_ALIGN: only the beginnings of messages are aligned. The kernel's own are as long as that, so far.
#[test]
fn a_message_of_any_length_is_followed_by_another() {
    hold(vec(vec(any::<u8>(), 0..30), 0..8), |payloads| {
        let mut datagram: Vec<u8> = payloads.iter().flat_map(|bytes| message(SOCK_DIAG_BY_FAMILY, bytes)).collect();
        datagram.extend(done());
        assert_eq!(read_all(&[datagram]), (payloads, Ok(true)));
    });
}

#[test]
fn a_dump_that_fails_ends_with_its_error() {
    hold((any::<i32>(), any::<bool>(), noise()), |(status, is_done, rest)| {
        let kind = if is_done { libc::NLMSG_DONE } else { libc::NLMSG_ERROR } as u16;
        let datagram = [message(kind, &status.to_ne_bytes()), rest].concat();
        let expected = if status < 0 { Err(Errno::from_raw(status.wrapping_neg())) } else { Ok(true) };
        assert_eq!(read_all(&[datagram]), (vec![], expected));
    });
}

#[test]
fn any_bytes_end_and_show_nothing_that_is_not_in_them() {
    let sockets = vec((inet(), unix()), 1..4).prop_map(|sockets| {
        let both = sockets.iter().map(|(inet, unix)| [inet.bytes(), unix.bytes()]);
        let messages: Vec<u8> = both.flatten().flat_map(|bytes| message(SOCK_DIAG_BY_FAMILY, &bytes)).collect();
        [messages, done()].concat()
    });
    hold(prop_oneof![1 => noise(), 3 => mutated(sockets)], |datagram| check(&datagram));
}

/// What holds of any datagram.
pub(crate) fn check(datagram: &[u8]) {
    let (mut count, mut length) = (0, 0);
    let inside = datagram.as_ptr_range();
    let ended = read_messages(datagram, &mut |payload| {
        count += 1;
        length += payload.len();
        assert!(payload.is_empty() || inside.contains(&payload.as_ptr()));
        // It is of either kind, for all that can be known.
        if let Some(socket) = read_inet(payload) {
            assert!(payload.len() >= 72 && (1..=u64::from(u32::MAX)).contains(&socket.inode.0));
        }
        assert_eq!(read_peer(payload).is_some(), payload.len() >= 72);
        if let Some(socket) = read_unix(payload) {
            assert!((1..=u64::from(u32::MAX)).contains(&socket.inode.0));
            assert!(socket.name.len() + UNIX_MESSAGE <= payload.len());
        }
    });
    assert!(count <= datagram.len() / HEADER + 1 && length <= datagram.len());
    if let Err(errno) = ended {
        assert!(datagram.len() >= HEADER + 4, "{errno}");
    }
    let _ = read_unix(datagram);
}
