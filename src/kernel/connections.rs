//! How many connections each generation holds, counted from the kernel: its sockets of our ports and paths, found among
//! the descriptors of its processes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, getpeername, getsockname, getsockopt, socket,
    sockopt,
};
use nix::unistd::Pid;

use crate::kernel::caller::ForeignSocket;
use crate::kernel::descriptors::{Kind, SocketInode, descriptors, sockets};
use crate::kernel::socket_info::{InetSocket, IpVersion, States};
use crate::kernel::sockets::{inet_sockets, unix_sockets};
use crate::sys;
use crate::sys::Transport;

/// What the connections to a listener have in common with it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Local {
    Tcp(IpVersion, SocketAddr),
    Unix(Vec<u8>),
    /// Nothing that the kernel would list.
    Other,
}

/// Every connection that came in by one of `listeners` and that some process holds, in every state but TIME_WAIT.
///
/// Sorted, each once. The kernel is asked at most once for IPv4, IPv6 and Unix sockets: it looks through all that it has,
/// whatever is asked for.
///
/// # Errors
/// ENONET for a listener of another network namespace, whose connections are not listed for us.
pub(crate) fn open_connections<L: AsFd>(listeners: &[L]) -> nix::Result<Vec<SocketInode>> {
    let mut names = Vec::new();
    let mut bound = [(IpVersion::V4, BTreeMap::new()), (IpVersion::V6, BTreeMap::new())];
    let mut open: Vec<SocketInode> = Vec::new();
    for listener in listeners {
        if is_of_another_network(listener)? {
            return Err(Errno::ENONET);
        }
        match Local::of(listener)? {
            Local::Tcp(version, address) => {
                let of_version = bound.iter_mut().filter(|(other, _)| *other == version);
                of_version
                    .for_each(|(_, bound)| bound.entry(address.port()).or_insert_with(Vec::new).push(address.ip()));
            }
            Local::Unix(name) => names.push(name),
            Local::Other => {}
        }
    }
    for (version, bound) in &bound {
        open.extend(connected_to(*version, bound)?);
    }
    if !names.is_empty() {
        let connected = unix_sockets(States::CONNECTED)?;
        // TCP_CLOSE is one of these states, and that of a datagram socket.
        let ours = connected.into_iter().filter(|socket| socket.connected && names.contains(&socket.name));
        open.extend(ours.map(|socket| socket.inode));
    }
    open.sort_unstable();
    Ok(open)
}

/// The connections to any of these ports, and of each port to these addresses.
fn connected_to(version: IpVersion, bound: &BTreeMap<u16, Vec<IpAddr>>) -> nix::Result<Vec<SocketInode>> {
    let Some((first, _)) = bound.first_key_value() else { return Ok(vec![]) };
    let port = (bound.len() == 1).then_some(*first);
    let came_in = |socket: &InetSocket| {
        let addresses = bound.get(&socket.local.port());
        addresses.is_some_and(|all| all.iter().any(|ip| ip.is_unspecified() || *ip == socket.local.ip()))
    };
    let connected = inet_sockets(Transport::Tcp, version, States::CONNECTED, port)?;
    Ok(connected.into_iter().filter(came_in).map(|socket| socket.inode).collect())
}

/// Was it inherited from another network namespace? A new socket is of ours.
fn is_of_another_network(listener: impl AsFd) -> nix::Result<bool> {
    let own = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // An older kernel has no such option.
    Ok(matches!((sys::network_of(&own), sys::network_of(listener)), (Ok(own), Ok(its)) if own != its))
}

/// How many of the sorted `open` connections these processes hold; one that they share counts once.
pub(crate) fn held_by(members: &[Pid], open: &[SocketInode]) -> usize {
    if open.is_empty() {
        return 0;
    }
    let held = members.iter().flat_map(|pid| sockets(*pid)).filter(|inode| open.binary_search(inode).is_ok());
    let mut held: Vec<SocketInode> = held.collect();
    held.sort_unstable();
    held.dedup();
    held.len()
}

/// By which of `listeners` did a connection come in that one of these processes holds, and has therefore accepted? An
/// answer for each, from one look at each process.
///
/// The kernel's list would show it, but takes milliseconds to read on a large machine, and a busy server may hold
/// each connection for less. So copies are inspected, where pidfd_getfd(2) permits, and closed at once.
pub(crate) fn served<L: AsFd>(members: &[Pid], listeners: &[L]) -> Vec<bool> {
    // TCP and UDP may have the same port.
    let end = |fd: BorrowedFd| {
        let address: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
        Some((getsockopt(&fd, sockopt::SockType).ok()?, address))
    };
    let listeners: Vec<_> = listeners.iter().map(|listener| end(listener.as_fd())).collect();
    let mut served = vec![false; listeners.len()];
    for connection in members.iter().flat_map(|pid| connected(*pid)) {
        let Some((kind, local)) = end(connection.as_fd()) else { continue };
        let came_in = |listener: &Option<(SockType, SockaddrStorage)>| {
            listener.as_ref().is_some_and(|(other, address)| *other == kind && came_in_by(&local, address))
        };
        for (served, _) in served.iter_mut().zip(&listeners).filter(|(_, listener)| came_in(listener)) {
            *served = true;
        }
        if served.iter().all(|served| *served) {
            break;
        }
    }
    served
}

/// Copies of the connected sockets of `pid`, one at a time. It may end meanwhile, and leave us the last one.
fn connected(pid: Pid) -> impl Iterator<Item = ForeignSocket> {
    let process = sys::pidfd_of(pid).ok();
    let open = descriptors(pid).unwrap_or_default().into_iter();
    let numbers = open.filter_map(|(fd, kind)| matches!(kind, Kind::Socket(_)).then_some(fd));
    let copies = numbers.filter_map(move |fd| Some(ForeignSocket::of(sys::pidfd_getfd(process.as_ref()?, fd.0).ok()?)));
    copies.filter(|copy| getpeername::<SockaddrStorage>(copy.as_fd().as_raw_fd()).is_ok())
}

/// A client's end of it has another name, and so has what is connected elsewhere.
fn came_in_by(local: &SockaddrStorage, listener: &SockaddrStorage) -> bool {
    match (listener.as_sockaddr_in(), listener.as_sockaddr_in6(), listener.as_unix_addr()) {
        (Some(at), _, _) => local
            .as_sockaddr_in()
            .is_some_and(|local| local.port() == at.port() && (at.ip().is_unspecified() || local.ip() == at.ip())),
        (_, Some(at), _) => local
            .as_sockaddr_in6()
            .is_some_and(|local| local.port() == at.port() && (at.ip().is_unspecified() || local.ip() == at.ip())),
        (_, _, Some(at)) => at.len() > 0 && local.as_unix_addr() == Some(at),
        _ => false,
    }
}

impl Local {
    fn of(listener: impl AsFd) -> nix::Result<Local> {
        let address: SockaddrStorage = getsockname(listener.as_fd().as_raw_fd())?;
        if let Some(address) = address.as_sockaddr_in() {
            return Ok(Local::Tcp(IpVersion::V4, SocketAddr::from((address.ip(), address.port()))));
        }
        if let Some(address) = address.as_sockaddr_in6() {
            return Ok(Local::Tcp(IpVersion::V6, SocketAddr::from((address.ip(), address.port()))));
        }
        let Some(address) = address.as_unix_addr().filter(|address| address.len() > 0) else {
            return Ok(Local::Other);
        };
        Ok(match (address.path(), address.as_abstract()) {
            (Some(path), _) => Local::Unix(path.as_os_str().as_encoded_bytes().to_vec()),
            (_, Some(name)) => Local::Unix([b"\0", name].concat()),
            _ => Local::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::Command;

    use nix::sys::signal::{Signal, kill};
    use nix::sys::socket::setsockopt;

    use super::*;
    use crate::kernel::processes::Processes;
    use crate::kernel::testing::{Spawned, listener, until};

    fn serves_any(pid: Pid, listener: impl AsFd) -> bool {
        served(&[pid], &[listener]) == [true]
    }

    #[test]
    fn each_of_many_listeners_is_served_by_its_own_connections() {
        let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let connect = |at: usize| TcpStream::connect(listeners[at].local_addr().unwrap()).unwrap();
        let _clients = [connect(0), connect(2)];
        let _accepted = [0, 2].map(|at: usize| listeners[at].accept().unwrap());
        assert_eq!(served(&[Pid::this()], &listeners), [true, false, true]);
    }

    // Its process may end while we look. Closed like any other, the last copy of such a socket waited for a minute.
    #[test]
    fn the_last_copy_of_a_socket_that_lingers_holds_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // What is never read.
        let _peer = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[0; 100_000]).is_ok() {}
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 60 }).unwrap();
        let mut process = Command::new("sleep").arg("100").stdin(OwnedFd::from(client)).spawn().unwrap();
        let pid = Pid::from_raw(process.id() as i32);
        // A child has one thread, as the program has, and what holds it is an error.
        let ending = sys::in_child(|| {
            let copy = connected(pid).next().unwrap();
            let pidfd = sys::pidfd_of(pid).unwrap();
            kill(pid, Signal::SIGKILL).unwrap();
            until("it has ended", || sys::is_readable(&pidfd).then_some(()));
            drop(copy);
            0
        });
        assert_eq!(ending, Ok(sys::Ending::Exited(0)));
        process.wait().unwrap();
    }

    #[test]
    fn a_connection_counts_for_the_process_that_accepted_it_and_once_although_a_fork_shares_it() {
        let (listener, copy) = listener();
        let address = listener.local_addr().unwrap();
        let server = Spawned::python(copy, "a = [s.accept() for _ in range(3)]; os.fork(); time.sleep(100)");
        let _clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
        until("three are counted, of two processes", || {
            let members = Processes::read().unwrap().members(server.pid());
            let open = open_connections(&[&listener]).unwrap();
            (members.len() == 2 && held_by(&members, &open) == 3).then_some(())
        });
        assert_eq!(held_by(&[Pid::this()], &open_connections(&[&listener]).unwrap()), 0);
    }

    #[test]
    fn a_connection_that_the_client_has_closed_is_still_held() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        drop(client);
        let count = || held_by(&[Pid::this()], &open_connections(&[&listener]).unwrap());
        assert_eq!(count(), 1);
        drop(accepted);
        assert_eq!(count(), 0);
    }

    #[test]
    fn a_process_that_has_accepted_a_connection_serves_the_listener_it_came_in_by() {
        let (listener, copy) = listener();
        let address = listener.local_addr().unwrap();
        let beside = TcpListener::bind(("127.0.0.2", address.port())).unwrap();
        let server = Spawned::python(copy, "a = s.accept(); time.sleep(100)");
        let serves = |listener: &TcpListener| serves_any(server.pid(), listener);
        let _client = TcpStream::connect(address).unwrap();
        until("it serves", || serves(&listener).then_some(()));
        assert!(!serves(&beside));
        // The client's end is not accepted.
        assert!(!serves_any(Pid::this(), &listener));
    }

    #[test]
    fn only_connections_to_the_address_of_a_listener_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let beside = TcpListener::bind(("127.0.0.2", listener.local_addr().unwrap().port())).unwrap();
        let _client = TcpStream::connect(beside.local_addr().unwrap()).unwrap();
        let _accepted = beside.accept().unwrap();
        assert_eq!(open_connections(&[&listener]).unwrap(), []);
        assert_eq!(open_connections(&[&listener, &beside, &beside]).unwrap().len(), 1);
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_listener_counts() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let _client = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(open_connections(&[&listener]).unwrap().len(), 1);
    }

    // A generation that had one was once said to have a connection.
    #[test]
    fn a_unix_datagram_socket_is_no_connection() {
        let path = std::env::temp_dir().join(format!("handoff-run-datagrams-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.connect(&path).unwrap();
        let open = open_connections(&[&socket]);
        fs::remove_file(&path).unwrap();
        assert_eq!(open, Ok(vec![]));
    }

    #[test]
    fn unix_connections_count_by_the_path_and_the_client_s_end_does_not() {
        let path = std::env::temp_dir().join(format!("handoff-run-connections-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let _clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
        let _accepted = listener.accept().unwrap();
        let open = open_connections(&[&listener]).unwrap();
        assert!(serves_any(Pid::this(), &listener));
        fs::remove_file(&path).unwrap();
        assert_eq!(held_by(&[Pid::this()], &open), 1);
    }
}
