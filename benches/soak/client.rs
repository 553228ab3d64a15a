//! One client of the load, which does what its kind does over and over: connect, ask, read the answer, rest.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrLike, SockaddrStorage, UnixAddr, bind, connect, getsockname,
    setsockopt, socket, sockopt,
};

use super::answer::{Answer, Next};
use super::clock::{Time, now};
use super::failure::Failure;
use super::peer;
use super::tally::Loss;
use super::transfer::transfer;

/// How long one request may take, from connecting to the end of the answer; what the client does itself is on top.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long any client rests after a failure, so that a server that fails is not asked ever faster.
const RECOVERY: Duration = Duration::from_millis(50);
/// Clients spread over so many addresses from 127.0.0.10 on: 127.0.0.2 may be HANDOFF_SOURCE.
const SOURCES: u64 = 64;

/// Where the server is.
pub struct Target {
    pub port: u16,
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    Tcp,
    Unix,
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A connection, or a socket, for each request.
    OneRequest,
    /// The same, with a request that takes two seconds.
    Slow,
    /// The same, with a request that is sent in two halves.
    HalfOpen,
    /// The same, with nothing sent for three seconds.
    Idle,
    /// One request after the other on the same connection, for three seconds.
    KeepAlive,
    /// A connection that both keep, up to longer than the drain timeout, and that now and then has a message.
    WebSocket,
}

/// What came of a request.
pub enum Event {
    Answered,
    Failed(Loss),
}

pub struct Client<'a> {
    target: &'a Target,
    pub kind: Kind,
    pub transport: Transport,
    /// Which one of all it is, and how many sockets it has had.
    number: u64,
    sockets: u64,
    connection: Option<Connection>,
    exchange: Option<Exchange>,
    rests_until: Instant,
}

struct Connection {
    socket: File,
    name: String,
    opened: Time,
    leaves: Instant,
    /// The generation and the process that have answered on it.
    server: Option<(u64, i32)>,
}

/// A request under way.
struct Exchange {
    begun: Time,
    deadline: Instant,
    /// What could not be sent yet.
    unsent: Vec<u8>,
    /// What is not to be sent before this moment.
    rest: Option<(Instant, Vec<u8>)>,
    answer: Vec<u8>,
}

impl<'a> Client<'a> {
    pub fn new(target: &'a Target, kind: Kind, transport: Transport, number: u64) -> Client<'a> {
        let rests_until = Instant::now() + Duration::from_millis(number * 7);
        Client { target, kind, transport, number, sockets: 0, connection: None, exchange: None, rests_until }
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
        exchange.rest.as_ref().map_or(exchange.deadline, |(due, _)| *due)
    }

    /// Begin the next request if it is time.
    pub fn begin(&mut self) -> Option<Event> {
        if self.exchange.is_some() || Instant::now() < self.rests_until {
            return None;
        }
        self.connection.take_if(|connection| Instant::now() >= connection.leaves);
        let begun = now();
        if self.connection.is_none() {
            match self.open() {
                Ok(connection) => self.connection = Some(connection),
                Err(error) => return Some(self.fail(error.into(), begun)),
            }
        }
        self.exchange = Some(self.request(begun));
        self.go_on(true)
    }

    /// Go on as far as that needs no waiting; `is_stirred` if poll has reported something.
    pub fn go_on(&mut self, is_stirred: bool) -> Option<Event> {
        let connection = self.connection.as_mut()?;
        let Some(exchange) = &mut self.exchange else {
            // Between two requests nothing comes but the end.
            return is_stirred.then(|| self.fail(Failure::Lost, now()));
        };
        let begun = exchange.begun;
        let is_due = exchange.rest.as_ref().is_some_and(|(due, _)| Instant::now() >= *due);
        let end = if is_stirred || is_due { exchange.advance(&mut connection.socket) } else { None };
        let is_late = Instant::now() >= exchange.deadline;
        match (self.transport, Answer::of(&exchange.answer), end) {
            (Transport::Udp, ..) if !exchange.answer.is_empty() => Some(self.succeed(Next::Close)),
            (_, Answer::Whole(next), _) => Some(self.succeed(next)),
            (_, Answer::Other, _) => Some(self.fail(Failure::Other, begun)),
            (_, _, Some(failure)) => Some(self.fail(failure, begun)),
            _ => is_late.then(|| self.fail(Failure::Timeout, begun)),
        }
    }

    fn succeed(&mut self, next: Next) -> Event {
        let answer = self.exchange.take().map(|exchange| exchange.answer).unwrap_or_default();
        let stays = matches!(self.kind, Kind::KeepAlive | Kind::WebSocket) && next == Next::Request;
        self.connection.take_if(|_| !stays);
        if let Some(connection) = &mut self.connection {
            connection.server = server(&answer);
        }
        self.rests_until = Instant::now() + self.pause();
        Event::Answered
    }

    fn fail(&mut self, failure: Failure, begun: Time) -> Event {
        let connection = self.connection.take();
        self.exchange = None;
        self.rests_until = Instant::now() + RECOVERY;
        Event::Failed(Loss {
            kind: self.kind,
            transport: self.transport,
            failure,
            opened: connection.as_ref().map_or(begun, |connection| connection.opened),
            begun,
            ended: now(),
            server: connection.as_ref().and_then(|connection| connection.server),
            client: connection.map(|connection| connection.name).unwrap_or_default(),
        })
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(match self.kind {
            // Many with a long one, for each is out of action for as long as it waits for a datagram that is lost.
            _ if self.transport == Transport::Udp => 200,
            Kind::OneRequest | Kind::KeepAlive => 20,
            Kind::Slow | Kind::HalfOpen | Kind::Idle => 100,
            Kind::WebSocket => 300,
        })
    }

    /// A connection under way. TCP is closed by a reset unless the server is first: nothing is left in TIME_WAIT.
    fn open(&mut self) -> io::Result<Connection> {
        self.sockets += 1;
        let (family, kind) = match self.transport {
            Transport::Tcp => (AddressFamily::Inet, SockType::Stream),
            Transport::Unix => (AddressFamily::Unix, SockType::Stream),
            Transport::Udp => (AddressFamily::Inet, SockType::Datagram),
        };
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        if self.transport == Transport::Unix {
            let name = format!("soak-{}-{}-{}", process::id(), self.number, self.sockets);
            bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        } else {
            let last = 10 + ((self.number * 7 + self.sockets) % SOURCES) as u8;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0)))?;
        }
        if self.transport == Transport::Tcp {
            setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        self.connect(&socket)?;
        let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
        let leaves = Instant::now() + self.life();
        let name = peer::text(&address).unwrap_or_default();
        Ok(Connection { socket: File::from(socket), name, opened: now(), leaves, server: None })
    }

    fn connect(&self, socket: &OwnedFd) -> nix::Result<()> {
        let address: Box<dyn SockaddrLike> = match self.transport {
            Transport::Unix => Box::new(UnixAddr::new(&self.target.path)?),
            _ => Box::new(SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.target.port))),
        };
        match connect(socket.as_raw_fd(), address.as_ref()) {
            Err(Errno::EINPROGRESS) => Ok(()),
            result => result,
        }
    }

    /// How long it stays on a connection: a WebSocket from 4 to 14 seconds.
    fn life(&self) -> Duration {
        match self.kind {
            Kind::WebSocket => Duration::from_secs(4 + (self.number + self.sockets) * 3 % 11),
            _ => Duration::from_secs(3),
        }
    }

    fn request(&self, begun: Time) -> Exchange {
        let text = match self.kind {
            _ if self.transport == Transport::Udp => "ping".into(),
            Kind::Slow => request("/slow", "close"),
            Kind::KeepAlive => request("/", "keep-alive"),
            Kind::WebSocket => request("/ws", "keep-alive"),
            Kind::OneRequest | Kind::HalfOpen | Kind::Idle => request("/", "close"),
        };
        // What is sent at once, and when the rest is.
        let (first, rests) = match self.kind {
            Kind::HalfOpen => (20, Duration::from_millis(300)),
            Kind::Idle => (0, Duration::from_secs(3)),
            _ => (text.len(), Duration::ZERO),
        };
        let (unsent, rest) = (text[..first].into(), Vec::from(&text[first..]));
        let start = Instant::now();
        let rest = (!rest.is_empty()).then_some((start + rests, rest));
        Exchange { begun, deadline: start + rests + TIMEOUT, unsent, rest, answer: Vec::new() }
    }
}

fn request(path: &str, connection: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: soak\r\nConnection: {connection}\r\n\r\n")
}

/// The generation and the process that an answer names at its end.
fn server(answer: &[u8]) -> Option<(u64, i32)> {
    let answer = String::from_utf8_lossy(answer);
    let (generation, pid) = answer.lines().last()?.split_once(' ')?;
    Some((generation.parse().ok()?, pid.parse().ok()?))
}

impl Exchange {
    /// Send and receive; how the connection ended, if it has.
    fn advance(&mut self, socket: &mut File) -> Option<Failure> {
        if let Some((_, rest)) = self.rest.take_if(|(due, _)| Instant::now() >= *due) {
            self.unsent.extend(rest);
        }
        transfer(socket, &mut self.unsent, &mut self.answer)
    }
}
