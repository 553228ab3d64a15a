//! What the descriptors of another process lead to, by the links in `/proc/PID/fd`.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::str;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::sys::stat::fstat;
use nix::unistd::Pid;

use crate::kernel::processes::are_visible;
use crate::sys;

/// The number by which another process knows a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ForeignFd(pub(crate) c_int);

/// A socket's inode in sockfs: equal if the descriptors of two processes are the same socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SocketInode(pub(crate) u64);

impl SocketInode {
    pub(crate) fn of(socket: impl AsFd) -> nix::Result<SocketInode> {
        Ok(SocketInode(fstat(socket)?.st_ino))
    }
}

/// What a descriptor leads to, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Socket(SocketInode),
    Epoll,
    Ring,
}

impl Kind {
    /// The text of one link, as proc_pid_fd(5) has it.
    fn parse(link: &[u8]) -> Option<Kind> {
        match link {
            b"anon_inode:[eventpoll]" => Some(Kind::Epoll),
            b"anon_inode:[io_uring]" => Some(Kind::Ring),
            _ => {
                let inode = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
                Some(Kind::Socket(SocketInode(str::from_utf8(inode).ok()?.parse().ok()?)))
            }
        }
    }
}

/// The sockets, epolls and rings that `pid` has open; none if it has ended.
///
/// # Errors
/// EACCES, without permission: another user's process, or one that is not dumpable; EPERM where /proc has other
/// numbers.
pub(crate) fn descriptors(pid: Pid) -> io::Result<Vec<(ForeignFd, Kind)>> {
    first_descriptors(pid, usize::MAX)
}

/// The same of the first `most` that it has open.
pub(crate) fn first_descriptors(pid: Pid, most: usize) -> io::Result<Vec<(ForeignFd, Kind)>> {
    if are_visible().is_err_and(|error| !has_vanished(&error)) {
        return Err(Errno::EPERM.into());
    }
    let mut found = Vec::new();
    let mut directory = format!("/proc/{pid}");
    let mut numbers = sys::numbers_in(&format!("{directory}/fd"))?;
    if numbers.is_empty()
        && let Some(thread) = running_thread(pid)
    {
        directory = thread;
        numbers = sys::numbers_in(&format!("{directory}/fd"))?;
    }
    for number in numbers.into_iter().take(most) {
        found.extend(kind_of(&directory, number)?.map(|kind| (ForeignFd(number), kind)));
    }
    Ok(found)
}

/// What one of them leads to; none if that is something else, or was closed just now.
fn kind_of(directory: &str, number: c_int) -> io::Result<Option<Kind>> {
    match fs::read_link(format!("{directory}/fd/{number}")) {
        Ok(link) => Ok(Kind::parse(link.as_os_str().as_bytes())),
        Err(error) if has_vanished(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The socket that `pid` has open there, if it is one.
pub(crate) fn socket_at(pid: Pid, number: ForeignFd) -> io::Result<Option<SocketInode>> {
    let kind = kind_of(&format!("/proc/{pid}"), number.0)?;
    Ok(kind.and_then(|kind| if let Kind::Socket(inode) = kind { Some(inode) } else { None }))
}

/// The directory of a thread that has something open, where the main thread has ended alone, as by pthread_exit(3):
/// the process' own directory is empty then.
pub(crate) fn running_thread(pid: Pid) -> Option<String> {
    let has_open = |directory: &str| sys::numbers_in(&format!("{directory}/fd")).is_ok_and(|open| !open.is_empty());
    if has_open(&format!("/proc/{pid}")) {
        return None;
    }
    let threads = sys::numbers_in(&format!("/proc/{pid}/task")).unwrap_or_default();
    threads.into_iter().map(|thread| format!("/proc/{pid}/task/{thread}")).find(|directory| has_open(directory))
}

/// The sockets among them; none without permission.
pub(crate) fn sockets(pid: Pid) -> impl Iterator<Item = SocketInode> {
    descriptors(pid).unwrap_or_default().into_iter().filter_map(|(_, kind)| match kind {
        Kind::Socket(inode) => Some(inode),
        Kind::Epoll | Kind::Ring => None,
    })
}

/// May we look at what each of these processes has open, and is there one?
pub(crate) fn are_open_to_us(processes: &[Pid]) -> bool {
    let is_open = |pid: &Pid| descriptors(*pid).is_ok() || running_thread(*pid).is_some();
    !processes.is_empty() && processes.iter().all(|pid| is_open(pid) || kill(*pid, None) == Err(Errno::ESRCH))
}

/// The error of a file of /proc whose process, thread or descriptor is gone.
pub(crate) fn has_vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::listener;

    #[test]
    fn a_link_names_a_socket_an_epoll_or_a_ring() {
        assert_eq!(Kind::parse(b"socket:[46349]"), Some(Kind::Socket(SocketInode(46349))));
        assert_eq!(Kind::parse(b"anon_inode:[eventpoll]"), Some(Kind::Epoll));
        assert_eq!(Kind::parse(b"anon_inode:[io_uring]"), Some(Kind::Ring));
    }

    #[test]
    fn any_other_link_is_not_of_interest() {
        let links = [&b""[..], b"socket:[]", b"socket:[12", b"socket:[1x]", b"/tmp/socket:[1]", b"pipe:[3]", b"\xff"];
        assert!(links.into_iter().all(|link| Kind::parse(link).is_none()));
    }

    #[test]
    fn a_socket_is_found_by_its_inode_and_its_copy_is_the_same() {
        let (listener, copy) = listener();
        let inode = SocketInode::of(&listener).unwrap();
        assert_eq!(SocketInode::of(&copy), Ok(inode));
        assert_eq!(sockets(Pid::this()).filter(|socket| *socket == inode).count(), 2);
    }

    #[test]
    fn a_process_that_is_not_there_has_vanished() {
        let error = descriptors(Pid::from_raw(i32::MAX)).unwrap_err();
        assert!(has_vanished(&error), "{error}");
    }
}
