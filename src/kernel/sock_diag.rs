//! Sockets of this network namespace as sock_diag(7) lists them over netlink, filtered by the kernel as far as it can.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use libc::{c_int, c_uint};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{BoundFile, InetSocket, IpVersion, Peer, States, UnixSocket, each_once};
use crate::sys::Transport;

// linux/sock_diag.h, linux/unix_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_NAME: u32 = 1;
const UDIAG_SHOW_VFS: u32 = 2;
const UDIAG_SHOW_UID: u32 = 0x40;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_VFS: u16 = 1;
const UNIX_DIAG_UID: u16 = 7;
// The states of net/tcp_states.h serve Unix sockets too.
const TCP_ESTABLISHED: u8 = 1;
/// Lengths of struct nlmsghdr, struct unix_diag_msg and struct nlattr.
const HEADER: usize = 16;
const UNIX_MESSAGE: usize = 16;
const ATTRIBUTE: usize = 4;

pub(crate) fn dump_inet(
    kind: Transport,
    family: IpVersion,
    states: States,
    port: Option<u16>,
) -> nix::Result<Vec<InetSocket>> {
    let mut sockets = Vec::new();
    dump(&inet_request(kind, family, states, port), |message| sockets.extend(read_inet(message)))?;
    // Since Linux 6.8, those that are bound and not connected are listed whatever their port.
    sockets.retain(|socket: &InetSocket| port.is_none_or(|port| socket.local.port() == port));
    Ok(each_once(sockets))
}

/// As `sockets::peers`.
pub(crate) fn dump_peers(family: IpVersion, port: u16, states: States) -> nix::Result<Vec<Peer>> {
    let mut peers = Vec::new();
    dump(&inet_request(Transport::Tcp, family, states, Some(port)), |message| peers.extend(read_peer(message)))?;
    Ok(peers)
}

pub(crate) fn dump_unix(states: States) -> nix::Result<Vec<UnixSocket>> {
    let mut sockets = Vec::new();
    dump(&unix_request(states), |message| sockets.extend(read_unix(message)))?;
    Ok(sockets)
}

fn dump(request: &[u8], mut each: impl FnMut(&[u8])) -> nix::Result<()> {
    let netlink =
        socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    send(netlink.as_raw_fd(), request, MsgFlags::empty())?;
    // The kernel fills at most 32 KiB for one recv(2) of a dump.
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length = match recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        if read_messages(&buffer[..length], &mut each)? {
            return Ok(());
        }
    }
}

/// Hand on the messages of one datagram; true when the dump has ended.
fn read_messages(mut bytes: &[u8], each: &mut impl FnMut(&[u8])) -> nix::Result<bool> {
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let length = (length as usize).clamp(HEADER.min(bytes.len()), bytes.len());
        let message = &bytes[..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let payload = message.get(HEADER..).unwrap_or_default();
        match c_int::from(kind) {
            // A dump that fails ends with its errno, negative; one that cannot begin is answered with an error.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                return match word(payload, 0).map_or(0, |status| status as c_int) {
                    status if status < 0 => Err(Errno::from_raw(status.wrapping_neg())),
                    _ => Ok(true),
                };
            }
            _ => each(payload),
        }
    }
    Ok(false)
}

/// struct nlmsghdr and struct inet_diag_req_v2.
fn inet_request(kind: Transport, family: IpVersion, states: States, port: Option<u16>) -> Vec<u8> {
    let protocol = if kind == Transport::Tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
    let family = if family == IpVersion::V4 { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = header(56);
    bytes.extend([family as u8, protocol as u8, 0, 0]);
    bytes.extend(states.0.to_ne_bytes());
    // Of struct inet_diag_sockid, a dump looks at the ports only, and takes 0 for any.
    bytes.extend(port.unwrap_or(0).to_be_bytes());
    bytes.resize(HEADER + 56, 0);
    bytes
}

/// struct nlmsghdr and struct unix_diag_req.
fn unix_request(states: States) -> Vec<u8> {
    let mut bytes = header(24);
    bytes.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    bytes.extend(states.0.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend((UDIAG_SHOW_NAME | UDIAG_SHOW_VFS | UDIAG_SHOW_UID).to_ne_bytes());
    bytes.resize(HEADER + 24, 0);
    bytes
}

fn header(length: usize) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend(((HEADER + length) as c_uint).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// struct inet_diag_msg.
fn read_inet(message: &[u8]) -> Option<InetSocket> {
    Some(InetSocket { inode: held(word(message, 68)?)?, local: read_end(message, End::Local)? })
}

fn read_peer(message: &[u8]) -> Option<Peer> {
    Some(Peer { address: read_end(message, End::Peer)?, is_accepted: held(word(message, 68)?).is_some() })
}

/// Which end of a connection.
#[derive(Clone, Copy)]
enum End {
    Local,
    Peer,
}

/// An end, of struct inet_diag_sockid in struct inet_diag_msg.
fn read_end(message: &[u8], end: End) -> Option<SocketAddr> {
    let (port, address) = match end {
        End::Local => (4, 8),
        End::Peer => (6, 24),
    };
    let port = u16::from_be_bytes(message.get(port..port + 2)?.try_into().ok()?);
    let address: [u8; 16] = message.get(address..address + 16)?.try_into().ok()?;
    let ip = match c_int::from(*message.first()?) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(*address.first_chunk()?)),
        _ => IpAddr::from(Ipv6Addr::from(address)),
    };
    Some(SocketAddr::new(ip, port))
}

/// struct unix_diag_msg and its attributes.
fn read_unix(message: &[u8]) -> Option<UnixSocket> {
    let inode = held(word(message, 4)?)?;
    let connected = *message.get(2)? == TCP_ESTABLISHED && c_int::from(*message.get(1)?) != libc::SOCK_DGRAM;
    let mut attributes = message.get(UNIX_MESSAGE..)?;
    let (mut name, mut file, mut user) = (Vec::new(), None, None);
    while let (Some(length), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let length = usize::from(length).max(ATTRIBUTE);
        if kind == UNIX_DIAG_NAME {
            name = attributes.get(ATTRIBUTE..length)?.to_vec();
        }
        if kind == UNIX_DIAG_VFS {
            // struct unix_diag_vfs.
            file = word(attributes, 4).zip(word(attributes, 8)).map(|(inode, device)| BoundFile { inode, device });
        }
        if kind == UNIX_DIAG_UID {
            user = word(attributes, 4);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    // The NUL at the end of a path is counted or not, as bind(2) was called.
    if name.first() != Some(&0) && name.last() == Some(&0) {
        name.pop();
    }
    Some(UnixSocket { inode, name, file, connected, user })
}

/// 0 is a socket that no process has: not yet accepted, or closed and not yet freed.
fn held(inode: u32) -> Option<SocketInode> {
    (inode != 0).then_some(SocketInode(inode.into()))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{self, UnixListener, UnixStream};

    use nix::unistd::getuid;

    use super::*;
    use crate::kernel::testing::listener;

    #[test]
    fn a_listener_is_listed_with_its_address_and_its_connections_are_not() {
        let (listener, _) = listener();
        let local = listener.local_addr().unwrap();
        let _client = TcpStream::connect(local).unwrap();
        let listed = dump_inet(Transport::Tcp, IpVersion::V4, States::LISTENING, Some(local.port())).unwrap();
        assert_eq!(listed, [InetSocket { inode: SocketInode::of(&listener).unwrap(), local }]);
        let any_port = dump_inet(Transport::Tcp, IpVersion::V4, States::LISTENING, None).unwrap();
        assert!(any_port.contains(&listed[0]));
    }

    #[test]
    fn a_connection_is_listed_from_when_it_is_accepted() {
        let (listener, _) = listener();
        let local = listener.local_addr().unwrap();
        let list = || dump_inet(Transport::Tcp, IpVersion::V4, States::CONNECTED, Some(local.port())).unwrap();
        let _client = TcpStream::connect(local).unwrap();
        assert_eq!(list(), []);
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(list(), [InetSocket { inode: SocketInode::of(&accepted).unwrap(), local }]);
    }

    #[test]
    fn an_accepted_unix_socket_bears_the_name_of_its_listener() {
        let name = format!("handoff-run test {}", std::process::id());
        let address = net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let _client = UnixStream::connect_addr(&address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let name = [b"\0", name.as_bytes()].concat();
        let expected = UnixSocket {
            inode: SocketInode::of(&accepted).unwrap(),
            name,
            file: None,
            connected: true,
            user: Some(getuid().as_raw()),
        };
        let listed = dump_unix(States::CONNECTED).unwrap();
        assert_eq!(listed.iter().filter(|socket| socket.name == expected.name).collect::<Vec<_>>(), [&expected]);
    }

    // NLMSG_ALIGN of netlink(7). The next message was once looked for where the first one ends.
    #[test]
    fn a_message_of_odd_length_is_followed_by_another() {
        let message = |length: usize| {
            let mut bytes = header(length);
            bytes.resize((HEADER + length).next_multiple_of(4), 7);
            bytes
        };
        let mut lengths = Vec::new();
        let ended = read_messages(&[message(5), message(3), message(8)].concat(), &mut |m| lengths.push(m.len()));
        assert_eq!((ended, lengths), (Ok(false), vec![5, 3, 8]));
    }

    #[test]
    fn an_answer_that_is_cut_off_or_refuses_is_no_panic() {
        let mut refusal = header(4);
        refusal[4] = libc::NLMSG_ERROR as u8;
        refusal.extend((-libc::ENOENT).to_ne_bytes());
        assert_eq!(read_messages(&refusal, &mut |_| {}), Err(Errno::ENOENT));
        for length in 0..HEADER {
            assert!(read_messages(&refusal[..length], &mut |_| {}).is_ok());
        }
        assert!((0..72).all(|length| read_inet(&vec![1; length]).is_none()));
        assert!((0..UNIX_MESSAGE).all(|length| read_unix(&vec![1; length]).is_none()));
        assert_eq!(read_unix(&[&[1; UNIX_MESSAGE][..], &[255, 255, 0, 0]].concat()), None);
    }
}
