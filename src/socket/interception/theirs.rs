//! The socket that a program gave to bind(2): whether ours may take its place.

use std::os::fd::{AsFd, OwnedFd};

use libc::c_int;

use crate::socket::address::UnixKind;
use crate::socket::endpoint::Endpoint;
use crate::socket::interception::BindRequest;
use crate::socket::interception::asked::Asked;
use crate::sys::{self, Transport};

/// What bind(2) would bind the socket `theirs` to, for an address of this family; none if it would refuse, or if we have
/// no socket of that kind.
pub(crate) fn request(theirs: &OwnedFd, family: c_int, asked: Asked) -> Option<BindRequest> {
    let of = |name| sys::option(theirs, libc::SOL_SOCKET, name).ok();
    let (domain, kind, protocol) = (of(libc::SO_DOMAIN)?, of(libc::SO_TYPE)?, of(libc::SO_PROTOCOL)?);
    let is_its = domain == family || (domain, family) == (libc::AF_INET, libc::AF_UNSPEC);
    if !is_its || is_bound(theirs) {
        return None;
    }
    let is_v6 = domain == libc::AF_INET6;
    let endpoint = match asked {
        Asked::Inet(address) => {
            let kind = match (kind, protocol) {
                (libc::SOCK_STREAM, libc::IPPROTO_TCP | libc::IPPROTO_MPTCP) => Transport::Tcp,
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP) => Transport::Udp,
                _ => return None,
            };
            let v6only = is_v6 && sys::option(theirs, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) == Ok(1);
            if v6only && address.is_ipv4() {
                return None;
            }
            Endpoint::Inet { kind, address, v6only }
        }
        Asked::Unix(name) => {
            let kind = match kind {
                libc::SOCK_STREAM => UnixKind::Stream,
                libc::SOCK_DGRAM => UnixKind::Datagram,
                libc::SOCK_SEQPACKET => UnixKind::SeqPacket,
                _ => return None,
            };
            Endpoint::Unix { kind, name }
        }
        Asked::Vsock { cid, port } if kind == libc::SOCK_STREAM => Endpoint::Vsock { cid, port },
        Asked::Vsock { .. } => return None,
    };
    Some(BindRequest { is_v6, endpoint })
}

/// Has it an address?
fn is_bound(socket: &OwnedFd) -> bool {
    Endpoint::of(socket).is_ok_and(|endpoint| !endpoint.has_free_port())
}

/// Are both of one network namespace, as far as the kernel shows it (Linux 5.14)?
pub(crate) fn is_same_network(theirs: &OwnedFd, ours: impl AsFd) -> bool {
    match (sys::network_of(theirs), sys::network_of(ours)) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => true,
    }
}
