//! Lists of sockets as the kernel writes them, the same changed, and any text.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps, text};

const HEADER: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

#[derive(Clone, Debug)]
struct Inet {
    local: SocketAddr,
    remote: SocketAddr,
    state: u32,
    inode: u64,
}

fn inet() -> impl Strategy<Value = Inet> {
    let v4 = || (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from);
    let v6 = || (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from);
    let inode = prop_oneof![1 => Just(0), 3 => any::<u64>()];
    (prop_oneof![(v4(), v4()), (v6(), v6())], 1..13_u32, inode).prop_map(|((local, remote), state, inode)| Inet {
        local,
        remote,
        state,
        inode,
    })
}

/// net/ipv4/tcp_ipv4.c: get_tcp4_sock.
fn inet_line(socket: &Inet) -> String {
    let end = |end: &SocketAddr| {
        let octets = match end.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let words = octets.as_chunks::<4>().0.iter().map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
        format!("{}:{:04X}", words.collect::<String>(), end.port())
    };
    let Inet { local, remote, state, inode } = socket;
    let (local, remote) = (end(local), end(remote));
    format!(
        "   0: {local} {remote} {state:02X} 00000000:00000000 02:0009A64E 00000000  1000        0 {inode} 2 0 20 4\n"
    )
}

#[derive(Clone, Debug)]
struct Unix {
    listens: bool,
    kind: i32,
    state: u8,
    inode: u64,
    name: Option<Vec<u8>>,
}

fn unix() -> impl Strategy<Value = Unix> {
    // A NUL is shown as another character; a line end would be one.
    let name = prop_oneof![vec(any::<u8>(), 1..108), "@?[ -~]{1,40}".prop_map(String::into_bytes)]
        .prop_map(|name| name.into_iter().map(|byte| if matches!(byte, 0 | b'\n') { b'@' } else { byte }).collect());
    let kind = prop_oneof![Just(libc::SOCK_STREAM), Just(libc::SOCK_DGRAM), Just(libc::SOCK_SEQPACKET)];
    let inode = prop_oneof![1 => Just(0), 3 => any::<u64>()];
    (any::<bool>(), kind, 0..5_u8, inode, option::of(name)).prop_map(|(listens, kind, state, inode, name)| Unix {
        listens,
        kind,
        state,
        inode,
        name,
    })
}

/// net/unix/af_unix.c: unix_seq_show.
fn unix_line(socket: &Unix) -> Vec<u8> {
    let Unix { listens, kind, state, inode, name } = socket;
    let flags = if *listens { ACCEPTS } else { 0 };
    let mut line =
        format!("0000000000000000: 00000002 00000000 {flags:08X} {kind:04X} {state:02X} {inode:5}").into_bytes();
    line.extend(name.iter().flat_map(|name| [b" ", name.as_slice()].concat()));
    line.push(b'\n');
    line
}

impl Unix {
    fn expected(&self) -> Option<UnixSocket> {
        let mut name = self.name.clone().unwrap_or_default();
        name.iter_mut().take(1).filter(|byte| **byte == b'@').for_each(|byte| *byte = 0);
        let connected = self.state == CONNECTED && self.kind != libc::SOCK_DGRAM;
        (self.inode != 0).then_some(UnixSocket {
            inode: SocketInode(self.inode),
            name,
            file: None,
            connected,
            user: None,
        })
    }
}

#[test]
fn a_list_is_read_as_it_was_written() {
    hold((vec((inet(), unix()), 0..8), any::<u32>()), |(sockets, states)| {
        let states = States(states);
        let inet = || sockets.iter().map(|(socket, _)| socket).filter(|socket| states.contain(socket.state));
        let list: String = sockets.iter().map(|(socket, _)| inet_line(socket)).collect();
        let list = format!("{HEADER}{list}");
        let held = inet().filter(|socket| socket.inode != 0);
        let held = held.map(|Inet { inode, local, .. }| InetSocket { inode: SocketInode(*inode), local: *local });
        assert_eq!(inet_in(&list, states), held.collect::<Vec<_>>());
        let peer = |socket: &Inet| Peer { address: socket.remote, is_accepted: socket.inode != 0 };
        assert_eq!(ends_in(&list, states), inet().map(|socket| (socket.local, peer(socket))).collect::<Vec<_>>());

        let list: Vec<u8> = sockets.iter().flat_map(|(_, socket)| unix_line(socket)).collect();
        let in_state = |states: States, is_in: &dyn Fn(&Unix) -> bool| {
            let expected = sockets.iter().map(|(_, socket)| socket).filter(|socket| is_in(socket));
            assert_eq!(unix_in(&list, states), expected.filter_map(Unix::expected).collect::<Vec<_>>());
        };
        in_state(States::ALL, &|_| true);
        in_state(States::LISTENING, &|socket| socket.listens);
        // TCP_CLOSE is one of them.
        in_state(States::CONNECTED, &|socket| !socket.listens);
        in_state(States::UNCONNECTED, &|socket| !socket.listens && socket.state != CONNECTED);
    });
}

fn lists() -> impl Strategy<Value = Vec<u8>> {
    let inet = vec(inet(), 1..4).prop_map(|sockets| sockets.iter().map(inet_line).collect::<String>().into_bytes());
    let unix = vec(unix(), 1..4).prop_map(|sockets| sockets.iter().flat_map(unix_line).collect());
    prop_oneof![1 => noise(), 1 => scraps(), 3 => mutated(inet), 3 => mutated(unix)]
}

#[test]
fn any_list_of_unix_sockets_is_read_line_by_line() {
    hold((lists(), lists(), any::<u32>()), |(one, other, states)| check_unix(&one, &other, States(states)));
}

/// What holds of any two lists.
pub(crate) fn check_unix(one: &[u8], other: &[u8], states: States) {
    let both = [one, b"\n", other].concat();
    let [mut sockets, further] = [one, other].map(|list| unix_in(list, states));
    sockets.extend(further);
    assert!(sockets.iter().all(|socket| socket.inode.0 != 0 && socket.name.len() <= both.len()));
    assert!(sockets.len() <= both.split(|byte| *byte == b'\n').count());
    assert_eq!(unix_in(&both, states), sockets);
}

#[test]
fn any_list_of_internet_sockets_is_read_line_by_line() {
    hold((text(lists()), text(lists()), any::<u32>()), |(one, other, states)| check_inet(&one, &other, States(states)));
}

/// The same of sockets of the internet.
pub(crate) fn check_inet(one: &str, other: &str, states: States) {
    let both = format!("{one}\n{other}");
    let sockets = [one, other].map(|list| inet_in(list, states)).concat();
    assert!(sockets.iter().all(|socket| socket.inode.0 != 0));
    assert_eq!(inet_in(&both, states), sockets);
    assert_eq!(ends_in(&both, states), [one, other].map(|list| ends_in(list, states)).concat());
    // Each once, whatever else is the same of them.
    let once = each_once([sockets.clone(), sockets.clone()].concat());
    assert!(once.is_sorted_by(|one, other| one.inode < other.inode));
    assert!(sockets.iter().all(|socket| once.iter().any(|other| other.inode == socket.inode)));
}
