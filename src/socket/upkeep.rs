//! Keep a listener that generations share alive: it goes on listening, with its backlog, and at its path, whatever one of
//! them did to it.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{Shutdown, bind, shutdown};

use crate::socket::endpoint::Endpoint;
use crate::socket::listener::Listener;
use crate::socket::socket_file::NameState;
use crate::sys;

/// What a listener was when nobody had touched it, and what is wrong with it now.
#[derive(Debug)]
pub(crate) struct Upkeep {
    kind: Kind,
    endpoint: Option<Endpoint>,
    problem: Option<String>,
}

/// What there is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It listens.
    Listening,
    /// It receives datagrams.
    Datagram,
    /// A connection, or what we do not know.
    Other,
}

/// What a look at a listener brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is again as it should be.
    Repaired(String),
    /// It cannot be repaired.
    Broken(String),
}

impl Upkeep {
    /// Of a listener before any generation has it.
    pub(crate) fn of(listener: &mut Listener) -> Upkeep {
        let endpoint = listener.endpoint().ok();
        let known = matches!(endpoint, Some(Endpoint::Inet { .. } | Endpoint::Unix { .. }));
        let kind = match sys::option(&*listener, libc::SOL_SOCKET, libc::SO_TYPE) {
            Ok(libc::SOCK_DGRAM) if known => Kind::Datagram,
            // Under a predecessor it may have been shut down; then only its backlog shows that it did listen.
            Ok(_) if known && (listener.listens() || listener.has_backlog()) => Kind::Listening,
            _ => Kind::Other,
        };
        if kind == Kind::Listening {
            listener.learn_backlog();
        }
        Upkeep { kind, endpoint, problem: None }
    }

    /// What is wrong with it, and cannot be repaired.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Can it be waited for that it is shut down? Not if it was and stays so, nor a datagram socket, whose POLLERR comes
    /// unasked and lasts until the server reads its error queue: poll(2) would return at once for ever.
    pub(crate) fn is_watched(&self) -> bool {
        self.kind == Kind::Listening && self.problem.is_none()
    }

    pub(super) fn is_datagram(&self) -> bool {
        self.kind == Kind::Datagram
    }

    /// After a shutdown(2), be bound at its address as before.
    pub(super) fn bind_again(&self, listener: &Listener) -> Result<()> {
        bind_at(listener, self.endpoint.as_ref().context("its address is not known")?)
    }

    /// It was restored by other means, or not; it was shut down if `revived`. A problem is returned once.
    pub(super) fn note(&mut self, restored: Result<()>, revived: bool) -> Vec<Finding> {
        let address = self.address();
        let revived = revived && restored.is_ok();
        let again = revived.then(|| Finding::Repaired(format!("{address} was shut down and listens again")));
        let mut findings: Vec<Finding> = again.into_iter().collect();
        findings.extend(self.change(restored.err(), &address));
        findings
    }

    fn address(&self) -> String {
        self.endpoint.as_ref().map(Endpoint::to_string).unwrap_or_default()
    }

    /// What is to be reported of a problem, or that there is none any more.
    fn change(&mut self, problem: Option<Error>, address: &str) -> Option<Finding> {
        let problem = problem.map(|error| format!("clients cannot reach {address}: {error:#}"));
        let before = std::mem::replace(&mut self.problem, problem.clone());
        match (before, problem) {
            (Some(_), None) => Some(Finding::Repaired(format!("{address} can be reached again"))),
            (before, Some(now)) if before.as_ref() != Some(&now) => Some(Finding::Broken(now)),
            _ => None,
        }
    }

    /// Look after it. A problem is returned once.
    pub(crate) fn look_after(&mut self, listener: &mut Listener) -> Vec<Finding> {
        let address = self.address();
        let mut findings = Vec::new();
        let mut repaired = |text: &str| findings.push(Finding::Repaired(format!("{address} {text}")));
        let listening = self.revive(listener).map(|revived| {
            if revived {
                repaired("was shut down and listens again");
            }
        });
        listener.restore_backlog();
        let named = listener.look_after_name().map(|state| {
            if state == NameState::Restored {
                repaired("was removed and is restored");
            }
        });
        findings.extend(self.change(listening.and(named).err(), &address));
        findings
    }

    /// Listen again if it was shut down; was it?
    fn revive(&self, listener: &Listener) -> Result<bool> {
        let inet = self.endpoint.as_ref().filter(|endpoint| matches!(endpoint, Endpoint::Inet { .. }));
        let moved = || self.kind == Kind::Listening && inet.is_some_and(|inet| !is_at(listener, inet));
        let shut_down = match self.kind {
            Kind::Other => false,
            Kind::Datagram => sys::is_shut_down(listener),
            Kind::Listening => !listener.listens() || sys::is_shut_down(listener) || moved(),
        };
        if !shut_down {
            return Ok(false);
        }
        let Some(endpoint) = inet.filter(|_| self.kind == Kind::Listening) else {
            bail!("it was shut down, and only a new start of the supervisor opens it again");
        };
        let again = || "it was shut down and cannot listen again";
        if moved() {
            // A server listened again, on another port that the kernel chose.
            shutdown(listener.as_fd().as_raw_fd(), Shutdown::Both).with_context(again)?;
        }
        bind_at(listener, endpoint).with_context(again)?;
        listener.listen_again().with_context(again)?;
        ensure!(is_at(listener, endpoint) && !sys::is_shut_down(listener), "{}", again());
        Ok(true)
    }
}

/// A port that the kernel chose is given up with the listening, though getsockname(2) still shows it: it has to be bound again.
fn bind_at(listener: &Listener, endpoint: &Endpoint) -> Result<()> {
    if !listener.listens() {
        sys::disconnect(listener)?;
    }
    match bind(listener.as_fd().as_raw_fd(), endpoint.to_sockaddr()?.as_ref()) {
        // A port that was asked for is bound still.
        Err(Errno::EINVAL) => Ok(()),
        bound => Ok(bound?),
    }
}

fn is_at(listener: &Listener, endpoint: &Endpoint) -> bool {
    listener.endpoint().is_ok_and(|now| now == *endpoint)
}
