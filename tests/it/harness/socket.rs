//! Sockets: the test's own, those that a target was given, and what the kernel knows of those on a port.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use libc::c_int;
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getsockname};

use super::{Report, handoff_run_with, skip};

/// What /proc calls an open descriptor of the test's, as in `socket:[4711]`: two of one socket have the same.
pub fn link(fd: &impl AsRawFd) -> String {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().into_os_string().into_string().unwrap()
}

/// A TCP socket that listens on a port of its own, and its address.
pub fn tcp() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A target with the one socket that `spec` asks for.
#[track_caller]
pub fn listening(spec: &str) -> Report {
    let report = handoff_run_with(&["-q", "-l", spec, "--"]).report();
    assert_eq!(report.sockets.len(), 1, "{spec}");
    report
}

/// getsockopt(2) of an integer.
#[track_caller]
pub fn option(socket: &OwnedFd, level: c_int, name: c_int) -> c_int {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives through the call.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    Errno::result(done).unwrap();
    value
}

/// Where the kernel has an internet socket.
pub fn address(socket: &OwnedFd) -> SocketAddr {
    let address: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::V4((*v4).into()),
        (_, Some(v6)) => SocketAddr::V6((*v6).into()),
        _ => panic!("{address:?} is not an internet address"),
    }
}

pub fn ipv6_is_missing() -> bool {
    let missing = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err();
    if missing {
        skip("there is no IPv6");
    }
    missing
}

/// Whether somebody listens at a path.
pub fn is_listening(path: &str) -> bool {
    // The flag is __SO_ACCEPTCON.
    let listens = |line: &str| line.ends_with(&format!(" {path}")) && line.contains(" 00010000 ");
    String::from_utf8_lossy(&fs::read("/proc/net/unix").unwrap()).lines().any(listens)
}

/// A TCP socket as /proc/net/tcp has it.
struct Socket {
    port: u16,
    peer: u16,
    state: String,
    unread: String,
    /// 0 until a connection is accepted.
    inode: u64,
}

const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

fn tcp_sockets() -> Vec<Socket> {
    let text = fs::read_to_string("/proc/net/tcp").unwrap() + &fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    text.lines().filter_map(socket).collect()
}

/// Nothing for a heading.
fn socket(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    Some(Socket {
        port: port(fields[1])?,
        peer: port(fields[2])?,
        state: fields[3].to_owned(),
        unread: fields[4].split_once(':')?.1.to_owned(),
        inode: fields[9].parse().ok()?,
    })
}

/// The socket that listens on `port`.
pub fn listeners_on(port: u16) -> Vec<u64> {
    let sockets = tcp_sockets();
    let listening = sockets.iter().filter(|socket| socket.state == LISTEN && socket.port == port);
    let mut inodes: Vec<u64> = listening.map(|socket| socket.inode).collect();
    inodes.sort_unstable();
    inodes
}

/// Those of `inodes` that listen, once each.
pub fn listening_of(mut inodes: Vec<u64>) -> Vec<u64> {
    inodes.sort_unstable();
    inodes.dedup();
    let listening: Vec<u64> =
        tcp_sockets().iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.inode).collect();
    inodes.retain(|inode| listening.contains(inode));
    inodes
}

/// The server's end of this client's connection, once it has accepted it and read all that was sent.
pub fn accepted(client: &TcpStream) -> Option<u64> {
    let (server, client) = (client.peer_addr().unwrap().port(), client.local_addr().unwrap().port());
    let found = tcp_sockets().into_iter().find(|socket| {
        let same = socket.port == server && socket.peer == client && socket.state == ESTABLISHED;
        same && socket.inode != 0 && socket.unread == "00000000"
    });
    found.map(|socket| socket.inode)
}
