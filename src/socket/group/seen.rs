//! What is seen at the address of a group: who waits, who else listens, and how it is reached from here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::kernel::descriptors::SocketInode;
use crate::kernel::socket_info::{InetSocket, IpVersion, Peer, States};
use crate::kernel::sockets::{inet_sockets, peers};
use crate::socket::endpoint::Endpoint;
use crate::socket::group::{Group, Steered};
use crate::socket::listener::Listener;
use crate::sys::Transport;

impl Group {
    /// Its sockets, but for those that are of no use any more.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Listener, SocketInode)> {
        let idle = self.steered.iter().flat_map(Steered::idle);
        self.slots.iter().chain(idle).map(|slot| (&slot.listener, slot.inode))
    }

    /// The inodes of all its sockets.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = SocketInode> {
        let idle = self.steered.iter().flat_map(Steered::idle);
        let discarded = self.steered.iter().flat_map(|steered| &steered.discarded);
        let discarded = discarded.filter_map(|(_, listener)| SocketInode::of(listener).ok());
        let foreign = self.steered.iter().flat_map(|steered| steered.foreign.iter().copied());
        self.slots.iter().chain(idle).map(|slot| slot.inode).chain(discarded).chain(foreign)
    }

    /// Every socket that may get what comes to this address, if it is steered: a process of this user may bind one.
    pub(crate) fn beside(&self) -> Vec<(String, SocketInode)> {
        // Others may have the same address at another interface, and which that is is not listed.
        let Some(endpoint) = self.inet().filter(|_| !self.is_on_device()) else { return vec![] };
        let Endpoint::Inet { kind, address, v6only } = endpoint else { return vec![] };
        let states = if kind == Transport::Tcp { States::LISTENING } else { States::UNCONNECTED };
        let versions: &[IpVersion] = match address {
            SocketAddr::V4(_) => &[IpVersion::V4],
            SocketAddr::V6(_) if v6only || !address.ip().is_unspecified() => &[IpVersion::V6],
            SocketAddr::V6(_) => &[IpVersion::V6, IpVersion::V4],
        };
        let list = |version: &IpVersion| inet_sockets(kind, *version, states, Some(address.port())).unwrap_or_default();
        let is_in_the_way = |socket: &InetSocket| {
            let (bound, ours) = (socket.local.ip().to_canonical(), address.ip().to_canonical());
            ours.is_unspecified() || bound.is_unspecified() || bound == ours
        };
        let found = versions.iter().flat_map(list).filter(is_in_the_way);
        found.map(|socket| (socket.local.to_string(), socket.inode)).collect()
    }

    /// Does somebody else listen in it? They get places that are not known here when its order changes.
    pub(super) fn has_strangers(&self) -> bool {
        let ours: Vec<SocketInode> = self.inodes().collect();
        !self.slots[0].is_datagram() && self.beside().iter().any(|(_, inode)| !ours.contains(inode))
    }

    /// Its endpoint, if it is steered.
    fn inet(&self) -> Option<Endpoint> {
        self.steered.as_ref().and_then(|_| self.slots[0].listener.endpoint().ok())
    }

    /// Where connections that this process makes reach it, if it is a steered listener.
    pub(crate) fn reached_at(&self) -> Option<SocketAddr> {
        if self.is_on_device() {
            return None;
        }
        let Endpoint::Inet { kind: Transport::Tcp, mut address, v6only } = self.inet()? else { return None };
        match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            // It takes IPv4 too, which is there wherever a loopback interface is.
            IpAddr::V6(ip) if ip.is_unspecified() && !v6only => address = (Ipv4Addr::LOCALHOST, address.port()).into(),
            IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => (),
        }
        Some(address)
    }

    /// Does it get only what comes in through one interface?
    fn is_on_device(&self) -> bool {
        self.slots[0].listener.options_beside().is_some_and(|options| options.has("device"))
    }

    /// Can an IPv4 client on this machine reach it, if it is steered?
    pub(crate) fn takes_local_v4(&self) -> bool {
        !self.is_on_device()
            && matches!(self.inet(), Some(Endpoint::Inet { address, v6only, .. })
            if address.is_ipv4() || address.ip().is_unspecified() && !v6only)
    }

    /// How many connections wait for a slot, or 1 where datagrams do; 0 of a shared group, where they wait for nobody.
    pub(crate) fn waiting(&self, slot: usize) -> usize {
        if !self.is_steered() {
            return 0;
        }
        let beside = if slot == 0 { self.slots[0].listener.waiting_beside() } else { 0 };
        self.slots[slot].waiting() + beside
    }

    /// The clients whose connections are in these states, if it is steered.
    ///
    /// # Errors
    /// If the kernel does not list them.
    pub(crate) fn peers(&self, states: States) -> nix::Result<Vec<Peer>> {
        match self.inet() {
            Some(Endpoint::Inet { kind: Transport::Tcp, address, .. }) => {
                let version = if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 };
                peers(version, address.port(), states)
            }
            _ => Ok(vec![]),
        }
    }
}
