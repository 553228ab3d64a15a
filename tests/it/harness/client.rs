//! Clients of the servers that a test supervises.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, SockaddrStorage, bind, connect, shutdown, socket};
use nix::unistd::Pid;

use super::{DEADLINE, Supervisor};

/// What each of them understands.
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    pub generation: u64,
    pub pid: Pid,
}

/// A connection to a server.
pub struct Client(File);

impl Client {
    /// Connect to an address, or to a path.
    pub fn connect(address: &str) -> io::Result<Client> {
        let stream: OwnedFd = if address.starts_with('/') {
            let stream = UnixStream::connect(address)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.into()
        } else {
            let stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.into()
        };
        Ok(Client(stream.into()))
    }

    /// Connect to an address from this one, by a port of its own.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<Client> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Client(OwnedFd::from(stream).into()))
    }

    /// Over a connection that is there already.
    pub fn of(stream: UnixStream) -> Client {
        Client(OwnedFd::from(stream).into())
    }

    /// Ask, and wait for the answer; the connection stays open on this side.
    pub fn ask(&mut self) -> io::Result<Answer> {
        self.send()?;
        self.answer()
    }

    pub fn send(&mut self) -> io::Result<()> {
        self.0.write_all(REQUEST)
    }

    /// Send a part of a request, so that it is accepted and held.
    pub fn send_part(&mut self) {
        self.0.write_all(&REQUEST[..4]).unwrap();
    }

    /// Send the rest, and wait for the answer.
    pub fn finish(&mut self) -> io::Result<Answer> {
        self.0.write_all(&REQUEST[4..])?;
        self.answer()
    }

    /// Wait for an answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut answer = Vec::new();
        let mut byte = [0];
        let is_whole = |answer: &[u8]| answer.ends_with(b"\n") && parse(answer).is_some();
        while !is_whole(&answer) && self.0.read(&mut byte)? == 1 {
            answer.push(byte[0]);
        }
        parse(&answer).ok_or_else(|| unexpected(&answer))
    }

    /// All that comes until the server closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

/// Be one client from connecting to the server's close.
pub fn ask(address: &str) -> io::Result<Answer> {
    ask_by(Client::connect(address)?)
}

/// The same from this address.
pub fn ask_from(source: IpAddr, address: SocketAddr) -> io::Result<Answer> {
    ask_by(Client::connect_from(source, address)?)
}

fn ask_by(mut client: Client) -> io::Result<Answer> {
    client.send()?;
    // Some servers keep a connection as long as the client may have more to say. This one may have been answered.
    let _ = shutdown(client.0.as_raw_fd(), Shutdown::Write);
    let answer = client.rest()?;
    parse(&answer).ok_or_else(|| unexpected(&answer))
}

/// The end of an answer: `hello from GENERATION, pid PID`.
fn parse(answer: &[u8]) -> Option<Answer> {
    let answer = str::from_utf8(answer).ok()?;
    let (_, end) = answer.strip_suffix('\n')?.rsplit_once("hello from ")?;
    let (generation, pid) = end.split_once(", pid ")?;
    Some(Answer { generation: generation.parse().ok()?, pid: Pid::from_raw(pid.parse().ok()?) })
}

fn unexpected(answer: &[u8]) -> io::Error {
    io::Error::other(format!("the answer was {:?}", answer.escape_ascii().to_string()))
}

/// Clients, one after the other without a pause, until the value is asked for what they saw.
pub struct Clients {
    end: Sender<()>,
    thread: JoinHandle<io::Result<BTreeSet<Pid>>>,
}

impl Clients {
    pub fn of(supervisor: &Supervisor) -> Clients {
        let address = supervisor.address();
        let (end, ending) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let mut seen = BTreeSet::from([ask(&address)?.pid]);
            while ending.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                seen.insert(ask(&address)?.pid);
            }
            Ok(seen)
        });
        Clients { end, thread }
    }

    /// Who answered them; all of them were answered.
    #[track_caller]
    pub fn all_served_by(self) -> BTreeSet<Pid> {
        drop(self.end);
        self.thread.join().unwrap().expect("every client is answered")
    }
}
