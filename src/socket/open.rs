//! Open a socket: socket(2), its options, bind(2), listen(2), in the order that steering needs.
//!
//! Of steered ones the first is bound while no other may be; only then may others be bound beside it. Its program is
//! attached before it listens: from then on one that joins the group gets nothing until it is told to.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Result;
use libc::c_int;
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockType, bind, socket};

use crate::missing::Facility;
use crate::socket::endpoint::Endpoint;
use crate::socket::joining::as_owner_of;
use crate::socket::listener::{Manner, Sharing};
use crate::socket::options::Options;
use crate::socket::socket_file::Created;
use crate::socket::steering::Course;
use crate::socket::unix_path;
use crate::sys::{self, FIRST_FD};

/// A socket that was opened.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    /// Its file.
    pub(super) created: Option<Created>,
    /// Steered, if others may be bound beside it.
    pub(super) sharing: Sharing,
}

/// A socket that is bound to `endpoint` and listens.
pub(super) fn open(endpoint: &Endpoint, options: &Options, manner: Manner) -> Result<Opened> {
    // A number that an int cannot hold was refused by the parser.
    let backlog = options.number("backlog").map_or(manner.backlog, |backlog| backlog as c_int);
    let fd = unbound(endpoint, options)?;
    if let Endpoint::Unix { .. } = endpoint
        && let Ok(path) = endpoint.path()
    {
        let created = unix_path::bind(&fd, path, options, manner.naming, || start(&fd, endpoint, backlog))?;
        return Ok(Opened { fd, created: Some(created), sharing: Sharing::Shared });
    }
    bind(fd.as_raw_fd(), endpoint.to_sockaddr()?.as_ref())?;
    // Whoever asks for SO_REUSEPORT wants to share the address with others, who would get nothing.
    let is_steered = matches!(endpoint, Endpoint::Inet { .. }) && !options.has("reuseport");
    if manner.sharing == Sharing::Steered && is_steered {
        return open_first(fd, options, backlog);
    }
    start(&fd, endpoint, backlog)?;
    Ok(Opened { fd, created: None, sharing: Sharing::Shared })
}

/// Make `fd`, which is bound to an address where nobody else is, the first of those that are steered.
fn open_first(fd: OwnedFd, options: &Options, backlog: c_int) -> Result<Opened> {
    let endpoint = Endpoint::of(&fd)?;
    let first = match endpoint.socket_type() {
        SockType::Datagram => beside_guard(&fd, &endpoint, options),
        _ => bound_by_number(&endpoint, options).and_then(|first| {
            allow_others(&first)?;
            Ok(first)
        }),
    };
    let (fd, sharing) = match first {
        Ok(first) => {
            drop(fd);
            (first, Sharing::Steered)
        }
        Err(error) => {
            Facility::Steering.report_missing(&error);
            let _ = set_reuseport(&fd, 0);
            (fd, Sharing::Shared)
        }
    };
    start(&fd, &endpoint, backlog)?;
    Ok(Opened { fd, created: None, sharing })
}

/// Another TCP socket at the same address, bound by its number: a port that the kernel chose is given up when a server
/// shuts the socket down. Both may be bound, for neither listens.
fn bound_by_number(endpoint: &Endpoint, options: &Options) -> Result<OwnedFd> {
    let fd = unbound(endpoint, options)?;
    bind(fd.as_raw_fd(), endpoint.to_sockaddr()?.as_ref())?;
    Ok(fd)
}

/// A UDP socket beside `guard`, which keeps everybody else away: it is in its group from bind(2) on. What the guard gets
/// until it is closed is lost.
fn beside_guard(guard: &OwnedFd, endpoint: &Endpoint, options: &Options) -> Result<OwnedFd> {
    set_reuseport(guard, 1)?;
    let fd = unbound(endpoint, options)?;
    set_reuseport(&fd, 1)?;
    bind(fd.as_raw_fd(), endpoint.to_sockaddr()?.as_ref())?;
    sys::choose_by(&fd, &Course::straight(0).program())?;
    Ok(fd)
}

fn allow_others(first: &OwnedFd) -> nix::Result<()> {
    set_reuseport(first, 1)?;
    sys::choose_by(first, &Course::straight(0).program())
}

/// Whether a socket that joins a group gets what comes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Open,
    /// A connection that is led to it is dropped, and tried again by its client. Datagrams wait.
    Closed,
}

/// A socket at the same address as `first`, and of the same user, which gets nothing until the program says so.
pub(super) fn open_beside(
    first: &OwnedFd,
    endpoint: &Endpoint,
    options: &Options,
    backlog: c_int,
    door: Door,
) -> Result<OwnedFd> {
    let fd = as_owner_of(first, || unbound(endpoint, options)).unwrap_or(Err(Errno::EPERM.into()))?;
    set_reuseport(&fd, 1)?;
    bind(fd.as_raw_fd(), endpoint.to_sockaddr()?.as_ref())?;
    if door == Door::Closed && endpoint.socket_type() == SockType::Stream {
        sys::drop_packets(&fd)?;
    }
    start(&fd, endpoint, backlog)?;
    Ok(fd)
}

fn set_reuseport(fd: impl AsFd, value: c_int) -> nix::Result<()> {
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, value)
}

fn start(fd: &OwnedFd, endpoint: &Endpoint, backlog: c_int) -> nix::Result<()> {
    if endpoint.socket_type() == SockType::Datagram { Ok(()) } else { sys::listen(fd, backlog) }
}

/// A socket with everything set that must be before bind(2).
pub(super) fn unbound(endpoint: &Endpoint, options: &Options) -> Result<OwnedFd> {
    let mut flags = SockFlag::SOCK_CLOEXEC;
    flags.set(SockFlag::SOCK_NONBLOCK, options.has("nonblock"));
    let fd = above_standard(socket(endpoint.family(), endpoint.socket_type(), flags, None)?)?;
    if let Endpoint::Inet { address, v6only, .. } = endpoint {
        // On UDP it would let a second process take the datagrams of the first.
        if endpoint.socket_type() == SockType::Stream {
            sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        // Set explicitly: net.ipv6.bindv6only may have changed the default.
        if address.is_ipv6() && address.ip().is_unspecified() {
            sys::set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, (*v6only).into())?;
        }
    }
    options.apply(&fd)?;
    Ok(fd)
}

/// Where a standard descriptor is closed, socket(2) takes its number: what is written to stderr must not reach a
/// client.
fn above_standard(fd: OwnedFd) -> nix::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST_FD { Ok(fd) } else { sys::duplicate_from(&fd, FIRST_FD) }
}
