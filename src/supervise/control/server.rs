//! The control socket and the clients that are connected to it. One that is slow, silent or gone does not delay
//! the others.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use log::warn;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use crate::kernel::descriptors::SocketInode;
use crate::saved;
use crate::socket::bound_file::is_bound_at;
use crate::socket::control_spec::{Admits, ControlSpec};
use crate::socket::endpoint::Endpoint;
use crate::socket::remedy;
use crate::socket::socket_file::{Created, Naming, SavedFile};
use crate::socket::unix_path;
use crate::supervise::control::connection::{Client, SavedClient, WaitingFor};
use crate::supervise::control::protocol::{Call, Reply};
use crate::supervise::plan::Id;
use crate::supervise::poll::{Source, Table};
use crate::sys::{self, Claimed, FIRST_FD, Timestamp};

/// At most this many that wait for nothing may be connected; more wait in the accept queue.
const MOST_CLIENTS: usize = 200;
/// At most this many may wait for a reload, and as many for the end: the others are still answered.
const MOST_WAITING: u64 = 200;
/// The backlog.
const BACKLOG: i32 = 1024;
/// Descriptors reserved so that a generation can still be started and /proc read.
const SPARE: u64 = 8;
/// When a connection could not be accepted because descriptors ran out, it is tried again after this.
const BACKOFF: Duration = Duration::from_millis(100);

/// The two things that clients wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    ForReload,
    ForEnd,
}

/// The control socket, if there is one, and its clients.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    server: Option<Server>,
    all: Vec<Client>,
}

/// The listening socket.
#[derive(Debug)]
struct Server {
    path: PathBuf,
    admits: Admits,
    /// The file, removed at the end if it is still ours. Before the socket, while no other process can take it for
    /// dead.
    created: Option<Created>,
    fd: OwnedFd,
    /// A successor listens on it, too.
    is_lent: bool,
    /// It is another supervisor's still, which is to be succeeded: what it is to be then.
    succeeds: Option<ControlSpec>,
    paused_until: Option<Timestamp>,
    /// It was logged that descriptors ran out, and clients still wait in the accept queue.
    warned: bool,
}

/// The same in a state that is handed on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedClients {
    server: Option<SavedServer>,
    #[serde(deserialize_with = "saved::lenient")]
    clients: Vec<SavedClient>,
}

#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
pub(crate) struct SavedServer {
    pub(crate) fd: RawFd,
    #[serde(default)]
    pub(crate) file: Option<SavedFile>,
    /// It is another supervisor's still, which is to be succeeded.
    #[serde(default)]
    is_borrowed: bool,
}

impl Clients {
    /// Listen where `spec` wants it. A dead socket there is replaced. Without one, there will be no clients.
    pub(crate) fn listen(spec: Option<&ControlSpec>) -> Result<Clients> {
        let server = spec.map(Server::listen).transpose()?;
        Ok(Clients { server, all: Vec::new() })
    }

    /// Listen on what a supervisor lent that is to be succeeded; the file stays its own until then, with the mode and owner
    /// that it gave it, and only this user and root are admitted.
    ///
    /// # Errors
    /// If it is not the socket at the path of `spec`.
    pub(crate) fn listen_on(spec: &ControlSpec, lent: OwnedFd) -> Result<Clients> {
        let inode = SocketInode::of(&lent)?;
        let is_it = Endpoint::of(&lent)?.path().is_ok_and(|name| is_bound_at(&spec.path, inode, name));
        ensure!(is_it, "cannot listen on --control {spec}: what was lent is another socket");
        let created = Created::lent(&spec.path).with_context(|| format!("cannot listen on --control {spec}"))?;
        // Whoever connects asks the kernel which process called it last (SO_PEERCRED).
        let _ = sys::listen(&lent, BACKLOG);
        let server = Server::new(lent, spec, Some(created)).borrowed(spec);
        Ok(Clients { server: Some(server), all: Vec::new() })
    }

    /// That supervisor has been succeeded.
    pub(crate) fn own(&mut self) {
        if let Some(server) = &mut self.server {
            server.own();
        }
    }

    /// Add what is waited for to the round's table.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        if let Some(server) = &self.server {
            table.until(server.paused_until);
            if self.has_room() && server.paused_until.is_none() && !server.is_lent {
                table.input(Source::Control, server.fd.as_fd());
            }
        }
        for (at, client) in self.all.iter().enumerate() {
            table.events(Source::Client(at), client.as_fd(), client.poll_for());
            table.until(client.timeout);
        }
    }

    /// Accept those that wait.
    pub(crate) fn accept(&mut self, now: Timestamp) {
        while self.has_room() {
            let Some(server) = &mut self.server else { return };
            match server.accept(self.all.is_empty()) {
                Ok(fd) => self.all.extend(Client::admit(fd, server.admits, now)),
                Err(Errno::EAGAIN) => {
                    server.warned = false;
                    return;
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => (),
                Err(errno) => return server.back_off(errno, now),
            }
        }
    }

    /// May one more connect?
    fn has_room(&self) -> bool {
        self.all.iter().filter(|client| client.waiting_for == WaitingFor::Nothing).count() < MOST_CLIENTS
    }

    /// May one more client wait for a reload, or for the end? A quarter of the descriptors at most.
    pub(crate) fn has_room_to_wait(&self, what: Wait) -> bool {
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, 0));
        let waits = |client: &&Client| match client.waiting_for {
            WaitingFor::Nothing | WaitingFor::Succession => false,
            WaitingFor::End => what == Wait::ForEnd,
            WaitingFor::Generation { .. } | WaitingFor::Predecessors { .. } => what == Wait::ForReload,
        };
        (self.all.iter().filter(waits).count() as u64) < MOST_WAITING.min(descriptors / 4)
    }

    /// Something happened to the client in this place: send what waits, and read its request, if that has come.
    pub(crate) fn wake(&mut self, at: usize, flags: PollFlags) -> Option<Call> {
        let client = self.all.get_mut(at)?;
        if flags.contains(PollFlags::POLLOUT) {
            client.send();
        }
        let call = if flags.contains(PollFlags::POLLIN) { client.receive() } else { None };
        if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            client.hang_up();
        }
        call
    }

    /// Lend the listening socket, if it is wanted, and accept nobody until it is taken back.
    pub(crate) fn lend(&mut self, is_wanted: bool) -> Option<SavedServer> {
        let server = self.server.as_mut().filter(|_| is_wanted)?;
        server.is_lent = true;
        Some(server.save())
    }

    /// It, if it is lent.
    pub(crate) fn lent_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.server.iter().find(|server| server.is_lent).map(|server| server.fd.as_fd())
    }

    /// Accept again.
    pub(crate) fn take_back(&mut self) {
        if let Some(server) = self.server.as_mut().filter(|server| server.is_lent) {
            server.is_lent = false;
            // The borrower may have called it.
            let _ = sys::listen(&server.fd, BACKLOG);
        }
    }

    /// What is lent is the successor's.
    pub(crate) fn leave_lent(&mut self) {
        if let Some(mut server) = self.server.take_if(|server| server.is_lent) {
            server.created.iter_mut().for_each(Created::leave_both);
        }
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Client> {
        self.all.get(at)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Client> {
        self.all.iter()
    }

    /// The client in this place; it stays there until the next `tidy`.
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut Client> {
        self.all.get_mut(at)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.all.iter_mut()
    }

    /// Drop those that are done, broken, or were silent for too long.
    pub(crate) fn tidy(&mut self, now: Timestamp) {
        if let Some(server) = &mut self.server {
            server.paused_until.take_if(|until| *until <= now);
        }
        self.all.retain(|client| !client.is_over(now));
    }

    /// Send a reply to every client that is waiting for something. A successor waits for descriptors alone.
    pub(crate) fn send_all(&mut self, reply: &Reply) {
        let waits = |client: &&mut Client| !matches!(client.waiting_for, WaitingFor::Nothing | WaitingFor::Succession);
        for client in self.all.iter_mut().filter(waits) {
            client.reply(reply);
        }
    }

    /// Are there clients that show numbers as they change?
    pub(crate) fn any_live(&self) -> bool {
        self.all.iter().any(Client::is_live)
    }

    /// Send them how far a generation is.
    pub(crate) fn send_live(&mut self, generation: Id, text: &str) {
        let reply = Reply::Live { generation, text: text.to_owned() };
        self.all.iter_mut().filter(|client| client.is_live()).for_each(|client| client.reply(&reply));
    }

    /// Listen no more, and leave those that are connected.
    pub(crate) fn close(self) -> Vec<Client> {
        self.all
    }

    /// What the supervisor that takes the place of this one needs open. The other connections are closed by
    /// exec.
    pub(crate) fn handed_on(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let server = self.server.iter().map(|server| server.fd.as_fd());
        server.chain(self.all.iter().filter(|client| client.save().is_some()).map(AsFd::as_fd))
    }

    pub(crate) fn save(&self) -> SavedClients {
        let server = self.server.as_ref().map(Server::save);
        SavedClients { server, clients: self.all.iter().filter_map(Client::save).collect() }
    }

    /// The control socket and the clients of a predecessor, if `--control` is given. One that cannot be resumed is
    /// reported and left out.
    pub(crate) fn resume(
        spec: Option<&ControlSpec>,
        saved: SavedClients,
        claimed: &mut Claimed,
        now: Timestamp,
    ) -> Clients {
        let mut resume = |saved| Client::resume(saved, claimed, now).map_err(|error| saved::lost(&error)).ok();
        let all = saved.clients.into_iter().filter_map(&mut resume).collect();
        let server = saved.server.zip(spec).and_then(|(saved, spec)| {
            let fd = claimed.take(saved.fd).map_err(|errno| saved::lost(&format_args!("the control socket: {errno}")));
            let server = Server::new(fd.ok()?, spec, saved.file.map(Created::resume));
            Some(if saved.is_borrowed { server.borrowed(spec) } else { server })
        });
        Clients { server, all }
    }
}

impl Server {
    fn save(&self) -> SavedServer {
        SavedServer {
            fd: self.fd.as_raw_fd(),
            file: self.created.as_ref().map(Created::save),
            is_borrowed: self.succeeds.is_some(),
        }
    }

    /// It is another's still, and is to be as `spec` has it then.
    fn borrowed(self, spec: &ControlSpec) -> Server {
        Server { admits: Admits::Own, succeeds: Some(spec.clone()), ..self }
    }

    fn new(fd: OwnedFd, spec: &ControlSpec, created: Option<Created>) -> Server {
        Server {
            fd,
            path: spec.path.clone(),
            admits: spec.admits,
            created,
            is_lent: false,
            succeeds: None,
            paused_until: None,
            warned: false,
        }
    }

    /// It is ours alone from now on.
    fn own(&mut self) {
        self.created.iter_mut().for_each(Created::own);
        let Some(spec) = self.succeeds.take() else { return };
        match unix_path::set_access(&self.fd, &spec.path, &spec.options) {
            Ok(()) => self.admits = spec.admits,
            Err(error) => warn!("--control {spec}: it is for this user alone: {error:#}"),
        }
    }

    fn listen(spec: &ControlSpec) -> Result<Server> {
        let context = || format!("cannot listen on --control {spec}");
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).with_context(context)?;
        let listen = || sys::listen(&fd, BACKLOG);
        let created = unix_path::bind(&fd, &spec.path, &spec.options, Naming::Once, listen);
        let created = created.map_err(|error| match remedy::missing_folder(&spec.path, &error) {
            Some(remedy) => error.context(remedy),
            None => error,
        });
        let created = created.with_context(context)?;
        Ok(Server::new(fd, spec, Some(created)))
    }

    /// One more, if there are descriptors for it and for the supervisor's other work.
    fn accept(&self, is_first: bool) -> nix::Result<OwnedFd> {
        // A filter of system calls may deny it; then accept(2) fails when there are none left.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(limit, _)| limit);
        let next = sys::duplicate_from(&self.fd, FIRST_FD)?.as_raw_fd();
        let enough = next as u64 + SPARE <= limit;
        if enough || is_first { sys::accept(&self.fd) } else { Err(Errno::EMFILE) }
    }

    /// Accept no connections for a while.
    fn back_off(&mut self, errno: Errno, now: Timestamp) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!("cannot accept on {}: {errno}", self.path.display());
        }
        self.paused_until = Some(now + BACKOFF);
    }
}
