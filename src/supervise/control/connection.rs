//! A connection to the control socket: what it asked, what it is waiting for, and what has still to be sent to it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};

use crate::config::Until;
use crate::saved;
use crate::socket::control_spec::Admits;
use crate::supervise::control::protocol::{Call, Reply, line, parse_call};
use crate::supervise::plan::Id;
use crate::sys::{Claimed, Timestamp};

/// A client that has not sent its request by then is dropped.
const TIMEOUT: Duration = Duration::from_secs(3);
/// A request is shorter.
const LONGEST_REQUEST: usize = 16 * 1024;
/// A client that reads nothing is dropped when this much is waiting for it.
const MOST_UNSENT: usize = 256 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    fd: OwnedFd,
    received: Vec<u8>,
    to_send: VecDeque<u8>,
    /// When to drop it if no request has come.
    pub(super) timeout: Option<Timestamp>,
    pub(crate) waiting_for: WaitingFor,
    /// It shows numbers as they change.
    live: bool,
    /// The last reply is on its way.
    closing: bool,
    /// It has closed its sending direction.
    read_closed: bool,
    broken: bool,
}

/// What a client is waiting for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WaitingFor {
    /// Nothing yet, or nothing more.
    #[default]
    Nothing,
    /// That this generation serves, or fails.
    Generation { id: Id, until: Until },
    /// That this generation's predecessors are gone; whether one had to be killed.
    Predecessors {
        id: Id,
        #[serde(default)]
        killed: bool,
    },
    /// That its own new generation serves: it was lent the sockets. Never handed on.
    #[serde(skip)]
    Succession,
    /// That the supervisor ends.
    End,
}

/// A connection in a state that is handed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedClient {
    fd: RawFd,
    #[serde(default)]
    received: Vec<u8>,
    #[serde(default)]
    to_send: Vec<u8>,
    #[serde(default, deserialize_with = "saved::or_default")]
    waiting_for: WaitingFor,
    #[serde(default)]
    live: bool,
    #[serde(default)]
    closing: bool,
}

impl Client {
    /// A connection whose user may send requests; another is turned away.
    pub(super) fn admit(fd: OwnedFd, admits: Admits, now: Timestamp) -> Option<Client> {
        let mut client = Client {
            fd,
            received: Vec::new(),
            to_send: VecDeque::new(),
            timeout: Some(now + TIMEOUT),
            waiting_for: WaitingFor::Nothing,
            live: false,
            closing: false,
            read_closed: false,
            broken: false,
        };
        if admits == Admits::Own && !client.is_own() {
            debug!("another user may not use the control socket");
            client.end_with_error("this supervisor belongs to another user", 125);
        }
        Some(client)
    }

    /// Is its user root, or this process'?
    pub(crate) fn is_own(&self) -> bool {
        let peer = getsockopt(&self.fd, sockopt::PeerCredentials);
        peer.is_ok_and(|peer| [0, geteuid().as_raw()].contains(&peer.uid()))
    }

    /// Its process, if that is shown to us.
    pub(crate) fn process(&self) -> Option<Pid> {
        let peer = getsockopt(&self.fd, sockopt::PeerCredentials).ok()?;
        Some(Pid::from_raw(peer.pid())).filter(|pid| pid.as_raw() > 0)
    }

    /// For the supervisor that takes the place of this one, if this client is still waiting.
    pub(super) fn save(&self) -> Option<SavedClient> {
        (!self.broken && self.waiting_for != WaitingFor::Succession).then(|| SavedClient {
            fd: self.fd.as_raw_fd(),
            received: self.received.clone(),
            to_send: self.to_send.iter().copied().collect(),
            waiting_for: self.waiting_for,
            live: self.live,
            closing: self.closing,
        })
    }

    /// One that was connected to a predecessor.
    ///
    /// # Errors
    /// EBADF if its descriptor is not there.
    pub(super) fn resume(saved: SavedClient, claimed: &mut Claimed, now: Timestamp) -> nix::Result<Client> {
        let asked = saved.closing || saved.waiting_for != WaitingFor::Nothing;
        Ok(Client {
            fd: claimed.take(saved.fd)?,
            received: saved.received,
            to_send: saved.to_send.into(),
            timeout: (!asked).then_some(now + TIMEOUT),
            waiting_for: saved.waiting_for,
            live: saved.live,
            closing: saved.closing,
            read_closed: false,
            broken: false,
        })
    }

    /// Read what has come; a whole request is returned, once.
    pub(super) fn receive(&mut self) -> Option<Call> {
        let mut buffer = [0; 1024];
        match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => {
                // It may have closed that direction only, and wait for the reply.
                self.read_closed = true;
                self.broken |= self.timeout.is_some() || self.waiting_for == WaitingFor::Succession;
                return None;
            }
            Ok(length) if self.timeout.is_some() || self.waiting_for == WaitingFor::Succession => {
                self.received.extend(&buffer[..length])
            }
            // What follows the request is ignored.
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => {
                self.broken = true;
                return None;
            }
        }
        let end = self.received.iter().position(|byte| *byte == b'\n');
        if end.is_none() && self.received.len() < LONGEST_REQUEST {
            return None;
        }
        self.timeout = None;
        let call = end.and_then(|end| parse_call(&self.received[..end]));
        self.received.drain(..end.map_or(0, |end| end + 1));
        match &call {
            Some(call) => self.live = call.live,
            None => self.end_with_error("the supervisor does not understand the request", 125),
        }
        call
    }

    /// What to poll for.
    pub(super) fn poll_for(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.read_closed);
        flags.set(PollFlags::POLLOUT, !self.to_send.is_empty());
        flags
    }

    /// The connection is broken.
    pub(super) fn hang_up(&mut self) {
        self.broken = true;
    }

    /// Does it wait for a reload, and show numbers as they change?
    pub(super) fn is_live(&self) -> bool {
        self.live && matches!(self.waiting_for, WaitingFor::Generation { .. } | WaitingFor::Predecessors { .. })
    }

    /// Send a reply, as far as it can be sent now; the rest waits.
    pub(crate) fn reply(&mut self, reply: &Reply) {
        self.to_send.extend(line(reply).bytes());
        self.send();
        self.broken |= self.to_send.len() > MOST_UNSENT;
    }

    /// Send what went wrong, and end.
    pub(crate) fn end_with_error(&mut self, text: &str, status: u8) {
        self.reply(&Reply::Error(text.to_owned()));
        self.end(status);
    }

    /// Send the last reply.
    pub(crate) fn end(&mut self, status: u8) {
        self.reply(&Reply::Exit(status));
        self.waiting_for = WaitingFor::Nothing;
        self.timeout = None;
        self.closing = true;
    }

    /// Send what waits.
    pub(super) fn send(&mut self) {
        while !self.to_send.is_empty() {
            let (front, _) = self.to_send.as_slices();
            match send(self.fd.as_raw_fd(), front, MsgFlags::MSG_NOSIGNAL) {
                Ok(length) => drop(self.to_send.drain(..length)),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => (),
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        let timed_out = self.timeout.is_some_and(|until| until <= now) && !self.has_unread();
        self.broken || self.closing && self.to_send.is_empty() || timed_out
    }

    /// Is there input that was not read yet?
    fn has_unread(&self) -> bool {
        recv(self.fd.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK).is_ok_and(|length| length > 0)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::config::Request;

    #[test]
    fn a_client_that_reads_nothing_is_given_up_when_too_much_waits_for_it() {
        let (ours, mut its) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client::admit(ours.into(), Admits::Own, Timestamp::ZERO).unwrap();
        client.waiting_for = WaitingFor::End;
        let reply = Reply::Output("x".repeat(1000));
        let mut sent = 0;
        while !client.broken && sent < 10_000 {
            client.reply(&reply);
            sent += 1;
        }
        assert!(sent * 1000 > MOST_UNSENT && sent < 10_000, "{sent}");
        assert!(client.is_over(Timestamp::ZERO));
        drop(client);
        // What the kernel had taken is whole.
        let mut text = String::new();
        its.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&line(&reply)));
    }

    // Once a supervisor that was busy for longer than that dropped those that it had kept waiting.
    #[test]
    fn the_timeout_is_for_clients_that_send_nothing_not_for_those_that_were_not_read() {
        let (ours, mut its) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client::admit(ours.into(), Admits::Own, Timestamp::ZERO).unwrap();
        assert!(!client.is_over(Timestamp::ZERO) && client.is_over(TIMEOUT));
        its.write_all(b"{\"request\":\"stop\"}\n").unwrap();
        assert!(!client.is_over(TIMEOUT));
        assert_eq!(client.receive(), Some(Call { request: Request::Stop, live: false }));
    }
}
