//! One real server: started with the line that `--help-servers` shows for it, with a supervisor or without, asked,
//! stopped under load, gone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket};
use nix::unistd::Pid;

use super::case::{Case, Stop, compiled, fill, fill_in, is_installed, line, run, shell};
use super::process::{Session, stat};
use super::request::Request;
use super::socket::{accepted, listeners_on, listening_of};
use super::supervisor::Role;
use super::{DEADLINE, Folder, Output, PROGRAM, Supervisor, log, wait_for};

/// A running server.
pub struct Trial<'a> {
    case: &'a Case,
    port: u16,
    /// Keeps the port from all that ask for a free one; does not listen, so handoff-run may.
    _reserved: OwnedFd,
    stop: Signal,
    // Dropped first, for its processes may write to the folder.
    session: Session,
    /// What it is, or what supervises it.
    pub process: Supervisor,
    _backend: Option<Box<Trial<'a>>>,
}

/// Its first client, which comes before it runs, is answered, on the socket of handoff-run, which is all it listens on.
/// Asked to stop, it ends as a whole, and if it drains not before it has answered the clients it had begun to serve.
pub fn try_out(case: &Case) {
    if is_installed(case) {
        let server = Trial::start_target(case);
        let inodes = server.listeners();
        let first = server.ask(Request::Plain);
        server.check_answer(first);
        assert_eq!(server.listening(), inodes, "{}", server.log());
        server.settle();
        if case.stop == Stop::Drains {
            let slow = server.under_way();
            server.process.signal(server.stop);
            server.check_answer(slow);
        } else {
            server.process.signal(server.stop);
        }
        server.check_end(case.status);
    }
}

impl Trial<'_> {
    /// Start one that handoff-run becomes.
    fn start_target(case: &Case) -> Trial<'_> {
        // --lazy, so that there is time to look at the socket before the server has it.
        Trial::start_with(case, &format!("{PROGRAM} --lazy --quiet"), Role::Target)
    }

    /// Start a supervisor with these options, in front of the server's line.
    pub fn start<'a>(case: &'a Case, options: &str) -> Trial<'a> {
        Trial::start_by("", case, options)
    }

    /// One that a wrapper becomes.
    pub fn start_by<'a>(wrapper: &str, case: &'a Case, options: &str) -> Trial<'a> {
        let words = format!("{wrapper} {PROGRAM} --supervise --control control --settle 50ms {options}");
        Trial::start_with(case, &words, Role::Supervisor)
    }

    /// One in whose line these are the words for handoff-run.
    fn start_with<'a>(case: &'a Case, handoff_run: &str, role: Role) -> Trial<'a> {
        let folder = Arc::new(Folder::new());
        let (reserved, port) = reserve_port();
        let backend = case.backend.map(|backend| Box::new(Trial::start_target(backend)));
        if !case.files.is_empty() {
            fill(&folder, case.files, port);
        }
        if !case.compile.is_empty() {
            compiled(case, &folder);
        }
        if !case.build.is_empty() {
            run(case.build, &folder);
        }
        let (line, stop) = line(case, handoff_run);
        let mut line = fill_in(&line, &folder, port);
        if let Some(backend) = &backend {
            backend.listeners();
            line = line.replace("@BACKEND@", &format!("127.0.0.1,{}", backend.port));
        }
        let process = shell(&format!("exec {line} >&2"), &folder);
        let process = Supervisor::start(folder, process, role);
        let session = Session(process.pid);
        Trial { case, port, _reserved: reserved, stop, process, session, _backend: backend }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// All that handoff-run and the server have written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Every process but the supervisor.
    pub fn processes(&self) -> Vec<Pid> {
        self.session.processes().into_iter().filter(|pid| *pid != self.process.pid).collect()
    }

    /// Wait until nobody has anything to do: haproxy's master, for one, becomes itself anew once its worker serves, and
    /// forgets the signal that comes meanwhile.
    pub fn settle(&self) {
        let sleeps = |pid: &Pid| stat(*pid).is_none_or(|fields| fields[0] == "S");
        wait_for("all to sleep", || self.processes().iter().all(sleeps).then_some(()));
    }

    /// The inodes of the sockets on its port.
    pub fn listeners(&self) -> Vec<u64> {
        wait_for("handoff-run to listen", || Some(listeners_on(self.port)).filter(|sockets| !sockets.is_empty()))
    }

    /// The TCP sockets that any of its processes listens on.
    pub fn listening(&self) -> Vec<u64> {
        listening_of(self.session.sockets())
    }

    /// Send a request and do not wait.
    pub fn ask(&self, request: Request) -> TcpStream {
        let mut client = TcpStream::connect(self.address()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.write_all(&request.bytes(self.case.protocol, &self.process.folder.text("hello.php"))).unwrap();
        client
    }

    /// A request that the server has read, and not yet answered.
    fn under_way(&self) -> TcpStream {
        wait_for("a request that is under way", || {
            let client = self.ask(Request::Slow);
            // On a busy machine it may be answered before it was seen under way, and is asked again.
            let is_under_way = || accepted(&client).map(|_| true).or_else(|| has_answer(&client).then_some(false));
            wait_for("a request to be read", is_under_way).then_some(client)
        })
    }

    /// The answer, which has to have a hello, and is given from there on; no answer at all fails the test.
    #[track_caller]
    pub fn check_answer(&self, mut client: TcpStream) -> String {
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(end.is_ok() && answer.contains("hello"), "{end:?}, answered {answer:?}, logged {}", self.log());
        answer[answer.find("hello").unwrap()..].to_owned()
    }

    /// The same for a request of now.
    #[track_caller]
    pub fn answer(&self) -> String {
        self.check_answer(self.ask(Request::Plain))
    }

    /// `--reload`, with these options.
    pub fn reload(&self, options: &[&str]) -> Output {
        self.process.command("--reload", options).output()
    }

    /// Reload, until the old generation is gone: nothing of it is left, and the new one, whose number is given, answers, and
    /// no socket has come or gone.
    pub fn roll(&self, generation: u64) {
        let (sockets, old) = (self.listeners(), self.processes());
        let output = self.reload(&["--wait"]);
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        let left: Vec<Pid> = self.processes().into_iter().filter(|pid| old.contains(pid)).collect();
        assert_eq!(left, [], "left of the old generation: {}", self.log());
        self.answer();
        assert_eq!(self.listening(), sockets, "{}", self.log());
        assert!(output.stdout.contains(&log::ready(generation)), "{}", output.stdout);
    }

    /// `--stop`: all drain, the supervisor ends with 0, and nothing is left.
    pub fn stop(self) {
        let output = self.process.stop();
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        self.check_end(0);
    }

    fn check_end(mut self, status: i32) {
        let (code, log) = self.process.end();
        assert_eq!(code, status, "{log}");
        wait_for("all its processes to end", || self.session.processes().is_empty().then_some(()));
    }
}

/// Whether anything, or the end, has come from the server.
fn has_answer(client: &TcpStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let has_answer = client.peek(&mut [0]).is_ok();
    client.set_nonblocking(false).unwrap();
    has_answer
}

/// A port that nobody has now, for a server that opens it itself.
pub fn free_port() -> u16 {
    reserve_port().1
}

/// The same below those that the kernel gives to clients by itself (ip_local_port_range): none of another test gets it while it
/// changes hands.
pub fn port_for_no_client() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let any = || 20_000 + (std::process::id() as u16 % 150) * 64 + COUNT.fetch_add(1, Ordering::Relaxed) % 64;
    std::iter::repeat_with(any).find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok()).unwrap()
}

/// A port that is bound, but not listened on.
fn reserve_port() -> (OwnedFd, u16) {
    let reserved = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&reserved, ReuseAddr, &true).unwrap();
    bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(reserved.as_raw_fd()).unwrap().port();
    (reserved, port)
}
