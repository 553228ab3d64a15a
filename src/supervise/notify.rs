//! sd_notify(3) in both directions: what a generation says to us, and what we say to the service manager.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use log::debug;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, sendto, setsockopt, socket, sockopt,
};

use crate::environ;
use crate::supervise::child::Watchdog;
use crate::supervise::plan::Moment;
use crate::sys;

/// Where one generation sends its messages: an abstract socket whose name the kernel chose.
#[derive(Debug)]
pub(crate) struct Inbox {
    fd: OwnedFd,
}

/// A message, and who sent it.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) text: String,
    /// The process and user that the kernel vouches for.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

impl Inbox {
    /// A new one.
    pub(crate) fn open() -> Result<Inbox> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None).context("cannot make a notify socket")?;
        setsockopt(&fd, sockopt::PassCred, &true)?;
        // An address of the family alone asks for a free abstract name (unix(7), autobind).
        bind(fd.as_raw_fd(), &UnixAddr::new_unnamed()).context("cannot bind a notify socket")?;
        Ok(Inbox { fd })
    }

    /// One that a predecessor of this supervisor opened.
    pub(crate) fn resumed(fd: OwnedFd) -> Inbox {
        Inbox { fd }
    }

    /// The value for NOTIFY_SOCKET.
    pub(crate) fn address(&self) -> Result<String> {
        let address: UnixAddr = getsockname(self.fd.as_raw_fd())?;
        let name = address.as_abstract().context("the notify socket has no name")?;
        Ok(format!("@{}", String::from_utf8_lossy(name)))
    }

    /// The next message, if there is one.
    pub(crate) fn next(&self) -> Option<Message> {
        let mut buffer = [0; 4096];
        // A descriptor that came along (FDSTORE=1, BARRIER=1) is closed by now, which is the answer to a barrier: what
        // came before it has been read.
        let (length, sender) = sys::receive(&self.fd, &mut buffer).ok()?;
        let sender = sender?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Some(Message { text, pid: sender.pid, uid: sender.uid })
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Message {
    /// Does it have this assignment as a line?
    pub(crate) fn says(&self, assignment: &str) -> bool {
        self.text.lines().any(|line| line == assignment)
    }
}

/// The service manager that started us, if one did and wants to know.
#[derive(Debug)]
pub(crate) struct Manager {
    address: Option<UnixAddr>,
    /// It watches us, and so wants the pid of each generation in WATCHDOG_PID.
    watchdog: Watchdog,
}

impl Manager {
    /// Read NOTIFY_SOCKET and WATCHDOG_USEC.
    pub(crate) fn of(environment: &[&std::ffi::CStr]) -> Manager {
        let path = environ::value(environment, "NOTIFY_SOCKET").unwrap_or_default();
        let address = match path {
            [b'@', name @ ..] => UnixAddr::new_abstract(name).ok(),
            [b'/', ..] => UnixAddr::new(path).ok(),
            _ => None,
        };
        let watched = environ::value(environment, "WATCHDOG_USEC").is_some();
        Manager { address, watchdog: if watched { Watchdog::Watched } else { Watchdog::Unwatched } }
    }

    /// Does it expect WATCHDOG=1 from time to time?
    pub(crate) fn watchdog(&self) -> Watchdog {
        self.watchdog
    }

    /// What we serve is up.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// A new generation is being started.
    pub(crate) fn reloading(&self, now: Moment) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
    }

    /// Everything stops, and may take as long as this.
    pub(crate) fn stopping(&self, status: &str, at_most: Duration) {
        let limit = extended(at_most).as_micros();
        self.send(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={limit}"));
    }

    /// The serving generation is alive, or we are, while none serves.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, text: &str) {
        let Some(address) = &self.address else { return };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let sent = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .and_then(|fd| sendto(fd.as_raw_fd(), text.as_bytes(), address, MsgFlags::MSG_NOSIGNAL));
        // A manager that does not listen is no reason to stop serving.
        if let Err(errno) = sent {
            debug!("cannot notify the service manager: {errno}");
        }
    }
}

/// The kill at our own deadline, and what follows it, must come before the manager's.
fn extended(at_most: Duration) -> Duration {
    at_most + Duration::from_secs(5)
}
