//! What is in the way of what, as the kernel has it; and what is decided from that.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockname, setsockopt, socket, sockopt,
};

use super::*;

const V4: &str = "0.0.0.0";
const DUAL: &str = "::";

/// A socket of this IP version, and whether it is for that alone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Socket {
    V4,
    V6,
    V6Only,
}

fn request(socket: Socket, ip: &str, port: u16) -> BindRequest {
    let endpoint = Endpoint::Inet {
        kind: Transport::Tcp,
        address: (ip.parse::<IpAddr>().unwrap(), port).into(),
        v6only: socket == Socket::V6Only,
    };
    BindRequest { is_v6: socket != Socket::V4, endpoint }
}

/// The kernel's answer to a bind(2) of this.
fn try_bind(kind: Socket, ip: &str, port: u16) -> nix::Result<OwnedFd> {
    let family = if kind == Socket::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    if kind != Socket::V4 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &(kind == Socket::V6Only))?;
    }
    let mut address = SocketAddr::new(ip.parse().unwrap(), port);
    if let (IpAddr::V4(ip), false) = (address.ip(), kind == Socket::V4) {
        address.set_ip(ip.to_ipv6_mapped().into());
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address)).map(|()| socket)
}

fn port_of(socket: &OwnedFd) -> u16 {
    let bound: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
    bound.as_sockaddr_in().map(|it| it.port()).or(bound.as_sockaddr_in6().map(|it| it.port())).unwrap()
}

const ALL: [(Socket, &str); 11] = [
    (Socket::V4, "0.0.0.0"),
    (Socket::V4, "127.0.0.1"),
    (Socket::V4, "127.0.0.2"),
    (Socket::V6, "0.0.0.0"),
    (Socket::V6, "127.0.0.1"),
    (Socket::V6, "::"),
    (Socket::V6, "::1"),
    (Socket::V6Only, "::"),
    (Socket::V6Only, "::1"),
    (Socket::V6, "127.0.0.2"),
    (Socket::V4, "127.0.0.9"),
];

#[test]
fn one_is_in_the_way_of_another_where_the_kernel_refuses_the_second() {
    if try_bind(Socket::V6, "::1", 0).is_err() {
        eprintln!("skipped: there is no IPv6");
        return;
    }
    for (one, one_ip) in ALL {
        for (other, other_ip) in ALL {
            // By a mapped wildcard some kernels mean every address of IPv6 as well.
            if [(one, one_ip), (other, other_ip)].contains(&(Socket::V6, "0.0.0.0")) && (one_ip, other_ip) != (V4, V4) {
                continue;
            }
            // A stranger may have the same port at the other address: no stranger has three of them.
            let is_as_expected = (0..3).any(|_| {
                let first = try_bind(one, one_ip, 0).unwrap();
                let port = port_of(&first);
                let is_refused = try_bind(other, other_ip, port).err() == Some(Errno::EADDRINUSE);
                let (ours, asked) = (request(one, one_ip, port).endpoint, request(other, other_ip, port).endpoint);
                is_in_the_way(&ours, &asked) == is_refused
            });
            assert!(is_as_expected, "{one:?} {one_ip} and {other:?} {other_ip}");
        }
    }
}

/// What is decided where we listen on this, with a port of our own.
fn decided(versions: Versions, ours: (Socket, &str), asked: (Socket, &str)) -> Decision {
    decide(&[(request(ours.0, ours.1, 80).endpoint, versions)], &request(asked.0, asked.1, 80))
}

fn every(ip: &str, v6only: bool) -> Endpoint {
    Endpoint::Inet { kind: Transport::Tcp, address: (ip.parse::<IpAddr>().unwrap(), 80).into(), v6only }
}

#[test]
fn an_address_that_is_written_out_is_given_to_whoever_can_use_it() {
    let ours = |ours, asked| decided(Versions::Given, ours, asked);
    for asked in [(Socket::V4, V4), (Socket::V4, "127.0.0.1"), (Socket::V6, DUAL), (Socket::V6, "127.0.0.1")] {
        assert_eq!(ours((Socket::V4, "127.0.0.1"), asked), Decision::Ours(0), "{asked:?}");
        assert_eq!(ours((Socket::V4, V4), asked), Decision::Ours(0), "{asked:?}");
    }
    for asked in [(Socket::V4, "127.0.0.2"), (Socket::V6Only, DUAL), (Socket::V6, "::1")] {
        assert_eq!(ours((Socket::V4, "127.0.0.1"), asked), Decision::Elsewhere, "{asked:?}");
    }
    // It would misread the addresses of its clients.
    assert_eq!(ours((Socket::V6, DUAL), (Socket::V4, V4)), Decision::OtherVersion(0));
    assert_eq!(ours((Socket::V6, DUAL), (Socket::V6, "::1")), Decision::Ours(0));
    assert_eq!(ours((Socket::V6Only, DUAL), (Socket::V4, V4)), Decision::Elsewhere);
}

// Of datagrams it sends its answers to addresses of IPv6, which a socket of IPv4 does not take.
#[test]
fn a_datagram_socket_is_of_the_version_that_was_asked_for() {
    let udp = |ip: &str, is_v6| {
        let address = (ip.parse::<IpAddr>().unwrap(), 80).into();
        BindRequest { is_v6, endpoint: Endpoint::Inet { kind: Transport::Udp, address, v6only: false } }
    };
    let decided =
        |ours: &str, ip: &str, is_v6| decide(&[(udp(ours, false).endpoint, Versions::Given)], &udp(ip, is_v6));
    assert_eq!(decided(V4, V4, false), Decision::Ours(0));
    assert_eq!(decided(V4, DUAL, true), Decision::OtherVersion(0));
    assert_eq!(decided(V4, V4, true), Decision::OtherVersion(0));
    assert_eq!(decided(DUAL, DUAL, true), Decision::Ours(0));
    // TCP and UDP do not meet.
    assert_eq!(
        decide(&[(udp(V4, false).endpoint, Versions::Given)], &request(Socket::V4, V4, 80)),
        Decision::Elsewhere
    );
}

#[test]
fn the_first_program_chooses_the_versions_of_all_addresses() {
    let open = |asked| decided(Versions::Undecided, (Socket::V6, DUAL), asked);
    assert_eq!(open((Socket::V6, DUAL)), Decision::Ours(0));
    assert_eq!(open((Socket::V4, V4)), Decision::Anew(0, every(V4, false)));
    assert_eq!(open((Socket::V4, "127.0.0.1")), Decision::Anew(0, every(V4, false)));
    assert_eq!(open((Socket::V6Only, DUAL)), Decision::Anew(0, every(DUAL, true)));
    assert_eq!(open((Socket::V6, "::1")), Decision::Anew(0, every(DUAL, true)));
    // It may bind the other one as well, until it serves.
    let half = |ours, asked| decided(Versions::Half, ours, asked);
    assert_eq!(half((Socket::V4, V4), (Socket::V4, "127.0.0.1")), Decision::Ours(0));
    assert_eq!(half((Socket::V4, V4), (Socket::V6Only, DUAL)), Decision::Beside(0, every(DUAL, true)));
    assert_eq!(half((Socket::V6Only, DUAL), (Socket::V4, V4)), Decision::Beside(0, every(V4, false)));
    assert_eq!(half((Socket::V4, V4), (Socket::V6, DUAL)), Decision::OtherVersion(0));
}

#[test]
fn a_later_program_may_not_choose_others() {
    let chosen = |ours, asked| decided(Versions::Chosen, ours, asked);
    assert_eq!(chosen((Socket::V4, V4), (Socket::V4, "127.0.0.1")), Decision::Ours(0));
    for asked in [(Socket::V6, DUAL), (Socket::V6Only, DUAL), (Socket::V6, "::1")] {
        assert_eq!(chosen((Socket::V4, V4), asked), Decision::OtherVersion(0), "{asked:?}");
    }
    assert_eq!(chosen((Socket::V6, DUAL), (Socket::V4, V4)), Decision::OtherVersion(0));
    let both = [(every(V4, false), Versions::Chosen), (every(DUAL, true), Versions::Chosen)];
    assert_eq!(decide(&both, &request(Socket::V6Only, DUAL, 80)), Decision::Ours(1));
    assert_eq!(decide(&both, &request(Socket::V4, V4, 80)), Decision::Ours(0));
    assert_eq!(decide(&both, &request(Socket::V4, V4, 81)), Decision::Elsewhere);
}
