//! The service manager that started us: what we send it by sd_notify(3).

pub(crate) mod store;

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};

use crate::sys::{self, Timestamp};

/// At most this many notifications wait for room in the service manager's queue; later ones supersede the oldest.
const MOST_UNSENT: usize = 16;
/// When to try again.
const RETRY_BACKOFF: Duration = Duration::from_millis(100);

/// Does a service manager watch what we start?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watchdog {
    Watched,
    Unwatched,
}

/// The service manager, if NOTIFY_SOCKET names one.
#[derive(Debug)]
pub(crate) struct Manager {
    address: Option<UnixAddr>,
    /// NOTIFY_SOCKET is set, be it to an address or not.
    is_named: bool,
    /// Why it could not be sent something, which is not that it had no room.
    unreachable: Option<Errno>,
    /// The watchdog's timeout: without WATCHDOG=1 for that long, it ends us.
    watchdog: Option<Duration>,
    /// When to send WATCHDOG=1 next, while no generation serves that would.
    next_keep_alive: Option<Timestamp>,
    /// What its queue had no room for, and when to try again.
    unsent: Vec<Message>,
    retry: Option<Timestamp>,
    store: store::StoreSupport,
}

/// Something to be sent.
#[derive(Debug)]
struct Message {
    text: String,
    fd: Option<OwnedFd>,
    kind: Kind,
}

/// What becomes of a message when there is no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Newer ones supersede it.
    Notification,
    /// Each of them counts.
    Store,
}

impl Manager {
    /// Read NOTIFY_SOCKET and WATCHDOG_USEC.
    pub(crate) fn of(environment: &[&CStr]) -> Manager {
        let path = sys::variable(environment, "NOTIFY_SOCKET").unwrap_or_default();
        let address = match path {
            [b'@', name @ ..] => UnixAddr::new_abstract(name).ok(),
            [b'/', ..] => UnixAddr::new(path).ok(),
            _ => None,
        };
        let watched = sys::variable(environment, "WATCHDOG_USEC").and_then(|value| str::from_utf8(value).ok());
        let watchdog = watched.and_then(|value| value.parse().ok()).map(Duration::from_micros);
        let watchdog = watchdog.filter(|timeout| !timeout.is_zero());
        let store = store::StoreSupport::of(environment);
        let is_named = !path.is_empty();
        let (next_keep_alive, unsent, retry) = (None, vec![], None);
        Manager { address, is_named, unreachable: None, watchdog, next_keep_alive, unsent, retry, store }
    }

    /// Whether generations get WATCHDOG_PID.
    pub(crate) fn watchdog(&self) -> Watchdog {
        if self.watchdog.is_some() { Watchdog::Watched } else { Watchdog::Unwatched }
    }

    /// The first generation is being started, which may take up to `at_most`.
    pub(crate) fn starting(&mut self, status: &str, at_most: Duration) {
        let limit = extended(at_most).as_micros();
        self.send(format!("STATUS={status}\nEXTEND_TIMEOUT_USEC={limit}"));
    }

    /// What we serve is up, or what was to replace it has failed.
    pub(crate) fn ready(&mut self, status: &str) {
        self.send(format!("READY=1\nSTATUS={status}"));
    }

    /// A new generation was asked for.
    pub(crate) fn reloading(&mut self, status: &str, now: Timestamp) {
        self.send(format!("RELOADING=1\nMONOTONIC_USEC={}\nSTATUS={status}", now.as_micros()));
    }

    /// Everything stops, which may take up to `at_most`.
    pub(crate) fn stopping(&mut self, status: &str, at_most: Duration) {
        let limit = extended(at_most).as_micros();
        self.send(format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={limit}"));
    }

    /// Only STATUS, a text for people.
    pub(crate) fn status(&mut self, status: &str) {
        self.send(format!("STATUS={status}"));
    }

    /// The generation that serves is alive.
    pub(crate) fn alive(&mut self) {
        // A queued keep-alive would arrive too late: drop it.
        if self.watchdog.is_some() && self.unsent.is_empty() {
            self.send("WATCHDOG=1".to_owned());
        }
    }

    /// No generation serves: send the supervisor's own keep-alive, when it is due.
    pub(crate) fn start_keep_alive(&mut self, now: Timestamp) {
        let Some(timeout) = self.watchdog else { return };
        if self.next_keep_alive.is_none_or(|at| at <= now) {
            self.alive();
            self.next_keep_alive = Some(now + timeout / 2);
        }
    }

    /// A generation serves and sends its own keep-alive. Send one more now: part of the timeout was used up before it
    /// served.
    pub(crate) fn stop_keep_alive(&mut self) {
        self.next_keep_alive = None;
        self.alive();
    }

    /// When there is something to send.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.next_keep_alive.into_iter().chain(self.retry).min()
    }

    fn send(&mut self, text: String) {
        let mut of_them = (0..self.unsent.len()).filter(|at| self.unsent[*at].kind == Kind::Notification);
        if let Some(oldest) = of_them.next()
            && of_them.count() + 1 == MOST_UNSENT
        {
            self.unsent.remove(oldest);
        }
        self.put(Message { text, fd: None, kind: Kind::Notification });
    }

    fn put(&mut self, message: Message) {
        if self.address.is_some() {
            self.unsent.push(message);
            self.send_unsent(sys::now());
        }
    }

    /// Send what waits, in order, as far as there is room. A manager that does not read is no reason to stop serving or
    /// to wait.
    pub(crate) fn send_unsent(&mut self, now: Timestamp) {
        self.retry = None;
        while let Some((message, address)) = self.unsent.first().zip(self.address.as_ref()) {
            match send_to(address, message) {
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    self.retry = Some(now + RETRY_BACKOFF);
                    return;
                }
                Err(errno) => {
                    debug!("cannot notify the service manager: {errno}");
                    self.unreachable = Some(errno);
                }
                Ok(()) => self.unreachable = None,
            }
            self.unsent.remove(0);
        }
    }
}

fn send_to(address: &UnixAddr, message: &Message) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    sys::send_text(&fd, address, &message.text, message.fd.as_ref().map(AsFd::as_fd))
}

/// Our own deadline, with the kill and what follows it, must come before the manager's.
fn extended(at_most: Duration) -> Duration {
    at_most.saturating_add(Duration::from_secs(5))
}
