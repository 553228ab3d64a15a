//! Each kind of internet address, bound for real: what the target's socket says of itself, and who reaches it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process;

use nix::errno::Errno;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::harness::socket::{address, ipv6_is_missing, listening, option};
use crate::harness::{DEADLINE, handoff_run_with, skip};

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const HERE4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const HERE6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// One byte over a new connection from here to the target's listener.
#[track_caller]
fn assert_tcp_reaches(listener: &OwnedFd, host: IpAddr) {
    let mut client = TcpStream::connect((host, address(listener).port())).unwrap();
    client.write_all(b"x").unwrap();
    let (mut server, _) = TcpListener::from(listener.try_clone().unwrap()).accept().unwrap();
    let mut byte = [0];
    server.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

/// One datagram from here to the target's socket.
#[track_caller]
fn assert_udp_reaches(receiver: &OwnedFd, host: IpAddr) {
    let client = UdpSocket::bind(if host.is_ipv4() { (HERE4, 0) } else { (HERE6, 0) }).unwrap();
    client.send_to(b"x", (host, address(receiver).port())).unwrap();
    let receiver = UdpSocket::from(receiver.try_clone().unwrap());
    receiver.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
}

// handoff-run(1): ":8000 is TCP on every interface, IPv6 and IPv4 in one dual-stack socket".
#[test]
fn a_port_alone_is_one_dual_stack_socket() {
    if ipv6_is_missing() {
        return;
    }
    for spec in [":0", "tcp::0", "[::]:0", "tcp6::0", "tcp:[::]:0"] {
        let report = listening(spec);
        let socket = &report.sockets[0];
        assert_eq!(address(socket).ip(), ANY6, "{spec}");
        assert_eq!(option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), 0, "{spec}");
        assert_tcp_reaches(socket, HERE4);
        assert_tcp_reaches(socket, HERE6);
    }
}

#[test]
fn an_udp_port_alone_is_one_dual_stack_socket() {
    if ipv6_is_missing() {
        return;
    }
    for spec in ["udp::0", "udp:[::]:0", "udp6::0"] {
        let report = listening(spec);
        let socket = &report.sockets[0];
        assert_eq!(address(socket).ip(), ANY6, "{spec}");
        assert_eq!(option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), 0, "{spec}");
        assert_udp_reaches(socket, HERE4);
        assert_udp_reaches(socket, HERE6);
    }
}

#[test]
fn a_tcp_address_is_bound_as_it_says() {
    let table = [
        ("127.0.0.1:0", HERE4),
        ("tcp:127.0.0.1:0", HERE4),
        ("tcp4:127.0.0.1:0", HERE4),
        ("tcp://127.0.0.1:0", HERE4),
        ("127.0.0.2:0", IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2))),
        ("0.0.0.0:0", ANY4),
        ("tcp4::0", ANY4),
        ("localhost:0", HERE4),
        ("tcp4:localhost:0", HERE4),
        ("[::1]:0", HERE6),
        ("tcp6:[::1]:0", HERE6),
        ("tcp6:localhost:0", HERE6),
    ];
    for (spec, host) in table {
        if host.is_ipv6() && ipv6_is_missing() {
            continue;
        }
        let report = listening(spec);
        let socket = &report.sockets[0];
        assert_eq!(address(socket).ip(), host, "{spec}");
        assert_eq!(getsockopt(socket, sockopt::SockType), Ok(SockType::Stream), "{spec}");
        assert_eq!(getsockopt(socket, sockopt::AcceptConn), Ok(true), "{spec}");
        let client = if host == ANY4 { HERE4 } else { host };
        assert_tcp_reaches(socket, client);
    }
}

#[test]
fn an_udp_address_is_bound_as_it_says() {
    let table = [
        ("udp:127.0.0.1:0", HERE4),
        ("udp4:127.0.0.1:0", HERE4),
        ("udp://127.0.0.1:0", HERE4),
        ("udp4::0", ANY4),
        ("udp:localhost:0", HERE4),
        ("udp:[::1]:0", HERE6),
        ("udp6:[::1]:0", HERE6),
    ];
    for (spec, host) in table {
        if host.is_ipv6() && ipv6_is_missing() {
            continue;
        }
        let report = listening(spec);
        let socket = &report.sockets[0];
        assert_eq!(address(socket).ip(), host, "{spec}");
        assert_eq!(getsockopt(socket, sockopt::SockType), Ok(SockType::Datagram), "{spec}");
        let client = if host == ANY4 { HERE4 } else { host };
        assert_udp_reaches(socket, client);
    }
}

// handoff-run(1): "IPv4 alone where the kernel has no IPv6".
#[test]
fn a_port_alone_is_ipv4_where_the_kernel_has_no_ipv6() {
    for (spec, kind) in [(":0", SockType::Stream), ("udp::0", SockType::Datagram)] {
        let report = handoff_run_with(&["-l", spec, "--"]).before_exec(deny_ipv6).report();
        let address = address(&report.sockets[0]);
        assert_eq!(address.ip(), ANY4);
        assert_eq!(getsockopt(&report.sockets[0], sockopt::SockType), Ok(kind));
        assert_eq!(report.finish().stderr, format!("handoff-run: {spec} listens on 0.0.0.0:{}\n", address.port()));
    }
}

#[test]
fn an_address_of_ipv6_is_an_error_where_the_kernel_has_no_ipv6() {
    for spec in ["[::]:0", "[::1]:0", "tcp6::0", ":0,v6only"] {
        let output = handoff_run_with(&["-l", spec, "--", "true"]).before_exec(deny_ipv6).output();
        let message = "EAFNOSUPPORT: Address family not supported by protocol";
        let expected = format!("handoff-run: cannot listen on {spec}: {message}\n");
        assert_eq!(output.failure(), (125, expected.as_str()));
    }
}

/// Answer socket(AF_INET6) as a kernel without IPv6 does, from here on.
fn deny_ipv6() -> io::Result<()> {
    // struct seccomp_data: the number of the call stands at 0, its first argument at 16, lower half first or last.
    let family_at = 16 + if cfg!(target_endian = "big") { 4 } else { 0 };
    let (load, equal) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let operation = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        operation(load, 0, 0, 0),
        operation(equal, 0, 3, libc::SYS_socket as u32),
        operation(load, 0, 0, family_at),
        operation(equal, 0, 1, libc::AF_INET6 as u32),
        operation(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        operation(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes integers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the kernel copies the program, which lives through the call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) })?;
    Ok(())
}

// handoff-run(1): "service names too".
#[test]
fn a_service_name_is_its_port() {
    // Of the loopback addresses the one that no other run of these tests uses.
    let [_, high, middle, low] = process::id().to_be_bytes();
    let host = IpAddr::V4(Ipv4Addr::new(127, high, middle, low));
    let Some((name, port)) = free_service(host) else {
        return skip("/etc/services has no TCP service above 1024");
    };
    let report = listening(&format!("{host}:{name}"));
    assert_eq!(address(&report.sockets[0]), SocketAddr::from((host, port)));
}

/// A registered port that any user may bind and where nobody listens.
fn free_service(host: IpAddr) -> Option<(String, u16)> {
    let table = fs::read_to_string("/etc/services").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next().filter(|name| !name.starts_with('#'))?;
        let port = fields.next()?.strip_suffix("/tcp")?.parse().ok()?;
        (port > 1024 && TcpStream::connect((host, port)).is_err()).then(|| (name.to_owned(), port))
    })
}

#[test]
fn a_name_that_nobody_knows_is_an_error_in_the_users_words() {
    let table = [
        ("no-such-host.invalid:0", "host no-such-host.invalid: not found"),
        (":no-such-service", "service no-such-service: not found"),
        ("udp::no-such-service", "service no-such-service: not found"),
        ("[fe80::1%no-such-if]:0", "interface no-such-if: ENODEV: No such device"),
        ("tcp6:127-0-0-1.invalid:0", "host 127-0-0-1.invalid: not found"),
    ];
    for (spec, reason) in table {
        let expected = format!("handoff-run: cannot listen on {spec}: {reason}\n");
        assert_eq!(handoff_run_with(&["-l", spec, "--", "true"]).output().failure(), (125, expected.as_str()));
    }
}

// handoff-run(1): "SO_REUSEADDR is set on TCP always and on UDP never".
#[test]
fn an_address_is_reused_on_tcp_and_never_on_udp() {
    let reuse = |spec| option(&listening(spec).sockets[0], libc::SOL_SOCKET, libc::SO_REUSEADDR);
    for spec in ["127.0.0.1:0", "0.0.0.0:0", "tcp4::0", ":0"] {
        assert_eq!(reuse(spec), 1, "{spec}");
    }
    for spec in ["udp:127.0.0.1:0", "udp4::0", "udp::0"] {
        assert_eq!(reuse(spec), 0, "{spec}");
    }
}

// handoff-run(1): "Port 0 asks the kernel; the port is logged".
#[test]
fn the_port_that_the_kernel_chose_is_told() {
    for (spec, host) in [("127.0.0.1:0", "127.0.0.1"), ("web=udp:localhost:0,rcvbuf=9000", "127.0.0.1")] {
        let report = handoff_run_with(&["-l", spec, "--"]).report();
        let port = address(&report.sockets[0]).port();
        assert_eq!(report.finish().stderr, format!("handoff-run: {spec} listens on {host}:{port}\n"));
    }
    let report = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).report();
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn an_address_that_another_has_is_in_use_and_the_holder_is_named() {
    let holder = TcpListener::bind((HERE4, 0)).unwrap();
    let spec = format!("127.0.0.1:{}", holder.local_addr().unwrap().port());
    let output = handoff_run_with(&["-l", &spec, "--", "true"]).output();
    let command = fs::read_to_string("/proc/self/cmdline").unwrap().replace('\0', " ");
    let command: String = command.trim_end().chars().take(80).collect();
    let expected = format!(
        "handoff-run: cannot listen on {spec}: EADDRINUSE: Address already in use\n\
         handoff-run: it is held by pid {}: {command}\n",
        process::id()
    );
    assert_eq!(output.failure(), (125, expected.as_str()));
}
