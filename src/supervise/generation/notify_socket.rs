//! The notify socket of a generation: what it sends by sd_notify(3).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, getsockname, setsockopt, socket, sockopt};

use crate::sys;

/// A notification and its sender.
#[derive(Debug)]
pub(crate) struct Notification {
    pub(crate) text: String,
    /// The sending process and user, as verified by the kernel.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// A new notify socket, at an abstract name that the kernel chooses.
pub(crate) fn open() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None).context("cannot make a notify socket")?;
    setsockopt(&fd, sockopt::PassCred, &true)?;
    // An address of the family alone asks for a free abstract name (unix(7), autobind).
    bind(fd.as_raw_fd(), &UnixAddr::new_unnamed()).context("cannot bind a notify socket")?;
    Ok(fd)
}

/// The value for NOTIFY_SOCKET.
pub(crate) fn address(socket: impl AsFd) -> Result<String> {
    let address: UnixAddr = getsockname(socket.as_fd().as_raw_fd())?;
    let name = address.as_abstract().context("the notify socket has no name")?;
    Ok(format!("@{}", String::from_utf8_lossy(name)))
}

/// The next notification, if there is one.
pub(crate) fn receive(socket: impl AsFd) -> Option<Notification> {
    let mut buffer = [0; 4096];
    // A descriptor sent along (FDSTORE=1, BARRIER=1) is closed by now, which answers a barrier: everything before
    // it has been read.
    let (length, sender) = sys::receive(socket, &mut buffer).ok()?;
    let sender = sender?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Some(Notification { text, pid: sender.pid, uid: sender.uid })
}

impl Notification {
    /// Does it have this assignment as a line?
    pub(crate) fn has(&self, assignment: &str) -> bool {
        self.text.lines().any(|line| line == assignment)
    }
}
