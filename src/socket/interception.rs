//! Which of our sockets a bind(2) of a program is answered with. Pure.
//!
//! It is ours if the kernel could not bind both: the same transport and port, and addresses that are in each other's way.

pub(crate) mod asked;
pub(crate) mod carried;
pub(crate) mod filter;
#[cfg(test)]
mod tests;
pub(crate) mod theirs;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::socket::endpoint::Endpoint;
use crate::sys::Transport;

/// A bind(2), and the socket that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BindRequest {
    /// The socket is one of IPv6, whatever the address is.
    pub(crate) is_v6: bool,
    /// What the kernel would bind.
    pub(crate) endpoint: Endpoint,
}

/// Whether the IP versions of an address are still to be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Versions {
    /// It was written `:PORT`: both, until the first program binds one of them.
    Undecided,
    /// The first program has bound one of them, and may bind the other one beside it.
    Half,
    /// Those that the first program has bound.
    Chosen,
    /// As it was written.
    #[default]
    #[serde(other)]
    Given,
}

/// What a bind(2) is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is none of ours.
    Elsewhere,
    /// The socket at this place in the list.
    Ours(usize),
    /// The same, which has to be bound here instead before.
    Anew(usize, Endpoint),
    /// One that has to be bound here, beside the one at this place.
    Beside(usize, Endpoint),
    /// The one at this place is in the way, and of another IP version than the program can use.
    OtherVersion(usize),
}

/// The IP versions of a socket's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Audience {
    V4,
    V6,
    Both,
}

impl Decision {
    /// The place of the socket that it is about.
    pub(crate) fn at(&self) -> Option<usize> {
        match self {
            Decision::Elsewhere => None,
            Decision::Ours(at) | Decision::Anew(at, _) | Decision::Beside(at, _) | Decision::OtherVersion(at) => {
                Some(*at)
            }
        }
    }
}

/// What `request` is to be answered with, of sockets at these addresses.
pub(crate) fn decide(ours: &[(Endpoint, Versions)], request: &BindRequest) -> Decision {
    let wanted = request.audience();
    let mut other_version = None;
    for (at, (endpoint, versions)) in ours.iter().enumerate() {
        match versions {
            _ if !is_same_port(endpoint, &request.endpoint) => (),
            // All addresses are ours.
            Versions::Undecided if audience(endpoint) == wanted => return Decision::Ours(at),
            Versions::Undecided => return Decision::Anew(at, request.every()),
            _ if !is_in_the_way(endpoint, &request.endpoint) => (),
            Versions::Given if request.can_use(endpoint) => return Decision::Ours(at),
            Versions::Half | Versions::Chosen if audience(endpoint) == wanted => return Decision::Ours(at),
            _ => other_version = Some(at),
        }
    }
    if let Some(at) = other_version {
        return Decision::OtherVersion(at);
    }
    // Of a `:PORT` one half is there, and it is not this one.
    let half = |versions| ours.iter().position(|(own, of)| *of == versions && is_same_port(own, &request.endpoint));
    match (half(Versions::Half), half(Versions::Chosen)) {
        (Some(at), _) => Decision::Beside(at, request.every()),
        (None, Some(at)) => Decision::OtherVersion(at),
        (None, None) => Decision::Elsewhere,
    }
}

impl BindRequest {
    /// Whom the program expects.
    fn audience(&self) -> Audience {
        match self.endpoint {
            Endpoint::Inet { .. } if !self.is_v6 => Audience::V4,
            Endpoint::Inet { address: SocketAddr::V6(address), v6only, .. }
                if v6only || !address.ip().is_unspecified() =>
            {
                Audience::V6
            }
            // One of IPv4 at a socket of IPv6 is both to its program.
            _ => Audience::Both,
        }
    }

    /// The address of every interface, for the same clients.
    fn every(&self) -> Endpoint {
        let Endpoint::Inet { kind, address, .. } = &self.endpoint else { return self.endpoint.clone() };
        let audience = self.audience();
        let ip: IpAddr =
            if audience == Audience::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Endpoint::Inet { kind: *kind, address: (ip, address.port()).into(), v6only: audience == Audience::V6 }
    }

    /// Can the program use a socket at this address? One that asked for IPv4 would misread the addresses of the other
    /// version; one that asked for both understands those of IPv4, but cannot send a datagram by such a socket.
    fn can_use(&self, ours: &Endpoint) -> bool {
        match ours {
            Endpoint::Inet { address: SocketAddr::V6(_), .. } => self.is_v6,
            Endpoint::Inet { kind: Transport::Udp, .. } => !self.is_v6,
            _ => true,
        }
    }
}

/// Of one that takes what comes to every interface.
fn audience(endpoint: &Endpoint) -> Audience {
    match endpoint {
        Endpoint::Inet { address: SocketAddr::V4(_), .. } => Audience::V4,
        Endpoint::Inet { v6only: true, .. } => Audience::V6,
        _ => Audience::Both,
    }
}

fn is_same_port(one: &Endpoint, other: &Endpoint) -> bool {
    match (one, other) {
        (Endpoint::Inet { kind, address, .. }, Endpoint::Inet { kind: other_kind, address: other_address, .. }) => {
            kind == other_kind && address.port() == other_address.port()
        }
        _ => one == other,
    }
}

/// Would bind(2) refuse the one while the other is bound? As net/ipv4/inet_connection_sock.c and net/ipv6 have it.
fn is_in_the_way(one: &Endpoint, other: &Endpoint) -> bool {
    let (Endpoint::Inet { address, v6only, .. }, Endpoint::Inet { address: other_address, v6only: other_v6only, .. }) =
        (one, other)
    else {
        return one == other;
    };
    let every = |address: &SocketAddr| address.ip().is_unspecified();
    let is_apart = match (address, other_address) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => {
            !every(address) && !every(other_address) && address.ip() != other_address.ip()
        }
        (SocketAddr::V6(one), SocketAddr::V6(other)) => {
            let is_elsewhere = one.scope_id() != other.scope_id() && one.scope_id() != 0 && other.scope_id() != 0;
            !every(address) && !every(other_address) && (one.ip() != other.ip() || is_elsewhere)
        }
        (SocketAddr::V6(v6), SocketAddr::V4(_)) => !v6.ip().is_unspecified() || *v6only,
        (SocketAddr::V4(_), SocketAddr::V6(v6)) => !v6.ip().is_unspecified() || *other_v6only,
    };
    is_same_port(one, other) && !is_apart
}
