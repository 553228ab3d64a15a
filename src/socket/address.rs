//! Where a socket listens, as it is written: `:8000`, `[::1]:8000`, `/run/app.sock`, `unix:@name`, `vsock:CID:PORT`,
//! `fd:N`. Pure.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::sys::Transport;

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// TCP or UDP.
    Inet(Inet),
    /// AF_UNIX.
    Unix { kind: UnixKind, name: UnixName },
    /// AF_VSOCK; no context id means any.
    Vsock { cid: Option<u32>, port: u32 },
    /// A socket that the caller left open at this number.
    Descriptor(RawFd),
}

/// An internet address before it is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inet {
    pub(crate) kind: Transport,
    pub(crate) family: Family,
    pub(crate) host: Host,
    pub(crate) port: Port,
}

/// The family that the type's name asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Either,
    V4,
    V6,
}

/// The host part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// Nothing before the colon: every interface.
    Every,
    V4(Ipv4Addr),
    /// With the zone behind `%` of a link-local address.
    V6(Ipv6Addr, Option<String>),
    /// To be resolved, once.
    Name(String),
}

/// The port part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Number(u16),
    /// As services(5) has it.
    Service(String),
}

/// What a Unix socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnixKind {
    Stream,
    Datagram,
    SeqPacket,
}

/// Where a Unix socket is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnixName {
    /// In the file system.
    Path(PathBuf),
    /// In the abstract namespace of unix(7), without the leading NUL.
    Abstract(OsString),
}

/// The types that may stand before an address. A host of such a name needs a type before it.
const TYPES: [&str; 8] = ["tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "vsock", "fd"];
/// Those of Unix sockets.
const UNIX_TYPES: [(&str, UnixKind); 3] =
    [("unix", UnixKind::Stream), ("unix-dgram", UnixKind::Datagram), ("unix-seqpacket", UnixKind::SeqPacket)];

/// All of them.
#[cfg(test)]
pub(crate) fn types() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().chain(UNIX_TYPES.map(|(name, _)| name))
}

/// Room in `sun_path` for the name and the NUL that ends it or begins it, unix(7).
const LONGEST_UNIX_NAME: usize = 107;

impl Address {
    /// Could `v6only` mean something here?
    pub(crate) fn may_be_ipv6(&self) -> bool {
        match self {
            Address::Inet(inet) => inet.family != Family::V4 && !matches!(inet.host, Host::V4(_)),
            _ => false,
        }
    }

    /// Read an address.
    pub(crate) fn parse(text: &OsStr) -> Result<Address> {
        ensure!(!text.is_empty(), "the address is empty");
        let bytes = text.as_bytes();
        if [&b"/"[..], b"./", b"../"].iter().any(|start| bytes.starts_with(start)) {
            return unix(UnixKind::Stream, bytes);
        }
        for (kind, carries) in UNIX_TYPES {
            if let Some(rest) = bytes.strip_prefix(kind.as_bytes()).and_then(|rest| rest.strip_prefix(b":")) {
                return unix(carries, rest.strip_prefix(b"//").unwrap_or(rest));
            }
        }
        Address::parse_text(text.to_str().context("it is neither UTF-8 nor a path that begins with / or ./")?)
    }

    /// Read one that is no Unix socket's.
    fn parse_text(text: &str) -> Result<Address> {
        let typed = text.split_once(':').filter(|(kind, _)| TYPES.contains(kind));
        let Some((kind, rest)) = typed else {
            return inet("", Transport::Tcp, Family::Either, text);
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        match kind {
            "tcp" => inet("", Transport::Tcp, Family::Either, rest),
            "tcp4" => inet("tcp4:", Transport::Tcp, Family::V4, rest),
            "tcp6" => inet("tcp6:", Transport::Tcp, Family::V6, rest),
            "udp" => inet("udp:", Transport::Udp, Family::Either, rest),
            "udp4" => inet("udp4:", Transport::Udp, Family::V4, rest),
            "udp6" => inet("udp6:", Transport::Udp, Family::V6, rest),
            "vsock" => vsock(rest),
            _ => descriptor(rest),
        }
    }
}

fn inet(prefix: &str, kind: Transport, family: Family, text: &str) -> Result<Address> {
    if all_digits(text) {
        let here = if family == Family::V6 { "[::1]" } else { "127.0.0.1" };
        parse_port(text)?;
        bail!(
            "a bare number is ambiguous: write {prefix}:{text} for every interface or {prefix}{here}:{text} for \
             this host only"
        );
    }
    if let Some(rest) = ["http://", "https://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        // Behind the host there is a path at most.
        let place = rest.split('/').next().unwrap_or(rest);
        let port = if place.ends_with(']') || !place.contains(':') { ":PORT" } else { "" };
        bail!("a socket has an address, not a URL: write {prefix}{place}{port}");
    }
    if let Some(port) = text.strip_prefix("*:") {
        bail!("every interface is written without *: {prefix}:{port}");
    }
    let (host, port) = text.rsplit_once(':').with_context(|| {
        let remedy = "write HOST:PORT, or a path beginning with / or ./ for a Unix socket";
        if text.starts_with('@') { format!("write unix:{text} for an abstract socket") } else { remedy.to_owned() }
    })?;
    let host = parse_host(host)?;
    match (&host, family) {
        (Host::V6(..), Family::V4) => bail!("{text:?} is not an IPv4 address"),
        (Host::V4(_), Family::V6) => bail!("{text:?} is not an IPv6 address"),
        _ => Ok(Address::Inet(Inet { kind, family, host, port: parse_port(port)? })),
    }
}

fn parse_host(text: &str) -> Result<Host> {
    if text.is_empty() {
        return Ok(Host::Every);
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, zone) = inside.split_once('%').map_or((inside, None), |(a, zone)| (a, Some(zone)));
        ensure!(zone.is_none_or(is_word), "{inside:?} does not name an interface behind %");
        let address = address.parse().map_err(|_| anyhow!("{inside:?} is not an IPv6 address"))?;
        return Ok(Host::V6(address, zone.map(str::to_owned)));
    }
    if let Ok(address) = text.parse() {
        return Ok(Host::V4(address));
    }
    ensure!(!text.contains([':', '[', ']']), "an IPv6 address stands in brackets, as in [::1]:8000");
    ensure!(is_word(text), "{text:?} is not a host name");
    Ok(Host::Name(text.to_owned()))
}

fn parse_port(text: &str) -> Result<Port> {
    if all_digits(text) {
        return text.parse().map(Port::Number).map_err(|_| anyhow!("port {text} is not from 0 to 65535"));
    }
    // A service name has at least one letter (RFC 6335, 5.1): `+80` is a typing mistake.
    let named = is_word(text) && text.contains(|c: char| c.is_ascii_alphabetic());
    ensure!(named, "{text:?} is neither a port nor a service name");
    Ok(Port::Service(text.to_owned()))
}

fn unix(kind: UnixKind, text: &[u8]) -> Result<Address> {
    let (name, named) = match text.strip_prefix(b"@") {
        Some(name) => (UnixName::Abstract(OsStr::from_bytes(name).to_owned()), name),
        None => (UnixName::Path(OsStr::from_bytes(text).into()), text),
    };
    ensure!(!named.is_empty(), "the name of the Unix socket is empty");
    ensure!(named.len() <= LONGEST_UNIX_NAME, "a Unix socket's name has at most {LONGEST_UNIX_NAME} bytes");
    Ok(Address::Unix { kind, name })
}

fn vsock(text: &str) -> Result<Address> {
    let (cid, port) = text.split_once(':').context("write vsock:CID:PORT, or vsock::PORT for any context")?;
    let number = |text: &str| -> Result<u32> {
        ensure!(all_digits(text), "{text:?} is not a number");
        text.parse().map_err(|_| anyhow!("{text} is not from 0 to {}", u32::MAX))
    };
    let cid = if cid.is_empty() { None } else { Some(number(cid)?) };
    Ok(Address::Vsock { cid: cid.filter(|cid| *cid != libc::VMADDR_CID_ANY), port: number(port)? })
}

fn descriptor(text: &str) -> Result<Address> {
    let number = Some(text).filter(|text| all_digits(text)).and_then(|text| text.parse().ok());
    number.map(Address::Descriptor).with_context(|| format!("{text:?} is not the number of a descriptor"))
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What host, service and interface names are made of; getaddrinfo(3) decides the rest.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._+".contains(&byte))
}
