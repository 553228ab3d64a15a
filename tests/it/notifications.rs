//! What a generation says by sd_notify(3), and what the supervisor does with it: little is passed up, nothing is kept.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::Client;
use crate::harness::manager::Manager;
use crate::harness::python::python;
use crate::harness::setup::supervise_in;
use crate::harness::{Folder, Run, Server, is_root_to, supervise, wait_for};

// handoff-run(1): "only the serving generation's WATCHDOG=1 is passed up".
#[test]
fn of_a_generation_only_the_serving_ones_watchdog_is_passed_up() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "
def speak():
    say(f'READY=1\\nMAINPID={os.getpid()}\\nSTATUS=mine')
    say('STOPPING=1'); say('FDSTORE=1', 0); say('RELOADING=1'); say('WATCHDOG=trigger'); say('EXTEND_TIMEOUT_USEC=1')
    say('WATCHDOG=1'); barrier()
def drain(*_):
    speak(); mark('drained'); os._exit(0)
signal.signal(signal.SIGTERM, drain)
if gen == '1':
    if os.fork() == 0:
        wait_for('served'); speak(); mark('spoken'); os._exit(0)
else:
    speak()
serve()";
    let watched = |run: Run| manager.manage(run).env("WATCHDOG_USEC", "3600000000");
    let mut service = supervise_in(&folder, Server::Python(script), &[]).run(watched).start();
    let mut received = vec![manager.next(), manager.next(), manager.next(), manager.next()];
    // Before it serves the supervisor stands in, and once more when it does.
    assert_eq!(received[1], "WATCHDOG=1");
    assert_eq!(received[3], "WATCHDOG=1");
    service.folder.open("served");
    service.folder.read("spoken");
    assert_eq!(manager.received(), ["WATCHDOG=1"]);
    service.signal(Signal::SIGHUP);
    service.folder.read("drained");
    received = manager.received();
    assert!(received[0].starts_with("RELOADING=1\n"), "{received:?}");
    assert_eq!(received[1..], ["READY=1\nSTATUS=generation 2 serves", "WATCHDOG=1"]);
    service.end_by(Signal::SIGTERM);
}

// handoff-run(1): "While none serves, the supervisor sends WATCHDOG=1 itself". It once said nothing, so that systemd
// ended it during the backoff of a crash loop.
#[test]
fn while_no_generation_serves_the_supervisor_itself_is_the_watchdogs_sign_of_life() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "if gen == '1': s.accept(); sys.exit(4)\nmark('second'); wait_for('go'); serve()";
    let watched = |run: Run| manager.manage(run).env("WATCHDOG_USEC", "100000");
    let mut service = supervise_in(&folder, Server::Python(script), &[]).run(watched).start();
    wait_for("generation 1", || manager.next().ends_with("generation 1 serves").then_some(()));
    let _client = Client::connect(&service.address()).unwrap();
    service.folder.read("second");
    manager.received();
    for _ in 0..4 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    service.folder.open("go");
    wait_for("generation 2", || manager.next().ends_with("generation 2 serves").then_some(()));
    assert_eq!(manager.next(), "WATCHDOG=1");
    // It serves, so it has to say itself that it is alive; this one never does.
    assert_eq!(manager.within(Duration::from_millis(400)), None);
    service.end_by(Signal::SIGTERM);
}

// sd_watchdog_enabled(3): WATCHDOG_PID is the process that shall send it.
#[test]
fn a_generation_is_named_by_watchdog_pid_and_reports_to_the_supervisor() {
    let folder = Arc::new(Folder::new());
    let manager = Manager::at_path(&folder);
    let script = "mark('said', '%s %s %s' % tuple(os.environ.get(k) for k in ('WATCHDOG_PID', 'WATCHDOG_USEC', 'NOTIFY_SOCKET')))
serve()";
    let watched = |run: Run| manager.manage(run).env("WATCHDOG_USEC", "60000000").env("WATCHDOG_PID", "1");
    let mut service = supervise_in(&folder, Server::Python(script), &[]).run(watched).start();
    let pid = service.served_by();
    let said = service.folder.read("said");
    assert!(said.starts_with(&format!("{pid} 60000000 /")), "{said}");
    assert!(!said.contains("manager"), "{said}");
    service.end_by(Signal::SIGTERM);
}

// sd_notify_barrier(3): the descriptor is closed when everything sent before has been read.
#[test]
fn barriers_are_answered_and_no_descriptor_that_was_sent_stays_open() {
    let script = "
barrier()
if gen == '1': mark('first'); wait_for('count')
for count in (1, 4, 5, 60, 253):
    r, w = os.pipe()
    say('FDSTORE=1\\nFDNAME=x', *([w] * count))
    os.close(w)
    assert os.read(r, 1) == b''
say('READY=1', *([0] * 5))
barrier()
mark('sent'); serve()";
    let mut service = supervise(Server::Python(script), &["--ready", "notify", "-v"]).start();
    service.folder.read("first");
    let before = service.descriptors(0);
    service.folder.open("count");
    service.folder.read("sent");
    // READY=1 counts whatever came with it.
    service.wait_ready(1);
    assert_eq!(service.descriptors(0), before);
    service.end_by(Signal::SIGTERM);
}

#[test]
fn a_message_of_a_stranger_is_ignored() {
    if !is_root_to("become another user") {
        return;
    }
    let script = "mark('address', os.environ['NOTIFY_SOCKET']); wait_for('go'); say('READY=1'); serve()";
    let mut service = supervise(Server::Python(script), &["--ready", "notify", "-v"]).start();
    let address = service.folder.read("address");
    let lie = "import socket, sys
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for _ in range(100): n.sendto(b'READY=1', sys.argv[1])";
    let sent = Command::new(python()).args(["-IS", "-c", lie, &address]).uid(65534).gid(65534).status().unwrap();
    assert!(sent.success());
    service.wait_log(", which does not belong to it");
    service.folder.open("go");
    service.wait_ready(1);
    let log = service.log();
    assert_eq!(log.matches("does not belong to it").count(), 1, "{log}");
    // A lie that was believed would have caused one observation after another since.
    assert!(!log[..log.find("does not belong to it").unwrap()].contains("ready after"), "{log}");
    service.end_by(Signal::SIGTERM);
}

// READY=1 of a worker of another user, forked since the last survey, was once ignored.
#[test]
fn a_worker_that_became_another_user_a_moment_ago_is_heard() {
    if !is_root_to("become another user") {
        return;
    }
    let script = "
s.listen()
time.sleep(0.5)
if os.fork() == 0:
    os.setgid(65534); os.setuid(65534); say('READY=1'); barrier(); serve()
os.wait()";
    let mut service = supervise(Server::Python(script), &["--ready", "notify", "-v"]).start();
    service.wait_ready(1);
    assert!(!service.log().contains("does not belong to it"), "{}", service.log());
    service.end_by(Signal::SIGTERM);
}
