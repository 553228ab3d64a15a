//! SIGUSR2: the supervisor becomes the program at its own path, and nothing that it does is interrupted.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::control::{NOT_UNDERSTOOD, RELOAD, STATUS, SUCCESS};
use crate::harness::process::{descriptors, status_field, variable};
use crate::harness::{Folder, Server, handoff_run_with, supervise, wait_for};
use crate::load::{Close, Load};

fn resident(pid: Pid) -> u64 {
    status_field(pid, "VmRSS").trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_upgrade_keeps_pid_children_sockets_and_state() {
    let supervisor = supervise(Server::Directed, &["-l", "./unix", "--drain-timeout", "20s"]).serving();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_ready(2);
    let held = supervisor.hold();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.folder.let_fail(4);
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_gone(4);

    // Those that are made anew may come in another order.
    let open = || {
        let mut open = supervisor.descriptors(0);
        open.sort();
        open
    };
    let (before, open_before) = (supervisor.json(), open());
    let facts = ["restarts=1", "reloads.succeeded=1", "reloads.failed=1", "generations.0.state='draining'"];
    assert!(facts.iter().all(|fact| before.contains(&fact.to_string())), "{before:?}");
    supervisor.upgrade();
    assert_eq!(supervisor.json(), before);
    assert_eq!(open(), open_before);
    assert_eq!(status_field(supervisor.generation(3), "PPid"), supervisor.pid.to_string());

    supervisor.wait_no_accept(2, 3);
    let (_, generation) = supervisor.hold();
    assert_eq!(generation, 3);
    drop(held);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.states(), [(5, "serving".into())]);
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert!(!supervisor.folder.path("unix").exists());
}

#[test]
fn a_deadline_holds_across_an_upgrade() {
    let supervisor = supervise(Server::Directed, &["--drain-timeout", "1s"]).serving();
    let mut held = supervisor.hold();
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 1: draining, 1 connection");
    supervisor.upgrade();
    // It is killed with the connection open.
    assert_eq!(held.0.rest().unwrap_or_default(), b"");
    supervisor.wait_log("generation 1: has not drained in time and is killed");
    assert_eq!(reload.output().failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
}

#[test]
fn a_generation_gets_ready_across_upgrades_and_its_client_is_told() {
    for options in
        [vec![], vec!["--ready", "fd:9", "--env", "TELLS=9"], vec!["--ready", "check:test ! -e $FOLDER/gate"]]
    {
        let supervisor = supervise(Server::Directed, &options).serving();
        let held = supervisor.hold();
        supervisor.folder.close_gate();
        let reload = supervisor.command("--reload", &["--wait"]).start();
        supervisor.generation(2);
        supervisor.upgrade();
        assert_eq!(supervisor.states()[1], (2, "starting".into()), "{options:?}");
        supervisor.upgrade();
        supervisor.folder.open_gate();
        supervisor.wait_log("generation 1: draining, 1 connection");
        supervisor.upgrade();
        drop(held);
        assert_eq!(reload.output().failure(), (0, ""), "{options:?}");
        assert_eq!(supervisor.states(), [(2, "serving".into())]);
    }
}

#[test]
fn a_reload_that_fails_after_an_upgrade_fails_for_its_client() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let (reload, queued) = (supervisor.command("--reload", &[]).start(), supervisor.request(RELOAD));
    supervisor.generation(2);
    supervisor.upgrade();
    supervisor.folder.let_fail(2);
    supervisor.folder.open_gate();
    // Whichever of the two came first.
    let mut told = String::new();
    (&queued).read_to_string(&mut told).unwrap();
    let statuses =
        [reload.output().code().to_string(), told.lines().last().unwrap().replace("{\"exit\":", "").replace('}', "")];
    assert!(statuses == ["1", "0"] || statuses == ["0", "1"], "{statuses:?}");
    supervisor.wait_ready(3);
}

#[test]
fn a_request_that_was_half_said_is_heard_to_its_end() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (mut client, mut garbage) = (supervisor.request(&STATUS[..9]), supervisor.control());
    // Half a character.
    garbage.write_all(b"\xc3").unwrap();
    // Both are accepted and read: they came before the client that asks for the table.
    supervisor.table();
    let before = supervisor.descriptors(2);
    supervisor.upgrade();
    assert_eq!(supervisor.descriptors(2), before);
    client.write_all(&STATUS.as_bytes()[9..]).unwrap();
    garbage.write_all(b"\xa9\n").unwrap();
    let mut told = [String::new(), String::new()];
    client.read_to_string(&mut told[0]).unwrap();
    garbage.read_to_string(&mut told[1]).unwrap();
    assert!(told[0].trim_end().ends_with(SUCCESS), "{told:?}");
    assert_eq!(told[1].lines().collect::<Vec<_>>(), NOT_UNDERSTOOD);
}

#[test]
fn fifty_upgrades_under_load_cost_no_request_and_no_descriptor() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    supervisor.upgrade();
    let (open, memory) = (supervisor.descriptors(0), resident(supervisor.pid));
    let done = AtomicBool::new(false);
    let load = Load {
        duration: Duration::from_secs(60),
        requests: u64::MAX,
        close: Close::Reset,
        ..Load::on(supervisor.address().parse().unwrap())
    };
    let report = thread::scope(|scope| {
        let load = scope.spawn(|| load.run(&done));
        for round in 0..50 {
            if round % 10 == 5 {
                assert_eq!(supervisor.reload().failure(), (0, ""));
            }
            supervisor.upgrade();
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(report.ok > 100 && report.failed() == 0, "{report:?}");
    assert_eq!(report.by_body.len(), 6, "{:?}", report.by_body);
    supervisor.wait_gone(5);
    // The pipe and the notify socket are the new generation's own.
    assert_eq!(supervisor.descriptors(0).len(), open.len());
    let grown = resident(supervisor.pid).saturating_sub(memory);
    assert!(grown < 1024, "grown by {grown} KiB");
}

#[test]
fn two_upgrades_at_once_are_one_or_two_and_no_more_trouble() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.signal(Signal::SIGUSR2);
    supervisor.signal(Signal::SIGUSR2);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    supervisor.upgrade();
    supervisor.wait_gone(1);
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
}

#[test]
fn a_stop_goes_on_after_an_upgrade_and_its_client_is_told() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let held = supervisor.hold();
    let stop = supervisor.command("--stop", &[]).start();
    supervisor.wait_draining(1);
    supervisor.upgrade();
    assert!(supervisor.json().contains(&"stopping=True".to_owned()));
    assert_eq!(supervisor.reload().code(), 125);
    drop(held);
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn the_state_reaches_no_generation() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.upgrade();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    assert_eq!(variable(supervisor.generation(2), "HANDOFF_STATE"), None);
    // The server's own: three standard ones, the listener, and its pipe and what the test program opens.
    let (first, second) = (descriptors(supervisor.generation(1)), descriptors(supervisor.generation(2)));
    assert!(second.iter().all(|(_, link)| !link.contains("memfd")), "{first:?} {second:?}");
}

/// A fresh start with this in HANDOFF_STATE and `text` at descriptor 3.
fn stranger(value: &str, text: &str) -> (i32, String) {
    let folder = Folder::new();
    let mut file = File::create_new(folder.path("state")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    let readable = File::open(folder.path("state")).unwrap();
    let socket = folder.text("socket");
    let run = handoff_run_with(&["--supervise", "-l", &socket, "--", "true"]);
    let output = run.env("HANDOFF_STATE", value).inherit(&readable, 3).output();
    assert_eq!(folder.names(), ["state"]);
    (output.code(), output.stderr)
}

#[test]
fn a_state_that_is_not_ours_is_refused() {
    let refused = |why: &str| {
        (125, format!("handoff-run: cannot take over from another supervisor, as HANDOFF_STATE demands: {why}\n"))
    };
    for word in ["take", "probe"] {
        let here = format!("{word}:3");
        for no_state in ["", "handoff-run state 0\n", "[]", "{}", "{\"pid\":-1e9}"] {
            let (status, message) = stranger(&here, no_state);
            assert_eq!(status, 125);
            assert!(message.contains("demands: cannot parse the predecessor's state: "), "{message}");
        }
        let (status, message) = stranger(&here, r#"{"pid":0,"sockets":{},"plan":{},"generations":[]}"#);
        assert_eq!(status, 125);
        assert!(message.contains("the state is of process 0, not of "), "{message}");
        let refusal = refused("the predecessor's state needs wings, which this version does not understand");
        assert_eq!(
            stranger(
                &here,
                r#"{"pid":0,"needs":["slots", "notifiers", "wings"],"sockets":{},"plan":{},"generations":[]}"#
            ),
            refusal
        );
        assert_eq!(stranger(&format!("{word}:77"), ""), refused("descriptor 77 is not open"));
    }
    assert_eq!(stranger("", ""), refused("no mode"));
    assert_eq!(stranger("steal:3", ""), refused("steal is no mode"));
    assert_eq!(stranger("take:x", ""), refused("no descriptor: invalid digit found in string"));
}

// Without --supervise the variable means nothing, and is not handed on.
#[test]
fn a_state_means_nothing_to_who_does_not_supervise() {
    let report = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--"]).env("HANDOFF_STATE", "take:3").report();
    assert_eq!(report.get("HANDOFF_STATE"), None);
    assert_eq!(&report["LISTEN_FDS"], "1");
}

/// What is left when the main process has ended got the stop signal once, and the upgrade does not send it again.
#[test]
fn an_upgrade_sends_no_second_stop_signal() {
    let script = "
if os.fork() == 0:
    def asked(*_): os.write(log, b'asked\\n')
    signal.signal(signal.SIGTERM, asked)
    log = os.open(path('asked'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    wait_for('over')
    os._exit(0)
wait_for('asked')
select.select([3], [], [])";
    let mut supervisor = supervise(Server::Python(script), &[]).serving();
    let stop = supervisor.command("--stop", &[]).start();
    let asked = || fs::read_to_string(supervisor.folder.path("asked")).unwrap();
    wait_for("the rest to be asked", || (asked() == "asked\n").then_some(()));
    supervisor.upgrade();
    supervisor.upgrade();
    assert_eq!(asked(), "asked\n");
    supervisor.folder.open("over");
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}
