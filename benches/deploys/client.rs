//! One client of the load, which does what its kind does over and over: connect, ask, read the answer, rest.

#![allow(dead_code, reason = "the benchmarks each need their part of it")]

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt};

use super::answer::{Answer, Next};
use super::failure::Failure;
use super::transfer::transfer;

/// How long one request may take, from connecting to the end of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a half-open client waits in the middle of its request.
const HALF_TIME: Duration = Duration::from_millis(300);
/// How long a keep-alive client rests between an answer and the next request: the server may close meanwhile.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a keep-alive client stays on one connection, as one that closes after a while of its own accord.
const LIFE: Duration = Duration::from_secs(3);
/// How long any client rests after a failure, so that a server that fails is not asked ever faster.
const RECOVERY: Duration = Duration::from_millis(10);
/// Clients spread over 127.0.0.2 and so many more: each source address brings 28,000 ports of its own.
const SOURCES: u8 = 64;

/// Where to, and what takes two seconds there.
pub struct Target {
    pub address: SocketAddrV4,
    pub slow: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A connection for each request.
    OneRequest,
    /// The same, with a request that takes two seconds.
    Slow,
    /// A connection for each request, which is sent in two halves.
    HalfOpen,
    /// One request after the other on the same connection.
    KeepAlive,
}

/// What has come of a request, or of a connection between two requests.
#[derive(Debug)]
pub enum Event {
    /// Answered after this time.
    Answered(Duration),
    Failed(Failure),
    /// The server closed a connection between two requests, and had not announced that with the last answer.
    Closed,
}

/// A client, with a request under way or resting.
pub struct Client<'a> {
    target: &'a Target,
    pub kind: Kind,
    source: u8,
    connection: Option<Connection>,
    exchange: Option<Exchange>,
    rests_until: Instant,
}

struct Connection {
    socket: TcpStream,
    opened: Instant,
    /// Whether it has brought an answer.
    is_used: bool,
}

/// A request under way.
struct Exchange {
    begun: Instant,
    /// What could not be sent yet.
    unsent: Vec<u8>,
    /// What is not to be sent before this moment.
    second_half: Option<(Instant, Vec<u8>)>,
    answer: Vec<u8>,
}

impl<'a> Client<'a> {
    pub fn new(target: &'a Target, kind: Kind, source: u8) -> Client<'a> {
        Client { target, kind, source, connection: None, exchange: None, rests_until: Instant::now() }
    }

    pub fn is_resting(&self) -> bool {
        self.exchange.is_none()
    }

    /// What to poll for, if it has a connection.
    pub fn to_poll(&self) -> Option<PollFd<'_>> {
        let sends = self.exchange.as_ref().is_some_and(|exchange| !exchange.unsent.is_empty());
        let wanted = if sends { PollFlags::POLLOUT } else { PollFlags::POLLIN };
        Some(PollFd::new(self.connection.as_ref()?.socket.as_fd(), wanted))
    }

    /// When it has to go on though nothing happens.
    pub fn wakes(&self) -> Instant {
        let Some(exchange) = &self.exchange else { return self.rests_until };
        exchange.second_half.as_ref().map_or(exchange.begun + TIMEOUT, |(due, _)| *due)
    }

    /// Begin the next request if it is time.
    pub fn begin(&mut self, now: Instant) -> Option<Event> {
        if self.exchange.is_some() || now < self.rests_until {
            return None;
        }
        // As careful clients do: what the server has closed by now is not used again.
        if self.connection.as_ref().is_some_and(Connection::has_ended) {
            return self.go_on(true, now);
        }
        if let Some(old) = self.connection.take_if(|connection| now >= connection.opened + LIFE) {
            // This end closes first, so it does so in order.
            let _ = setsockopt(&old.socket, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
        }
        if self.connection.is_none() {
            self.source = (self.source + 1) % SOURCES;
            match open(self.target.address, self.source) {
                Ok(socket) => self.connection = Some(Connection { socket, opened: now, is_used: false }),
                Err(errno) => return Some(self.fail(Failure::from(io::Error::from(errno)), now)),
            }
        }
        self.exchange = Some(Exchange::new(self.target, self.kind, now));
        self.go_on(true, now)
    }

    /// Go on as far as that needs no waiting; `is_stirred` if poll has reported something.
    pub fn go_on(&mut self, is_stirred: bool, now: Instant) -> Option<Event> {
        let connection = self.connection.as_mut()?;
        let Some(exchange) = &mut self.exchange else {
            // Between two requests nothing comes but the end.
            return is_stirred.then(|| {
                self.connection = None;
                Event::Closed
            });
        };
        let end = if is_stirred || exchange.is_due(now) { exchange.advance(&mut connection.socket, now) } else { None };
        match (Answer::of(&exchange.answer), end) {
            (Answer::Whole(next), end) if end.is_some() || self.kind == Kind::KeepAlive => {
                Some(self.succeed(next, now))
            }
            (Answer::Other, _) => Some(self.fail(Failure::Other, now)),
            (_, Some(Failure::Reset | Failure::Short)) if connection.is_used && exchange.answer.is_empty() => {
                Some(self.fail(Failure::Lost, now))
            }
            (_, Some(failure)) => Some(self.fail(failure, now)),
            (_, None) if now >= exchange.begun + TIMEOUT => Some(self.fail(Failure::Timeout, now)),
            _ => None,
        }
    }

    fn succeed(&mut self, next: Next, now: Instant) -> Event {
        let latency = self.exchange.take().map_or(Duration::ZERO, |exchange| exchange.begun.elapsed());
        if self.kind != Kind::KeepAlive || next == Next::Close {
            self.connection = None;
        }
        if let Some(connection) = &mut self.connection {
            connection.is_used = true;
        }
        self.rests_until = if self.kind == Kind::KeepAlive { now + PAUSE } else { now };
        Event::Answered(latency)
    }

    fn fail(&mut self, failure: Failure, now: Instant) -> Event {
        (self.connection, self.exchange, self.rests_until) = (None, None, now + RECOVERY);
        Event::Failed(failure)
    }
}

impl Connection {
    /// Whether the server has closed it, or has sent what nobody asked for.
    fn has_ended(&self) -> bool {
        !self.socket.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

impl Exchange {
    fn new(target: &Target, kind: Kind, now: Instant) -> Exchange {
        let path = if kind == Kind::Slow { target.slow } else { "/" };
        let first = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", target.address).into_bytes();
        let second = if kind == Kind::KeepAlive { b"\r\n".to_vec() } else { b"Connection: close\r\n\r\n".to_vec() };
        let (unsent, second_half) = match kind {
            Kind::HalfOpen => (first, Some((now + HALF_TIME, second))),
            _ => ([first, second].concat(), None),
        };
        Exchange { begun: now, unsent, second_half, answer: Vec::new() }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.second_half.as_ref().is_some_and(|(due, _)| now >= *due)
    }

    /// Send and receive; how the connection ended, if it has.
    fn advance(&mut self, socket: &mut TcpStream, now: Instant) -> Option<Failure> {
        if let Some((_, rest)) = self.second_half.take_if(|(due, _)| now >= *due) {
            self.unsent.extend(rest);
        }
        transfer(socket, &mut self.unsent, &mut self.answer)
    }
}

/// A connection under way, from one of the source addresses. It is closed by a reset: nothing is left in TIME_WAIT.
fn open(address: SocketAddrV4, source: u8) -> nix::Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    // Else the port would be chosen now, and be one that no other destination has either.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2 + source), 0)))?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket.into()),
        Err(errno) => Err(errno),
    }
}
