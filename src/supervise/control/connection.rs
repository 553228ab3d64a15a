//! A connection to the control socket: what it asked, what it waits for, and what it has still to be sent.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use log::debug;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};
use nix::unistd::geteuid;

use crate::config::{Form, Until};
use crate::supervise::plan::{Id, Moment};
use crate::supervise::upgrade::state::SavedClient;

/// A client that has not said what it wants by then is dropped.
const PATIENCE: Duration = Duration::from_secs(3);
/// A request is shorter.
const LONGEST_REQUEST: usize = 256;
/// A client that reads nothing is dropped when so much is waiting for it.
const LONGEST_BACKLOG: usize = 256 * 1024;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    fd: OwnedFd,
    heard: Vec<u8>,
    to_send: VecDeque<u8>,
    /// Drop it then, if it has not asked anything.
    pub(super) patience: Option<Moment>,
    pub(crate) wants: Wants,
    /// Nothing more will be said.
    closing: bool,
    /// It says nothing more.
    deaf: bool,
    broken: bool,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing yet, or no more.
    Nothing,
    /// That this generation serves, or fails.
    Generation { id: Id, until: Until, live: Live },
    /// That this generation's predecessors are gone.
    Predecessors { id: Id, live: Live },
    /// That all is over.
    End,
}

/// Does the client show numbers as they change?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Live {
    Yes,
    No,
}

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Reload(Until, Live),
    Status(Form),
    Stop,
}

impl Client {
    /// A connection of this user's or of root's.
    pub(super) fn admit(fd: OwnedFd, now: Moment) -> Option<Client> {
        let mut client = Client {
            fd,
            heard: Vec::new(),
            to_send: VecDeque::new(),
            patience: Some(now + PATIENCE),
            wants: Wants::Nothing,
            closing: false,
            deaf: false,
            broken: false,
        };
        let peer = getsockopt(&client.fd, sockopt::PeerCredentials).ok()?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            debug!("user {} is turned away from the control socket", peer.uid());
            client.end_with_error("this supervisor belongs to another user", 125);
        }
        Some(client)
    }

    /// One that a predecessor of this supervisor let in.
    pub(crate) fn resumed(fd: OwnedFd, saved: SavedClient, now: Moment) -> Client {
        let asked = saved.closing || saved.wants != Wants::Nothing;
        Client {
            fd,
            heard: saved.heard,
            to_send: saved.to_send.into(),
            patience: (!asked).then_some(now + PATIENCE),
            wants: saved.wants,
            closing: saved.closing,
            deaf: false,
            broken: false,
        }
    }

    /// What the next supervisor must know, if it has to go on with this one.
    pub(crate) fn save(&self) -> Option<SavedClient> {
        let to_send = self.to_send.iter().copied().collect();
        let saved =
            |fd| SavedClient { fd, wants: self.wants, heard: self.heard.clone(), to_send, closing: self.closing };
        (!self.broken).then(|| self.fd.as_raw_fd()).map(saved)
    }

    /// Read what it says; a whole request is given back, once.
    pub(crate) fn hear(&mut self) -> Option<Asked> {
        let mut buffer = [0; LONGEST_REQUEST];
        match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => {
                // It may have closed one direction only, and wait for the answer.
                self.deaf = true;
                self.broken |= self.patience.is_some();
                return None;
            }
            Ok(length) if self.patience.is_some() => self.heard.extend(&buffer[..length]),
            // Whatever follows the request means nothing.
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(_) => {
                self.broken = true;
                return None;
            }
        }
        let end = self.heard.iter().position(|byte| *byte == b'\n');
        if end.is_none() && self.heard.len() < LONGEST_REQUEST {
            return None;
        }
        self.patience = None;
        let asked = end.and_then(|end| str::from_utf8(&self.heard[..end]).ok()).and_then(parse);
        if asked.is_none() {
            self.end_with_error("the supervisor does not understand the request", 125);
        }
        asked
    }

    /// What to poll for.
    pub(crate) fn poll_for(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.deaf);
        flags.set(PollFlags::POLLOUT, !self.to_send.is_empty());
        flags
    }

    /// It is gone.
    pub(crate) fn hang_up(&mut self) {
        self.broken = true;
    }

    /// Say a line, as far as it can be sent now; the rest waits.
    pub(crate) fn say(&mut self, line: &str) {
        self.to_send.extend(line.bytes().chain([b'\n']));
        self.send();
        self.broken |= self.to_send.len() > LONGEST_BACKLOG;
    }

    /// Say why not, and end.
    pub(crate) fn end_with_error(&mut self, text: &str, status: u8) {
        self.say(&format!("error {text}"));
        self.end(status);
    }

    /// Say the last line.
    pub(crate) fn end(&mut self, status: u8) {
        self.say(&format!("exit {status}"));
        self.wants = Wants::Nothing;
        self.patience = None;
        self.closing = true;
    }

    /// Send what waits.
    pub(crate) fn send(&mut self) {
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

    pub(super) fn is_over(&self, now: Moment) -> bool {
        let impatient = self.patience.is_some_and(|until| until <= now) && !self.has_spoken();
        self.broken || self.closing && self.to_send.is_empty() || impatient
    }

    /// Has it said something that we, busy with others, have not heard yet?
    fn has_spoken(&self) -> bool {
        recv(self.fd.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK).is_ok_and(|length| length > 0)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn parse(line: &str) -> Option<Asked> {
    let mut words = line.split(' ');
    let asked = words.next()?;
    let rest: Vec<&str> = words.collect();
    let known = |allowed: &[&str]| rest.iter().all(|word| allowed.contains(word));
    match asked {
        "reload" if known(&["wait", "live"]) => {
            let until = if rest.contains(&"wait") { Until::OldGone } else { Until::Serving };
            Some(Asked::Reload(until, if rest.contains(&"live") { Live::Yes } else { Live::No }))
        }
        "status" if known(&["json"]) => {
            Some(Asked::Status(if rest.contains(&"json") { Form::Json } else { Form::Table }))
        }
        "stop" if rest.is_empty() => Some(Asked::Stop),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_client_that_reads_nothing_is_given_up_when_too_much_waits_for_it() {
        let (ours, mut its) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client::admit(ours.into(), Moment::ZERO).unwrap();
        client.wants = Wants::End;
        let line = "x".repeat(1000);
        let mut said = 0;
        while !client.broken && said < 10_000 {
            client.say(&line);
            said += 1;
        }
        assert!(said * line.len() > LONGEST_BACKLOG && said < 10_000, "{said}");
        assert!(client.is_over(Moment::ZERO));
        drop(client);
        // What the kernel had taken is whole.
        let mut text = String::new();
        its.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&(line + "\n")));
    }

    // Once a supervisor that was busy for longer than that dropped whom it had kept waiting.
    #[test]
    fn patience_is_for_those_who_say_nothing_not_for_those_who_are_not_heard() {
        let (ours, mut its) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut client = Client::admit(ours.into(), Moment::ZERO).unwrap();
        assert!(!client.is_over(Moment::ZERO) && client.is_over(PATIENCE));
        its.write_all(b"stop\n").unwrap();
        assert!(!client.is_over(PATIENCE));
        assert_eq!(client.hear(), Some(Asked::Stop));
    }

    #[test]
    fn only_what_is_known_is_a_request() {
        assert_eq!(parse("reload live wait"), Some(Asked::Reload(Until::OldGone, Live::Yes)));
        assert_eq!(parse("status"), Some(Asked::Status(Form::Table)));
        for line in ["", " ", "reload  wait", "reload json", "status wait", "stop now", "Stop", "stop\r"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
