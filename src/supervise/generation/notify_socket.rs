//! sd_notify(3) in both directions: what a generation says to us, and what we say to the service manager.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, sendto, setsockopt, socket, sockopt,
};

use crate::supervise::generation::child::Watchdog;
use crate::supervise::plan::Moment;
use crate::sys;

/// So many messages wait for room in the service manager's queue; it takes no more than the last few to know all.
const MOST_UNSENT: usize = 16;
/// When to look for room again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

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
    /// It watches us: it ends us when it has not heard WATCHDOG=1 for so long.
    patience: Option<Duration>,
    /// When to say WATCHDOG=1 next, while no generation serves that would.
    next_sign: Option<Moment>,
    /// What its full queue had no room for, and when to try again.
    unsent: VecDeque<String>,
    retry: Option<Moment>,
}

impl Manager {
    /// Read NOTIFY_SOCKET and WATCHDOG_USEC.
    pub(crate) fn of(environment: &[&std::ffi::CStr]) -> Manager {
        let path = sys::variable(environment, "NOTIFY_SOCKET").unwrap_or_default();
        let address = match path {
            [b'@', name @ ..] => UnixAddr::new_abstract(name).ok(),
            [b'/', ..] => UnixAddr::new(path).ok(),
            _ => None,
        };
        let watched = sys::variable(environment, "WATCHDOG_USEC").and_then(|value| str::from_utf8(value).ok());
        let patience = watched.and_then(|value| value.parse().ok()).map(Duration::from_micros);
        let patience = patience.filter(|patience| !patience.is_zero());
        Manager { address, patience, next_sign: None, unsent: VecDeque::new(), retry: None }
    }

    /// Whether generations are told whom it watches.
    pub(crate) fn watchdog(&self) -> Watchdog {
        if self.patience.is_some() { Watchdog::Watched } else { Watchdog::Unwatched }
    }

    /// The first generation is being started, and may take as long as this.
    pub(crate) fn starting(&mut self, status: &str, at_most: Duration) {
        let limit = extended(at_most).as_micros();
        self.send(format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={limit}"));
    }

    /// What we serve is up, or what was to replace it has failed.
    pub(crate) fn ready(&mut self, status: &str) {
        self.send(format!("READY=1\nSTATUS={status}"));
    }

    /// A new generation was asked for.
    pub(crate) fn reloading(&mut self, status: &str, now: Moment) {
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS={status}", now.as_micros()));
    }

    /// Everything stops, and may take as long as this.
    pub(crate) fn stopping(&mut self, status: &str, at_most: Duration) {
        let limit = extended(at_most).as_micros();
        self.send(format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={limit}"));
    }

    /// Only what people read.
    pub(crate) fn status(&mut self, status: &str) {
        self.send(format!("STATUS={status}"));
    }

    /// The generation that serves is alive.
    pub(crate) fn alive(&mut self) {
        // One that comes late says nothing.
        if self.patience.is_some() && self.unsent.is_empty() {
            self.send("WATCHDOG=1".to_owned());
        }
    }

    /// No generation serves: that we see to it is all that can be watched.
    pub(crate) fn stand_in(&mut self, now: Moment) {
        let Some(patience) = self.patience else { return };
        if self.next_sign.is_none_or(|at| at <= now) {
            self.alive();
            self.next_sign = Some(now + patience / 2);
        }
    }

    /// A generation serves, and has to say itself that it is alive. What is left of the patience was spent before it
    /// served.
    pub(crate) fn stand_back(&mut self) {
        self.next_sign = None;
        self.alive();
    }

    /// When there is something to be said.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.next_sign.into_iter().chain(self.retry).min()
    }

    fn send(&mut self, text: String) {
        if self.address.is_none() {
            return;
        }
        if self.unsent.len() == MOST_UNSENT {
            // What is so old has been said anew since.
            self.unsent.pop_front();
        }
        self.unsent.push_back(text);
        self.send_unsent(sys::now());
    }

    /// Send what waits, in order, as far as there is room. A manager that does not listen is no reason to stop serving,
    /// and one that reads late none to wait.
    pub(crate) fn send_unsent(&mut self, now: Moment) {
        self.retry = None;
        while let Some((text, address)) = self.unsent.front().zip(self.address.as_ref()) {
            match send_to(address, text) {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    self.retry = Some(now + RETRY_PAUSE);
                    return;
                }
                Err(errno) => debug!("cannot notify the service manager: {errno}"),
                Ok(_) => (),
            }
            self.unsent.pop_front();
        }
    }
}

fn send_to(address: &UnixAddr, text: &str) -> nix::Result<usize> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    sendto(fd.as_raw_fd(), text.as_bytes(), address, MsgFlags::MSG_NOSIGNAL)
}

/// The kill at our own deadline, and what follows it, must come before the manager's.
fn extended(at_most: Duration) -> Duration {
    at_most.saturating_add(Duration::from_secs(5))
}
