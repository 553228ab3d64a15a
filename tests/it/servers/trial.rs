//! One real server: started with the line that `--help-servers` shows for it, asked, stopped under load, gone.

use std::fmt::Display;
use std::io::{Read, Write, stderr};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::{env, fs};

use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket};
use nix::unistd::setsid;

use super::kernel::{Session, is_under_way, listener_on, listening};
use crate::harness::{DEADLINE, Folder, PROGRAM, Run, Running, handoff_run_with, wait_for};

/// What a test says of its server.
pub struct Case {
    /// What `--as` calls it; empty for what needs no preset.
    pub name: &'static str,
    /// What stands behind `--` where no preset has an example.
    pub line: &'static str,
    /// Commands, files and, as `import NAME`, Python modules without which it is not installed.
    pub needs: &'static [&'static str],
    /// Its folder in tests/servers, if it needs one. The server runs in a copy.
    pub files: &'static str,
    /// What is run there first.
    pub build: &'static str,
    /// What the test's line says instead of the example's words.
    pub instead: &'static [(&'static str, &'static str)],
    /// The server it is a proxy of, at @BACKEND@.
    pub backend: Option<&'static Case>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What its stop signal does.
    pub stop: Stop,
    /// The status it ends with when it is told to stop, 128+N for a signal.
    pub status: i32,
}

/// What most have in common.
pub const CASE: Case = Case {
    name: "",
    line: "",
    needs: &[],
    files: "",
    build: "",
    instead: &[],
    backend: None,
    protocol: Protocol::Http,
    stop: Stop::Drains,
    status: 0,
};

#[derive(Clone, Copy)]
pub enum Protocol {
    Http,
    FastCgi,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Stop {
    /// A request under way is answered first.
    Drains,
    /// It may be lost.
    Ends,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub enum Request {
    Plain,
    /// It takes the server two seconds.
    Slow,
}

/// A running server.
pub struct Server<'a> {
    case: &'a Case,
    pub port: u16,
    /// Keeps the port from all that ask for a free one; does not listen, so handoff-run may.
    _reserved: OwnedFd,
    stop: Signal,
    pub session: Session,
    pub running: Running,
    _backend: Option<Box<Server<'a>>>,
    pub folder: Folder,
}

/// Its first client, who comes before it runs, is answered, on the socket of handoff-run, which is all it listens on.
/// Told to stop, it ends as a whole, and if it drains not before it has answered whom it had begun to serve.
pub fn try_out(case: &Case) {
    if is_installed(case) {
        let server = Server::start(case);
        let inode = server.listener();
        let first = server.ask(Request::Plain);
        server.check_answer(first);
        assert_eq!(listening(server.session.sockets()), [inode], "{}", server.log());
        if case.stop == Stop::Drains {
            let slow = server.ask(Request::Slow);
            wait_for("the request to be under way", || is_under_way(&slow).then_some(()));
            server.running.signal(server.stop);
            server.check_answer(slow);
        } else {
            server.running.signal(server.stop);
        }
        server.check_end();
    }
}

/// Says so if not, for a test that is passed over should be seen.
pub fn is_installed(case: &Case) -> bool {
    let Some(missing) = case.needs.iter().find(|need| !exists(need)) else { return true };
    let message = format!("{} is not installed", missing.trim_start_matches("import "));
    assert!(env::var_os("HANDOFF_REQUIRE_SERVERS").is_none(), "{message}");
    // Not by a macro, whose words are shown only when the test fails.
    stderr().write_all(format!("skipped: {message}\n").as_bytes()).unwrap();
    false
}

fn exists(need: &str) -> bool {
    if need.starts_with("import ") {
        return Run::of("python3").args(&["-c", need]).output().status.success();
    }
    search_path().split(':').any(|folder| Path::new(folder).join(need).exists())
}

/// Many servers are where only root looks for them.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap())
}

impl Server<'_> {
    /// One that becomes the server.
    fn start(case: &Case) -> Server<'_> {
        // --lazy, so that there is time to look at the socket before the server has it.
        Server::start_with(case, &format!("{PROGRAM} --lazy --quiet"))
    }

    /// One in whose line these are the words for handoff-run.
    pub fn start_with<'a>(case: &'a Case, handoff_run: &str) -> Server<'a> {
        let folder = Folder::new();
        let (reserved, port) = reserve_port();
        let backend = case.backend.map(|backend| Box::new(Server::start(backend)));
        if !case.files.is_empty() {
            fill(&folder, case.files, port);
        }
        if !case.build.is_empty() {
            let output = shell(case.build, &folder).output();
            assert!(output.status.success(), "{}: {output:?}", case.build);
        }
        let (line, stop) = line(case, handoff_run);
        let mut line = fill_in(&line, &folder, port);
        if let Some(backend) = &backend {
            backend.listener();
            line = line.replace("@BACKEND@", &format!("127.0.0.1,{}", backend.port));
        }
        let running = shell(&format!("exec {line} >log 2>&1"), &folder).start();
        let session = Session(running.pid());
        Server { case, port, _reserved: reserved, stop, session, running, _backend: backend, folder }
    }

    /// The inode of the socket on its port.
    pub fn listener(&self) -> u64 {
        wait_for("handoff-run to listen", || listener_on(self.port))
    }

    /// Send a request and do not wait.
    pub fn ask(&self, request: Request) -> TcpStream {
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = match self.case.protocol {
            Protocol::Http => http(request),
            Protocol::FastCgi => fast_cgi(&self.folder.text("hello.php"), request),
        };
        client.write_all(&request).unwrap();
        client
    }

    /// The answer, which has to say hello.
    pub fn check_answer(&self, mut client: TcpStream) -> String {
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(end.is_ok() && answer.contains("hello"), "{end:?}, answered {answer:?}, said {}", self.log());
        answer.into_owned()
    }

    fn check_end(self) {
        let log = self.log();
        let status = self.running.status();
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        assert_eq!(code, Some(self.case.status), "{log}");
        wait_for("all its processes to end", || self.session.processes().is_empty().then_some(()));
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap_or_default()
    }
}

/// The line that `--help-servers` has for it and the signal that it says makes it drain.
fn line(case: &Case, handoff_run: &str) -> (String, Signal) {
    let row = match case.name {
        "" => format!("handoff-run --listen 127.0.0.1:8000 -- {}", case.line),
        name => rows().into_iter().find(|row| row.contains(&format!(" --as {name} -- "))).unwrap(),
    };
    let (line, remarks) = row.split_once("   # ").unwrap_or((&row, ""));
    let signal = remarks.split("; ").find_map(|remark| remark.strip_prefix("stop with ")).unwrap_or("TERM");
    let handoff_run = format!("{handoff_run} ");
    let changes = [("handoff-run ", handoff_run.as_str()), ("127.0.0.1:8000", "@ADDR@")];
    let line = changes.iter().chain(case.instead).fold(line.to_owned(), |line, (old, new)| {
        assert!(line.contains(old), "{line} has no {old}");
        line.replacen(old, new, 1)
    });
    (line, format!("SIG{signal}").parse().unwrap())
}

/// All that `--help-servers` shows.
pub fn rows() -> Vec<String> {
    let output = handoff_run_with(&["--help-servers"]).output();
    output.stdout.lines().map(str::to_owned).collect()
}

/// A shell command in `folder`, in a session of its own and with nothing of the user's.
fn shell(command: &str, folder: &Folder) -> Run {
    Run::of("sh")
        .args(&["-c", command])
        .current_dir(folder)
        .env("PATH", search_path())
        .env("HOME", folder.path(""))
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/gocache"))
        .before_exec(|| Ok(setsid().map(drop)?))
}

/// A port that is bound, but not listened on.
fn reserve_port() -> (OwnedFd, u16) {
    let reserved = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&reserved, ReuseAddr, &true).unwrap();
    bind(reserved.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(reserved.as_raw_fd()).unwrap().port();
    (reserved, port)
}

/// Copy the server's files into `folder`, filled in.
fn fill(folder: &Folder, files: &str, port: u16) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(files);
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        fs::write(folder.path(entry.file_name().to_str().unwrap()), fill_in(&text, folder, port)).unwrap();
    }
}

fn fill_in(text: &str, folder: &Folder, port: u16) -> String {
    let values: [(&str, &dyn Display); 3] =
        [("@ADDR@", &format_args!("127.0.0.1:{port}")), ("@PORT@", &port), ("@DIR@", &folder.as_ref().display())];
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, &value.to_string()))
}

fn http(request: Request) -> Vec<u8> {
    let path = match request {
        Request::Plain => "/",
        Request::Slow => "/slow",
    };
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
}

/// A request of the FastCGI protocol, without its empty body: PHP does not read that, and so it would seem to have
/// something unread all the time.
fn fast_cgi(script: &str, request: Request) -> Vec<u8> {
    let query = match request {
        Request::Plain => "",
        Request::Slow => "slow",
    };
    // php-cgi wants REDIRECT_STATUS, as proof that a server asks.
    let parameters =
        [("REQUEST_METHOD", "GET"), ("SCRIPT_FILENAME", script), ("QUERY_STRING", query), ("REDIRECT_STATUS", "200")];
    let pair = |(key, value): &(&str, &str)| {
        let lengths = [key.len(), value.len()].map(|length| u8::try_from(length).unwrap());
        [&lengths, key.as_bytes(), value.as_bytes()].concat()
    };
    let parameters: Vec<u8> = parameters.iter().flat_map(pair).collect();
    // 1 begins a request (as a responder, whose connection is then closed), 4 is parameters, an empty one their end.
    [record(1, &[0, 1, 0, 0, 0, 0, 0, 0]), record(4, &parameters), record(4, &[])].concat()
}

/// Version 1, type, request 1, length, no padding.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
}
