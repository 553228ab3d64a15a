//! What helps when an address cannot be bound, and which process has it: the second line of that error.

use std::fs;
use std::os::fd::RawFd;
use std::path::Path;

use anyhow::Error;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::kernel::descriptors::{self, ForeignFd, Kind, SocketInode};
use crate::kernel::holders::is_spared;
use crate::kernel::processes::{Process, are_visible};
use crate::socket::endpoint::Endpoint;
use crate::socket::in_the_way::{bound_otherwise, bound_to};
use crate::sys;

/// What helps when a socket cannot be bound to `endpoint`, one of `wanted`.
pub(crate) fn for_listen(endpoint: &Endpoint, wanted: &[Endpoint], error: &Error) -> Option<String> {
    match error.downcast_ref()? {
        Errno::EADDRINUSE => Some(held_by(endpoint, wanted)),
        Errno::EACCES if endpoint.port().is_ok_and(|port| port < 1024) => Some(
            "a port this low needs 'setcap cap_net_bind_service=+ep' on handoff-run, or 'sysctl \
             net.ipv4.ip_unprivileged_port_start=0'"
                .to_owned(),
        ),
        Errno::ENOENT => missing_folder(endpoint.path().ok()?, error),
        _ => None,
    }
}

/// That the folder of a file that cannot be made is missing, if so.
pub(crate) fn missing_folder(path: &Path, error: &Error) -> Option<String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let missing = error.downcast_ref() == Some(&Errno::ENOENT) && !folder.exists();
    missing.then(|| format!("there is no folder {}", folder.display()))
}

/// The process that has the address, as far as /proc shows.
fn held_by(endpoint: &Endpoint, wanted: &[Endpoint]) -> String {
    let held = bound_to(endpoint);
    if let Some(number) = inherited(&held) {
        return format!(
            "it is held by descriptor {number}, which was inherited and is bound otherwise than this asks for: ask for that \
             socket by its own address or as fd:{number}, or close it"
        );
    }
    let holds = |pid: &Pid| descriptors::sockets(*pid).any(|inode| held.contains(&inode));
    let processes = are_visible().and_then(|()| Ok(sys::numbers_in("/proc")?)).unwrap_or_default();
    // The oldest, by its start and not by its number: a master, not one of its workers.
    let age = |pid: &Pid| Process::read(*pid).map_or(u64::MAX, |process| process.started);
    match processes.into_iter().map(Pid::from_raw).filter(holds).min_by_key(age) {
        Some(pid) if pid == Pid::this() => "two --listen options ask for the same address".to_owned(),
        Some(pid) if !is_spared(pid) => {
            let its: Vec<SocketInode> = descriptors::sockets(pid).filter(|inode| held.contains(inode)).collect();
            let remedy = match bound_otherwise(wanted, &its).first() {
                Some(spec) => format!("it listens on {spec}: --listen {spec} --from {pid} takes that over"),
                None => format!("--from {pid} takes it over"),
            };
            format!("it is held by pid {pid}: {}; {remedy}", command(pid))
        }
        Some(pid) => format!("it is held by pid {pid}: {}", command(pid)),
        None => "it is held by a process that /proc does not show to this user".to_owned(),
    }
}

/// The descriptor of this process that one of `held` was inherited at. What it bound or adopted itself is close-on-exec.
fn inherited(held: &[SocketInode]) -> Option<RawFd> {
    let all = are_visible().and_then(|()| descriptors::descriptors(Pid::this())).unwrap_or_default();
    let is_held = |kind: &Kind| matches!(kind, Kind::Socket(inode) if held.contains(inode));
    let numbers = all.into_iter().filter(|(_, kind)| is_held(kind)).map(|(ForeignFd(number), _)| number);
    numbers.filter(|number| sys::is_inheritable(*number)).min()
}

/// The command line of a process, its first 80 characters.
fn command(pid: Pid) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&line).replace('\0', " ");
    words.trim_end().chars().take(80).collect()
}
