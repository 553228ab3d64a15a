//! A SPEC as text: what `FromStr` reads back to the same value.

use std::fmt;

use super::{Address, Family, FdName, Host, Inet, InetKind, Port, Spec, TYPES, UnixKind, UnixName, escaped};

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{}=", escaped(&name.0))?;
        }
        write!(f, "{}{}", escaped(&self.address.to_string()), self.options)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(inet) => write!(f, "{inet}"),
            Address::Unix { kind: UnixKind::Stream, name: UnixName::Path(path) } if path.starts_with('/') => {
                f.write_str(path)
            }
            Address::Unix { kind, name } => write!(f, "{}{name}", kind.prefix()),
            Address::Vsock { cid: Some(cid), port } => write!(f, "vsock:{cid}:{port}"),
            Address::Vsock { cid: None, port } => write!(f, "vsock::{port}"),
            Address::Descriptor(number) => write!(f, "fd:{number}"),
        }
    }
}

impl UnixKind {
    /// `//` keeps a path that itself begins so from losing its own.
    fn prefix(self) -> &'static str {
        match self {
            UnixKind::Stream => "unix:",
            UnixKind::Datagram => "unix-dgram:",
            UnixKind::SeqPacket => "unix-seqpacket:",
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnixName::Path(path) if path.starts_with("//") => write!(f, "//{path}"),
            UnixName::Path(path) => f.write_str(path),
            UnixName::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl fmt::Display for Inet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let looks_typed = matches!(&self.host, Host::Name(name) if TYPES.contains(&name.as_str()));
        f.write_str(match (self.kind, self.family) {
            (InetKind::Tcp, Family::Either) if looks_typed => "tcp:",
            (InetKind::Tcp, Family::Either) => "",
            (InetKind::Tcp, Family::V4) => "tcp4:",
            (InetKind::Tcp, Family::V6) => "tcp6:",
            (InetKind::Udp, Family::Either) => "udp:",
            (InetKind::Udp, Family::V4) => "udp4:",
            (InetKind::Udp, Family::V6) => "udp6:",
        })?;
        match &self.host {
            Host::Every => Ok(()),
            Host::V4(address) => write!(f, "{address}"),
            Host::V6(address, None) => write!(f, "[{address}]"),
            Host::V6(address, Some(zone)) => write!(f, "[{address}%{zone}]"),
            Host::Name(name) => f.write_str(name),
        }?;
        match &self.port {
            Port::Number(number) => write!(f, ":{number}"),
            Port::Service(service) => write!(f, ":{service}"),
        }
    }
}

impl fmt::Display for FdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
