//! A supervisor with a control socket in a folder of its own, those who talk to it, and clients of what it serves.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::harness::{DEADLINE, Folder, Output, Run, Running, handoff_run_with, wait_for};

/// What a client asks.
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// Python's part of a test: `serve(socket)` answers each client with the pid, and ends by SIGTERM between two clients.
const PYTHON: &str = r#"
import os, select, signal, socket, sys, threading, time

def serve(s, stop=signal.SIGTERM):
    s.setblocking(False)
    signal.signal(stop, lambda *_: os._exit(0))
    while True:
        select.select([s], [], [])
        signal.pthread_sigmask(signal.SIG_BLOCK, {stop})
        try:
            client, _ = s.accept()
            client.setblocking(True)
            client.recv(1000)
            client.sendall(b"pid %d\n" % os.getpid())
            client.close()
        except OSError:
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {stop})

def ours():
    return socket.socket(fileno=3)

def write(name, text):
    with open(name + ".new", "w") as file:
        file.write(text)
    os.rename(name + ".new", name)

"#;

/// A server without anything special: examples/hello.rs, which cargo builds with the tests.
pub fn hello() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().and_then(Path::parent).unwrap().join("examples/hello")
}

/// Python itself, not what chooses one of many and takes its time.
pub fn python() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("python3")).collect();
    let usable = |python: &&PathBuf| python.is_file() && !python.parent().unwrap().ends_with("shims");
    found.iter().find(usable).cloned()
}

/// A supervisor being put together.
pub struct Setup {
    folder: Folder,
    run: Run,
    target: Vec<OsString>,
}

/// The next generation is whatever `server` in the folder leads to.
pub fn supervise(options: &[&str]) -> Setup {
    let folder = Folder::new();
    symlink(hello(), folder.path("server")).unwrap();
    let target = vec![folder.path("server").into()];
    let log = File::create(folder.path("log")).unwrap();
    let run = handoff_run_with(&["--supervise", "--control", &folder.text("control")]).args(options);
    Setup { run: run.current_dir(&folder).stderr(log), folder, target }
}

/// The next generation is whatever the shell makes of the script, at this moment `script`.
pub fn supervise_script(options: &[&str], script: &str) -> Setup {
    let setup = supervise(options);
    write_whole(&setup.folder.path("script"), script);
    let target = vec!["sh".into(), setup.folder.path("script").into()];
    Setup { target, ..setup }
}

/// Python runs `code`, which can use what `PYTHON` has.
pub fn supervise_python(python: &Path, options: &[&str], code: &str) -> Setup {
    let setup = supervise(options);
    write_whole(&setup.folder.path("code.py"), &format!("{PYTHON}{code}"));
    let mut target: Vec<OsString> = vec![python.into()];
    target.extend(["-S", "-E", "code.py"].map(OsString::from));
    Setup { target, ..setup }
}

impl Setup {
    /// Change the run of the supervisor itself.
    pub fn run(self, change: impl FnOnce(Run) -> Run) -> Setup {
        Setup { run: change(self.run), ..self }
    }

    pub fn target(self, target: &[&str]) -> Setup {
        Setup { target: target.iter().map(OsString::from).collect(), ..self }
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Listen on a free port, and start.
    pub fn start(self) -> Supervisor {
        self.run(|run| run.args(&["-l", "127.0.0.1:0"])).start_with_sockets()
    }

    /// Start with the sockets that the options told.
    pub fn start_with_sockets(self) -> Supervisor {
        let running = self.run.args(&["--"]).args(&self.target).start();
        Supervisor { pid: running.pid(), running: Some(running), folder: self.folder }
    }

    /// Start, and wait until the first generation serves.
    pub fn serving(self) -> Supervisor {
        let mut supervisor = self.start();
        supervisor.wait_log("generation 1: ready after ");
        supervisor
    }
}

/// A running supervisor; with the value, everything it started ends.
pub struct Supervisor {
    pid: Pid,
    running: Option<Running>,
    folder: Folder,
}

impl Supervisor {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Everything on stderr so far, the generations' own words included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap()
    }

    #[track_caller]
    pub fn wait_log(&mut self, text: &str) {
        let log = self.folder.path("log");
        let running = &mut self.running;
        wait_for(&format!("{text:?} in the log"), || {
            let ended = running.as_mut().is_none_or(Running::has_ended);
            let said = fs::read_to_string(&log).unwrap();
            assert!(said.contains(text) || !ended, "the supervisor ended and did not say {text:?}:\n{said}");
            said.contains(text).then_some(())
        });
    }

    /// Where the first socket is bound.
    pub fn address(&self) -> SocketAddr {
        let address = wait_for("an address", || {
            let log = self.log();
            let (_, rest) = log.split_once(" listens on ")?;
            Some(rest.split_once('\n')?.0.to_owned())
        });
        address.parse().unwrap()
    }

    /// The main process of a generation.
    #[track_caller]
    pub fn generation(&mut self, id: u64) -> Pid {
        let started = format!("generation {id}: started (pid ");
        self.wait_log(&started);
        let log = self.log();
        let (_, rest) = log.split_once(&started).unwrap();
        Pid::from_raw(rest.split_once(')').unwrap().0.parse().unwrap())
    }

    fn ask(&self, request: &[&str]) -> Output {
        handoff_run_with(request).args(&[self.folder.path("control")]).output()
    }

    pub fn reload(&self) -> Output {
        self.ask(&["--reload"])
    }

    pub fn reload_and_wait(&self) -> Output {
        self.ask(&["--wait", "--reload"])
    }

    pub fn status(&self) -> String {
        self.ask(&["--status"]).stdout
    }

    pub fn stop(&self) -> Output {
        self.ask(&["--stop"])
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).unwrap();
    }

    /// The next generations are started from this file.
    pub fn replace(&self, target: impl AsRef<Path>) {
        symlink(target, self.folder.path("server.new")).unwrap();
        fs::rename(self.folder.path("server.new"), self.folder.path("server")).unwrap();
    }

    /// The next generations of `supervise_script` do this.
    pub fn rewrite(&self, script: &str) {
        write_whole(&self.folder.path("script"), script);
    }

    /// The next generations of `supervise_python` do this.
    pub fn rewrite_python(&self, code: &str) {
        write_whole(&self.folder.path("code.py"), &format!("{PYTHON}{code}"));
    }

    /// What a generation wrote into a file of the folder.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        wait_for(name, || fs::read_to_string(self.folder.path(name)).ok())
    }

    /// One client's answer: who gave it.
    pub fn served_by(&self) -> Pid {
        ask(self.address()).unwrap()
    }

    /// Wait for the end; the status and the whole log.
    pub fn end(&mut self) -> (i32, String) {
        let status = self.running.take().unwrap().status();
        let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap();
        (code, self.log())
    }

    /// Stop it, which has to succeed, and give the log.
    pub fn stopped(mut self) -> String {
        let output = self.stop();
        assert_eq!(output.failure(), (0, ""), "{}", self.log());
        let (code, log) = self.end();
        assert_eq!(code, 0, "{log}");
        log
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        if thread::panicking() {
            // After a failure nothing more is waited for.
            let generations = started(&fs::read_to_string(self.folder.path("log")).unwrap_or_default());
            drop(running);
            for generation in generations.into_iter().filter(|pid| exists(*pid)) {
                let _ = killpg(generation, Signal::SIGKILL);
            }
        } else if !running.has_ended() {
            self.signal(Signal::SIGCONT);
            self.signal(Signal::SIGQUIT);
            running.status();
        }
    }
}

/// The pids of all generations that a log names.
fn started(log: &str) -> Vec<Pid> {
    let pid = |line: &str| line.split_once(": started (pid ")?.1.strip_suffix(')')?.parse().ok().map(Pid::from_raw);
    log.lines().filter_map(pid).collect()
}

/// Text with what differs from run to run replaced: pids, times, and the address.
pub fn plain(text: &str, address: SocketAddr) -> String {
    let text = text.replace(&address.to_string(), "ADDRESS");
    let text = replaced(&text, "(pid ", ")", "PID");
    replaced(&text, ": ready after ", " s", "TIME")
}

/// What stands between each `before` and `after`, replaced.
fn replaced(text: &str, before: &str, after: &str, with: &str) -> String {
    let mut parts = text.split(before);
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.find(after).map_or("", |at| &part[at..]);
        result.extend([before, with, rest]);
    }
    result
}

/// Be one client: connect, ask, and give the pid at the end of the answer.
pub fn ask(address: SocketAddr) -> io::Result<Pid> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let pid = answer.rsplit(' ').next().and_then(|pid| pid.trim().parse().ok());
    pid.map(Pid::from_raw).ok_or_else(|| io::Error::other(format!("the answer was {answer:?}")))
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
            let mut seen = BTreeSet::from([ask(address)?]);
            while ending.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                seen.insert(ask(address)?);
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

/// Is there such a process, ended or not?
pub fn exists(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

/// All processes whose environment says `KEY=VALUE`: every descendant of what was started with it, wherever it went.
pub fn marked(variable: &str) -> Vec<Pid> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    pids.filter(is_marked).map(Pid::from_raw).collect()
}

/// A field of `/proc/PID/status`.
pub fn status_field(pid: Pid, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn write_whole(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
