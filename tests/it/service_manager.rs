//! What a supervisor and a service manager say to each other, and what of a generation's words goes further up. The
//! manager is a socket of the test's.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::{DEADLINE, Folder, Output, Run, Running, handoff_run, wait_for};
use crate::python::{allow, ask, marked, server};

/// A manager: where it is told, and what it was told.
pub struct Manager {
    socket: UnixDatagram,
    pub address: String,
}

impl Manager {
    pub fn at_path(folder: &Folder) -> Manager {
        let address = folder.text("manager");
        Manager::new(UnixDatagram::bind(&address).unwrap(), address)
    }

    fn abstractly(folder: &Folder) -> Manager {
        let name = folder.text("manager");
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        Manager::new(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
    }

    fn new(socket: UnixDatagram, address: String) -> Manager {
        Manager { socket, address }
    }

    /// The next message within this time.
    pub fn within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[track_caller]
    pub fn next(&self) -> String {
        self.within(DEADLINE).expect("the manager is told nothing")
    }

    /// What is there already.
    pub fn heard(&self) -> Vec<String> {
        std::iter::from_fn(|| self.within(Duration::from_millis(1))).collect()
    }
}

/// A supervised server on the socket `s` in the folder, which logs to `log`.
pub struct Service {
    pub folder: Folder,
    pub running: Running,
}

impl Service {
    pub fn start(folder: Folder, script: &str, options: &[&str], with: impl FnOnce(Run) -> Run) -> Service {
        let words = server(&folder, script);
        let socket = format!("unix:{}", folder.text("s"));
        let log = File::create(folder.path("log")).unwrap();
        let run = handoff_run().args(&["-v", "-l", &socket, "--supervise"]).args(options).args(&["--"]).args(&words);
        let running = with(run.stderr(log)).start();
        Service { folder, running }
    }

    /// One that reports to `manager`.
    pub fn managed(folder: Folder, manager: &Manager, script: &str, options: &[&str]) -> Service {
        Service::start(folder, script, options, |run| run.env("NOTIFY_SOCKET", &manager.address))
    }

    pub fn ask(&self) -> (u64, i32) {
        ask(&self.folder.path("s"))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap()
    }

    pub fn wait_for_log(&self, text: &str) {
        wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// How many descriptors the supervisor has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.running.pid())).unwrap().count()
    }

    pub fn stop(self) -> Output {
        self.running.signal(Signal::SIGTERM);
        self.running.output()
    }
}

/// The number behind `key`.
fn number(message: &str, key: &str) -> u64 {
    let line = message.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {key} in {message:?}")).parse().unwrap()
}

/// CLOCK_MONOTONIC in microseconds.
fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec, which lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// It serves, and the manager has heard so.
fn serving(manager: &Manager) {
    assert_eq!(manager.next(), "STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=65000000");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 1 serves");
}

// handoff-run(1): "READY=1 when the first generation serves".
#[test]
fn the_manager_hears_ready_when_the_first_generation_serves_and_not_before() {
    for of in [Manager::at_path, Manager::abstractly] {
        let folder = Folder::new();
        let manager = of(&folder);
        let script = "say('READY=1'); barrier(); mark('early'); wait_for('go'); serve()";
        let service = Service::managed(folder, &manager, script, &["--ready-timeout", "40s"]);
        marked(&service.folder, "early");
        assert_eq!(manager.heard(), ["STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=45000000"]);
        allow(&service.folder, "go");
        assert_eq!(manager.next(), "READY=1\nSTATUS=generation 1 serves");
        assert_eq!(service.ask().0, 1);
        assert_eq!(service.stop().code(), 0);
    }
}

// handoff-run(1): "RELOADING=1 with MONOTONIC_USEC, and READY=1 when it is over".
#[test]
fn a_reload_is_told_with_its_time_and_ready_follows_when_the_new_generation_serves() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let service = Service::managed(folder, &manager, "if gen == '2': wait_for('go')\nserve()", &[]);
    serving(&manager);
    let before = monotonic();
    service.running.signal(Signal::SIGHUP);
    let message = manager.next();
    let told = number(&message, "MONOTONIC_USEC");
    assert_eq!(message, format!("RELOADING=1\nMONOTONIC_USEC={told}\nSTATUS=starting generation 2"));
    assert!((before..=monotonic()).contains(&told), "{before} {told}");
    assert_eq!(manager.heard(), [""; 0]);
    allow(&service.folder, "go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    service.stop();
}

// handoff-run(1): "also when it failed".
#[test]
fn a_reload_that_fails_or_takes_too_long_ends_for_the_manager_too() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let script = "if gen == '2': sys.exit(3)\nif gen == '3': time.sleep(100)\nserve()";
    let service = Service::managed(folder, &manager, script, &["--ready-timeout", "3s"]);
    manager.next();
    manager.next();
    for generation in ["2", "3"] {
        service.running.signal(Signal::SIGHUP);
        let reloading = manager.next();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert!(reloading.ends_with(&format!("\nSTATUS=starting generation {generation}")), "{reloading}");
        assert_eq!(manager.next(), format!("READY=1\nSTATUS=generation 1 serves, generation {generation} failed"));
        assert_eq!(service.ask().0, 1);
    }
    service.stop();
}

// What was announced as a reload once had no end when the old generation ended in the middle of it.
#[test]
fn a_reload_ends_for_the_manager_although_the_old_generation_ended_meanwhile() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let script = "if gen == '2': mark('second'); wait_for('go'); sys.exit(3)\nserve()";
    let service = Service::managed(folder, &manager, script, &[]);
    serving(&manager);
    let (_, old) = service.ask();
    service.running.signal(Signal::SIGHUP);
    marked(&service.folder, "second");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), Signal::SIGKILL).unwrap();
    assert!(manager.next().starts_with("RELOADING=1\n"));
    service.wait_for_log("generation 1: gone");
    allow(&service.folder, "go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=none serves, generation 2 failed");
    assert_eq!(manager.next(), "STATUS=starting generation 3");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 3 serves");
    service.stop();
}

// A manager that asked for a reload in the pause after a crash once waited for its beginning in vain.
#[test]
fn a_reload_that_is_asked_for_while_nothing_serves_has_a_beginning_and_an_end() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let script = "if gen == '1': s.accept(); sys.exit(4)\nif gen == '2': mark('second'); wait_for('go')\nserve()";
    let service = Service::managed(folder, &manager, script, &[]);
    serving(&manager);
    let _client = std::os::unix::net::UnixStream::connect(service.folder.path("s")).unwrap();
    assert_eq!(manager.next(), "STATUS=generation 1 has ended and is started again in 0.10 s");
    assert_eq!(manager.next(), "STATUS=starting generation 2");
    marked(&service.folder, "second");
    service.running.signal(Signal::SIGHUP);
    let message = manager.next();
    let told = number(&message, "MONOTONIC_USEC");
    assert_eq!(message, format!("RELOADING=1\nMONOTONIC_USEC={told}\nSTATUS=starting what has ended"));
    allow(&service.folder, "go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    service.stop();
}

// handoff-run(1): "STOPPING=1, with EXTEND_TIMEOUT_USEC for as long as draining may take".
#[test]
fn the_manager_hears_once_that_it_stops_and_how_long_that_may_take() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let script = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), sys.exit(0)))\nserve()";
    let service = Service::managed(folder, &manager, script, &["--drain-timeout", "2m"]);
    serving(&manager);
    service.running.signal(Signal::SIGTERM);
    marked(&service.folder, "told");
    service.running.signal(Signal::SIGTERM);
    allow(&service.folder, "go");
    assert_eq!(service.running.output().code(), 0);
    assert_eq!(manager.heard(), ["STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=125000000"]);
}

#[test]
fn a_first_generation_that_fails_is_never_ready_for_the_manager() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let service = Service::managed(folder, &manager, "say('READY=1'); barrier(); sys.exit(9)", &[]);
    assert_eq!(service.running.output().code(), 9);
    assert_eq!(manager.heard(), ["STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=65000000"]);
}

#[test]
fn a_manager_that_is_not_there_stops_nothing() {
    let folder = Folder::new();
    let gone = folder.text("nobody");
    // Bound once, so that the file is there and sending says ECONNREFUSED.
    drop(UnixDatagram::bind(&gone).unwrap());
    for address in [gone.as_str(), "/nonexistent/socket", "@", "vsock:2:1234", "relative", ""] {
        let with = |run: Run| run.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "50000");
        let service = Service::start(Folder::new(), "serve()", &[], with);
        assert_eq!(service.ask().0, 1);
        service.running.signal(Signal::SIGHUP);
        service.wait_for_log("generation 2: ready");
        assert_eq!(service.stop().code(), 0, "{address}");
    }
}

// READY=1 was once lost when the manager's queue was full at that moment, and systemd would have ended the service.
#[test]
fn a_manager_that_reads_late_keeps_nobody_waiting_and_hears_everything() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    let mut fill = 0;
    while filler.send_to(b"full", &manager.address).is_ok() {
        fill += 1;
    }
    let service = Service::managed(folder, &manager, "serve()", &[]);
    assert_eq!(service.ask().0, 1);
    service.running.signal(Signal::SIGHUP);
    service.wait_for_log("generation 2: ready");
    (0..fill).for_each(|_| assert_eq!(manager.next(), "full"));
    serving(&manager);
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    assert_eq!(service.stop().code(), 0);
}

#[test]
fn a_manager_that_never_reads_does_not_keep_it_from_stopping() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"full", &manager.address).is_ok() {}
    let service = Service::managed(folder, &manager, "serve()", &[]);
    service.ask();
    assert_eq!(service.stop().code(), 0);
}

// handoff-run(1): PROGRAM has the environment that it would have had.
#[test]
fn without_supervise_the_manager_is_the_targets_own() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let run = handoff_run().args(&["-q", "-l", "127.0.0.1:0", "--"]).env("NOTIFY_SOCKET", &manager.address);
    let report = run.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "77").report();
    assert_eq!(report["NOTIFY_SOCKET"], manager.address);
    assert_eq!((&report["WATCHDOG_USEC"], &report["WATCHDOG_PID"]), ("1000", "77"));
    assert_eq!(manager.heard(), [""; 0]);
}
