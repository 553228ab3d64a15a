//! A listener: bound, recognised, and put at the number where the target looks for it.
//!
//! Every socket is created close-on-exec; only `exec.rs` clears that.

mod arrange;
mod whose;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::slice;

use anyhow::{Context, Result};
use libc::c_int;
use log::{debug, info};
use nix::errno::Errno;
use nix::sys::socket::AddressFamily;
use serde::{Deserialize, Serialize};

use crate::failure;
use crate::socket::endpoint::Endpoint;
use crate::socket::open::{Door, Opened, open, open_beside, unbound};
use crate::socket::options::Options;
use crate::socket::remedy;
use crate::socket::socket_file::{Created, NameState, Naming, SavedFile};
use crate::socket::spec::{FdName, Spec};
use crate::sys::{self, Claimed};
pub(crate) use arrange::arrange;
use whose::Whose;

/// A listener in a state that is handed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
pub(crate) struct SavedListener {
    fd: RawFd,
    #[serde(default)]
    name: String,
    #[serde(default)]
    backlog: Option<u32>,
    #[serde(default)]
    file: Option<SavedFile>,
    /// It is another process' still.
    #[serde(default)]
    taken: bool,
    /// Its SO_REUSEPORT before others were bound beside it, if it was taken over.
    #[serde(default)]
    reuseport: c_int,
    /// Further sockets, of the process that it was taken over from.
    #[serde(default)]
    also: Vec<RawFd>,
}

/// A socket that the target is given, or what was announced beside sockets.
#[derive(Debug)]
pub(crate) struct Listener {
    /// For LISTEN_FDNAMES.
    pub(crate) name: FdName,
    /// The length of its backlog, if it is known.
    backlog: Option<u32>,
    /// The file, removed if this listener is dropped without being handed on. Declared before the socket, so that the
    /// file goes while no other process can take it for dead.
    created: Option<Created>,
    fd: OwnedFd,
    kind: Kind,
    /// Others may be bound beside it, with these options.
    beside: Option<Options>,
    /// It takes both IP versions because its SPEC has none of them.
    is_for_any_version: bool,
    whose: Whose,
}

/// What the target is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Socket,
    /// A file, a FIFO, anything else that somebody announced to us: it is handed on as it is.
    Other,
}

impl SavedListener {
    /// The number of its descriptor.
    pub(crate) fn number(&self) -> RawFd {
        self.fd
    }

    /// Forget what another process says of it that could do harm; was there a file?
    pub(crate) fn distrust(&mut self) -> bool {
        (self.taken, self.reuseport) = (false, 0);
        self.also.clear();
        self.file.take().is_some()
    }
}

impl Listener {
    /// A listener that another process bound.
    pub(crate) fn adopted(name: FdName, fd: OwnedFd) -> Listener {
        Listener {
            name,
            fd,
            backlog: None,
            created: None,
            kind: Kind::Socket,
            beside: None,
            is_for_any_version: false,
            whose: Whose::Ours,
        }
    }

    /// What is announced and no socket.
    pub(crate) fn beside(name: FdName, fd: OwnedFd) -> Listener {
        Listener { kind: Kind::Other, ..Listener::adopted(name, fd) }
    }

    pub(crate) fn is_socket(&self) -> bool {
        self.kind == Kind::Socket
    }

    /// For the program that takes the place of this one.
    pub(crate) fn save(&self) -> SavedListener {
        SavedListener {
            fd: self.fd.as_raw_fd(),
            name: self.name.to_string(),
            backlog: self.backlog,
            file: self.created.as_ref().map(Created::save),
            taken: self.is_taken(),
            reuseport: self.whose.reuseport(),
            also: self.also().iter().map(AsRawFd::as_raw_fd).collect(),
        }
    }

    /// One that a predecessor of this program held.
    pub(crate) fn resume(saved: SavedListener, claimed: &mut Claimed) -> Result<Listener> {
        let fd = claimed.take(saved.fd).with_context(|| format!("descriptor {} of a listener", saved.fd))?;
        let also = saved.also.iter().filter_map(|number| claimed.take(*number).ok()).collect();
        Ok(Listener {
            name: FdName::announced(&saved.name).unwrap_or_default(),
            backlog: saved.backlog,
            created: saved.file.map(Created::resume),
            fd,
            kind: Kind::Socket,
            beside: None,
            is_for_any_version: false,
            whose: if saved.taken { Whose::Taken { reuseport: saved.reuseport, also } } else { Whose::Ours },
        })
    }

    /// The same, of which a predecessor of this program left this.
    pub(crate) fn remember(self, saved: SavedListener) -> Listener {
        Listener { backlog: saved.backlog, created: saved.file.map(Created::resume), ..self }
    }

    /// What is no socket, and a predecessor of this program held.
    pub(crate) fn resume_beside(saved: SavedListener, claimed: &mut Claimed) -> Result<Listener> {
        Ok(Listener { kind: Kind::Other, ..Listener::resume(saved, claimed)? })
    }

    /// Is it a TCP or UDP socket?
    pub(crate) fn is_inet(&self) -> bool {
        matches!(self.endpoint(), Ok(Endpoint::Inet { .. }))
    }

    /// Was it bound to both IP versions because its SPEC has none of them?
    pub(crate) fn is_for_any_version(&self) -> bool {
        self.is_for_any_version
    }

    /// The options of those that may be bound beside it.
    pub(crate) fn options_beside(&self) -> Option<&Options> {
        self.beside.as_ref()
    }

    /// No other may be bound beside it.
    pub(super) fn stay_alone(&mut self) {
        self.beside = None;
        let before = self.whose.reuseport();
        // It cannot fail for a socket of ours.
        let _ = sys::set_option(&self.fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, before);
    }

    /// A predecessor of this program bound it so that others may be bound beside it.
    pub(crate) fn not_alone(self, options: Options) -> Listener {
        Listener { beside: Some(options), ..self }
    }

    /// Others may be bound beside it if they may beside `other`.
    pub(crate) fn not_alone_as(self, other: &Listener) -> Listener {
        Listener { beside: other.beside.clone(), ..self }
    }

    /// A socket on which is set what its SPEC has, if others may be bound beside it.
    pub(crate) fn pattern(&self) -> Option<OwnedFd> {
        unbound(&self.endpoint().ok()?, self.beside.as_ref()?).ok()
    }

    /// The same for another generation: bound to the same address, beside it, at a number from `lowest` on.
    ///
    /// # Errors
    /// What bind(2) and listen(2) report, or that nothing may be bound beside it.
    pub(super) fn another(&self, lowest: RawFd) -> Result<Listener> {
        self.another_with(Door::Open, lowest)
    }

    /// The same, which gets no connection until its door is opened.
    ///
    /// # Errors
    /// The same.
    pub(super) fn another_closed(&self, lowest: RawFd) -> Result<Listener> {
        self.another_with(Door::Closed, lowest)
    }

    /// Let connections come to one that was opened so.
    pub(super) fn open_door(&self) {
        // There is none where datagrams come.
        let _ = sys::pass_packets(&self.fd);
    }

    fn another_with(&self, door: Door, lowest: RawFd) -> Result<Listener> {
        let options = self.beside.as_ref().context("it is alone at its address")?;
        let backlog = self.backlog.map_or(c_int::MAX, |backlog| backlog as c_int);
        let fd = open_beside(&self.fd, &self.endpoint()?, options, backlog, door)?;
        // A limit of open files may be lower.
        let fd = sys::duplicate_from(&fd, lowest).unwrap_or(fd);
        Ok(Listener {
            name: self.name.clone(),
            fd,
            backlog: self.backlog,
            created: None,
            kind: self.kind,
            beside: Some(options.clone()),
            is_for_any_version: self.is_for_any_version,
            whose: Whose::Ours,
        })
    }

    /// Where it listens, as the kernel has it.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        Endpoint::of(&self.fd)
    }

    /// Restore the backlog: listen(2), called again by a server, changes it for all generations.
    pub(crate) fn restore_backlog(&self) {
        if self.backlog.is_some() && self.listens() {
            // An error leaves the socket listening as it was.
            let _ = self.listen_again();
        }
    }

    /// listen(2) with the backlog that it had.
    pub(super) fn listen_again(&self) -> nix::Result<()> {
        sys::listen(&self.fd, self.backlog.map_or(c_int::MAX, |backlog| backlog as c_int))
    }

    /// Is there a backlog that it is to have?
    pub(super) fn has_backlog(&self) -> bool {
        self.backlog.is_some()
    }

    /// Does it listen now?
    pub(super) fn listens(&self) -> bool {
        sys::option(&self.fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Ok(1)
    }

    /// The backlog that another process chose, where the kernel shows it.
    pub(super) fn learn_backlog(&mut self) {
        if self.backlog.is_none() {
            self.backlog = sys::queue(&self.fd).ok().map(|queue| queue.backlog);
        }
    }

    /// Keep the name of its file, if we made it.
    pub(crate) fn keep_name(&mut self) {
        if let Some(created) = &mut self.created {
            created.keep();
        }
    }

    /// Restore the name of its file, if we made it and somebody removed it.
    pub(super) fn look_after_name(&mut self) -> Result<NameState> {
        self.created.as_mut().map_or(Ok(NameState::Intact), Created::look_after)
    }

    /// The file that we made for it.
    pub(crate) fn created(&self) -> Option<&Created> {
        self.created.as_ref()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether generations share a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All of them accept on one.
    Shared,
    /// Each has one of its own, where the kernel can choose among them.
    Steered,
}

/// What a SPEC leaves open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// The backlog, where a SPEC has none.
    pub(crate) backlog: c_int,
    /// What becomes of the names of Unix sockets.
    pub(crate) naming: Naming,
    /// Of those that are bound here.
    pub(crate) sharing: Sharing,
    /// Of those that are taken over.
    pub(crate) taking: Sharing,
}

/// Bind the first of `endpoints` whose family this kernel has.
pub(crate) fn bind_first(spec: &Spec, endpoints: &[Endpoint], manner: Manner) -> failure::Result<Listener> {
    let context = || format!("cannot listen on {spec}");
    let (last, others) = endpoints.split_last().with_context(context)?;
    for endpoint in others {
        match open(endpoint, &spec.options, manner) {
            Err(error) if error.downcast_ref() == Some(&Errno::EAFNOSUPPORT) => debug!("{endpoint}: {error:#}"),
            outcome => return finish(spec, endpoint, endpoints, manner, outcome),
        }
    }
    finish(spec, last, endpoints, manner, open(last, &spec.options, manner))
}

/// Bind `spec` here, and nowhere else, at a number from `lowest` on.
pub(crate) fn bind_at(spec: &Spec, endpoint: &Endpoint, manner: Manner, lowest: RawFd) -> failure::Result<Listener> {
    let listener = finish(spec, endpoint, slice::from_ref(endpoint), manner, open(endpoint, &spec.options, manner))?;
    // Where no number is free there, it stays where it is.
    let Ok(fd) = sys::duplicate_from(&listener.fd, lowest) else { return Ok(listener) };
    Ok(Listener { fd, ..listener })
}

/// Make the listener of what was opened at `endpoint`, one of `wanted`, or the error with its remedy.
fn finish(
    spec: &Spec,
    endpoint: &Endpoint,
    wanted: &[Endpoint],
    manner: Manner,
    outcome: Result<Opened>,
) -> failure::Result<Listener> {
    let Opened { fd, created, sharing } = outcome.map_err(|error| {
        let remedy = remedy::for_listen(endpoint, wanted, &error);
        failure::Failure::from(error.context(format!("cannot listen on {spec}"))).remedy(remedy)
    })?;
    let backlog = Some(spec.options.number("backlog").unwrap_or(manner.backlog as u32));
    let beside = (sharing == Sharing::Steered).then(|| spec.options.clone());
    let is_for_any_version = spec.has_any_version() && endpoint.family() == AddressFamily::Inet6;
    let name = spec.fd_name();
    let kind = Kind::Socket;
    let listener = Listener { name, fd, backlog, created, kind, beside, is_for_any_version, whose: Whose::Ours };
    if endpoint.has_free_port() {
        info!("{spec} listens on {}", listener.endpoint()?);
    } else {
        debug!("{spec} is bound");
    }
    Ok(listener)
}
