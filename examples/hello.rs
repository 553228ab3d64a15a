//! A graceful HTTP server in one thread, for the README's deploy and the benchmark.
//!
//! Its sockets come from LISTEN_FDS. On SIGUSR2 it runs the line in UPGRADE, its sockets inherited, and once that
//! successor has written a byte to READY_FD, it stops accepting, finishes what it accepted, and ends; on SIGTERM at
//! once. It never closes a connection that it accepted without having waited for its request.

use std::env;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// How long a client may take to send its request, and again to receive the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections held at a time; more wait in the kernel's queue, where a successor finds them too.
const ROOM: usize = 900;

struct Server {
    listeners: Vec<TcpListener>,
    connections: Vec<Connection>,
    signals: SignalFd,
    /// A program that was started to succeed us and does not serve yet, and what it will tell us by.
    successor: Option<(Child, PipeReader)>,
}

/// A client, the answer to it once its request is complete, and the moment from which that may be sent.
struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
    due: Instant,
}

fn main() -> Result<()> {
    our_signals().thread_block()?;
    let signals = SignalFd::with_flags(&our_signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let listeners = inherited()?;
    announce(&listeners)?;
    Server { listeners, connections: Vec::new(), signals, successor: None }.run()
}

/// The sockets that LISTEN_FDS announces to this very process, from 3 on as sd_listen_fds(3) has it.
fn inherited() -> Result<Vec<TcpListener>> {
    let number = |name| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    ensure!(number("LISTEN_PID") == Some(process::id()), "no sockets: run me by handoff-run");
    let adopt = |fd| {
        // SAFETY: LISTEN_FDS gives this number to us alone, and nothing else of this program owns it.
        let listener = unsafe { TcpListener::from_raw_fd(fd) };
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // While two generations serve, the other one may be quicker: a blocking accept would then stop this one.
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    (3..).take(number("LISTEN_FDS").context("LISTEN_FDS is no number")? as usize).map(adopt).collect()
}

/// Say on stdout what we serve, and to a predecessor that we do; whether anybody still reads that is not our concern.
fn announce(listeners: &[TcpListener]) -> Result<()> {
    for listener in listeners {
        let _ = writeln!(io::stdout(), "hello {}: pid {} serves {}", version(), process::id(), listener.local_addr()?);
    }
    if let Ok(fd) = env::var("READY_FD") {
        // SAFETY: the predecessor left this descriptor open for us alone, and it is closed right here.
        let mut ready = unsafe { File::from_raw_fd(fd.parse().context("READY_FD is no number")?) };
        let _ = ready.write(b"\n");
    }
    Ok(())
}

fn our_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGUSR2])
}

fn version() -> String {
    env::var("HELLO_VERSION").unwrap_or_else(|_| "1".into())
}

fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "hello: {what}");
}

impl Server {
    fn run(mut self) -> Result<()> {
        while !(self.listeners.is_empty() && self.connections.is_empty()) {
            let heard = self.wait()?;
            self.connections.retain_mut(Connection::is_unfinished);
            self.accept();
            while let Some(signal) = self.signals.read_signal()? {
                match Signal::try_from(signal.ssi_signo as i32)? {
                    Signal::SIGUSR2 => self.upgrade(),
                    _ => self.listeners.clear(),
                }
            }
            if heard {
                self.hear_successor();
            }
        }
        Ok(())
    }

    /// Wait for anything at all; true if it is, among others, the successor that has something to say.
    fn wait(&self) -> Result<bool> {
        let now = Instant::now();
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![input(self.signals.as_fd())];
        let (asleep, awake): (Vec<_>, Vec<_>) = self.connections.iter().partition(|held| held.due > now);
        fds.extend(awake.iter().map(|held| input(held.socket.as_fd())));
        let next = asleep.iter().map(|held| held.due).chain(awake.iter().map(|held| held.due + PATIENCE)).min();
        let open = if self.connections.len() < ROOM { &self.listeners[..] } else { &[] };
        fds.extend(open.iter().map(|listener| input(listener.as_fd())));
        fds.extend(self.successor.iter().map(|(_, ready)| input(ready.as_fd())));
        // poll(2) counts whole milliseconds: one more, or the last would be spent spinning.
        let next = next.map(|next| PollTimeout::try_from(next - now + Duration::from_millis(1))).transpose()?;
        poll(&mut fds, next.unwrap_or(PollTimeout::NONE))?;
        Ok(self.successor.is_some() && fds.last().and_then(PollFd::any) == Some(true))
    }

    fn accept(&mut self) {
        for listener in &self.listeners {
            // Whatever the error, it took no connection from the queue. The bound lets us look at the signals also when
            // the queue is never empty.
            let room = ROOM.saturating_sub(self.connections.len()).min(64);
            for socket in listener.incoming().take(room).map_while(io::Result::ok) {
                let mut connection = Connection { socket, request: vec![], answer: vec![], due: Instant::now() };
                if connection.socket.set_nonblocking(true).is_ok() && connection.is_unfinished() {
                    self.connections.push(connection);
                }
            }
        }
    }

    fn upgrade(&mut self) {
        if self.successor.is_some() || self.listeners.is_empty() {
            return complain("already being succeeded, SIGUSR2 ignored");
        }
        let complain = |error| complain(&format!("cannot start a successor: {error}"));
        self.successor = start_successor(&self.listeners).map_err(complain).ok();
    }

    fn hear_successor(&mut self) {
        let Some((mut child, mut ready)) = self.successor.take() else { return };
        if matches!(ready.read(&mut [0]), Ok(1)) {
            return self.listeners.clear();
        }
        // It has closed the pipe without a word. Should it live on, it would serve beside us for ever.
        let end =
            child.kill().and_then(|()| child.wait()).map_or_else(|error| error.to_string(), |end| end.to_string());
        complain(&format!("the successor never served ({end}), serving on"));
    }
}

/// Run the line in UPGRADE, with the listeners and the one end of a pipe that tells when it serves.
fn start_successor(listeners: &[TcpListener]) -> io::Result<(Child, PipeReader)> {
    let line = env::var_os("UPGRADE").ok_or_else(|| io::Error::other("UPGRADE is not set"))?;
    let (ready, tell) = io::pipe()?;
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).env("READY_FD", tell.as_raw_fd().to_string());
    let copies = listeners.iter().map(|listener| Ok(listener.try_clone()?.into()));
    let handed: Vec<OwnedFd> = copies.chain([Ok(tell.into())]).collect::<io::Result<_>>()?;
    let hand_on = move || {
        // A signal mask outlives exec, and few programs expect theirs to be anything but empty.
        our_signals().thread_unblock()?;
        // Cleared in this child alone, so that no other one gets these.
        Ok(handed.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop))?)
    };
    // SAFETY: between fork and exec only pthread_sigmask and fcntl are called, which are async-signal-safe.
    unsafe { command.pre_exec(hand_on) };
    Ok((command.spawn()?, ready))
}

impl Connection {
    /// Go on as far as that needs no waiting; true if it has to be continued.
    fn is_unfinished(&mut self) -> bool {
        let waits = self.serve().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        waits && Instant::now() < self.due + PATIENCE
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut chunk = [0; 1024];
        while self.answer.is_empty() {
            match self.socket.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                n => self.request.extend_from_slice(&chunk[..n]),
            }
            if self.request.ends_with(b"\r\n\r\n") || self.request.len() > 8192 {
                let (wait, answer) = answer(&self.request);
                (self.due, self.answer) = (Instant::now() + wait, answer);
            }
        }
        if Instant::now() < self.due {
            return Err(ErrorKind::WouldBlock.into());
        }
        // It fits into the buffer of a socket that nothing was written to.
        self.socket.write_all(&self.answer)
    }
}

/// How long to wait before the answer, and the answer.
fn answer(request: &[u8]) -> (Duration, Vec<u8>) {
    let request = String::from_utf8_lossy(request);
    let target = request.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let wait = if target == "/" { Some("0") } else { target.strip_prefix("/slow?") };
    let (status, wait, body) = match wait.and_then(|wait| wait.parse().ok()) {
        Some(wait) => ("200 OK", wait, format!("hello from {}, pid {}\n", version(), process::id())),
        None => ("404 Not Found", 0, "GET / or /slow?MILLISECONDS\n".into()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    (Duration::from_millis(wait), (head + &body).into_bytes())
}
