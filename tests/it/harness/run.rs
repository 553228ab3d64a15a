//! Running handoff-run, or anything else, to its end or until the test has seen enough.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::{DEADLINE, Folder, PROGRAM, wait_for};

/// Copy a program that is to be run. Not in this process, where another test may fork while it is open for writing, and what
/// that starts keeps it so: it could not be run then (ETXTBSY).
pub fn copy_program(program: impl AsRef<Path>, copy: impl AsRef<Path>) {
    assert!(Command::new("cp").args([program.as_ref(), copy.as_ref()]).status().unwrap().success());
}

/// A copy of handoff-run in a folder, which everybody may go to. Made by another process: a fork of this one could have it
/// open for writing when it is to be executed.
pub fn copy_for_everybody(folder: &Folder) -> PathBuf {
    let copy = folder.path("program");
    copy_program(PROGRAM, &copy);
    fs::set_permissions(folder.path(""), Permissions::from_mode(0o755)).unwrap();
    copy
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
        // Under nohup(1) the tests themselves ignore the first, and as a background job of sh the others.
        for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: signal is async-signal-safe, and no handler is installed.
            unsafe { command.pre_exec(move || Ok(signal(ignored, SigHandler::SigDfl).map(|_| ())?)) };
        }
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
}

/// Give each descriptor its number, inheritable, and nothing else from 3 on, whatever the tests were started with.
fn place(inherit: &[(RawFd, RawFd)]) -> io::Result<()> {
    // SAFETY: close_range takes integers, and CLOSE_RANGE_CLOEXEC closes nothing before exec.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done)?;
    // First out of each other's way, close-on-exec.
    let mut parked = [0; 64];
    for (at, (fd, _)) in inherit.iter().enumerate() {
        // SAFETY: fcntl takes integers.
        parked[at] = Errno::result(unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, 600) })?;
    }
    for (at, (_, number)) in inherit.iter().enumerate() {
        // SAFETY: dup2 takes integers.
        Errno::result(unsafe { libc::dup2(parked[at], *number) })?;
    }
    Ok(())
}

/// A started process, killed and reaped when dropped.
pub struct Running {
    child: Option<Child>,
}

/// How it ended and what it wrote.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// The exit status, or 128 and the signal.
pub fn code(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
}

impl Output {
    /// The exit status, or 128 and the signal.
    pub fn code(&self) -> i32 {
        code(self.status)
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
    pub fn output(self) -> Output {
        self.output_within(DEADLINE)
    }

    /// The same for what takes its time on a busy machine.
    pub fn output_within(mut self, deadline: Duration) -> Output {
        let mut child = self.child.take().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (done, waiting) = mpsc::channel::<()>();
        // The one who kills what does not end by itself.
        let guard = thread::spawn(move || {
            if waiting.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
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

    pub fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.pid()), flags).unwrap() != WaitStatus::StillAlive
    }

    /// What it has written to stderr, when it has ended.
    pub fn error_output(&mut self) -> String {
        read_all(self.child.as_mut().unwrap().stderr.take())
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
