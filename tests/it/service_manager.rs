//! What a supervisor and a service manager send each other, and what of a generation's words goes further up.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};

use crate::harness::client::Client;
use crate::harness::manager::Manager;
use crate::harness::setup::supervise_in;
use crate::harness::{Folder, Server, Supervisor, handoff_run, supervise};

/// A server in Python whose supervisor reports to `manager`.
fn managed(folder: &Arc<Folder>, manager: &Manager, script: &str, options: &[&str]) -> Supervisor {
    supervise_in(folder, Server::Python(script), options).run(|run| manager.manage(run)).start()
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

/// It serves, and the manager has received so much.
fn wait_serving(manager: &Manager) {
    assert_eq!(manager.next(), "STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=65000000");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 1 serves");
}

// handoff-run(1): "READY=1 when the first generation serves".
#[test]
fn the_manager_hears_ready_when_the_first_generation_serves_and_not_before() {
    for of in [Manager::at_path, Manager::abstractly] {
        let folder = Arc::new(Folder::new());
        let manager = of(&folder);
        let script = "say('READY=1'); barrier(); mark('early'); wait_for('go'); serve()";
        let mut service = managed(&folder, &manager, script, &["--ready-timeout", "40s"]);
        service.folder.read("early");
        assert_eq!(manager.received(), ["STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=45000000"]);
        service.folder.open("go");
        assert_eq!(manager.next(), "READY=1\nSTATUS=generation 1 serves");
        assert_eq!(service.answer().generation, 1);
        assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
    }
}

// handoff-run(1): "RELOADING=1 with MONOTONIC_USEC, and READY=1 when it is over".
#[test]
fn a_reload_is_told_with_its_time_and_ready_follows_when_the_new_generation_serves() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let mut service = managed(&folder, &manager, "if gen == '2': wait_for('go')\nserve()", &[]);
    wait_serving(&manager);
    let before = monotonic();
    service.signal(Signal::SIGHUP);
    let message = manager.next();
    let told = number(&message, "MONOTONIC_USEC");
    assert_eq!(message, format!("RELOADING=1\nMONOTONIC_USEC={told}\nSTATUS=starting generation 2"));
    assert!((before..=monotonic()).contains(&told), "{before} {told}");
    assert_eq!(manager.received(), [""; 0]);
    service.folder.open("go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    service.end_by(Signal::SIGTERM);
}

// handoff-run(1): "also when it failed".
#[test]
fn a_reload_that_fails_or_takes_too_long_ends_for_the_manager_too() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "if gen == '2': sys.exit(3)\nif gen == '3': time.sleep(100)\nserve()";
    let mut service = managed(&folder, &manager, script, &["--ready-timeout", "1s"]);
    manager.next();
    manager.next();
    for generation in ["2", "3"] {
        service.signal(Signal::SIGHUP);
        let reloading = manager.next();
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert!(reloading.ends_with(&format!("\nSTATUS=starting generation {generation}")), "{reloading}");
        assert_eq!(manager.next(), format!("READY=1\nSTATUS=generation 1 serves, generation {generation} failed"));
        assert_eq!(service.answer().generation, 1);
    }
    service.end_by(Signal::SIGTERM);
}

// What was announced as a reload once had no end when the old generation ended in the middle of it.
#[test]
fn a_reload_ends_for_the_manager_although_the_old_generation_ended_meanwhile() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "if gen == '2': mark('second'); wait_for('go'); sys.exit(3)\nserve()";
    let mut service = managed(&folder, &manager, script, &[]);
    wait_serving(&manager);
    let old = service.served_by();
    service.signal(Signal::SIGHUP);
    service.folder.read("second");
    kill(old, Signal::SIGKILL).unwrap();
    assert!(manager.next().starts_with("RELOADING=1\n"));
    service.wait_gone(1);
    service.folder.open("go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=none serves, generation 2 failed");
    assert!(manager.next().starts_with("STATUS=generation 2 has ended and is started again in "));
    assert_eq!(manager.next(), "STATUS=starting generation 3");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 3 serves");
    service.end_by(Signal::SIGTERM);
}

// A manager that asked for a reload in the pause after a crash once waited for its beginning in vain.
#[test]
fn a_reload_that_is_asked_for_while_nothing_serves_has_a_beginning_and_an_end() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "if gen == '1': s.accept(); sys.exit(4)\nif gen == '2': mark('second'); wait_for('go')\nserve()";
    let mut service = managed(&folder, &manager, script, &[]);
    wait_serving(&manager);
    let _client = Client::connect(&service.address()).unwrap();
    assert_eq!(manager.next(), "STATUS=generation 1 has ended and is started again in 0.10 s");
    assert_eq!(manager.next(), "STATUS=starting generation 2");
    service.folder.read("second");
    service.signal(Signal::SIGHUP);
    let message = manager.next();
    let told = number(&message, "MONOTONIC_USEC");
    assert_eq!(message, format!("RELOADING=1\nMONOTONIC_USEC={told}\nSTATUS=starting what has ended"));
    service.folder.open("go");
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    service.end_by(Signal::SIGTERM);
}

// handoff-run(1): "STOPPING=1, with EXTEND_TIMEOUT_USEC for as long as draining may take".
#[test]
fn the_manager_hears_once_that_it_stops_and_how_long_that_may_take() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), sys.exit(0)))\nserve()";
    let mut service = managed(&folder, &manager, script, &["--drain-timeout", "2m"]);
    wait_serving(&manager);
    service.signal(Signal::SIGTERM);
    service.folder.read("told");
    service.signal(Signal::SIGTERM);
    service.folder.open("go");
    assert_eq!(service.end().0, 0);
    assert_eq!(manager.received(), ["STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=125000000"]);
}

#[test]
fn a_first_generation_that_fails_is_never_ready_for_the_manager() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let mut service = managed(&folder, &manager, "say('READY=1'); barrier(); sys.exit(9)", &[]);
    assert_eq!(service.end().0, 9);
    assert_eq!(manager.received(), ["STATUS=starting generation 1\nEXTEND_TIMEOUT_USEC=65000000"]);
}

#[test]
fn a_manager_that_is_not_there_stops_nothing() {
    let folder = Folder::new();
    let gone = folder.text("nobody");
    // Bound once, so that the file is there and sending says ECONNREFUSED.
    drop(UnixDatagram::bind(&gone).unwrap());
    for address in [gone.as_str(), "/nonexistent/socket", "@", "vsock:2:1234", "relative", ""] {
        let setup = supervise(Server::Python("serve()"), &[]);
        let mut service = setup.run(|run| run.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "50000")).start();
        assert_eq!(service.answer().generation, 1);
        service.signal(Signal::SIGHUP);
        service.wait_ready(2);
        assert_eq!(service.end_by(Signal::SIGTERM).0, 0, "{address}");
    }
}

// READY=1 was once lost when the manager's queue was full at that moment, and systemd would have ended the service.
#[test]
fn a_manager_that_reads_late_delays_nothing_and_receives_everything() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let fill = manager.fill();
    let mut service = managed(&folder, &manager, "serve()", &[]);
    assert_eq!(service.answer().generation, 1);
    service.signal(Signal::SIGHUP);
    service.wait_ready(2);
    (0..fill).for_each(|_| assert_eq!(manager.next(), "full"));
    wait_serving(&manager);
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert_eq!(manager.next(), "READY=1\nSTATUS=generation 2 serves");
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

#[test]
fn a_manager_that_never_reads_does_not_keep_it_from_stopping() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    manager.fill();
    let mut service = managed(&folder, &manager, "serve()", &[]);
    service.answer();
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

// handoff-run(1): PROGRAM has the environment that it would have had.
#[test]
fn without_supervise_the_manager_is_the_targets_own() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let run = handoff_run().args(&["-q", "-l", "127.0.0.1:0", "--"]);
    let report = manager.manage(run).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "77").report();
    assert_eq!(report["NOTIFY_SOCKET"], manager.address);
    assert_eq!((&report["WATCHDOG_USEC"], &report["WATCHDOG_PID"]), ("1000", "77"));
    assert_eq!(manager.received(), [""; 0]);
}
