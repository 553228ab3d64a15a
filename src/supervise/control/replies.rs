//! The client's connection: the replies line by line, under the condition that the supervisor lives.
//!
//! A reload may take as long as it likes, so silence alone means nothing. But whatever a supervisor does, it answers a
//! new connection at once; one that does not is stopped or hangs.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

use crate::failure::plain;
use crate::kernel::processes::is_stopped;
use crate::socket::dead_socket::what_else;

/// After this time without a reply it is asked whether it lives, and has this time to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Any line: one that is no request is answered, too, by every version.
const PROBE: &[u8] = b"\n";

/// A connection to the supervisor at a path.
#[derive(Debug)]
pub(crate) struct Replies {
    stream: UnixStream,
    path: PathBuf,
    received: Vec<u8>,
}

impl Replies {
    /// Connect, within the timeout.
    pub(crate) fn connect(path: &Path) -> Result<Replies> {
        match open(path) {
            Ok(stream) => Ok(Replies { stream, path: path.to_owned(), received: Vec::new() }),
            // The accept queue is full, and stayed so.
            Err(Errno::EAGAIN) => Err(no_answer(path, None)),
            Err(errno) => {
                // connect(2) refuses a file as it does a socket that nobody listens on.
                let error = what_else(path).map_or(Error::new(errno), |what| anyhow!("it is {what}"));
                Err(error.context(format!("cannot reach a supervisor at {}", path.display())))
            }
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The process that listens.
    pub(super) fn peer(&self) -> Option<i32> {
        peer(&self.stream)
    }

    /// The connection, where nothing was read beyond the last line.
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(crate) fn send(&mut self, line: &str) {
        // A supervisor that refuses us may have closed already; its reply is read all the same.
        let _ = self.stream.write_all(line.as_bytes());
    }

    /// The next line; none when the supervisor has closed.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.received.drain(..=end).collect()));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => self.received.extend(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.see_that_it_lives()?,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(plain(error)).context("cannot read from the supervisor"),
            }
        }
    }

    /// Nothing came for a while.
    fn see_that_it_lives(&self) -> Result<()> {
        let answered = match open(&self.path) {
            Ok(mut second) => {
                // Whatever comes back, or that it closes, is an answer.
                let _ = second.write_all(PROBE);
                !second.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
            }
            Err(Errno::EAGAIN) => false,
            // It listens no more, for it ends, or the path was removed.
            Err(_) => !peer(&self.stream).is_some_and(|pid| is_stopped(Pid::from_raw(pid))),
        };
        if answered { Ok(()) } else { Err(no_answer(&self.path, peer(&self.stream))) }
    }
}

/// Connect; everything on this connection fails with EAGAIN after the timeout.
fn open(path: &Path) -> nix::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::seconds(TIMEOUT.as_secs() as i64);
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// The process that listens.
fn peer(stream: &UnixStream) -> Option<i32> {
    let pid = getsockopt(stream, sockopt::PeerCredentials).ok()?.pid();
    (pid > 0).then_some(pid)
}

fn no_answer(path: &Path, pid: Option<i32>) -> Error {
    let why = match pid {
        Some(pid) if is_stopped(Pid::from_raw(pid)) => format!("pid {pid} is stopped and may do it after SIGCONT"),
        Some(pid) => format!("pid {pid} hangs, or is too busy"),
        None => "its accept queue is full".to_owned(),
    };
    anyhow!("the supervisor at {} does not answer: {why}", path.display())
}

#[cfg(test)]
mod fuzz;
