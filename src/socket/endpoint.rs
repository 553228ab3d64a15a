//! A concrete address: what bind(2) takes, what getsockname(2) returns, and whether the two are the same.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr, getsockname};

use crate::socket::address::{Address, Family, Host, Inet, Port, UnixKind, UnixName};
use crate::socket::lookup;
use crate::socket::spec::Spec;
use crate::sys::{self, Transport};

/// Where a socket is bound or shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `v6only` counts for `[::]` alone, which without it takes IPv4 too.
    Inet {
        kind: Transport,
        address: SocketAddr,
        v6only: bool,
    },
    Unix {
        kind: UnixKind,
        name: UnixName,
    },
    Vsock {
        cid: u32,
        port: u32,
    },
}

/// The endpoints that serve `spec`, the best first; empty for a descriptor, which needs none.
pub(crate) fn resolve(spec: &Spec) -> Result<Vec<Endpoint>> {
    let v6only = spec.options.has("v6only");
    match &spec.address {
        Address::Inet(inet) => {
            let addresses = resolve_inet(inet, v6only)?;
            Ok(addresses.into_iter().map(|address| Endpoint::Inet { kind: inet.kind, address, v6only }).collect())
        }
        Address::Unix { kind, name } => Ok(vec![Endpoint::Unix { kind: *kind, name: name.clone() }]),
        Address::Vsock { cid, port } => {
            Ok(vec![Endpoint::Vsock { cid: cid.unwrap_or(libc::VMADDR_CID_ANY), port: *port }])
        }
        Address::Descriptor(_) => Ok(vec![]),
    }
}

fn resolve_inet(inet: &Inet, v6only: bool) -> Result<Vec<SocketAddr>> {
    let port = resolve_port(inet)?;
    let every_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let every_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    Ok(match (&inet.host, inet.family) {
        (Host::Every, Family::V4) => vec![every_v4],
        (Host::Every, Family::Either) if !v6only => vec![every_v6, every_v4],
        (Host::Every, _) => vec![every_v6],
        (Host::V4(address), _) => vec![(*address, port).into()],
        (Host::V6(address, zone), _) => vec![SocketAddrV6::new(*address, port, 0, scope(address, zone)?).into()],
        (Host::Name(name), family) => vec![(resolve_name(name, family, v6only)?, port).into()],
    })
}

fn resolve_port(inet: &Inet) -> Result<u16> {
    match &inet.port {
        Port::Number(number) => Ok(*number),
        Port::Service(name) => lookup::service(name, if inet.kind == Transport::Tcp { "tcp" } else { "udp" }),
    }
}

/// The interface's number. The kernel keeps it where the same address may be on several, and forgets it elsewhere: there
/// getsockname(2) would not return what was asked for.
fn scope(address: &Ipv6Addr, zone: &Option<String>) -> Result<u32> {
    let Some(zone) = zone.as_deref() else { return Ok(0) };
    let number = zone.parse().or_else(|_| if_nametoindex(zone)).with_context(|| format!("interface {zone}"))?;
    let [first, second, ..] = address.octets();
    // ff01 to ff02: multicast on this interface or link.
    let has_scope = address.is_unicast_link_local() || (first == 0xff && matches!(second & 0xf, 1 | 2));
    Ok(if has_scope { number } else { 0 })
}

/// The first IPv4 address of the wanted family, else the first.
fn resolve_name(name: &str, family: Family, v6only: bool) -> Result<IpAddr> {
    let fits = |address: &IpAddr| match family {
        Family::Either => !v6only || address.is_ipv6(),
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    };
    let addresses: Vec<IpAddr> = lookup::host(name)?.into_iter().filter(fits).collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().with_context(|| format!("host {name} has no address of this family"))
}

impl Endpoint {
    /// The address that the kernel has for a socket; an error for an unknown family or an unbound socket.
    pub(crate) fn of(socket: impl AsFd) -> Result<Endpoint> {
        let address: SockaddrStorage = getsockname(socket.as_fd().as_raw_fd())?;
        let kind = sys::option(&socket, libc::SOL_SOCKET, libc::SO_TYPE)?;
        if let Some(address) = inet_address(&address) {
            let kind = if kind == libc::SOCK_STREAM { Transport::Tcp } else { Transport::Udp };
            let v6only = address.is_ipv6()
                && sys::option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).is_ok_and(|on| on == 1);
            return Ok(Endpoint::Inet { kind, address, v6only });
        }
        if let Some(address) = address.as_vsock_addr() {
            return Ok(Endpoint::Vsock { cid: address.cid(), port: address.port() });
        }
        let name = address.as_unix_addr().and_then(unix_name).context("the socket has no address")?;
        let kind = match kind {
            libc::SOCK_STREAM => UnixKind::Stream,
            libc::SOCK_DGRAM => UnixKind::Datagram,
            _ => UnixKind::SeqPacket,
        };
        Ok(Endpoint::Unix { kind, name })
    }

    /// Can a socket bound to `bound` be adopted for `self`? A port 0 matches any. A path is not compared here:
    /// its name proves nothing, since the file may be another socket's by now.
    pub(crate) fn is_served_by(&self, bound: &Endpoint) -> bool {
        match (self, bound) {
            (
                Endpoint::Inet { kind, address, v6only },
                Endpoint::Inet { kind: bound_kind, address: bound, v6only: bound_v6only },
            ) => {
                kind == bound_kind
                    && same_host(address, bound)
                    && (address.port() == 0 || address.port() == bound.port())
                    && (address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) || v6only == bound_v6only)
            }
            (Endpoint::Vsock { cid, port: libc::VMADDR_PORT_ANY }, Endpoint::Vsock { cid: bound, .. }) => cid == bound,
            _ => self == bound,
        }
    }

    /// Will the kernel choose the port?
    pub(crate) fn has_free_port(&self) -> bool {
        match self {
            Endpoint::Inet { address, .. } => address.port() == 0,
            Endpoint::Vsock { port, .. } => *port == libc::VMADDR_PORT_ANY,
            Endpoint::Unix { .. } => false,
        }
    }

    /// The family for socket(2).
    pub(crate) fn family(&self) -> AddressFamily {
        match self {
            Endpoint::Inet { address: SocketAddr::V4(_), .. } => AddressFamily::Inet,
            Endpoint::Inet { address: SocketAddr::V6(_), .. } => AddressFamily::Inet6,
            Endpoint::Unix { .. } => AddressFamily::Unix,
            Endpoint::Vsock { .. } => AddressFamily::Vsock,
        }
    }

    /// The type for socket(2).
    pub(crate) fn socket_type(&self) -> SockType {
        match self {
            Endpoint::Inet { kind: Transport::Udp, .. } | Endpoint::Unix { kind: UnixKind::Datagram, .. } => {
                SockType::Datagram
            }
            Endpoint::Unix { kind: UnixKind::SeqPacket, .. } => SockType::SeqPacket,
            _ => SockType::Stream,
        }
    }

    /// The address for bind(2).
    pub(crate) fn to_sockaddr(&self) -> Result<Box<dyn SockaddrLike>> {
        Ok(match self {
            Endpoint::Inet { address, .. } => Box::new(SockaddrStorage::from(*address)),
            Endpoint::Unix { name: UnixName::Path(path), .. } => Box::new(UnixAddr::new(path)?),
            Endpoint::Unix { name: UnixName::Abstract(name), .. } => Box::new(UnixAddr::new_abstract(name.as_bytes())?),
            Endpoint::Vsock { cid, port } => Box::new(VsockAddr::new(*cid, *port)),
        })
    }

    /// The host part, without brackets, for `{host}`.
    pub(crate) fn host(&self) -> Result<String> {
        match self {
            Endpoint::Inet { address, .. } => Ok(address.ip().to_string()),
            Endpoint::Vsock { cid, .. } => Ok(cid.to_string()),
            Endpoint::Unix { .. } => bail!("a Unix socket has no host"),
        }
    }

    /// The port, for `{port}`.
    pub(crate) fn port(&self) -> Result<u32> {
        match self {
            Endpoint::Inet { address, .. } => Ok(address.port().into()),
            Endpoint::Vsock { port, .. } => Ok(*port),
            Endpoint::Unix { .. } => bail!("a Unix socket has no port"),
        }
    }

    /// The whole, for `{addr}`: a path byte for byte.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Endpoint::Unix { name: UnixName::Path(path), .. } => path.as_os_str().as_bytes().to_vec(),
            Endpoint::Unix { name: UnixName::Abstract(name), .. } => [b"@", name.as_bytes()].concat(),
            _ => self.to_string().into_bytes(),
        }
    }

    /// The path, for `{path}`.
    pub(crate) fn path(&self) -> Result<&Path> {
        match self {
            Endpoint::Unix { name: UnixName::Path(path), .. } => Ok(path),
            _ => bail!("{self} has no path"),
        }
    }
}

/// The same interface, whatever the port.
fn same_host(one: &SocketAddr, other: &SocketAddr) -> bool {
    match (one, other) {
        (SocketAddr::V6(one), SocketAddr::V6(other)) => one.ip() == other.ip() && one.scope_id() == other.scope_id(),
        _ => one.ip() == other.ip(),
    }
}

fn inet_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}

fn unix_name(address: &UnixAddr) -> Option<UnixName> {
    let path = address.path().map(|path| UnixName::Path(path.to_owned()));
    path.or_else(|| Some(UnixName::Abstract(OsStr::from_bytes(address.as_abstract()?).to_owned())))
}

/// As getsockname(2) gives it, in the form that servers compare.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Inet { address, .. } => write!(f, "{address}"),
            Endpoint::Unix { name, .. } => match name {
                UnixName::Path(path) => write!(f, "{}", path.display()),
                UnixName::Abstract(name) => write!(f, "@{}", name.display()),
            },
            Endpoint::Vsock { cid, port } => write!(f, "{cid}:{port}"),
        }
    }
}
