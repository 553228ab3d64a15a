//! Load on a server: a new connection for every request, and every outcome counted.
//!
//! One thread, one poll loop, bounded in count and in time, and only ever towards loopback. The tests and the benchmark
//! share it.

#![allow(dead_code, reason = "the tests and the benchmark each need their part of it")]

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

/// How often a loop in which nothing happens looks at the clock and at its order to stop.
const TICK: u16 = 20;
/// Clients spread over 127.0.0.2 and so many more: each source address brings 28,000 ports of its own. The server closes
/// first, so it is on its side that a minute of TIME_WAIT is spent, but one client address would, at some thousands a
/// second, come back to a port whose connection the server still remembers, and that is a path of its own in the kernel.
const SOURCES: u8 = 64;

/// What to ask, how often, and for how long: whichever of `requests` and `duration` is reached first ends it.
#[derive(Clone, Debug)]
pub struct Load {
    pub address: SocketAddr,
    /// How many requests are under way at any time.
    pub connections: usize,
    pub requests: u64,
    pub duration: Duration,
    pub path: String,
    /// How long one request may take, from connecting to the last byte.
    pub timeout: Duration,
    pub close: Close,
    /// How long it rests each time that something has happened, where others need the processor.
    pub rest: Duration,
}

/// How a client closes once the server has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Close {
    Orderly,
    /// By a reset, so that nothing is left in TIME_WAIT: with ten thousands there, whoever reads /proc/net/tcp waits.
    Reset,
}

/// What came of it. Every request that was begun is counted exactly once.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Status 200 and as much body as Content-Length promised.
    pub ok: u64,
    pub refused: u64,
    pub reset: u64,
    pub timeout: u64,
    /// The server closed before its answer was complete.
    pub short: u64,
    pub other: u64,
    /// From before connecting to the end of the answer, of the requests that were answered.
    pub latencies: Latencies,
    pub elapsed: Duration,
    pub by_body: BTreeMap<String, u64>,
}

/// Every single latency in microseconds: four bytes a request are cheaper than a histogram is to explain.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<u32>);

/// How one request ended.
#[derive(Debug, PartialEq)]
enum Outcome {
    Ok(String),
    Refused,
    Reset,
    Timeout,
    Short,
    Other,
}

/// One request under way.
struct Request {
    socket: TcpStream,
    begun: Instant,
    /// What could not be sent yet.
    unsent: Vec<u8>,
    answer: Vec<u8>,
}

impl Load {
    /// Four connections for a second or 100,000 requests; change what you need.
    pub fn on(address: SocketAddr) -> Self {
        let (connections, requests) = (4, 100_000);
        let (duration, timeout) = (Duration::from_secs(1), Duration::from_secs(10));
        let (path, close, rest) = ("/".into(), Close::Orderly, Duration::ZERO);
        Self { address, connections, requests, duration, path, timeout, close, rest }
    }

    /// Two connections for as long as it is run, and no TIME_WAIT.
    pub fn lasting(address: SocketAddr) -> Self {
        let (connections, requests, duration, close) = (2, u64::MAX, Duration::MAX, Close::Reset);
        Self { connections, requests, duration, close, ..Self::on(address) }
    }

    /// Load the server while something is done, also if that fails.
    pub fn during<T>(&self, act: impl FnOnce() -> T) -> (T, Report) {
        let (result, mut reports) = during([|stop: &AtomicBool| self.run(stop)], act);
        (result, reports.remove(0))
    }

    /// Load the server until a bound is reached or `stop` is set, then wait for what is under way.
    pub fn run(&self, stop: &AtomicBool) -> Report {
        assert!(self.address.ip().is_loopback(), "{} is not loopback", self.address);
        let start = Instant::now();
        let mut report = Report::default();
        let mut requests: Vec<Request> = Vec::new();
        let mut begun = 0;
        loop {
            let goes_on =
                |begun| begun < self.requests && start.elapsed() < self.duration && !stop.load(Ordering::Relaxed);
            while requests.len() < self.connections && goes_on(begun) {
                match Request::begin(self, begun) {
                    Ok(request) => requests.push(request),
                    Err(errno) => report.count(&Outcome::from(io::Error::from(errno))),
                }
                begun += 1;
            }
            if requests.is_empty() {
                report.elapsed = start.elapsed();
                return report;
            }
            advance(&mut requests, self.timeout, &mut report);
            thread::sleep(self.rest);
        }
    }
}

/// Run these loads while something is done, also if that fails: what it gives, and what they report.
pub fn during<T, L>(loads: impl IntoIterator<Item = L>, act: impl FnOnce() -> T) -> (T, Vec<Report>)
where
    L: FnOnce(&AtomicBool) -> Report + Send,
{
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let loading: Vec<_> = loads.into_iter().map(|load| scope.spawn(|| load(&stop))).collect();
        let enough = Enough(&stop);
        let result = act();
        drop(enough);
        (result, loading.into_iter().map(|load| load.join().expect("a load does not panic")).collect())
    })
}

/// Ends the loads.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Wait for any of the requests, go on with those where something happened, and count those that ended.
fn advance(requests: &mut Vec<Request>, timeout: Duration, report: &mut Report) {
    let mut fds: Vec<_> = requests.iter().map(Request::to_poll).collect();
    poll(&mut fds, TICK).expect("poll is only given open sockets, and no signal is handled here");
    let stirred: Vec<_> = fds.iter().map(|fd| fd.any() != Some(false)).collect();
    let now = Instant::now();
    let mut stirred = stirred.into_iter();
    requests.retain_mut(|request| {
        let outcome = if stirred.next() == Some(true) { request.advance() } else { None };
        let late = now.duration_since(request.begun) >= timeout;
        let Some(outcome) = outcome.or(late.then_some(Outcome::Timeout)) else { return true };
        if matches!(outcome, Outcome::Ok(_)) {
            report.latencies.add(request.begun.elapsed());
        }
        report.count(&outcome);
        false
    });
}

impl Request {
    fn begin(load: &Load, number: u64) -> nix::Result<Self> {
        let begun = Instant::now();
        let family = if load.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        if load.address.is_ipv4() {
            // Else the port would be chosen now, and be one that no other destination has either.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            let last = 2 + (number % u64::from(SOURCES)) as u8;
            let source = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0));
            bind(socket.as_raw_fd(), &source)?;
        }
        if load.close == Close::Reset {
            setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(load.address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let unsent = format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", load.path, load.address);
        Ok(Self { socket: socket.into(), begun, unsent: unsent.into_bytes(), answer: Vec::new() })
    }

    fn to_poll(&self) -> PollFd<'_> {
        let wanted = if self.unsent.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        PollFd::new(self.socket.as_fd(), wanted)
    }

    /// Go on as far as that needs no waiting.
    fn advance(&mut self) -> Option<Outcome> {
        match self.exchange() {
            Ok(()) => Some(outcome(&self.answer)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            // An answer that has come as a whole is not lost by what comes after it.
            Err(error) => Some(match outcome(&self.answer) {
                ok @ Outcome::Ok(_) => ok,
                _ => error.into(),
            }),
        }
    }

    /// Send what is unsent and read until the server has closed: then it is the one that has the TIME_WAIT.
    fn exchange(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let sent = self.socket.write(&self.unsent)?;
            self.unsent.drain(..sent);
        }
        let mut chunk = [0; 4096];
        loop {
            match self.socket.read(&mut chunk)? {
                0 => return Ok(()),
                n => self.answer.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other,
        }
    }
}

/// What an answer is, now that nothing more will come.
fn outcome(answer: &[u8]) -> Outcome {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return Outcome::Short };
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
    };
    match lines.find_map(field) {
        Some(length) if body.len() < length => Outcome::Short,
        Some(length) if body.len() == length && status == Some("200") => Outcome::Ok(body.into()),
        _ => Outcome::Other,
    }
}

impl Report {
    fn count(&mut self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Ok(body) => {
                *self.by_body.entry(body.clone()).or_default() += 1;
                &mut self.ok
            }
            Outcome::Refused => &mut self.refused,
            Outcome::Reset => &mut self.reset,
            Outcome::Timeout => &mut self.timeout,
            Outcome::Short => &mut self.short,
            Outcome::Other => &mut self.other,
        };
        *counter += 1;
    }

    /// The requests that were not answered.
    pub fn failed(&self) -> u64 {
        self.refused + self.reset + self.timeout + self.short + self.other
    }

    /// Answered requests per second.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64()
    }

    /// Add what another piece of the same experiment brought.
    pub fn add(&mut self, piece: Self) {
        self.ok += piece.ok;
        self.refused += piece.refused;
        self.reset += piece.reset;
        self.timeout += piece.timeout;
        self.short += piece.short;
        self.other += piece.other;
        self.latencies.0.extend(piece.latencies.0);
        self.elapsed += piece.elapsed;
        for (body, count) in piece.by_body {
            *self.by_body.entry(body).or_default() += count;
        }
    }
}

impl Latencies {
    fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// The latency that this share of the answers did not exceed: 0.5 for the median, 1.0 for the maximum.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        Duration::from_micros(sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0).into())
    }
}

#[test]
fn an_answer_is_ok_only_as_a_whole() {
    let answer = |body| outcome(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{body}").as_bytes());
    assert_eq!(answer("one"), Outcome::Ok("one".into()));
    assert_eq!(answer("on"), Outcome::Short);
    assert_eq!(answer("ones"), Outcome::Other);
    assert_eq!(outcome(b""), Outcome::Short);
    assert_eq!(outcome(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), Outcome::Other);
}
