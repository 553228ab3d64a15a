//! A supervisor on a stage: its folder, its log, its control socket, and a server that does what the test tells it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{PipeReader, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Folder, Output, Run, Running, handoff_run, handoff_run_with, wait_for};

/// A supervisor and what belongs to it. With it go its generations, however the test ends.
pub struct Stage {
    pub folder: Folder,
    supervisor: Option<Running>,
    pub pid: Pid,
}

/// What a file in the folder is called while it holds every new generation back before it accepts.
const GATE: &str = "gate";

impl Stage {
    /// A supervisor of the server below on a free port, with these options, once it serves.
    pub fn new(options: &[&str]) -> Stage {
        let stage = Stage::on(Folder::new(), handoff_run(), options, &server());
        stage.await_log("generation 1: ready");
        stage
    }

    /// The same by any `run` of the program, of any server, not waited for.
    pub fn on(folder: Folder, run: Run, options: &[&str], server: &[OsString]) -> Stage {
        let log = File::create(folder.path("log")).unwrap();
        let control = folder.text("control");
        let run = run.args(&["--supervise", "--control", &control, "-l", "tcp=127.0.0.1:0,nonblock"]);
        let run = run.args(&["--env", "GENERATION={gen}"]).args(options).args(&["--"]).args(server);
        let supervisor = run.env("STAGE", folder.path("")).stderr(log).start();
        Stage { pid: supervisor.pid(), folder, supervisor: Some(supervisor) }
    }

    /// What the supervisor said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.path("log")).unwrap()).into_owned()
    }

    #[track_caller]
    pub fn await_log(&self, text: &str) {
        self.await_log_times(1, text);
    }

    /// Wait until the supervisor has said something so many times.
    #[track_caller]
    pub fn await_log_times(&self, times: usize, text: &str) {
        let mut log = String::new();
        let said = || {
            log = self.log();
            (log.matches(text).count() >= times).then_some(())
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait_for(text, said)));
        assert!(result.is_ok(), "{text:?} is not {times} times in the log:\n{log}");
    }

    /// The address of the first listener.
    pub fn address(&self) -> SocketAddr {
        let found = || Some(self.log().split_once("listens on ")?.1.lines().next()?.parse().unwrap());
        wait_for("the address", found)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// `handoff-run --reload`, `--status` or `--stop` of this supervisor, and further options.
    pub fn ask(&self, request: &str, options: &[&str]) -> Run {
        handoff_run_with(&[request, &self.folder.text("control")]).args(options)
    }

    /// A connection to the control socket.
    pub fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path("control")).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// The same with a request on its way.
    pub fn request(&self, line: &str) -> UnixStream {
        let mut client = self.connect();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    /// The table of `--status`, a line of words each.
    pub fn table(&self) -> Vec<Vec<String>> {
        let output = self.ask("--status", &[]).output();
        assert_eq!(output.failure(), (0, ""));
        output.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    /// Generations with their states, in their order.
    pub fn states(&self) -> Vec<(u64, String)> {
        let number = |line: &Vec<String>| Some((line.first()?.parse().ok()?, line.get(2)?.clone()));
        self.table().iter().filter_map(number).collect()
    }

    /// The pid of a generation, by the log.
    pub fn pid_of(&self, generation: u64) -> Pid {
        let text = format!("generation {generation}: started (pid ");
        let log = self.log();
        let (_, rest) = log.split_once(&text).unwrap_or_else(|| panic!("{log}"));
        Pid::from_raw(rest.split_once(')').unwrap().0.parse().unwrap())
    }

    /// Every pid that a generation began with.
    fn started(&self) -> Vec<i32> {
        let log = self.log();
        log.split("started (pid ").skip(1).filter_map(|rest| rest.split_once(')')?.0.parse().ok()).collect()
    }

    /// Hold back every generation that starts from now on.
    pub fn close_gate(&self) {
        self.put(GATE);
    }

    pub fn open_gate(&self) {
        fs::remove_file(self.folder.path(GATE)).unwrap();
    }

    /// Tell the server: `fail-N`, and generation N ends with status 3 instead of accepting; `stubborn-N`, and it does
    /// not end when it is told to.
    pub fn put(&self, name: &str) {
        File::create(self.folder.path(name)).unwrap();
    }

    /// A connection that some generation has accepted and holds until it is dropped, and which one.
    pub fn hold(&self) -> (TcpStream, u64) {
        let client = TcpStream::connect(self.address()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        greet(client)
    }

    /// The supervisor's descriptors, when so many clients are connected to the control socket.
    pub fn descriptors(&self, clients: usize) -> Vec<String> {
        let control = self.folder.text("control");
        wait_for("the other clients to be gone", || {
            // The listening socket and the connections to it have its path.
            let sockets = fs::read_to_string("/proc/net/unix").unwrap();
            (sockets.lines().filter(|line| line.ends_with(&control)).count() == 1 + clients).then_some(())
        });
        descriptors(self.pid)
    }

    /// Wait until a generation that drains accepts no more: it shares no socket with the one that serves.
    pub fn await_no_accept(&self, draining: u64, serving: u64) {
        let of = |generation| descriptors(self.pid_of(generation));
        wait_for("the old generation to accept no more", || {
            let ours: Vec<String> = of(serving).into_iter().filter(|link| link.starts_with("socket:")).collect();
            (!ours.is_empty() && !of(draining).iter().any(|link| ours.contains(link))).then_some(())
        });
    }

    /// Wait for the supervisor's end; its exit status.
    pub fn end(&mut self) -> i32 {
        let status = self.supervisor.take().unwrap().status();
        Output { status, stdout: String::new(), stderr: String::new() }.code()
    }
}

/// Make sure that a connection was accepted: the server answers with its generation.
pub fn greet<S: Read + Write>(mut client: S) -> (S, u64) {
    client.write_all(b"?").unwrap();
    let mut answer = [0; 8];
    client.read_exact(&mut answer).unwrap();
    (client, u64::from_le_bytes(answer))
}

impl Drop for Stage {
    fn drop(&mut self) {
        // First who would start them again.
        self.supervisor = None;
        let stage = format!("STAGE={}", self.folder.text(""));
        for pid in self.started() {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            // The number may be another's by now.
            if String::from_utf8_lossy(&environment).contains(&stage) {
                let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
            }
        }
    }
}

/// A process' descriptors by what they lead to, sorted.
pub fn descriptors(pid: Pid) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let link = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    let mut links: Vec<String> = entries.filter_map(link).map(|link| link.display().to_string()).collect();
    links.sort();
    links
}

/// JSON as a strict parser reads it: `generations.0.state` and the like, and what they are in Python's words.
pub fn flat_json(text: &str) -> BTreeMap<String, String> {
    const FLATTEN: &str = "
import json, sys
def walk(path, value):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items: walk(f'{path}.{key}', inner)
    else:
        print(f'{path[1:]}={value!r}')
walk('', json.loads(sys.argv[1]))";
    let output = Run::of("python3").args(&["-c", FLATTEN, text]).output();
    assert_eq!(output.failure(), (0, ""));
    output.stdout.lines().map(|line| line.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The words that make this test program the server.
pub fn server() -> Vec<OsString> {
    let mut line = vec![env::current_exe().unwrap().into_os_string()];
    line.extend(["stage::serve", "--exact", "--nocapture", "--test-threads=1"].map(OsString::from));
    line
}

/// The example server, which `cargo test` builds beside this program.
pub fn hello() -> Vec<OsString> {
    let program = env::current_exe().unwrap();
    let folder = program.parent().and_then(Path::parent).unwrap();
    vec![folder.join("examples/hello").into_os_string()]
}

/// Not a test unless it is run as a server: `STAGE` names the folder of the test that directs it.
///
/// It answers each byte with its generation, holds every connection until the client closes it, and when told to stop,
/// accepts no more and ends with the last one. `TELLS` names a descriptor to write to when it accepts.
#[test]
fn serve() {
    let Some(folder) = env::var_os("STAGE").map(PathBuf::from) else { return };
    let generation: u64 = env::var("GENERATION").unwrap().parse().unwrap();
    wait_for("the gate", || (!folder.join(GATE).exists()).then_some(()));
    if folder.join(format!("fail-{generation}")).exists() {
        // SAFETY: _exit takes an integer and does not return; libtest would make its own status of any other end.
        unsafe { libc::_exit(3) };
    }
    let mut stop = stop_pipe();
    let count: RawFd = env::var("LISTEN_FDS").unwrap().parse().unwrap();
    // SAFETY: LISTEN_FDS gives these numbers to us alone.
    let mut listeners: Vec<OwnedFd> = (3..3 + count).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    if let Ok(number) = env::var("TELLS") {
        // SAFETY: --ready gave this number to us alone.
        let tells = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
        File::from(tells).write_all(b"\n").unwrap();
    }
    let mut clients: Vec<File> = Vec::new();
    while !(listeners.is_empty() && clients.is_empty()) {
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![input(stop.as_fd())];
        fds.extend(listeners.iter().map(|fd| input(fd.as_fd())));
        fds.extend(clients.iter().map(|fd| input(fd.as_fd())));
        // Poll is not restarted after a signal.
        if poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {
            continue;
        }
        let mut stirred = fds.iter().map(|fd| fd.any() != Some(false)).collect::<Vec<_>>().into_iter();
        let told_to_stop = stirred.next() == Some(true);
        let waiting: Vec<&OwnedFd> = listeners.iter().filter(|_| stirred.next() == Some(true)).collect();
        clients.retain_mut(|client| stirred.next() != Some(true) || answer(client, generation));
        for listener in waiting {
            if let Ok(fd) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                // SAFETY: the kernel just made it for us alone.
                clients.push(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if told_to_stop && stop.read(&mut [0]).is_ok() && !folder.join(format!("stubborn-{generation}")).exists() {
            listeners.clear();
        }
    }
}

/// What can be read once for each SIGTERM: to block it would take being the only thread, which a test is not.
fn stop_pipe() -> PipeReader {
    static WRITER: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn tell(_: libc::c_int) {
        // SAFETY: write is async-signal-safe, and the byte lives as long as the program.
        unsafe { libc::write(WRITER.load(Ordering::Relaxed), b"!".as_ptr().cast(), 1) };
    }
    let (reader, writer) = pipe().unwrap();
    WRITER.store(writer.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler makes one async-signal-safe call.
    unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
    reader
}

/// Answer a client; false if it has gone.
fn answer(client: &mut File, generation: u64) -> bool {
    let mut question = [0];
    matches!(client.read(&mut question), Ok(1)) && client.write_all(&generation.to_le_bytes()).is_ok()
}
