//! How many connections each generation holds, counted from the kernel: its sockets of our ports and paths, found among
//! the descriptors of its processes.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname};
use nix::unistd::Pid;

use crate::descriptors::{SocketInode, sockets};
use crate::sock_diag::{Family, States, inet_sockets, unix_sockets};
use crate::spec::InetKind;

/// What the connections to a listener have in common with it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Local {
    Tcp(Family, u16),
    Unix(Vec<u8>),
    /// Nothing that the kernel would list.
    Other,
}

/// Every connection that came in by one of `listeners` and that some process holds, in every state but TIME_WAIT.
///
/// Sorted. It asks the kernel once for each TCP listener, and once for all Unix ones.
pub(crate) fn open_connections<L: AsFd>(listeners: &[L]) -> nix::Result<Vec<SocketInode>> {
    let mut names = Vec::new();
    let mut open: Vec<SocketInode> = Vec::new();
    for listener in listeners {
        match Local::of(listener)? {
            Local::Tcp(family, port) => {
                let connected = inet_sockets(InetKind::Tcp, family, States::CONNECTED, Some(port))?;
                open.extend(connected.into_iter().map(|socket| socket.inode));
            }
            Local::Unix(name) => names.push(name),
            Local::Other => {}
        }
    }
    if !names.is_empty() {
        let connected = unix_sockets(States::CONNECTED)?;
        let ours = connected.into_iter().filter(|socket| names.contains(&socket.name));
        open.extend(ours.map(|socket| socket.inode));
    }
    open.sort_unstable();
    Ok(open)
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

impl Local {
    fn of(listener: impl AsFd) -> nix::Result<Local> {
        let address: SockaddrStorage = getsockname(listener.as_fd().as_raw_fd())?;
        if let Some(address) = address.as_sockaddr_in() {
            return Ok(Local::Tcp(Family::V4, address.port()));
        }
        if let Some(address) = address.as_sockaddr_in6() {
            return Ok(Local::Tcp(Family::V6, address.port()));
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
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::supervise::processes::Table;
    use crate::supervise::testing::{Spawned, listener, until};

    #[test]
    fn a_connection_counts_for_who_accepted_it_and_once_although_a_fork_shares_it() {
        let (listener, copy) = listener();
        let address = listener.local_addr().unwrap();
        let server = Spawned::python(copy, "a = [s.accept() for _ in range(3)]; os.fork(); time.sleep(100)");
        let _clients = [0; 3].map(|_| TcpStream::connect(address).unwrap());
        until("three are counted, of two processes", || {
            let members = Table::read().unwrap().members(server.pid());
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
    fn an_ipv4_client_of_a_dual_stack_listener_counts() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let _client = TcpStream::connect(("127.0.0.1", listener.local_addr().unwrap().port())).unwrap();
        let _accepted = listener.accept().unwrap();
        assert_eq!(open_connections(&[&listener]).unwrap().len(), 1);
    }

    #[test]
    fn unix_connections_count_by_the_path_and_the_client_s_end_does_not() {
        let path = std::env::temp_dir().join(format!("handoff-run-connections-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let _clients = [0; 2].map(|_| UnixStream::connect(&path).unwrap());
        let _accepted = listener.accept().unwrap();
        let open = open_connections(&[&listener]).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(held_by(&[Pid::this()], &open), 1);
    }
}
