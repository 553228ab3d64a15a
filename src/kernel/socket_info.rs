//! What is known of a socket that some process holds, whatever lists it. Pure.

use std::net::SocketAddr;

use crate::kernel::descriptors::SocketInode;

/// A set of states of tcp(7), which unix(7) shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct States(pub(super) u32);

impl States {
    /// TCP_LISTEN.
    pub(crate) const LISTENING: States = States(1 << 10);
    /// TCP_CLOSE, which is that of a Unix socket that neither listens nor is connected.
    pub(crate) const UNCONNECTED: States = States(1 << 7);
    /// Every one.
    pub(crate) const ALL: States = States(u32::MAX);
    /// Every other state that a process can hold: no TIME_WAIT (6), nor the half-open ones that the kernel keeps (3,
    /// 12).
    pub(crate) const CONNECTED: States = States(0xfff & !(1 << 10 | 1 << 6 | 1 << 3));
    /// Those, and those that are about to be.
    pub(crate) const BEGUN: States = States(States::CONNECTED.0 | States::HANDSHAKE.0);

    /// TCP_SYN_RECV, and the kernel's own TCP_NEW_SYN_RECV.
    pub(crate) const HANDSHAKE: States = States(1 << 3 | 1 << 12);

    pub(crate) fn contain(self, state: u32) -> bool {
        self.0.checked_shr(state).unwrap_or(0) & 1 != 0
    }
}

/// Which IP a socket is of: `[::]` and all connections to it are of V6, whatever their peers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IpVersion {
    V4,
    V6,
}

/// A TCP or UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InetSocket {
    pub(crate) inode: SocketInode,
    pub(crate) local: SocketAddr,
}

/// Each of them once: the kernel lists one again and again while others come and go.
pub(crate) fn each_once(mut sockets: Vec<InetSocket>) -> Vec<InetSocket> {
    sockets.sort_unstable_by_key(|socket| socket.inode);
    sockets.dedup_by_key(|socket| socket.inode);
    sockets
}

/// The other end of a TCP connection to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Some process holds our end.
    pub(crate) is_accepted: bool,
}

/// Those of all of them.
pub(crate) fn addresses(peers: Vec<Peer>) -> Vec<SocketAddr> {
    peers.into_iter().map(|peer| peer.address).collect()
}

/// A Unix socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnixSocket {
    pub(crate) inode: SocketInode,
    /// A path, or, after a NUL, an abstract name; empty for an unnamed one. An accepted socket has its listener's.
    pub(crate) name: Vec<u8>,
    /// The file it is bound to (UNIX_DIAG_VFS), which an accepted socket shares with its listener.
    pub(crate) file: Option<BoundFile>,
    /// It is one end of a connection. A datagram socket with a peer is not: it can still be sent to by others.
    pub(crate) connected: bool,
    /// Who opened it (UNIX_DIAG_UID, Linux 5.3).
    pub(crate) user: Option<u32>,
}

/// A file by the kernel's internal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoundFile {
    /// Its inode, 32 bits of it.
    pub(crate) inode: u32,
    /// The number of its file system, twelve bits of major and twenty of minor.
    pub(crate) device: u32,
}
