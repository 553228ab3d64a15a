//! Each kind of address that is not of the internet, bound for real.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, VsockAddr, connect, getsockname, getsockopt, socket, sockopt,
};

use crate::harness::socket::{address, listening};
use crate::harness::{Folder, handoff_run, handoff_run_with, skip, wait_for};

/// Where the kernel has a Unix socket.
fn unix_address(socket: &OwnedFd) -> UnixAddr {
    getsockname(socket.as_raw_fd()).unwrap()
}

#[test]
fn a_path_is_a_stream_socket_there() {
    let folder = Folder::new();
    for (name, kind) in [("a", ""), ("b", "unix:"), ("c", "unix://")] {
        let path = folder.text(name);
        let spec = format!("{kind}{path}");
        let report = listening(&spec);
        assert_eq!(unix_address(&report.sockets[0]).path(), Some(path.as_ref()), "{spec}");
        assert_eq!(getsockopt(&report.sockets[0], sockopt::SockType), Ok(SockType::Stream));
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn a_relative_path_is_bound_as_it_is_written() {
    let folder = Folder::new();
    for (spec, path) in [("./s", "./s"), ("unix:t", "t"), ("unix:./u", "./u")] {
        let report = handoff_run_with(&["-q", "-l", spec, "--"]).current_dir(&folder).report();
        assert_eq!(unix_address(&report.sockets[0]).path(), Some(path.as_ref()));
        UnixStream::connect(folder.path(path)).unwrap();
    }
    assert_eq!(folder.names(), ["s", "t", "u"]);
}

#[test]
fn an_abstract_name_is_bound_to_the_letter_and_without_padding() {
    for kind in ["unix", "unix-dgram", "unix-seqpacket"] {
        let name = format!("handoff-run {} {kind}", process::id());
        let report = listening(&format!("{kind}:@{name}"));
        assert_eq!(unix_address(&report.sockets[0]).as_abstract(), Some(name.as_bytes()));
    }
}

#[test]
fn a_unix_datagram_socket_receives_at_its_path() {
    let folder = Folder::new();
    let report = listening(&format!("unix-dgram:{}", folder.text("s")));
    UnixDatagram::unbound().unwrap().send_to(b"x", folder.path("s")).unwrap();
    let receiver = UnixDatagram::from(report.sockets[0].try_clone().unwrap());
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap(), 1);
}

#[test]
fn a_unix_seqpacket_socket_listens_at_its_path() {
    let folder = Folder::new();
    let report = listening(&format!("unix-seqpacket:{}", folder.text("s")));
    assert_eq!(getsockopt(&report.sockets[0], sockopt::SockType), Ok(SockType::SeqPacket));
    let client = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(client.as_raw_fd(), &UnixAddr::new(&folder.path("s")).unwrap()).unwrap();
}

#[test]
fn a_vsock_address_is_bound_as_it_says() {
    if let Err(errno) = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
        return skip(&format!("there is no vsock: {errno}"));
    }
    // VMADDR_PORT_ANY: the kernel chooses.
    let first = listening(&format!("vsock::{}", u32::MAX));
    let bound: VsockAddr = getsockname(first.sockets[0].as_raw_fd()).unwrap();
    assert_eq!((bound.cid(), getsockopt(&first.sockets[0], sockopt::AcceptConn)), (libc::VMADDR_CID_ANY, Ok(true)));
    assert_ne!(bound.port(), u32::MAX);
    drop(first);
    let spec = format!("vsock:{}:{}", libc::VMADDR_CID_ANY, bound.port());
    // A process that another test starts just now may have a copy of the first socket until it execs.
    wait_for("the port to be free", || {
        (handoff_run_with(&["-l", &spec, "--", "true"]).output().code() == 0).then_some(())
    });
}

// handoff-run(1): "fd:5 is a socket that the caller left open at 5".
#[test]
fn a_descriptor_is_the_socket_that_the_caller_left_there() {
    let inherited = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let folder = Folder::new();
    let other = UnixListener::bind(folder.path("s")).unwrap();
    let run = handoff_run().args(&["-l", "fd:9", "-l", "fd:7", "--"]);
    let report = run.inherit(&inherited, 7).inherit(&other, 9).report();
    assert_eq!(report.descriptors().iter().map(|(fd, _)| *fd).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(unix_address(&report.sockets[0]).path(), Some(folder.path("s").as_path()));
    assert_eq!(address(&report.sockets[1]), inherited.local_addr().unwrap());
    assert_eq!(report.finish().stderr, "");
}

#[test]
fn a_descriptor_that_is_no_socket_is_an_error() {
    let output = handoff_run_with(&["-l", "fd:7", "--", "true"]).output();
    let message = "handoff-run: cannot listen on fd:7: descriptor 7 is not an open socket\n";
    assert_eq!(output.failure(), (125, message));
    let file = fs::File::open("/dev/null").unwrap();
    let output = handoff_run_with(&["-l", "fd:7", "--", "true"]).inherit(&file, 7).output();
    assert_eq!(output.failure(), (125, message));
}
