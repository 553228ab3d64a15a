//! The control socket: who is connected, what they asked, and what they are told. One request a connection, lines of
//! text both ways; a client that is slow, silent or gone costs nobody else anything.
//!
//! A client sends `reload [wait] [live]`, `status [json]` or `stop`. It is sent lines: `at ID TEXT` and `live ID TEXT`
//! tell what a generation does, `error TEXT` and `out TEXT` are for stderr and stdout, and `exit STATUS` is the last.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use log::warn;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::socket::options::Options;
use crate::socket::unix_path::{self, Created};
use crate::supervise::control::{Client, Wants};
use crate::supervise::plan::Moment;
use crate::sys::{self, FIRST_FD};

/// So many may be connected; more wait in the queue.
const MOST_CLIENTS: usize = 200;
/// So many may wait in the queue.
const QUEUE: i32 = 1024;
/// So many descriptors clients do not get: a new generation takes some, and so does every look at the processes.
const SPARE: u64 = 8;
/// When a connection could not be accepted because descriptors ran out, it is tried again after this.
const PAUSE: Duration = Duration::from_millis(100);

/// The listening socket and those connected.
#[derive(Debug)]
pub(crate) struct Control {
    path: PathBuf,
    /// The file, removed at the end if it is still ours. Before the socket, while nobody else can take it for dead.
    created: Option<Created>,
    fd: OwnedFd,
    pub(crate) clients: Vec<Client>,
    paused_until: Option<Moment>,
    /// It was said that descriptors ran out, and some are still waiting to be let in.
    complained: bool,
}

impl Control {
    /// Listen at `path`, which nobody but this user can use. A dead socket there is replaced.
    pub(crate) fn listen(path: &Path) -> Result<Control> {
        let context = || format!("cannot listen on --control {}", path.display());
        let text = path.to_str().context("the path is not UTF-8").with_context(context)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).with_context(context)?;
        let created = unix_path::bind(&fd, text, &Options::mode(0o600), || sys::listen(&fd, QUEUE));
        let created = Some(created.with_context(context)?);
        Ok(Control { fd, path: path.to_owned(), created, clients: Vec::new(), paused_until: None, complained: false })
    }

    /// The socket that a predecessor of this supervisor listened on.
    pub(crate) fn resumed(fd: OwnedFd, path: &Path, created: Option<Created>) -> Control {
        Control { fd, path: path.to_owned(), created, clients: Vec::new(), paused_until: None, complained: false }
    }

    /// The listening socket, while more clients are welcome.
    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        let welcome = self.clients.len() < MOST_CLIENTS && self.paused_until.is_none();
        welcome.then(|| self.fd.as_fd())
    }

    /// Listen no more, and leave those who are connected.
    pub(crate) fn close(self) -> Vec<Client> {
        self.clients
    }

    /// The file that was made for it.
    pub(crate) fn created(&self) -> Option<&Created> {
        self.created.as_ref()
    }

    /// The descriptor for the next supervisor.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Let in who waits.
    pub(crate) fn accept(&mut self, now: Moment) {
        while self.clients.len() < MOST_CLIENTS {
            match self.may_accept().and_then(|()| sys::accept(&self.fd)) {
                Ok(fd) => self.clients.extend(Client::admit(fd, now)),
                Err(Errno::EAGAIN) => {
                    self.complained = false;
                    return;
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => (),
                Err(errno) => {
                    if !std::mem::replace(&mut self.complained, true) {
                        warn!("cannot accept on {}: {errno}", self.path.display());
                    }
                    self.paused_until = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    /// Are there descriptors for one more client, and for what else a supervisor has to do?
    fn may_accept(&self) -> nix::Result<()> {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let next = sys::duplicate_from(&self.fd, FIRST_FD)?.as_raw_fd();
        let enough = next as u64 + SPARE <= limit;
        if enough || self.clients.is_empty() { Ok(()) } else { Err(Errno::EMFILE) }
    }

    /// When somebody's patience, or a pause, ends.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.clients.iter().filter_map(|client| client.patience).chain(self.paused_until).min()
    }

    /// Drop those who are done, broken, or were silent for too long.
    pub(crate) fn tidy(&mut self, now: Moment) {
        self.paused_until.take_if(|until| *until <= now);
        self.clients.retain(|client| !client.is_over(now));
    }

    /// Send a line to everyone who waits for news.
    pub(crate) fn tell_all(&mut self, line: &str) {
        for client in self.clients.iter_mut().filter(|client| client.wants != Wants::Nothing) {
            client.say(line);
        }
    }
}
