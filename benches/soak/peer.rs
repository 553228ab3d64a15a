//! What a connection is called by both of its ends: the address that the client is bound to.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername};
use nix::unistd::Pid;

/// A client's address as text.
pub fn text(address: &SockaddrStorage) -> Option<String> {
    if let Some(address) = address.as_sockaddr_in() {
        return Some(address.to_string());
    }
    Some(String::from_utf8_lossy(address.as_unix_addr()?.as_abstract()?).into_owned())
}

/// The client at the other end.
pub fn of(socket: &impl AsRawFd) -> Option<String> {
    let address: SockaddrStorage = getpeername(socket.as_raw_fd()).ok()?;
    (address.len() > 0).then(|| text(&address))?
}

/// The clients whose connections a process holds; it should be stopped.
pub fn held_by(pid: Pid) -> io::Result<Vec<String>> {
    // SAFETY: pidfd_open takes two integers.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let mut held = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry.file_name().to_string_lossy().parse::<RawFd>().map_err(io::Error::other)?;
        if fs::read_link(entry.path())?.to_string_lossy().starts_with("socket:") {
            // SAFETY: pidfd_getfd takes three integers.
            let copy = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })?;
            held.extend(of(&copy));
        }
    }
    Ok(held)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the kernel just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
