//! Which sockets are in the way of one that is to be bound, as far as the kernel lists them.

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{InetSocket, IpVersion, States};
use crate::kernel::sockets::{inet_sockets, unix_sockets};
use crate::socket::address::UnixName;
use crate::socket::bound_file::bound_socket;
use crate::socket::endpoint::Endpoint;
use crate::sys::Transport;

/// The sockets that are in the way of `endpoint`.
pub(super) fn bound_to(endpoint: &Endpoint) -> Vec<SocketInode> {
    match endpoint {
        Endpoint::Inet { kind, address, .. } => {
            bound_to_port(*kind, *address).into_iter().map(|socket| socket.inode).collect()
        }
        Endpoint::Unix { name: UnixName::Path(path), .. } => bound_socket(path).ok().flatten().into_iter().collect(),
        Endpoint::Unix { name: UnixName::Abstract(name), .. } => {
            let name = [b"\0", name.as_bytes()].concat();
            let sockets = unix_sockets(States::ALL).unwrap_or_default().into_iter();
            sockets.filter(|socket| socket.name == name && !socket.connected).map(|socket| socket.inode).collect()
        }
        Endpoint::Vsock { .. } => vec![],
    }
}

/// The SPECs of those of `held` that are in the way of `endpoints`, if each is bound otherwise than all of these ask for.
pub(super) fn bound_otherwise(endpoints: &[Endpoint], held: &[SocketInode]) -> Vec<String> {
    let mut specs: Vec<String> = Vec::new();
    for endpoint in endpoints {
        let Endpoint::Inet { kind, address, v6only } = endpoint else { return vec![] };
        for socket in bound_to_port(*kind, *address).into_iter().filter(|socket| held.contains(&socket.inode)) {
            if endpoints.iter().any(|endpoint| endpoint.is_served_by(&bound(*kind, &socket, *v6only))) {
                return vec![];
            }
            let kind = if *kind == Transport::Udp { "udp:" } else { "" };
            specs.push(format!("{kind}{}", socket.local));
        }
    }
    specs.sort_unstable();
    specs.dedup();
    specs
}

/// Where it is bound. Whether it takes IPv4 too is not listed: it is taken to be as it is asked for.
fn bound(kind: Transport, socket: &InetSocket, v6only: bool) -> Endpoint {
    Endpoint::Inet { kind, address: socket.local, v6only }
}

/// Those of this port with an address that collides. TCP connections have the port too, but only a listener is in the
/// way.
fn bound_to_port(kind: Transport, address: SocketAddr) -> Vec<InetSocket> {
    let states = if kind == Transport::Tcp { States::LISTENING } else { States::ALL };
    let sockets = |family| inet_sockets(kind, family, states, Some(address.port())).unwrap_or_default();
    let collides = |socket: &InetSocket| {
        let (bound, wanted) = (socket.local.ip().to_canonical(), address.ip());
        wanted.is_unspecified() || bound.is_unspecified() || bound == wanted
    };
    let all = [IpVersion::V4, IpVersion::V6].into_iter().flat_map(sockets);
    all.filter(collides).collect()
}
