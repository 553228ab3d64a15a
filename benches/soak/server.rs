//! The server that is soaked: a main process, which starts a worker anew when that dies, and the worker, which serves.
//!
//! It finds its sockets by LISTEN_FDS: TCP, Unix, UDP. Asked to stop, it accepts no more, ends each connection with the
//! next answer, and those to `/ws` when the client does. RELEASE is how it fails, if it does.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::{self, Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, pause};

use super::diary::{self, Diary};
use super::peer;

/// The first arguments of the two kinds of processes.
pub const MAIN: &str = "serve";
pub const WORKER: &str = "work";
/// How long the slow answer takes.
pub const SLOW: Duration = Duration::from_secs(2);
/// How long a release that dies late serves before that.
const LATE: Duration = Duration::from_secs(1);
/// The numbers of the sockets: TCP, Unix, UDP.
const SOCKETS: [RawFd; 3] = [3, 4, 5];
/// The exit status of a release that dies.
const DEAD: u8 = 3;

pub fn main() -> Result<ExitCode> {
    // As many servers do: what the supervisor may open is no measure of what clients need.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    match env::var("RELEASE").context("RELEASE")?.as_str() {
        "dies" => return Ok(ExitCode::from(DEAD)),
        "hangs" => loop {
            pause();
        },
        _ => {}
    }
    let signals = signals(&[Signal::SIGTERM, Signal::SIGCHLD], SfdFlags::empty())?;
    let mut sockets: Vec<OwnedFd> = SOCKETS.map(announced).into();
    let (mut worker, mut is_asked) = (start_worker()?, false);
    loop {
        let signal = signals.read_signal()?.context("signalfd")?;
        if signal.ssi_signo == Signal::SIGTERM as u32 {
            is_asked = true;
            // Nothing waits at them from now on, even if nobody knows that we drain.
            sockets.clear();
            // Gone already is as good.
            let _ = kill(Pid::from_raw(worker.id() as i32), Signal::SIGTERM);
        }
        let Some(status) = worker.try_wait()? else { continue };
        match status.code() {
            Some(code) if is_asked || code == i32::from(DEAD) => return Ok(ExitCode::from(code as u8)),
            _ if is_asked => return Ok(ExitCode::FAILURE),
            _ => worker = start_worker()?,
        }
    }
}

fn announced(number: RawFd) -> OwnedFd {
    // SAFETY: LISTEN_FDS gives these numbers to this program alone, which calls this once for each.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Start a process with our sockets, which no exec closes.
fn start_worker() -> io::Result<Child> {
    Command::new(env::current_exe()?).arg(WORKER).spawn()
}

/// Signals that are only to be read from now on.
pub fn signals(which: &[Signal], flags: SfdFlags) -> Result<SignalFd> {
    let set: SigSet = which.iter().copied().collect();
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, flags | SfdFlags::SFD_CLOEXEC)?)
}

struct Worker {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    udp: Option<UdpSocket>,
    connections: Vec<Connection>,
    signals: SignalFd,
    is_asked: bool,
    release: String,
    /// What answers end with: who we are.
    name: String,
    diary: Diary,
    start: Instant,
}

struct Connection {
    socket: File,
    peer: String,
    request: Vec<u8>,
    /// When the request is to be answered.
    due: Option<Instant>,
}

pub fn work() -> Result<ExitCode> {
    let signals = signals(&[Signal::SIGTERM], SfdFlags::empty())?;
    let [tcp, unix, udp] = SOCKETS.map(announced);
    let (tcp, unix, udp) = (TcpListener::from(tcp), UnixListener::from(unix), UdpSocket::from(udp));
    tcp.set_nonblocking(true)?;
    unix.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    let release = env::var("RELEASE").context("RELEASE")?;
    let generation = env::var("GENERATION").context("GENERATION")?;
    let mut diary = Diary::new(&env::var(diary::FOLDER).context(diary::FOLDER)?)?;
    diary.write("serves", &format!("{release} {generation}"))?;
    let name = format!("{generation} {}", process::id());
    let (tcp, unix, udp) = (Some(tcp), Some(unix), Some(udp));
    let (connections, is_asked, start) = (Vec::new(), false, Instant::now());
    Worker { tcp, unix, udp, connections, signals, is_asked, release, name, diary, start }.run()
}

impl Worker {
    fn run(mut self) -> Result<ExitCode> {
        while !(self.is_asked && self.connections.is_empty() && self.release != "stays") {
            let is_signalled = self.wait()?;
            if self.release == "dies-late" && self.start.elapsed() > LATE {
                let held: Vec<&str> = self.connections.iter().map(|held| held.peer.as_str()).collect();
                self.diary.write("dies", &held.join(" "))?;
                return Ok(ExitCode::from(DEAD));
            }
            if is_signalled {
                self.signals.read_signal()?;
                self.diary.write("asked", "")?;
                self.is_asked = true;
            }
            self.answer_datagrams();
            if self.is_asked {
                (self.tcp, self.unix, self.udp) = (None, None, None);
            }
            self.accept();
            let (is_asked, name) = (self.is_asked, &self.name);
            self.connections.retain_mut(|connection| connection.goes_on(is_asked, name));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Wait until there is something to do; whether that is a signal.
    fn wait(&self) -> Result<bool> {
        let now = Instant::now();
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![input(self.signals.as_fd())];
        fds.extend(self.tcp.iter().map(|socket| input(socket.as_fd())));
        fds.extend(self.unix.iter().map(|socket| input(socket.as_fd())));
        fds.extend(self.udp.iter().map(|socket| input(socket.as_fd())));
        fds.extend(self.connections.iter().filter(|held| held.due.is_none()).map(|held| input(held.socket.as_fd())));
        let late = (self.release == "dies-late").then_some(self.start + LATE);
        let next = self.connections.iter().filter_map(|held| held.due).chain(late).min();
        // poll(2) counts whole milliseconds: one more, or the last would be spent spinning.
        let rest = next.map(|next| next.saturating_duration_since(now) + Duration::from_millis(1));
        poll(&mut fds, rest.map(PollTimeout::try_from).transpose()?.unwrap_or(PollTimeout::NONE))?;
        Ok(fds[0].any() == Some(true))
    }

    fn accept(&mut self) {
        // Whatever the error, it took no connection from the queue.
        let tcp = self.tcp.iter().flat_map(TcpListener::incoming).map_while(io::Result::ok);
        let tcp = tcp.filter(|socket| socket.set_nonblocking(true).is_ok()).map(OwnedFd::from);
        let unix = self.unix.iter().flat_map(UnixListener::incoming).map_while(io::Result::ok);
        let unix = unix.filter(|socket| socket.set_nonblocking(true).is_ok()).map(OwnedFd::from);
        let new = tcp.take(64).chain(unix.take(64)).map(|socket| Connection {
            peer: peer::of(&socket).unwrap_or_default(),
            socket: File::from(socket),
            request: Vec::new(),
            due: None,
        });
        self.connections.extend(new);
    }

    fn answer_datagrams(&self) {
        let mut datagram = [0; 64];
        let Some(udp) = &self.udp else { return };
        while let Ok((length, client)) = udp.recv_from(&mut datagram) {
            let answer = format!("{} {}", String::from_utf8_lossy(&datagram[..length]), self.name);
            // A client that has gone by now wants no answer.
            let _ = udp.send_to(answer.as_bytes(), client);
        }
    }
}

impl Connection {
    /// Go on as far as that needs no waiting; whether there is more to do.
    fn goes_on(&mut self, is_asked: bool, name: &str) -> bool {
        match self.serve(is_asked, name) {
            Ok(goes_on) => goes_on,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }

    fn serve(&mut self, is_asked: bool, name: &str) -> io::Result<bool> {
        let mut chunk = [0; 1024];
        while !self.request.ends_with(b"\r\n\r\n") {
            match self.socket.read(&mut chunk)? {
                0 => return Ok(false),
                length => self.request.extend_from_slice(&chunk[..length]),
            }
        }
        let request = String::from_utf8_lossy(&self.request);
        let wait = if request.starts_with("GET /slow ") { SLOW } else { Duration::ZERO };
        if Instant::now() < *self.due.get_or_insert_with(|| Instant::now() + wait) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let closes = request.contains("Connection: close") || is_asked && !request.starts_with("GET /ws ");
        let connection = if closes { "close" } else { "keep-alive" };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n", name.len());
        // It fits into the buffer of a socket whose client has read all before.
        self.socket.write_all((head + name).as_bytes())?;
        (self.request, self.due) = (Vec::new(), None);
        Ok(!closes)
    }
}
