//! Where else a generation listens, to explain why one that runs did not take our socket.

use std::fmt;
use std::net::SocketAddr;

use nix::unistd::Pid;

use crate::kernel::descriptors::{SocketInode, sockets};
use crate::kernel::socket_info::{IpVersion, States};
use crate::kernel::sockets::{inet_sockets, unix_sockets};
use crate::sys::Transport;

/// A listening socket of a generation that did not come from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignListener {
    /// The first of the members that holds it.
    pub(crate) pid: Pid,
    pub(crate) inode: SocketInode,
    pub(crate) address: ForeignAddress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ForeignAddress {
    Tcp(SocketAddr),
    Unix(Vec<u8>),
}

impl ForeignAddress {
    /// As it is written for `--listen`.
    pub(crate) fn spec(&self) -> String {
        match self {
            // By every interface one of both versions is meant, as a rule.
            ForeignAddress::Tcp(address) if address.ip().is_unspecified() => format!(":{}", address.port()),
            ForeignAddress::Unix(_) => format!("unix:{self}"),
            ForeignAddress::Tcp(_) => self.to_string(),
        }
    }
}

impl fmt::Display for ForeignAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForeignAddress::Tcp(address) => address.fmt(f),
            ForeignAddress::Unix(name) => match name.strip_prefix(b"\0") {
                Some(abstract_name) => write!(f, "@{}", abstract_name.escape_ascii()),
                None => name.escape_ascii().fmt(f),
            },
        }
    }
}

/// The TCP and Unix sockets but `ours` that `members` listen on, as far as /proc shows them.
pub(crate) fn listening_elsewhere(members: &[Pid], ours: &[SocketInode]) -> nix::Result<Vec<ForeignListener>> {
    let mut holders: Vec<(SocketInode, Pid)> = Vec::new();
    for pid in members.iter().copied() {
        for inode in sockets(pid).filter(|inode| !ours.contains(inode)) {
            holders.push((inode, pid));
        }
    }
    if holders.is_empty() {
        return Ok(Vec::new());
    }
    let holds = |inode, address| {
        let (_, pid) = holders.iter().find(|(held, _)| *held == inode)?;
        Some(ForeignListener { pid: *pid, inode, address })
    };
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let listening = inet_sockets(Transport::Tcp, family, States::LISTENING, None)?;
        found.extend(listening.into_iter().filter_map(|socket| holds(socket.inode, ForeignAddress::Tcp(socket.local))));
    }
    let listening = unix_sockets(States::LISTENING)?;
    found.extend(listening.into_iter().filter_map(|socket| holds(socket.inode, ForeignAddress::Unix(socket.name))));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{self, UnixListener};

    use super::*;
    use crate::kernel::testing::{Spawned, listener, until};

    #[test]
    fn a_server_that_opened_a_port_of_its_own_is_found_and_our_socket_is_not() {
        let (listener, copy) = listener();
        let script = "t = socket.create_server(('127.0.0.1', 0)); os.fork(); time.sleep(100)";
        let server = Spawned::python(copy, script);
        let ours = SocketInode::of(&listener).unwrap();
        let found = until("it listens", || listening_elsewhere(&[server.pid()], &[ours]).unwrap().pop());
        assert_eq!(found.pid, server.pid());
        let address = found.address.to_string();
        TcpStream::connect(&address).unwrap();
        assert!(listening_elsewhere(&[server.pid()], &[ours, found.inode]).unwrap().is_empty());
    }

    #[test]
    fn addresses_are_shown_as_they_are_written() {
        let name = format!("elsewhere {}", std::process::id());
        let unix = UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let found = listening_elsewhere(&[Pid::this()], &[]).unwrap();
        let shown = |inode| found.iter().find(|other| other.inode == inode).unwrap().address.to_string();
        assert_eq!(shown(SocketInode::of(&unix).unwrap()), format!("@{name}"));
        assert_eq!(shown(SocketInode::of(&tcp).unwrap()), tcp.local_addr().unwrap().to_string());
    }

    #[test]
    fn a_process_that_is_not_there_listens_nowhere() {
        assert_eq!(listening_elsewhere(&[Pid::from_raw(i32::MAX)], &[]), Ok(Vec::new()));
    }
}
