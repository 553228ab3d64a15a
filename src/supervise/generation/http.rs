//! One GET of `--ready http:PATH`: from a port of its own, by which the kernel leads it to the new generation alone.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, recv, send, setsockopt, socket,
    sockopt,
};

use crate::socket::endpoint::Endpoint;
use crate::sys::Timestamp;

/// An answer that has not ended by then is given up.
const LONGEST: Duration = Duration::from_secs(10);
/// At most this often an answer is read before the others are handled: one that never ends then waits.
const READS_AT_ONCE: usize = 16;
/// As much is read at once.
const READ: usize = 16 * 1024;
/// The header of an answer is shorter.
const LONGEST_HEADER: usize = 16 * 1024;

/// A request under way; its connection ends with the value, by a reset.
#[derive(Debug)]
pub(super) struct Get {
    socket: OwnedFd,
    from: SocketAddr,
    to: SocketAddr,
    stage: Stage,
    /// What is still to be sent.
    unsent: Vec<u8>,
    /// What has been received of the header, or of the last chunk of the body.
    received: Vec<u8>,
    /// There may be more than was read at once.
    has_more: bool,
    /// What the header says.
    header: Option<Header>,
    deadline: Timestamp,
}

/// What counts of the header of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    status: u16,
    /// The length of the body that is still to come, if the header says it.
    left: Option<u64>,
    /// The body ends with an empty chunk.
    is_chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The kernel does not know yet where it is to be led.
    Bound,
    /// It does.
    Led,
    Connected,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The status of the answer.
    Answered(u16),
    /// Why there is none.
    Failed(String),
}

impl Outcome {
    /// Does it show that the generation is ready? Redirects are not followed.
    pub(super) fn is_good(&self) -> bool {
        matches!(self, Outcome::Answered(200..400))
    }
}

impl Get {
    /// Begin one of `path` at `to`, by a port that no other client has.
    pub(super) fn begin(to: SocketAddr, path: &str, now: Timestamp) -> anyhow::Result<Get> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        let mut from = to;
        from.set_port(0);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        // Whatever is left of it is of no use.
        setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let from = match Endpoint::of(&socket)? {
            Endpoint::Inet { address, .. } => address,
            _ => to,
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: handoff-run\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        let unsent = request.into_bytes();
        Ok(Get {
            socket,
            from,
            to,
            stage: Stage::Bound,
            unsent,
            received: vec![],
            has_more: false,
            header: None,
            deadline: now + LONGEST,
        })
    }

    /// Where it comes from.
    pub(super) fn from(&self) -> SocketAddr {
        self.from
    }

    /// The kernel leads it now; is that news?
    pub(super) fn lead(&mut self) -> bool {
        let is_news = self.stage == Stage::Bound;
        if is_news {
            self.stage = Stage::Led;
        }
        is_news
    }

    /// What to wait for; nothing where more is there already, which is read at the next look.
    pub(super) fn polled(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = if self.unsent.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT };
        (self.stage == Stage::Connected && !self.has_more).then(|| (self.socket.as_fd(), flags))
    }

    /// Go on as far as that is possible without waiting.
    pub(super) fn go_on(&mut self, now: Timestamp) -> Option<Outcome> {
        let failed = |errno: Errno| Some(Outcome::Failed(errno.desc().to_owned()));
        if self.stage == Stage::Led {
            self.stage = Stage::Connected;
            match connect(self.socket.as_raw_fd(), &SockaddrStorage::from(self.to)) {
                Ok(()) | Err(Errno::EINPROGRESS) => (),
                Err(errno) => return failed(errno),
            }
        }
        if self.stage == Stage::Connected {
            match self.exchange() {
                Ok(None) => (),
                Ok(outcome) => return outcome,
                Err(errno) => return failed(errno),
            }
        }
        (now >= self.deadline).then(|| Outcome::Failed("no answer in time".to_owned()))
    }

    fn exchange(&mut self) -> nix::Result<Option<Outcome>> {
        let number = self.socket.as_raw_fd();
        while !self.unsent.is_empty() {
            match send(number, &self.unsent, MsgFlags::MSG_NOSIGNAL) {
                Ok(length) => drop(self.unsent.drain(..length)),
                // ENOTCONN: it is being connected.
                Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOTCONN) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        let mut buffer = [0; READ];
        self.has_more = false;
        for _ in 0..READS_AT_ONCE {
            match recv(number, &mut buffer, MsgFlags::empty()) {
                Ok(0) => return Ok(Some(self.end())),
                Ok(length) => self.received.extend(&buffer[..length]),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                Err(errno) => return Err(errno),
            }
            if let Some(outcome) = self.answer() {
                return Ok(Some(outcome));
            }
        }
        self.has_more = true;
        Ok(None)
    }

    /// The connection was closed.
    fn end(&self) -> Outcome {
        match self.header {
            Some(Header { status, left: None | Some(0), is_chunked: false }) => Outcome::Answered(status),
            _ => Outcome::Failed("the connection was closed before the end of an answer".to_owned()),
        }
    }

    /// The answer, if it is whole.
    fn answer(&mut self) -> Option<Outcome> {
        while self.header.is_none() {
            match header(&self.received) {
                Ok(None) => return None,
                Ok(Some((header, length))) => {
                    self.received.drain(..length);
                    // An interim answer is followed by another (RFC 9110, 15.2).
                    self.header = (header.status >= 200).then_some(header);
                }
                Err(why) => return Some(Outcome::Failed(why.to_owned())),
            }
        }
        let header = self.header.as_mut()?;
        let is_whole = match &mut header.left {
            _ if header.is_chunked => self.received.ends_with(LAST_CHUNK),
            None => false,
            Some(left) => {
                *left = left.saturating_sub(self.received.len() as u64);
                *left == 0
            }
        };
        // Of the body only its end counts.
        let kept = if header.is_chunked { LAST_CHUNK.len() } else { 0 };
        self.received.drain(..self.received.len().saturating_sub(kept));
        is_whole.then_some(Outcome::Answered(header.status))
    }
}

/// The end of a chunked body, without trailers (RFC 9112, 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The header that these bytes begin with, and its length; none if it has not ended.
fn header(bytes: &[u8]) -> Result<Option<(Header, usize)>, &'static str> {
    const NONSENSE: &str = "the answer is not HTTP";
    let Some(length) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4) else {
        let is_cut = bytes.len() <= LONGEST_HEADER && b"HTTP/1.".iter().zip(bytes).all(|(a, b)| a == b);
        return if is_cut { Ok(None) } else { Err(NONSENSE) };
    };
    let text = String::from_utf8_lossy(&bytes[..length]);
    let mut lines = text.lines();
    let status = lines.next().and_then(|line| status(line.as_bytes())).ok_or(NONSENSE)?;
    let fields: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let field = |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map(|(_, value)| *value);
    let is_chunked = field("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"));
    // RFC 9110, 15.3.5 and 15.4.5: they have no body.
    let left =
        if [204, 304].contains(&status) { Some(0) } else { field("content-length").and_then(|n| n.parse().ok()) };
    Ok(Some((Header { status, left, is_chunked }, length)))
}

/// The status of `HTTP/1.1 200 OK` (RFC 9112, 4).
fn status(line: &[u8]) -> Option<u16> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|word| word.starts_with("HTTP/1."))?;
    words.next().filter(|word| word.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of this text, in pieces of so many bytes, and whether the connection is closed then.
    fn answered(text: &str, piece: usize, is_closed: bool) -> Option<Outcome> {
        let mut get = Get::begin("127.0.0.1:9".parse().unwrap(), "/", Timestamp::ZERO).unwrap();
        for bytes in text.as_bytes().chunks(piece) {
            get.received.extend(bytes);
            if let Some(outcome) = get.answer() {
                return Some(outcome);
            }
        }
        is_closed.then(|| get.end())
    }

    #[test]
    fn an_answer_ends_as_its_header_says_or_with_the_connection() {
        let ended = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 200),
            ("HTTP/1.1 500 x\r\ncontent-length:0\r\n\r\n", 500),
            ("HTTP/1.1 204\r\n\r\n", 204),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200),
            ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 Not\r\nContent-Length: 0\r\n\r\n", 404),
        ];
        for (text, status) in ended {
            for piece in [1, 3, 1000] {
                assert_eq!(answered(text, piece, false), Some(Outcome::Answered(status)), "{text:?}");
            }
        }
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\nabc", 2, false), None);
        assert_eq!(answered("HTTP/1.0 200 OK\r\n\r\nabc", 2, true), Some(Outcome::Answered(200)));
        for cut in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"] {
            assert_eq!(answered(cut, 100, false), None, "{cut:?}");
            assert!(matches!(answered(cut, 100, true), Some(Outcome::Failed(_))), "{cut:?}");
        }
    }

    #[test]
    fn what_is_no_http_is_no_answer() {
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(LONGEST_HEADER));
        for nonsense in
            ["\n", "SSH-2.0-x\r\n", "HTTP/1.1 2000\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/2 200\r\n", &endless]
        {
            assert!(matches!(answered(nonsense, 100_000, false), Some(Outcome::Failed(_))), "{nonsense:?}");
        }
    }

    #[test]
    fn success_and_redirects_are_good() {
        let good = (100..600).filter(|status| Outcome::Answered(*status).is_good());
        assert_eq!(good.collect::<Vec<_>>(), (200..400).collect::<Vec<_>>());
    }
}
