//! What the kernel tells of a server: its processes, its listening sockets, how far a request has come.

use std::fs;
use std::net::TcpStream;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::wait_for;

/// The processes of a session, which is what one server is here. None outlives the value.
pub struct Session(pub Pid);

impl Session {
    /// Those that have not ended. A zombie has, whenever its parent gets round to it.
    pub fn processes(&self) -> Vec<Pid> {
        let numbers =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        numbers.map(Pid::from_raw).filter(|pid| self.has(*pid).unwrap_or(false)).collect()
    }

    /// Nothing if it has gone meanwhile.
    fn has(&self, pid: Pid) -> Option<bool> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Behind the name, which may have spaces: state, parent, group, session.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        Some(!matches!(fields[0], "Z" | "X") && fields[3] == self.0.to_string())
    }

    /// The inodes of the sockets that any of them has open.
    pub fn sockets(&self) -> Vec<u64> {
        self.processes().into_iter().flat_map(sockets_of).collect()
    }

    /// Those of them that have this socket open.
    pub fn holders(&self, inode: u64) -> Vec<Pid> {
        self.processes().into_iter().filter(|pid| sockets_of(*pid).contains(&inode)).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        wait_for("the server's processes to be gone", || {
            let left = self.processes();
            for pid in &left {
                // Gone already is what is wanted.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

fn sockets_of(pid: Pid) -> Vec<u64> {
    sockets(Path::new(&format!("/proc/{pid}/fd")))
}

/// Empty for a process that has gone meanwhile.
fn sockets(folder: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
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
pub fn listener_on(port: u16) -> Option<u64> {
    tcp_sockets().iter().find(|socket| socket.state == LISTEN && socket.port == port).map(|socket| socket.inode)
}

/// Those of `inodes` that listen, once each.
pub fn listening(mut inodes: Vec<u64>) -> Vec<u64> {
    inodes.sort_unstable();
    inodes.dedup();
    let listening: Vec<u64> =
        tcp_sockets().iter().filter(|socket| socket.state == LISTEN).map(|socket| socket.inode).collect();
    inodes.retain(|inode| listening.contains(inode));
    inodes
}

/// Has the server accepted this client's connection and read all that was sent?
pub fn is_under_way(client: &TcpStream) -> bool {
    accepted(client).is_some()
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
