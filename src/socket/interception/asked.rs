//! The address that a program gave to bind(2), out of its memory. Nothing of it is trusted. Pure.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::OsStrExt;

use libc::c_int;

use crate::socket::address::UnixName;

/// The longest address, sizeof(struct sockaddr_storage): bind(2) takes none that is longer.
pub(crate) const LONGEST_ADDRESS: usize = 128;

/// An address of a family that we listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// An IPv4 address that is mapped into IPv6 is one of IPv4.
    Inet(SocketAddr),
    Unix(UnixName),
    Vsock {
        cid: u32,
        port: u32,
    },
}

impl Asked {
    /// What bind(2) makes of a struct sockaddr: ip(7), ipv6(7), unix(7), vsock(7). None of another family, too short, or
    /// where the kernel chooses: no port, no name.
    pub(crate) fn parse(address: &[u8]) -> Option<Asked> {
        let family = c_int::from(u16::from_ne_bytes(*address.first_chunk()?));
        match family {
            libc::AF_INET => inet(address).map(Asked::Inet),
            // net/ipv4/af_inet.c: programs that leave it out are borne with, for every interface.
            libc::AF_UNSPEC => inet(address).filter(|address| address.ip().is_unspecified()).map(Asked::Inet),
            libc::AF_INET6 => inet6(address).map(Asked::Inet),
            libc::AF_UNIX => Some(Asked::Unix(unix(&address[2..])?)),
            libc::AF_VSOCK => {
                let word = |at: usize| Some(u32::from_ne_bytes(*address.get(at..)?.first_chunk()?));
                // struct sockaddr_vm: family, 2 bytes, port, context id.
                let (port, cid) = (word(4)?, word(8)?);
                (port != libc::VMADDR_PORT_ANY).then_some(Asked::Vsock { cid, port })
            }
            _ => None,
        }
    }
}

fn inet(address: &[u8]) -> Option<SocketAddr> {
    let port = port(address)?;
    let ip: [u8; 4] = *address.get(4..)?.first_chunk()?;
    (address.len() >= size_of::<libc::sockaddr_in>()).then(|| (Ipv4Addr::from(ip), port).into())
}

fn inet6(address: &[u8]) -> Option<SocketAddr> {
    let port = port(address)?;
    let ip = Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?);
    // RFC 2133 has no scope id; the kernel takes an address without.
    let scope = address.get(24..).and_then(|rest| rest.first_chunk()).map_or(0, |scope| u32::from_ne_bytes(*scope));
    Some(match ip.to_ipv4_mapped() {
        Some(ip) => (ip, port).into(),
        None => SocketAddrV6::new(ip, port, 0, if ip.is_unicast_link_local() { scope } else { 0 }).into(),
    })
}

fn port(address: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*address.get(2..)?.first_chunk()?)).filter(|port| *port != 0)
}

fn unix(name: &[u8]) -> Option<UnixName> {
    match name {
        [] => None,
        [0, name @ ..] => Some(UnixName::Abstract(OsStr::from_bytes(name).to_owned())),
        path => {
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            Some(UnixName::Path(OsStr::from_bytes(&path[..end]).into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr};
    use proptest::prelude::*;

    use super::*;

    /// The bytes that a program would give.
    fn bytes(address: &impl SockaddrLike) -> Vec<u8> {
        // SAFETY: a sockaddr has as many bytes as it says.
        unsafe { std::slice::from_raw_parts(address.as_ptr().cast(), address.len() as usize) }.to_vec()
    }

    fn parsed(text: &str) -> Option<Asked> {
        Asked::parse(&bytes(&SockaddrStorage::from(text.parse::<SocketAddr>().unwrap())))
    }

    #[test]
    fn addresses_are_read_as_bind_reads_them() {
        for text in ["127.0.0.1:80", "0.0.0.0:8000", "[::]:80", "[::1]:443", "[fe80::1%3]:9"] {
            assert_eq!(parsed(text), Some(Asked::Inet(text.parse().unwrap())), "{text}");
        }
        assert_eq!(parsed("[::ffff:10.0.0.1]:80"), Some(Asked::Inet("10.0.0.1:80".parse().unwrap())));
        assert_eq!(parsed("[::1%3]:80"), Some(Asked::Inet("[::1]:80".parse().unwrap())), "it has no scope");
        assert_eq!(parsed("127.0.0.1:0"), None, "the kernel chooses");
        let path = UnixAddr::new("/run/app.sock").unwrap();
        assert_eq!(Asked::parse(&bytes(&path)), Some(Asked::Unix(UnixName::Path("/run/app.sock".into()))));
        let name = UnixAddr::new_abstract(b"a\0b").unwrap();
        let expected = UnixName::Abstract(OsStr::from_bytes(b"a\0b").to_owned());
        assert_eq!(Asked::parse(&bytes(&name)), Some(Asked::Unix(expected)));
        let vsock = Asked::parse(&bytes(&VsockAddr::new(2, 99)));
        assert_eq!(vsock, Some(Asked::Vsock { cid: 2, port: 99 }));
    }

    #[test]
    fn a_family_that_was_left_out_is_that_of_ipv4_for_every_interface_only() {
        let mut any = bytes(&SockaddrStorage::from("0.0.0.0:80".parse::<SocketAddr>().unwrap()));
        any[..2].fill(0);
        assert_eq!(Asked::parse(&any), Some(Asked::Inet("0.0.0.0:80".parse().unwrap())));
        any[4] = 127;
        assert_eq!(Asked::parse(&any), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..LONGEST_ADDRESS), family in 0u8..50) {
            let _ = Asked::parse(&bytes);
            let mut bytes = bytes;
            if bytes.len() > 1 {
                (bytes[0], bytes[1]) = (family, 0);
            }
            let _ = Asked::parse(&bytes);
        }
    }
}
