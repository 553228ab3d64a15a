//! The second line of an error: what is known to help.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use anyhow::Error;
use nix::errno::Errno;

use crate::endpoint::Endpoint;
use crate::spec::{InetKind, UnixName};
use crate::unix_path;

/// What helps when a socket cannot be bound.
pub(crate) fn for_listen(endpoint: &Endpoint, error: &Error) -> Option<String> {
    match error.downcast_ref()? {
        Errno::EADDRINUSE => Some(held_by(endpoint)),
        Errno::EACCES if endpoint.port().is_ok_and(|port| port < 1024) => Some(
            "a port this low needs 'setcap cap_net_bind_service=+ep' on handoff-run, or 'sysctl \
             net.ipv4.ip_unprivileged_port_start=0'"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What helps when PROGRAM looks like something that belongs before `--`.
pub(crate) fn for_program(program: &str) -> Option<String> {
    let number = !program.is_empty() && program.bytes().all(|byte| byte.is_ascii_digit());
    (number || program.starts_with('-'))
        .then(|| format!("{program} was taken for PROGRAM: put -- between the options and PROGRAM"))
}

/// Who has the address, as far as /proc tells.
fn held_by(endpoint: &Endpoint) -> String {
    let sockets = socket_inodes(endpoint);
    let holder = processes().filter(|pid| holds(*pid, &sockets)).min();
    match holder {
        Some(pid) => format!("it is held by pid {pid}: {}", command(pid)),
        None => "it is held by a process that /proc does not show to this user".to_owned(),
    }
}

/// The sockets bound to `endpoint`, by inode.
fn socket_inodes(endpoint: &Endpoint) -> Vec<u64> {
    match endpoint {
        Endpoint::Inet { kind, address, .. } => inet_inodes(*kind, address.ip(), address.port()),
        Endpoint::Unix { name: UnixName::Path(path), .. } => {
            unix_path::bound_socket(Path::new(path)).map(u64::from).into_iter().collect()
        }
        Endpoint::Unix { name: UnixName::Abstract(name), .. } => abstract_inodes(name),
        Endpoint::Vsock { .. } => vec![],
    }
}

/// The lines of proc_net_tcp with this local port and an address that collides with `ip`. TCP connections hold the
/// port too, but only one that listens (state 0A) is in the way.
fn inet_inodes(kind: InetKind, ip: IpAddr, port: u16) -> Vec<u64> {
    let tables = match kind {
        InetKind::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        InetKind::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let lines = tables.iter().filter_map(|table| fs::read_to_string(table).ok());
    let inodes =
        |text: String| -> Vec<u64> { text.lines().filter_map(|line| inode_of_line(line, kind, ip, port)).collect() };
    lines.flat_map(inodes).collect()
}

/// Fields of proc_net_tcp: number, local address, remote address, state, …, and the inode as the tenth.
fn inode_of_line(line: &str, kind: InetKind, ip: IpAddr, port: u16) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (host, local_port) = fields.get(1)?.split_once(':')?;
    let in_the_way = kind == InetKind::Udp || *fields.get(3)? == "0A";
    let collides = ip.is_unspecified() || hex_ip(host).is_none_or(|local| local.is_unspecified() || local == ip);
    (in_the_way && collides && u16::from_str_radix(local_port, 16) == Ok(port)).then(|| fields.get(9)?.parse().ok())?
}

/// The kernel prints each 32-bit word of an address as a number of the host's byte order.
fn hex_ip(text: &str) -> Option<IpAddr> {
    let words = text.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical()),
    }
}

/// The lines of /proc/net/unix that end with this abstract name.
fn abstract_inodes(name: &str) -> Vec<u64> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let lines = table.lines().filter(|line| line.split_once('@').is_some_and(|(_, bound)| bound == name));
    lines.filter_map(|line| line.split_ascii_whitespace().nth(6)?.parse().ok()).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Has the process one of the sockets open?
fn holds(pid: u32, sockets: &[u64]) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |link: fs::DirEntry| -> Option<u64> {
        let target = fs::read_link(link.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    links.filter_map(inode).any(|inode| sockets.contains(&inode))
}

/// The command line of a process, its first 80 characters.
fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&line).replace('\0', " ");
    words.trim_end().chars().take(80).collect()
}
