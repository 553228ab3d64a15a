//! Where a filter of system calls or a namespace of its own denies something, the rest goes on: a facility that is
//! missing never means no.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::ptr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::fstat;

use crate::harness::client::Client;
use crate::harness::filter::{Answer, deny, deny_family};
use crate::harness::log::cannot_listen;
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{Folder, Run, Server, handoff_run_with, is_root_to, python, supervise, wait_for};

const IN_USE: &str = "EADDRINUSE: Address already in use";

/// What becomes of a run in a place where netlink shows nothing, or nothing of others.
type Place = fn(Run) -> Run;

/// As RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX has it.
fn without_netlink(run: Run) -> Run {
    run.before_exec(deny_family(libc::AF_NETLINK))
}

/// As PrivateNetwork=yes has it.
fn in_its_own_network(run: Run) -> Run {
    run.before_exec(|| unshare(libc::CLONE_NEWNET))
}

fn without_netlink_and_proc(run: Run) -> Run {
    without_netlink(run.before_exec(|| {
        unshare(libc::CLONE_NEWNS)?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: the kernel reads strings that are constants.
        done(unsafe { libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()) })?;
        // SAFETY: as above.
        done(unsafe { libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) })
    }))
}

fn unshare(what: i32) -> io::Result<()> {
    // SAFETY: unshare takes an integer.
    done(unsafe { libc::unshare(what) })
}

fn done(result: i32) -> io::Result<()> {
    Ok(Errno::result(result).map(drop)?)
}

/// The places that can be had.
fn places() -> Vec<(&'static str, Place)> {
    let mut places: Vec<(&str, Place)> = vec![("without netlink", without_netlink)];
    if is_root_to("make namespaces") {
        places.push(("in its own network", in_its_own_network));
        places.push(("without netlink and /proc", without_netlink_and_proc));
    }
    places
}

/// The inodes of the sockets that the target of `run` finds from 3 on; the run is silent. The target needs no /proc.
#[track_caller]
fn given(run: Run, count: usize) -> Vec<u64> {
    let look = "import os, sys; print(*[os.fstat(3 + at).st_ino for at in range(int(sys.argv[1]))])";
    let output = run.args(&[python::python()]).args(&["-IS", "-c", look, &count.to_string()]).output();
    assert_eq!(output.failure(), (0, ""));
    output.stdout.split_whitespace().map(|inode| inode.parse().unwrap()).collect()
}

fn inode(socket: &impl AsFd) -> u64 {
    fstat(socket).unwrap().st_ino
}

// handoff-run(1): "where the kernel does not show that […], the one that was bound by this name". It was closed and bound
// anew.
#[test]
fn the_inherited_socket_at_a_path_is_adopted() {
    for (place, at) in places() {
        let folder = Folder::new();
        let path = folder.text("s");
        let listener = UnixListener::bind(&path).unwrap();
        let open: Vec<_> = (0..40).map(|_| (UnixStream::connect(&path).unwrap(), listener.accept().unwrap())).collect();
        let waiting = UnixStream::connect(&path).unwrap();
        let datagrams = UnixDatagram::bind(folder.path("d")).unwrap();
        let packets = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(packets.as_raw_fd(), &UnixAddr::new(&folder.path("p")).unwrap()).unwrap();
        listen(&packets, Backlog::new(1).unwrap()).unwrap();
        let specs = [path, format!("unix-dgram:{}", folder.text("d")), format!("unix-seqpacket:{}", folder.text("p"))];
        let run = at(handoff_run_with(&["-l", &specs[0], "-l", &specs[1], "-l", &specs[2], "--"]));
        let run = run.env("LISTEN_FDS", "3").inherit(&listener, 3).inherit(&datagrams, 4).inherit(&packets, 5);
        assert_eq!(given(run, 3), [inode(&listener), inode(&datagrams), inode(&packets)], "{place}");
        drop((open, waiting));
    }
}

#[test]
fn an_inherited_socket_with_an_abstract_name_or_a_relative_path_is_adopted() {
    for (place, at) in places() {
        let folder = Folder::new();
        let name = folder.text("name").replace('/', "-");
        let named = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let relative = UnixListener::bind(folder.path("s")).unwrap();
        let run = handoff_run_with(&["-l", &format!("unix:@{name}"), "-l", "unix:./s", "--"]).current_dir(&folder);
        let run = at(run).inherit(&named, 3).inherit(&relative, 4);
        assert_eq!(given(run, 2), [inode(&named), inode(&relative)], "{place}");
    }
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_in_use_and_gets_no_connection() {
    let folder = Folder::new();
    let path = folder.text("s");
    drop(UnixListener::bind(&path).unwrap());
    let refused = || UnixStream::connect(&path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    wait_for("the socket to be gone", || refused().then_some(()));
    let start = || without_netlink(handoff_run_with(&["-l", &path, "--", "true"])).output();
    assert_eq!(start().failure(), (0, ""));
    fs::remove_file(&path).unwrap();
    let live = UnixListener::bind(&path).unwrap();
    live.set_nonblocking(true).unwrap();
    let output = start();
    let expected = format!("{}handoff-run: it is held by pid {}", cannot_listen(&path, IN_USE), std::process::id());
    assert!(output.code() == 125 && output.stderr.starts_with(&expected), "{output:?}");
    assert_eq!(live.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

// It refuses connections as a dead one does, and the kernel does not list it.
#[test]
fn a_socket_that_does_not_listen_yet_is_in_use_wherever_its_process_is() {
    for (place, at) in places() {
        let folder = Folder::new();
        let path = folder.text("s");
        let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(bound.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();
        let output = at(handoff_run_with(&["-l", &path, "--", "true"])).output();
        let expected = cannot_listen(&path, IN_USE);
        assert!(output.code() == 125 && output.stderr.starts_with(&expected), "{place}: {output:?}");
        listen(&bound, Backlog::new(1).unwrap()).unwrap();
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn connections_are_counted_without_netlink() {
    let name = Arc::new(Folder::new()).text("").replace('/', "-");
    let mut specs = vec!["127.0.0.1:0".to_owned(), format!("unix:@{name}")];
    if !ipv6_is_missing() {
        specs.extend(["[::1]:0".to_owned(), ":0".to_owned()]);
    }
    for spec in specs {
        let setup = supervise(Server::Directed, &[]).run(without_netlink).listen(&spec);
        let path = setup.folder.text("s");
        let supervisor = setup.listen(&format!("unix:{path}")).serving();
        let address = supervisor.address();
        let mut clients = vec![];
        match address.strip_prefix('@') {
            Some(name) => {
                let address = SocketAddr::from_abstract_name(name).unwrap();
                clients.push(Client::of(UnixStream::connect_addr(&address).unwrap()));
            }
            None => clients.push(Client::connect(&address).unwrap()),
        }
        clients.extend([(); 2].map(|()| Client::connect(&path).unwrap()));
        for client in &mut clients {
            client.ask().unwrap();
        }
        let table = supervisor.table();
        assert!(supervisor.status(&["--json"]).contains("\"connections\":3"), "{spec}: {table:?}");
        let reload = supervisor.command("--reload", &["--wait"]).start();
        supervisor.wait_log("generation 1: draining, 3 connections");
        drop(clients);
        assert_eq!(reload.output().failure(), (0, ""), "{}", supervisor.log());
        supervisor.stopped();
    }
}

// They were counted as none.
#[test]
fn connections_that_cannot_be_listed_are_unknown_and_that_is_said_once() {
    if !is_root_to("make a network namespace") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let setup = supervise(Server::Directed, &[]).run(|run| in_its_own_network(run).inherit(&listener, 3));
    let supervisor = setup.listen(&address.to_string()).serving();
    let mut client = Client::connect(&address.to_string()).unwrap();
    client.ask().unwrap();
    for _ in 0..2 {
        assert!(supervisor.status(&["--json"]).contains("\"connections\":null"), "{}", supervisor.log());
    }
    drop(client);
    let log = supervisor.stopped();
    assert_eq!(log.matches("connections are not counted: ENONET").count(), 1, "{log}");
}

// systemd's @system-service has no pidfd_getfd, and the supervisor was ended by SIGSYS.
#[test]
fn without_pidfd_getfd_a_server_is_seen_ready_and_replaced() {
    for answer in [Answer::Kill, Answer::Error(Errno::EPERM), Answer::Error(Errno::ENOSYS)] {
        let supervisor =
            supervise(Server::Directed, &[]).run(|run| run.before_exec(deny(libc::SYS_pidfd_getfd, answer)));
        // Nobody waits, so that it is looked at for connections too.
        supervisor.folder.close_gate();
        let supervisor = supervisor.start();
        supervisor.wait_log("pidfd_getfd is not permitted");
        supervisor.folder.open_gate();
        supervisor.wait_ready(1);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        let log = supervisor.stopped();
        assert_eq!(log.matches("pidfd_getfd is not permitted").count(), 1, "{log}");
    }
}

// handoff-run(1): "A Unix socket's file is replaced only if no socket is bound to it".
#[test]
fn a_dead_socket_stays_where_nothing_shows_that_it_is_dead() {
    if !is_root_to("unmount /proc") {
        return;
    }
    let folder = Folder::new();
    let path = folder.text("s");
    drop(UnixListener::bind(&path).unwrap());
    let output = without_netlink_and_proc(handoff_run_with(&["-l", &path, "--", "true"])).output();
    assert!(output.code() == 125 && output.stderr.starts_with(&cannot_listen(&path, IN_USE)), "{output:?}");
    assert!(folder.path("s").exists());
}

// The control socket was deaf: nothing was accepted while the limit was not known.
#[test]
fn without_prlimit_the_control_socket_answers() {
    let denied = |run: Run| run.before_exec(deny(libc::SYS_prlimit64, Answer::Error(Errno::EPERM)));
    let supervisor = supervise(Server::Directed, &[]).run(denied).serving();
    let _others = [(); 3].map(|()| supervisor.control());
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    supervisor.stopped();
}

// Every drain was a kill, and nothing was said.
#[test]
fn without_pidfd_send_signal_a_generation_is_told_to_stop() {
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let denied = |run: Run| run.before_exec(deny(libc::SYS_pidfd_send_signal, Answer::Error(errno)));
        // One that left the group and its parent is told too.
        let script = "
if os.fork() == 0:
    os.setsid()
    if os.fork() > 0: os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: (mark('told' + gen), os._exit(0)))
    mark('daemon' + gen)
    while True: signal.pause()
os.wait()
wait_for('daemon' + gen)
serve()";
        let supervisor = supervise(Server::Python(script), &["--drain-timeout", "1h"]).run(denied).serving();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        supervisor.folder.read("told1");
        let folder = supervisor.folder.clone();
        let log = supervisor.stopped();
        folder.read("told2");
        assert!(!log.contains("killed"), "{log}");
    }
}
