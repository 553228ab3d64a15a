//! Each option of a SPEC, as the target's socket or its file shows it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::unistd::{Group, User};

use crate::harness::socket::{address, ipv6_is_missing, listening, option};
use crate::harness::{Folder, handoff_run_with, is_root_to};

/// The backlog of a listening TCP socket: TCP_INFO has it where a connection has its SACKs.
fn backlog(listener: &OwnedFd) -> u32 {
    // SAFETY: struct tcp_info is all integers, of which zero is one.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (level, name, value) = (libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast());
    // SAFETY: the kernel writes at most `length` bytes into `info`, which lives through the call.
    let done = unsafe { libc::getsockopt(listener.as_raw_fd(), level, name, value, &raw mut length) };
    Errno::result(done).unwrap();
    info.tcpi_sacked
}

fn is_nonblocking(socket: impl AsFd) -> bool {
    OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
}

// handoff-run(1), --backlog: "The kernel lowers it to net.core.somaxconn, which is also the default".
#[test]
fn the_backlog_is_as_long_as_the_kernel_allows_unless_it_is_given() {
    let most: u32 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    assert_eq!(backlog(&listening("127.0.0.1:0").sockets[0]), most);
    assert_eq!(backlog(&listening("127.0.0.1:0,backlog=2147483647").sockets[0]), most);
    assert_eq!(backlog(&listening("127.0.0.1:0,backlog=5").sockets[0]), 5);
    assert_eq!(backlog(&listening("127.0.0.1:0,backlog=0").sockets[0]), 0);
}

// handoff-run(1), --backlog: "For the sockets whose SPEC does not say".
#[test]
fn a_backlog_in_the_spec_wins_over_the_one_for_all() {
    let listen = ["-q", "--backlog", "7", "-l", "127.0.0.1:0", "-l", "127.0.0.1:0,backlog=9", "--"];
    let report = handoff_run_with(&listen).report();
    assert_eq!(report.sockets.iter().map(backlog).collect::<Vec<_>>(), [7, 9]);
}

#[test]
fn a_unix_socket_has_its_backlog_too() {
    let folder = Folder::new();
    let _report = listening(&format!("{},backlog=2", folder.text("s")));
    let address = UnixAddr::new(&folder.path("s")).unwrap();
    let client = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        connect(client.as_raw_fd(), &address).map(|()| client)
    };
    // The kernel lets one more in than the number says.
    let clients: Vec<OwnedFd> = std::iter::from_fn(|| client().ok()).take(10).collect();
    assert_eq!((clients.len(), client().unwrap_err()), (3, Errno::EAGAIN));
}

#[test]
fn the_mode_of_the_file_is_as_given() {
    let folder = Folder::new();
    for (number, mode) in ["0600", "660", "0666", "0777", "0", "0123"].iter().enumerate() {
        for kind in ["unix", "unix-dgram", "unix-seqpacket"] {
            let path = folder.text(&format!("{kind}{number}"));
            let _report = listening(&format!("{kind}:{path},mode={mode}"));
            let bits = fs::metadata(&path).unwrap().mode() & 0o7777;
            assert_eq!(bits, u32::from_str_radix(mode, 8).unwrap(), "{kind} {mode}");
        }
    }
}

#[test]
fn the_owner_of_the_file_is_as_given_by_name_or_by_number() {
    if !is_root_to("give files away") {
        return;
    }
    let folder = Folder::new();
    let user = User::from_name("nobody").unwrap().unwrap();
    let group = Group::from_gid(user.gid).unwrap().unwrap();
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let table = [
        (format!("user={}", user.name), (uid, 0)),
        (format!("group={}", group.name), (0, gid)),
        (format!("user={},group={}", user.name, group.name), (uid, gid)),
        ("user=12345,group=54321".to_owned(), (12345, 54321)),
    ];
    for (number, (options, owner)) in table.into_iter().enumerate() {
        let path = folder.text(&number.to_string());
        let _report = listening(&format!("{path},mode=0640,{options}"));
        let file = fs::metadata(&path).unwrap();
        assert_eq!(((file.uid(), file.gid()), file.mode() & 0o7777), (owner, 0o640), "{options}");
    }
}

#[test]
fn an_unknown_owner_is_an_error_and_leaves_no_file() {
    let folder = Folder::new();
    for who in ["user", "group"] {
        let spec = format!("{},{who}=no-such-one", folder.text("s"));
        let output = handoff_run_with(&["-l", &spec, "--", "true"]).output();
        let expected = format!("handoff-run: cannot listen on {spec}: {who} no-such-one: not found\n");
        assert_eq!(output.failure(), (125, expected.as_str()));
        assert!(folder.names().is_empty());
    }
}

#[test]
fn a_socket_for_ipv6_only_has_no_ipv4() {
    if ipv6_is_missing() {
        return;
    }
    for spec in [":0,v6only", "[::]:0,v6only", "tcp6::0,v6only", "[::1]:0,v6only", "localhost:0,v6only"] {
        let report = listening(spec);
        let socket = &report.sockets[0];
        assert_eq!(option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), 1, "{spec}");
        TcpStream::connect(("::1", address(socket).port())).unwrap();
    }
    let report = listening("udp::0,v6only");
    assert_eq!(option(&report.sockets[0], libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), 1);
}

#[test]
fn a_port_may_be_shared_with_reuseport_and_not_without() {
    for kind in ["tcp", "udp"] {
        let first = listening(&format!("{kind}:127.0.0.1:0,reuseport"));
        assert_eq!(getsockopt(&first.sockets[0], sockopt::ReusePort), Ok(true));
        let port = address(&first.sockets[0]).port();
        let second = listening(&format!("{kind}:127.0.0.1:{port},reuseport"));
        assert_eq!(address(&second.sockets[0]).port(), port);
        let spec = format!("{kind}:127.0.0.1:{port}");
        let output = handoff_run_with(&["-l", &spec, "--", "true"]).output();
        assert_eq!(output.code(), 125, "{output:?}");
        assert_eq!(getsockopt(&listening(&format!("{kind}:127.0.0.1:0")).sockets[0], sockopt::ReusePort), Ok(false));
    }
}

#[test]
fn an_address_that_no_interface_has_is_bound_with_freebind_and_not_without() {
    // TEST-NET-1 and the prefix for documentation (RFC 5737, RFC 3849).
    for (spec, host) in
        [("192.0.2.1:0", "192.0.2.1"), ("udp:192.0.2.1:0", "192.0.2.1"), ("[2001:db8::1]:0", "2001:db8::1")]
    {
        let host: IpAddr = host.parse().unwrap();
        if host.is_ipv6() && ipv6_is_missing() {
            continue;
        }
        let report = listening(&format!("{spec},freebind"));
        assert_eq!(address(&report.sockets[0]).ip(), host);
        let output = handoff_run_with(&["-l", spec, "--", "true"]).output();
        let reason = "EADDRNOTAVAIL: Cannot assign requested address";
        assert_eq!(output.failure(), (125, format!("handoff-run: cannot listen on {}: {reason}\n", spec).as_str()));
    }
}

#[test]
fn a_socket_may_be_tied_to_a_device() {
    for spec in ["0.0.0.0:0,device=lo", "udp:0.0.0.0:0,device=lo", ":0,device=lo"] {
        let report = listening(spec);
        let device = getsockopt(&report.sockets[0], sockopt::BindToDevice).unwrap();
        assert_eq!(device.to_str().unwrap().trim_end_matches('\0'), "lo", "{spec}");
    }
    let spec = "127.0.0.1:0,device=no-such-if";
    let output = handoff_run_with(&["-l", spec, "--", "true"]).output();
    let expected = format!("handoff-run: cannot listen on {spec}: option device: ENODEV: No such device\n");
    assert_eq!(output.failure(), (125, expected.as_str()));
}

// handoff-run(1), defer-accept: "seconds that a connection may wait for its first data".
#[test]
fn a_connection_is_deferred_until_it_has_sent_something() {
    let report = listening("127.0.0.1:0,defer-accept=5");
    // The kernel counts in retransmissions, so it rounds up.
    assert!((5..=10).contains(&option(&report.sockets[0], libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT)));
    let report = listening("127.0.0.1:0");
    assert_eq!(option(&report.sockets[0], libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT), 0);
}

#[test]
fn keepalive_and_nodelay_are_set_only_when_asked_for_and_reach_the_connections() {
    let report = listening("127.0.0.1:0,keepalive,nodelay");
    let socket = &report.sockets[0];
    let listener = std::net::TcpListener::from(socket.try_clone().unwrap());
    let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, address(socket).port())).unwrap();
    let accepted = OwnedFd::from(listener.accept().unwrap().0);
    for socket in [socket, &accepted] {
        assert_eq!(getsockopt(socket, sockopt::KeepAlive), Ok(true));
        assert_eq!(option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY), 1);
    }
    let plain = listening("127.0.0.1:0");
    assert_eq!(getsockopt(&plain.sockets[0], sockopt::KeepAlive), Ok(false));
    assert_eq!(option(&plain.sockets[0], libc::IPPROTO_TCP, libc::TCP_NODELAY), 0);
}

#[test]
fn the_buffers_are_as_the_kernel_makes_them_of_these_numbers() {
    let folder = Folder::new();
    let unix = format!("unix-dgram:{}", folder.text("s"));
    for address in ["127.0.0.1:0", "udp:127.0.0.1:0", &unix] {
        let report = listening(&format!("{address},rcvbuf=20000,sndbuf=30000"));
        // What the kernel does to a socket of ours that is asked for the same.
        let own = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&own, sockopt::RcvBuf, &20000).unwrap();
        setsockopt(&own, sockopt::SndBuf, &30000).unwrap();
        let buffers = |socket: &OwnedFd| [getsockopt(socket, sockopt::RcvBuf), getsockopt(socket, sockopt::SndBuf)];
        assert_eq!(buffers(&report.sockets[0]), buffers(&own), "{address}");
    }
}

// handoff-run(1), nonblock: "O_NONBLOCK, for servers which need it and do not set it".
#[test]
fn a_socket_blocks_unless_it_shall_not() {
    let folder = Folder::new();
    let path = folder.text("s");
    let datagram = format!("unix-dgram:{}", folder.text("d"));
    for address in ["127.0.0.1:0", "udp:127.0.0.1:0", &path, &datagram] {
        assert!(!is_nonblocking(&listening(address).sockets[0]), "{address}");
    }
    let (path, datagram) = (path + "n", datagram + "n");
    for address in ["127.0.0.1:0", "udp:127.0.0.1:0", &path, &datagram] {
        assert!(is_nonblocking(&listening(&format!("{address},nonblock")).sockets[0]), "{address}");
    }
}
