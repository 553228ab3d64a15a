//! Which inherited TCP or UDP socket serves a SPEC: what the kernel says of it decides.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};

use crate::harness::socket::{link, tcp};
use crate::harness::{PROGRAM, Report, handoff_run_with};

/// A TCP socket that is bound to 127.0.0.1 and does not listen yet, with SO_REUSEPORT.
fn bound(port: u16) -> OwnedFd {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], port)))).unwrap();
    fd
}

fn port(fd: &OwnedFd) -> u16 {
    getsockname::<SockaddrStorage>(fd.as_raw_fd()).unwrap().as_sockaddr_in().unwrap().port()
}

/// Two sockets that listen on one address.
fn pair() -> (OwnedFd, OwnedFd, String) {
    let one = bound(0);
    let two = bound(port(&one));
    for fd in [&one, &two] {
        listen(fd, Backlog::new(8).unwrap()).unwrap();
    }
    let address = format!("127.0.0.1:{}", port(&one));
    (one, two, address)
}

/// The target of a run for `second` that inherits what a run for `first`, with port 0, bound.
fn succeed(first: &str, second: &str) -> Report {
    handoff_run_with(&["-q", "-l", first, "--env", "PORT={port}", "--", PROGRAM, "-l", second, "--"]).report()
}

/// `second` is not what `first` was bound to: it is bound anew and the old one is closed.
#[track_caller]
fn assert_bound_anew(first: &str, second: &str, shown: &str) {
    let report = succeed(first, second);
    assert_eq!(report.descriptors().len(), 1);
    let port = &report["PORT"];
    let message =
        format!("handoff-run: no --listen asks for descriptor 3, a listener on {shown}:{port}: it is closed\n");
    assert_eq!(report.finish().stderr, message);
}

// The kernel forgets the zone of an address that can be on one interface only.
#[test]
fn an_address_with_a_zone_is_adopted_and_not_bound_anew() {
    for (first, second) in
        [("[::1%lo]:0", "[::1%lo]:{port}"), ("[::1%lo]:0", "[::1]:{port}"), ("[::1]:0", "[::1%1]:{port}")]
    {
        let report = succeed(first, second);
        assert_eq!(report.descriptors().len(), 1);
        assert_eq!(report.finish().stderr, "", "{first} {second}");
    }
}

// Of the two, IPV6_V6ONLY alone tells [::] from dual-stack.
#[test]
fn a_dual_stack_socket_serves_every_spelling_of_dual_stack() {
    for second in [":{port}", "[::]:{port}", "tcp::{port}"] {
        assert_eq!(succeed(":0", second).finish().stderr, "", "{second}");
    }
}

#[test]
fn a_v6only_socket_serves_v6only_alone() {
    assert_eq!(succeed("[::]:0,v6only", "[::]:{port},v6only").finish().stderr, "");
    assert_eq!(succeed("[::]:0,v6only", ":{port},v6only").finish().stderr, "");
}

// Adopted for dual-stack, it would turn IPv4's clients away.
#[test]
fn a_v6only_socket_is_not_taken_for_dual_stack() {
    for second in [":{port}", "[::]:{port}"] {
        // Of IPv6 alone the kernel would choose a port that IPv4 has in use.
        let port = TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
        assert_bound_anew(&format!("[::]:{port},v6only"), second, "[::]");
    }
}

#[test]
fn a_dual_stack_socket_is_not_taken_for_a_narrower_one() {
    assert_bound_anew(":0", "[::]:{port},v6only", "[::]");
    assert_bound_anew(":0", "0.0.0.0:{port}", "[::]");
    assert_bound_anew("0.0.0.0:0", "127.0.0.1:{port}", "0.0.0.0");
}

#[test]
fn a_port_alone_adopts_every_ipv4_interface_where_there_is_no_dual_stack_socket() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let spec = format!(":{}", listener.local_addr().unwrap().port());
    let report = handoff_run_with(&["-l", &spec, "--"]).inherit(&listener, 3).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn port_0_means_the_socket_that_was_announced_by_that_name() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    let run = handoff_run_with(&["-l", "b=127.0.0.1:0", "-l", "a=127.0.0.1:0", "--"]);
    let run = run.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a:b");
    let report = run.inherit(&a, 3).inherit(&b, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&b).as_str()), (4, link(&a).as_str())]);
    assert_eq!(&report["LISTEN_FDNAMES"], "b:a");
}

#[test]
fn port_0_means_the_next_socket_where_no_name_is_known() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    let run = handoff_run_with(&["-l", "one=127.0.0.1:0", "-l", "127.0.0.1:0", "--"]);
    let report = run.inherit(&a, 7).inherit(&b, 12).report();
    assert_eq!(report.descriptors(), [(3, link(&a).as_str()), (4, link(&b).as_str())]);
    assert_eq!(&report["LISTEN_FDNAMES"], "one:unknown");
}

#[test]
fn port_0_leaves_a_socket_to_the_spec_that_asks_for_its_address() {
    let ((a, at_a), (b, _)) = (tcp(), tcp());
    let report = handoff_run_with(&["-l", "127.0.0.1:0", "-l", &at_a, "--"]).inherit(&a, 3).inherit(&b, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&b).as_str()), (4, link(&a).as_str())]);
}

#[test]
fn two_descriptors_of_one_socket_count_once() {
    let (listener, address) = tcp();
    for spec in [&address, "127.0.0.1:0", "fd:5"] {
        let run = handoff_run_with(&["-l", spec, "--"]).inherit(&listener, 3).inherit(&listener, 5);
        let report = run.inherit(&listener, 8).report();
        assert_eq!(report.descriptors(), [(3, link(&listener).as_str())], "{spec}");
        assert_eq!(report.finish().stderr, "");
    }
}

#[test]
fn two_different_sockets_that_fit_are_an_error() {
    let (one, two, address) = pair();
    let output = handoff_run_with(&["-l", &address, "--", "true"]).inherit(&one, 3).inherit(&two, 6).output();
    let message =
        format!("handoff-run: cannot listen on {address}: descriptors 3 and 6 are different sockets that both fit\n");
    assert_eq!(output.failure(), (125, message.as_str()));
}

#[test]
fn two_specs_of_one_address_take_two_sockets_in_their_order() {
    let (one, two, address) = pair();
    let spec = format!("{address},reuseport");
    let report = handoff_run_with(&["-l", &spec, "-l", &spec, "--"]).inherit(&one, 3).inherit(&two, 6).report();
    assert_eq!(report.descriptors(), [(3, link(&one).as_str()), (4, link(&two).as_str())]);
}

/// `fd` is handed through, out of the way, but not taken for `spec`.
#[track_caller]
fn assert_left_alone(fd: &impl AsRawFd, spec: &str) {
    let report = handoff_run_with(&["-q", "-l", spec, "--"]).inherit(fd, 3).report();
    assert_eq!(report.descriptors().iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(report.descriptors()[1].1, link(fd));
}

// SO_ACCEPTCONN tells.
#[test]
fn a_tcp_socket_that_does_not_listen_is_not_adopted() {
    assert_left_alone(&bound(0), "127.0.0.1:0");
}

// It is somebody's connection.
#[test]
fn a_udp_socket_with_a_peer_is_not_adopted() {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect("127.0.0.1:9").unwrap();
    assert_left_alone(&client, "udp:127.0.0.1:0");
}

#[test]
fn a_socket_of_another_type_is_not_adopted() {
    assert_left_alone(&UdpSocket::bind("127.0.0.1:0").unwrap(), "127.0.0.1:0");
    assert_left_alone(&tcp().0, "udp:127.0.0.1:0");
}

#[test]
fn a_bound_udp_socket_is_adopted() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let spec = format!("udp:{}", server.local_addr().unwrap());
    let report = handoff_run_with(&["-l", &spec, "--"]).inherit(&server, 4).report();
    assert_eq!(report.descriptors(), [(3, link(&server).as_str())]);
}

#[test]
fn fd_n_is_the_socket_at_n() {
    let ((a, _), (b, _)) = (tcp(), tcp());
    let report = handoff_run_with(&["-l", "b=fd:9", "-l", "a=fd:4", "--"]).inherit(&a, 4).inherit(&b, 9).report();
    assert_eq!(report.descriptors(), [(3, link(&b).as_str()), (4, link(&a).as_str())]);
    assert_eq!(&report["LISTEN_FDNAMES"], "b:a");
}

// Which is what the second run of the same line has to do: the socket is at 3 by then.
#[test]
fn fd_n_is_the_next_socket_where_n_is_closed() {
    let (listener, _) = tcp();
    let line = ["-l", "fd:9", "--", PROGRAM, "-l", "fd:9", "--"];
    let report = handoff_run_with(&line).inherit(&listener, 9).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
}
