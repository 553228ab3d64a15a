//! Unix sockets in the file system: what is replaced, what is left alone, and what clients see.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockname, socket};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::harness::log::cannot_listen;
use crate::harness::namespace::in_namespace;
use crate::harness::socket::listening;
use crate::harness::{Folder, Output, PROGRAM, Run, handoff_run_with, wait_for};

const IN_USE: &str = "EADDRINUSE: Address already in use";
const HIDDEN: &str = "it is held by a process that /proc does not show to this user";

/// A socket's file whose socket is gone.
fn dead_socket(path: &Path) {
    drop(UnixListener::bind(path).unwrap());
    wait_for_death(path);
}

/// A process that another test starts just now may have a copy of the socket until it execs.
fn wait_for_death(path: &Path) {
    let refused = || UnixStream::connect(path).is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED));
    wait_for("the socket to be gone", || refused().then_some(()));
}

fn start(spec: &str) -> Output {
    handoff_run_with(&["-l", spec, "--", "true"]).output()
}

/// All that tells whether a file was touched, but for the times of its reading.
fn state(path: &Path) -> impl PartialEq + std::fmt::Debug + use<> {
    let file = fs::symlink_metadata(path).unwrap();
    (file.ino(), file.mode(), file.uid(), file.ctime(), file.ctime_nsec())
}

// handoff-run(1): "An existing path is replaced only if it is a dead socket".
#[test]
fn a_dead_socket_is_replaced() {
    let folder = Folder::new();
    let replaced = |kind: &str| {
        dead_socket(&folder.path(kind));
        listening(&format!("{kind}:{}", folder.text(kind)))
    };
    let _reports = ["unix", "unix-dgram", "unix-seqpacket"].map(replaced);
    UnixStream::connect(folder.path("unix")).unwrap();
    drop(UnixDatagram::bind(folder.path("was-dgram")).unwrap());
    wait_for_death(&folder.path("was-dgram"));
    let _report = listening(&folder.text("was-dgram"));
    UnixStream::connect(folder.path("was-dgram")).unwrap();
    assert_eq!(folder.names(), ["unix", "unix-dgram", "unix-seqpacket", "was-dgram"]);
}

#[test]
fn a_live_socket_is_in_use_and_gets_no_connection_from_us() {
    let folder = Folder::new();
    let path = folder.path("s");
    let live = UnixListener::bind(&path).unwrap();
    live.set_nonblocking(true).unwrap();
    let before = state(&path);
    let command = fs::read_to_string("/proc/self/cmdline").unwrap().replace('\0', " ");
    let command: String = command.trim_end().chars().take(80).collect();
    let holder = format!("handoff-run: it is held by pid {}: {command}\n", std::process::id());
    let expected = cannot_listen(&folder.text("s"), IN_USE) + &holder;
    assert_eq!(start(&folder.text("s")).failure(), (125, expected.as_str()));
    assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    UnixStream::connect(&path).unwrap();
    live.accept().unwrap();
    assert_eq!(state(&path), before);
}

#[test]
fn a_live_socket_of_another_type_is_in_use() {
    let folder = Folder::new();
    let path = folder.text("s");
    let live = UnixDatagram::bind(&path).unwrap();
    live.set_nonblocking(true).unwrap();
    let output = start(&path);
    let first = cannot_listen(&path, IN_USE);
    assert!(output.code() == 125 && output.stderr.starts_with(&first), "{output:?}");
    UnixDatagram::unbound().unwrap().send_to(b"x", &path).unwrap();
    assert_eq!(live.recv(&mut [0; 8]).unwrap(), 1);
}

// handoff-run(1): "a file or directory is an error".
#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = Folder::new();
    fs::write(folder.path("file"), "content").unwrap();
    DirBuilder::new().mode(0o700).create(folder.path("directory")).unwrap();
    mkfifo(&folder.path("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
    dead_socket(&folder.path("dead"));
    symlink("dead", folder.path("to-dead")).unwrap();
    symlink("nowhere", folder.path("to-nothing")).unwrap();
    let table = [
        ("file", "a regular file, not a socket"),
        ("directory", "a directory, not a socket"),
        ("fifo", "not a socket"),
        ("to-dead", "a symbolic link, not a socket"),
        ("to-nothing", "a symbolic link, not a socket"),
    ];
    let names = folder.names();
    for (name, kind) in table {
        let (path, before) = (folder.text(name), state(&folder.path(name)));
        let expected = cannot_listen(&path, &format!("{path} exists and is {kind}"));
        assert_eq!(start(&path).failure(), (125, expected.as_str()));
        assert_eq!(state(&folder.path(name)), before, "{name}");
    }
    assert_eq!(fs::read_to_string(folder.path("file")).unwrap(), "content");
    assert!(fs::symlink_metadata(folder.path("dead")).unwrap().file_type().is_socket());
    assert_eq!(folder.names(), names);
}

#[test]
fn a_folder_that_is_missing_is_an_error() {
    let folder = Folder::new();
    let path = folder.text("missing/s");
    let error = cannot_listen(&path, "ENOENT: No such file or directory");
    let expected = format!("{error}handoff-run: there is no folder {}\n", folder.text("missing"));
    assert_eq!(start(&path).failure(), (125, expected.as_str()));
}

// handoff-run(1): "it may live in another network namespace".
#[test]
fn a_live_socket_of_another_network_namespace_is_in_use() {
    let folder = Folder::new();
    let path = folder.path("s");
    let there = path.clone();
    let Some(live) = in_namespace(libc::CLONE_NEWNET, move || UnixListener::bind(there).unwrap()) else { return };
    let before = state(&path);
    let expected = cannot_listen(&folder.text("s"), IN_USE) + &format!("handoff-run: {HIDDEN}\n");
    assert_eq!(start(&folder.text("s")).failure(), (125, expected.as_str()));
    assert_eq!(state(&path), before);
    drop(live);
    wait_for_death(&path);
    let _report = listening(&folder.text("s"));
}

// It once waited for a place in the queue, for ever if nobody accepts.
#[test]
fn a_live_socket_that_nobody_can_connect_to_is_in_use_at_once() {
    let folder = Folder::new();
    let path = folder.path("s");
    let there = path.clone();
    let Some(_live) = in_namespace(libc::CLONE_NEWNET, move || UnixListener::bind(there).unwrap()) else { return };
    let _clients = fill_queue(&path);
    let expected = cannot_listen(&folder.text("s"), IN_USE) + &format!("handoff-run: {HIDDEN}\n");
    assert_eq!(start(&folder.text("s")).failure(), (125, expected.as_str()));
}

/// Connect until nobody else can.
fn fill_queue(path: &Path) -> Vec<impl AsRawFd + use<>> {
    let address = UnixAddr::new(path).unwrap();
    let client = || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        connect(client.as_raw_fd(), &address).ok().map(|()| client)
    };
    std::iter::from_fn(client).collect()
}

// An inode's number alone once made another file system's live socket stand in for the dead one.
#[test]
fn a_dead_socket_is_replaced_though_another_file_system_has_a_live_one_of_the_same_inode_number() {
    let folder = Folder::new();
    let (one, other) = (folder.path("one"), folder.path("other"));
    let started = in_namespace(libc::CLONE_NEWNS | libc::CLONE_FS, move || {
        mount_tmpfs(&one);
        mount_tmpfs(&other);
        let _live = UnixListener::bind(one.join("s")).unwrap();
        dead_socket(&other.join("s"));
        let inode = |folder: &Path| fs::symlink_metadata(folder.join("s")).unwrap().ino();
        assert_eq!(inode(&one), inode(&other));
        start(other.join("s").to_str().unwrap())
    });
    let Some(output) = started else { return };
    assert_eq!(output.failure(), (0, ""));
}

/// A new file system at `path`, seen by this thread and what it starts.
fn mount_tmpfs(path: &Path) {
    fs::create_dir(path).unwrap();
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let (none, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
    // SAFETY: the strings end with NUL and live through the call; null stands for what these flags do not look at.
    Errno::result(unsafe { libc::mount(none, c"/".as_ptr(), none, private, none.cast()) }).unwrap();
    let tmpfs = c"tmpfs".as_ptr();
    // SAFETY: the same.
    Errno::result(unsafe { libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, none.cast()) }).unwrap();
}

// handoff-run(1), 125: "handoff-run itself failed; nothing was left behind".
#[test]
fn a_start_that_fails_later_leaves_no_file() {
    let folder = Folder::new();
    let path = folder.text("s");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let file = folder.path("not-executable");
    fs::write(&file, "").unwrap();
    let table = [
        (vec!["-l", &path, "--", "/nonexistent/program"], 127),
        (vec!["-l", &path, "--", file.to_str().unwrap()], 126),
        (vec!["-l", &path, "-l", &taken, "--", "true"], 125),
        (vec!["-l", &path, "-l", "fd:77", "--", "true"], 125),
        (vec!["-l", &path, "-l", &path, "--", "true"], 125),
        (vec!["-l", &path, "--", "true", "{port}"], 125),
        (vec!["-l", &path, "--pid-file", "/nonexistent/pid", "--", "true"], 125),
    ];
    for (line, code) in table {
        let output = handoff_run_with(&line).output();
        assert_eq!(output.code(), code, "{line:?}: {output:?}");
        assert_eq!(folder.names(), ["not-executable"], "{line:?}");
    }
}

#[test]
fn a_target_that_runs_keeps_its_file_even_after_its_end() {
    let folder = Folder::new();
    assert_eq!(start(&folder.text("s")).failure(), (0, ""));
    assert_eq!(folder.names(), ["s"]);
}

// A start that was killed while it replaced a dead socket left such a name, always the same where the pid is 1.
#[test]
fn what_an_earlier_start_left_beside_a_dead_socket_is_no_obstacle() {
    let folder = Folder::new();
    dead_socket(&folder.path("s"));
    let line = "touch s.dead-$$-1 s.dead-$$-2; exec \"$0\" \"$@\"";
    let run = Run::of("sh").args(&["-c", line, PROGRAM, "-l", &folder.text("s"), "--", "true"]).current_dir(&folder);
    assert_eq!(run.output().failure(), (0, ""));
    assert_eq!(folder.names().len(), 3);
    assert!(fs::symlink_metadata(folder.path("s")).unwrap().file_type().is_socket());
}

// Each once took the other's new file for the dead one, for its inode had the same number.
#[test]
fn of_two_that_start_at_once_on_a_dead_socket_one_wins_and_the_other_is_told() {
    for _ in 0..20 {
        let folder = Folder::new();
        let path = folder.text("s");
        dead_socket(path.as_ref());
        let run = || handoff_run_with(&["-l", &path, "--", "sleep", "60"]).start();
        let mut two = [run(), run()];
        let loser = wait_for("one of two to lose", || two.iter_mut().position(|run| run.has_ended()));
        let [first, second] = two;
        let (winner, loser) = if loser == 0 { (second, first) } else { (first, second) };
        let output = loser.output();
        let first_line = cannot_listen(&path, IN_USE);
        assert!(output.code() == 125 && output.stderr.starts_with(&first_line), "{output:?}");
        wait_for("the winner to answer", || UnixStream::connect(&path).ok());
        assert_eq!(folder.names(), ["s"]);
        drop(winner);
    }
}

#[test]
fn odd_paths_are_bound_to_the_letter_and_clients_see_them() {
    let folder = Folder::new();
    let room = 107 - folder.text("").len();
    for name in ["a,b", "a b", r"a\b", "a=b:c", "@s", "ünïx", "-", &"x".repeat(room)] {
        let path = folder.path(name);
        let spec = folder.text(name).replace('\\', r"\\").replace(',', r"\,");
        let report = listening(&format!("n={spec}"));
        let bound: UnixAddr = getsockname(report.sockets[0].as_raw_fd()).unwrap();
        assert_eq!(bound.path(), Some(path.as_path()));
        let client = UnixStream::connect(&path).unwrap();
        assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
    }
}

#[test]
fn a_replaced_socket_shows_the_very_path_to_clients() {
    let folder = Folder::new();
    let path = folder.path("s");
    dead_socket(&path);
    let report = Run::of(PROGRAM).args(&["-l", &folder.text("s"), "--"]).report();
    let client = UnixStream::connect(&path).unwrap();
    assert_eq!(client.peer_addr().unwrap().as_pathname(), Some(path.as_path()));
    assert_eq!(report.finish().stderr, "");
}
