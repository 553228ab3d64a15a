//! The sockets of this network namespace: by netlink, or where that is not to be had, by `/proc/self/net`.

use std::io;

use log::debug;
use nix::errno::Errno;

use crate::kernel::socket_info::{InetSocket, IpVersion, Peer, States, UnixSocket};
use crate::kernel::{proc_net, sock_diag};
use crate::sys::Transport;

/// The sockets in these states that some process holds; with a port, only those with this local one.
pub(crate) fn inet_sockets(
    kind: Transport,
    family: IpVersion,
    states: States,
    port: Option<u16>,
) -> nix::Result<Vec<InetSocket>> {
    let listed = sock_diag::dump_inet(kind, family, states, port);
    listed.or_else(|errno| instead(errno, proc_net::inet_sockets(kind, family, states, port)))
}

/// The clients of TCP connections in these states to this local port, as the kernel names them.
pub(crate) fn peers(family: IpVersion, port: u16, states: States) -> nix::Result<Vec<Peer>> {
    let listed = sock_diag::dump_peers(family, port, states);
    listed.or_else(|errno| instead(errno, proc_net::peers(family, port, states)))
}

/// The Unix sockets in these states that some process holds.
pub(crate) fn unix_sockets(states: States) -> nix::Result<Vec<UnixSocket>> {
    sock_diag::dump_unix(states).or_else(|errno| instead(errno, proc_net::unix_sockets(states)))
}

/// What /proc lists where netlink failed; if that failed too, why netlink did.
fn instead<T>(errno: Errno, listed: io::Result<T>) -> nix::Result<T> {
    debug!("netlink does not list sockets: {errno}");
    listed.map_err(|_| errno)
}
