//! Running handoff-run and looking at what it did. Every wait is for a fact and under one deadline.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use nix::cmsg_space;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

/// How long any fact may take to come true, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_handoff-run");

/// Wait until `fact` gives a value.
#[track_caller]
pub fn wait_for<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Say on the real stderr, which the test runner shows, that something cannot be tested here.
pub fn skip(reason: &str) {
    io::stderr().write_all(format!("skipped: {reason}\n").as_bytes()).unwrap();
}

/// A fresh empty folder of this test's, removed at the end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Short, for the path of a Unix socket has to fit into 107 bytes.
        let name = format!("ho{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What is in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A run of handoff-run, or of something else, being put together.
pub struct Run {
    command: Command,
    /// What is to be inherited, and at which number.
    inherit: Vec<(RawFd, RawFd)>,
}

/// handoff-run without arguments, without any LISTEN_ variable and without a log setting.
pub fn handoff_run() -> Run {
    Run::of(PROGRAM)
}

/// handoff-run with these arguments.
pub fn handoff_run_with(arguments: &[&str]) -> Run {
    handoff_run().args(arguments)
}

impl Run {
    /// Any program.
    pub fn of(program: impl AsRef<OsStr>) -> Run {
        let mut command = Command::new(program);
        for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "HANDOFF_LOG"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Run { command, inherit: Vec::new() }
    }

    pub fn args(mut self, arguments: &[impl AsRef<OsStr>]) -> Run {
        self.command.args(arguments);
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Run {
        self.command.env(key, value);
        self
    }

    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Run {
        self.command.current_dir(folder);
        self
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Run {
        self.command.stdin(stdin);
        self
    }

    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Run {
        self.command.stdout(stdout);
        self
    }

    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Run {
        self.command.stderr(stderr);
        self
    }

    /// Leave `fd` open at `number`. Not at a number that the test program itself may have in use as a source.
    pub fn inherit(mut self, fd: &impl AsRawFd, number: RawFd) -> Run {
        self.inherit.push((fd.as_raw_fd(), number));
        self
    }

    /// Do this in the child just before exec, after what Rust's own `Command` resets there.
    pub fn before_exec(mut self, act: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Run {
        // SAFETY: the tests' closures make only async-signal-safe calls.
        unsafe { self.command.pre_exec(act) };
        self
    }

    /// The command with the descriptors in their places.
    fn into_command(mut self) -> Command {
        let inherit = self.inherit;
        // SAFETY: fcntl, dup2 and close are async-signal-safe, and the vector is made before the fork.
        unsafe {
            self.command.pre_exec(move || place(&inherit));
        }
        self.command
    }

    /// Start it, to be ended with the value.
    pub fn start(self) -> Running {
        let child = self.into_command().spawn().unwrap();
        Running { child: Some(child) }
    }

    /// Run to the end.
    pub fn output(self) -> Output {
        self.start().output()
    }

    /// Run with the probe behind the arguments so far, and give what it reports.
    pub fn report(self) -> Report {
        let folder = Folder::new();
        let socket = folder.path("probe");
        let listener = UnixListener::bind(&socket).unwrap();
        let running = self.env("PROBE", &socket).args(&probe_line()).start();
        Report::receive(&listener, running)
    }
}

/// The words that make this test program the probe.
pub fn probe_line() -> Vec<OsString> {
    let mut line = vec![env::current_exe().unwrap().into_os_string()];
    line.extend(["probe::probe", "--exact", "--nocapture", "--test-threads=1"].map(OsString::from));
    line
}

/// Give each descriptor its number, inheritable, and nothing else from 3 on, whatever the tests were started with.
fn place(inherit: &[(RawFd, RawFd)]) -> io::Result<()> {
    // SAFETY: close_range takes integers, and CLOSE_RANGE_CLOEXEC closes nothing before exec.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    nix::errno::Errno::result(done)?;
    // First out of each other's way, close-on-exec.
    let mut parked = [0; 64];
    for (at, (fd, _)) in inherit.iter().enumerate() {
        // SAFETY: fcntl takes integers.
        parked[at] = nix::errno::Errno::result(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 600) })?;
    }
    for (at, (_, number)) in inherit.iter().enumerate() {
        // SAFETY: dup2 takes integers.
        nix::errno::Errno::result(unsafe { libc::dup2(parked[at], *number) })?;
    }
    Ok(())
}

/// A started process, killed and reaped when dropped.
pub struct Running {
    child: Option<Child>,
}

/// How it ended and what it said.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The exit status, or 128 and the signal.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().or(self.status.signal().map(|signal| 128 + signal)).unwrap()
    }

    /// Whole stderr and status, to be compared in one go.
    pub fn failure(&self) -> (i32, &str) {
        (self.code(), &self.stderr)
    }
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The next line of stdout.
    pub fn line(&mut self) -> String {
        let stdout = self.child.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// Wait for its end, within the deadline.
    pub fn output(mut self) -> Output {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        // The one who kills what does not end by itself.
        let guard = thread::spawn(move || {
            if waiting.recv_timeout(DEADLINE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let reader = thread::spawn(move || read_all(stdout));
        let stderr = read_all(stderr);
        let stdout = reader.join().unwrap();
        let status = child.wait().unwrap();
        drop(done);
        guard.join().unwrap();
        Output { status, stdout, stderr }
    }

    /// Wait for the end of a process whose output is nobody's business, or is held open by others.
    pub fn status(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        wait_for("the process to end", || child.try_wait().unwrap())
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }
}

fn read_all(stream: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut text).unwrap();
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the probe found, and its listening sockets themselves.
pub struct Report {
    facts: BTreeMap<String, String>,
    /// Copies of the target's sockets from 3 on, in order, to be asked whatever a test wants to know.
    pub sockets: Vec<OwnedFd>,
    /// The probe ends when this is closed.
    connection: UnixStream,
    pub running: Running,
}

impl Report {
    fn receive(listener: &UnixListener, mut running: Running) -> Report {
        listener.set_nonblocking(true).unwrap();
        let (connection, _) = wait_for("the probe", || match listener.accept() {
            Ok(accepted) => Some(accepted),
            Err(_) if running.has_ended() => {
                let child = running.child.as_mut().unwrap();
                panic!("no probe came: {}", read_all(child.stderr.take()));
            }
            Err(_) => None,
        });
        connection.set_nonblocking(false).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        let (text, sockets) = receive(&connection);
        let facts = text.lines().map(|line| line.split_once('=').unwrap());
        let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Report { facts, sockets, connection, running }
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.facts.get(key).map(String::as_str)
    }

    /// The numbers and links of the open descriptors from 3 on.
    pub fn descriptors(&self) -> Vec<(RawFd, &str)> {
        let number = |key: &str| key.strip_prefix("fd")?.parse().ok();
        let mut open: Vec<(RawFd, &str)> =
            self.facts.iter().filter_map(|(key, link)| Some((number(key)?, link.as_str()))).collect();
        open.sort_unstable();
        open
    }

    /// Let the probe go and see how all ended.
    pub fn finish(self) -> Output {
        drop(self.connection);
        self.running.output()
    }
}

impl std::ops::Index<&str> for Report {
    type Output = str;

    #[track_caller]
    fn index(&self, key: &str) -> &str {
        self.get(key).unwrap_or_else(|| panic!("the target has no {key}: {:?}", self.facts))
    }
}

/// One message and the descriptors that came with it.
fn receive(connection: &UnixStream) -> (String, Vec<OwnedFd>) {
    let mut buffer = vec![0; 1 << 20];
    let mut space = cmsg_space!([RawFd; 200]);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let mut sockets = Vec::new();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel just made them for us alone.
            sockets.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), sockets)
}

/// What /proc calls an open descriptor of the test's, as in `socket:[4711]`: two of one socket have the same.
pub fn link(fd: &impl AsRawFd) -> String {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().into_os_string().into_string().unwrap()
}

/// A TCP socket that listens on a port of its own, and its address.
pub fn tcp() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}
