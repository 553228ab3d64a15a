//! Sockets of this network namespace as `/proc/self/net` lists them, for where sock_diag(7) is not to be had: a unit
//! without AF_NETLINK, a kernel without unix_diag. Not `/proc/net`, which ProcSubset=pid hides.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str;

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{InetSocket, IpVersion, Peer, States, UnixSocket, each_once};
use crate::sys::Transport;

/// __SO_ACCEPTCON of linux/net.h
const ACCEPTS: u32 = 1 << 16;
/// SS_CONNECTED of linux/net.h
const CONNECTED: u8 = 3;
// The states of net/tcp_states.h that a Unix socket has.
const TCP_ESTABLISHED: u32 = 1;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// As `sock_diag::inet_sockets`.
pub(crate) fn inet_sockets(
    kind: Transport,
    family: IpVersion,
    states: States,
    port: Option<u16>,
) -> io::Result<Vec<InetSocket>> {
    let sockets = inet_in(&read_inet(kind, family)?, states);
    Ok(each_once(sockets.into_iter().filter(|socket| port.is_none_or(|port| socket.local.port() == port)).collect()))
}

/// As `sockets::peers`.
pub(crate) fn peers(family: IpVersion, port: u16, states: States) -> io::Result<Vec<Peer>> {
    let ends = ends_in(&read_inet(Transport::Tcp, family)?, states).into_iter();
    Ok(ends.filter(|(local, _)| local.port() == port).map(|(_, peer)| peer).collect())
}

/// The list of a kind of sockets.
fn read_inet(kind: Transport, family: IpVersion) -> io::Result<String> {
    let name = match (kind, family) {
        (Transport::Tcp, IpVersion::V4) => "tcp",
        (Transport::Tcp, IpVersion::V6) => "tcp6",
        (Transport::Udp, IpVersion::V4) => "udp",
        (Transport::Udp, IpVersion::V6) => "udp6",
    };
    match fs::read_to_string(format!("/proc/self/net/{name}")) {
        // A kernel without IPv6 has none of its sockets.
        Err(error) if error.kind() == ErrorKind::NotFound && has_tcp() => Ok(String::new()),
        list => list,
    }
}

fn has_tcp() -> bool {
    fs::exists("/proc/self/net/tcp").unwrap_or(false)
}

/// As `sock_diag::unix_sockets`; which file a socket is bound to is not shown.
pub(crate) fn unix_sockets(states: States) -> io::Result<Vec<UnixSocket>> {
    read_unix("/proc/self/net/unix", states)
}

/// Those of the network namespace of another process too, by its `/proc/PID/net/unix`.
pub(crate) fn read_unix(file: &str, states: States) -> io::Result<Vec<UnixSocket>> {
    Ok(unix_in(&fs::read(file)?, states))
}

/// The sockets in these states of a list of IPv4 or IPv6.
fn inet_in(list: &str, states: States) -> Vec<InetSocket> {
    list.lines().filter_map(|line| parse_inet(line, states)).collect()
}

/// Both ends of each connection of such a list.
fn ends_in(list: &str, states: States) -> Vec<(SocketAddr, Peer)> {
    list.lines().filter_map(|line| parse_ends(line, states)).collect()
}

fn unix_in(list: &[u8], states: States) -> Vec<UnixSocket> {
    list.split(|byte| *byte == b'\n').filter_map(|line| parse_unix(line, states)).collect()
}

/// `0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 12345 …`: the local and the remote
/// address, the state, what is queued, timers, the user, and the inode, which is 0 where no process has the socket.
fn parse_inet(line: &str, states: States) -> Option<InetSocket> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let state = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let inode = fields.get(9)?.parse().ok().filter(|inode| *inode != 0)?;
    let local = parse_end(fields.get(1)?)?;
    states.contain(state).then_some(InetSocket { inode: SocketInode(inode), local })
}

/// The local and the remote end of the same line.
fn parse_ends(line: &str, states: States) -> Option<(SocketAddr, Peer)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let state = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let address = parse_end(fields.get(2)?).filter(|_| states.contain(state))?;
    Some((parse_end(fields.get(1)?)?, Peer { address, is_accepted: *fields.get(9)? != "0" }))
}

/// `0100007F:1F90`
fn parse_end(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    Some(SocketAddr::new(parse_ip(ip)?, u16::from_str_radix(port, 16).ok()?))
}

/// Groups of eight digits, each a number of this machine's byte order for four bytes of the address.
fn parse_ip(digits: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for at in (0..digits.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// `0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/app.sock`: an address, references, the protocol,
/// flags, the type, the state of linux/net.h, the inode, and the name if there is one, `@` for its NUL.
fn parse_unix(line: &[u8], states: States) -> Option<UnixSocket> {
    let mut rest = line;
    let mut next = || {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        let end = rest[start..].iter().position(|byte| *byte == b' ').map_or(rest.len(), |length| start + length);
        let field = str::from_utf8(&rest[start..end]).ok()?;
        rest = &rest[end..];
        Some(field)
    };
    let [_, _, _, flags, kind, state] = [next()?, next()?, next()?, next()?, next()?, next()?];
    let inode = next()?.parse().ok().filter(|inode| *inode != 0)?;
    let listens = u32::from_str_radix(flags, 16).ok()? & ACCEPTS != 0;
    let is_connected = u8::from_str_radix(state, 16).ok()? == CONNECTED;
    let state = match (listens, is_connected) {
        (true, _) => TCP_LISTEN,
        (_, true) => TCP_ESTABLISHED,
        _ => TCP_CLOSE,
    };
    let mut name = rest.get(1..).unwrap_or_default().to_vec();
    if name.first() == Some(&b'@') {
        name[0] = 0;
    }
    // A datagram socket with a peer can still be sent to by others.
    let is_datagram = i32::from_str_radix(kind, 16).ok()? == libc::SOCK_DGRAM;
    let connected = is_connected && !is_datagram;
    states.contain(state).then_some(UnixSocket { inode: SocketInode(inode), name, file: None, connected, user: None })
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{self, UnixDatagram, UnixListener, UnixStream};

    use super::*;
    use crate::kernel::sock_diag;

    /// Both lists of the sockets of a port.
    fn listed(kind: Transport, family: IpVersion, states: States, port: u16) -> [Vec<InetSocket>; 2] {
        [
            sock_diag::dump_inet(kind, family, states, Some(port)).unwrap(),
            inet_sockets(kind, family, states, Some(port)).unwrap(),
        ]
    }

    #[test]
    fn internet_sockets_are_those_that_netlink_lists() {
        for (address, family) in [("127.0.0.1:0", IpVersion::V4), ("[::1]:0", IpVersion::V6), ("[::]:0", IpVersion::V6)]
        {
            let listener = TcpListener::bind(address).unwrap();
            let local = listener.local_addr().unwrap();
            let _client = TcpStream::connect(local).unwrap();
            let (_accepted, _) = listener.accept().unwrap();
            for (states, count) in [(States::LISTENING, 1), (States::CONNECTED, 1), (States::ALL, 2)] {
                let [netlink, proc] = listed(Transport::Tcp, family, states, local.port());
                assert_eq!(netlink, proc);
                assert!(proc.len() >= count, "{proc:?}");
            }
            let socket = UdpSocket::bind(address).unwrap();
            let [netlink, proc] = listed(Transport::Udp, family, States::ALL, socket.local_addr().unwrap().port());
            assert_eq!((netlink, proc.len()), (proc.clone(), 1));
        }
    }

    #[test]
    fn unix_sockets_are_those_that_netlink_lists() {
        let name = format!("handoff-run proc {}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let abstractly = net::SocketAddr::from_abstract_name(&name).unwrap();
        let listeners = [UnixListener::bind(&path).unwrap(), UnixListener::bind_addr(&abstractly).unwrap()];
        let datagrams = UnixDatagram::bind(path.with_extension("d")).unwrap();
        let clients = [UnixStream::connect(&path).unwrap(), UnixStream::connect_addr(&abstractly).unwrap()];
        let _accepted = listeners.each_ref().map(|listener| listener.accept().unwrap());
        for (states, count) in [(States::LISTENING, 2), (States::CONNECTED, 3), (States::ALL, 5)] {
            let named = |mut sockets: Vec<UnixSocket>| {
                sockets.retain(|socket| String::from_utf8_lossy(&socket.name).contains(&name));
                sockets.sort_by_key(|socket| socket.inode);
                sockets.iter_mut().for_each(|socket| (socket.file, socket.user) = (None, None));
                sockets
            };
            let proc = named(unix_sockets(states).unwrap());
            assert_eq!(named(sock_diag::dump_unix(states).unwrap()), proc);
            assert_eq!(proc.len(), count);
        }
        drop((clients, datagrams));
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_extension("d")).unwrap();
    }

    #[test]
    fn a_line_that_is_none_is_left_out() {
        let header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        let lines = [
            header,
            "",
            "0: 0100007F:1F90",
            "0: 0100:1F90 0:0 0A 0:0 0:0 0 0 0 7",
            "é: 0100007F:1F90 0:0 0A 0 0 0 0 0 x",
        ];
        assert!(lines.iter().all(|line| parse_inet(line, States::ALL).is_none()));
        assert!(lines.iter().all(|line| parse_unix(line.as_bytes(), States::ALL).is_none()));
    }
}
