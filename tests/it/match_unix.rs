//! Which inherited Unix socket serves a SPEC: the one that its file leads to now, whatever it was once called.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::harness::socket::link;
use crate::harness::{Folder, handoff_run_with};

/// Connections to `listener` at `path`: the client's and the server's end of each.
fn connections(listener: &UnixListener, path: &str, count: usize) -> Vec<(UnixStream, UnixStream)> {
    let connect = |_| (UnixStream::connect(path).unwrap(), listener.accept().unwrap().0);
    (0..count).map(connect).collect()
}

#[test]
fn the_socket_at_a_path_is_adopted() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("s")).unwrap();
    let report = handoff_run_with(&["-l", &folder.text("s"), "--"]).inherit(&listener, 3).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
    assert_eq!(report.finish().stderr, "");
}

// What accept(2) gives keeps the listener's path, and the kernel lists it under the same inode: a predecessor with a
// few clients could not be succeeded.
#[test]
fn the_socket_at_a_path_is_adopted_while_clients_are_connected() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("s")).unwrap();
    let _open = connections(&listener, &folder.text("s"), 40);
    let _waiting: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(folder.path("s")).unwrap()).collect();
    for _ in 0..5 {
        let report = handoff_run_with(&["-l", &folder.text("s"), "--"]).inherit(&listener, 3).report();
        assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
        assert_eq!(report.finish().stderr, "");
    }
}

// A predecessor that drains has closed its listener and still has its clients.
#[test]
fn a_path_with_connections_and_no_listener_is_bound() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("s")).unwrap();
    let _open = connections(&listener, &folder.text("s"), 40);
    drop(listener);
    let output = handoff_run_with(&["-l", &folder.text("s"), "--", "true"]).output();
    assert_eq!(output.failure(), (0, ""));
}

// getsockname(2) would still call it by the old name.
#[test]
fn a_socket_whose_file_was_renamed_is_adopted_by_the_new_name() {
    let folder = Folder::new();
    let listener = UnixListener::bind(folder.path("old")).unwrap();
    fs::rename(folder.path("old"), folder.path("new")).unwrap();
    let report = handoff_run_with(&["-l", &folder.text("new"), "--"]).inherit(&listener, 3).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
}

// Clients that connect there reach the other one, or nobody.
#[test]
fn a_socket_whose_path_is_another_sockets_by_now_is_not_adopted() {
    let folder = Folder::new();
    let stale = UnixListener::bind(folder.path("s")).unwrap();
    fs::remove_file(folder.path("s")).unwrap();
    drop(UnixListener::bind(folder.path("s")).unwrap());
    let run = handoff_run_with(&["-l", &folder.text("s"), "--"]).env("LISTEN_FDS", "1");
    let report = run.inherit(&stale, 3).report();
    assert_eq!(report.descriptors().len(), 1);
    assert_ne!(report.descriptors()[0].1, link(&stale));
    UnixStream::connect(folder.path("s")).unwrap();
    let message =
        format!("handoff-run: no --listen asks for descriptor 3, a listener on {}: it is closed\n", folder.text("s"));
    assert_eq!(report.finish().stderr, message);
}

#[test]
fn a_socket_whose_file_is_gone_is_bound_again() {
    let folder = Folder::new();
    let stale = UnixListener::bind(folder.path("s")).unwrap();
    fs::remove_file(folder.path("s")).unwrap();
    let run = handoff_run_with(&["-q", "-l", &folder.text("s"), "--"]).env("LISTEN_FDS", "1");
    let report = run.inherit(&stale, 3).report();
    assert_ne!(report.descriptors()[0].1, link(&stale));
    UnixStream::connect(folder.path("s")).unwrap();
}

#[test]
fn a_listener_of_another_type_at_the_path_is_not_adopted() {
    let folder = Folder::new();
    let datagrams = UnixDatagram::bind(folder.path("s")).unwrap();
    let run = handoff_run_with(&["-q", "-l", &folder.text("s"), "--", "true"]);
    assert_eq!(run.inherit(&datagrams, 3).output().code(), 125);
    let spec = format!("unix-dgram:{}", folder.text("s"));
    let report = handoff_run_with(&["-l", &spec, "--"]).inherit(&datagrams, 6).report();
    assert_eq!(report.descriptors(), [(3, link(&datagrams).as_str())]);
}

#[test]
fn an_abstract_socket_is_adopted_by_its_name() {
    let name = format!("handoff-run-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let report = handoff_run_with(&["-l", &format!("unix:@{name}"), "--"]).inherit(&listener, 3).report();
    assert_eq!(report.descriptors(), [(3, link(&listener).as_str())]);
    assert_eq!(report.finish().stderr, "");
}

// No name, no address: nobody can ask for it.
#[test]
fn an_unbound_socket_is_left_alone() {
    let unbound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let folder = Folder::new();
    let report = handoff_run_with(&["-l", &folder.text("s"), "--"]).inherit(&unbound, 7).report();
    assert_eq!(report.descriptors()[1], (7, link(&unbound).as_str()));
    assert_eq!(report.finish().stderr, "");
}
