//! The time to settle: the old generation stands by, and serves again if the new one ends or accepts no more.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::harness::client::Client;
use crate::harness::process::status_field;
use crate::harness::{Output, Running, Server, Supervisor, supervise, wait_for};
use crate::steering::{serves_alone, waiting};

/// A time to settle that no test waits for.
const LONG: [&str; 2] = ["--settle", "1h"];

/// From the second generation on it serves until `act` is there; then it does this, and goes on living if it still can.
fn then(act: &str) -> String {
    format!(
        "if gen == '1': serve()
s.setblocking(False)
while not exists('act'):
    if select.select([s], [], [], 0.01)[0]: answer(s.accept()[0])
{act}
while True: time.sleep(1)"
    )
}

/// A supervisor whose second generation has not settled, and the reload that waits for that.
fn unsettled(code: &str, options: &[&str]) -> (Supervisor, Running) {
    let supervisor = supervise(Server::Python(code), &LONG).options(options).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    (supervisor, reload)
}

#[track_caller]
fn is_rolled_back(supervisor: &Supervisor, output: &Output, why: &str) {
    let told = format!("handoff-run: generation 2: {why}: generation 1 serves again\n");
    assert_eq!(output.failure(), (1, &*told), "{}", supervisor.log());
    serves_alone(supervisor, 1);
    let failure = format!("last failure: {}, ", told["handoff-run: ".len()..].trim_end());
    assert!(supervisor.status(&[]).contains(&failure), "{}", supervisor.status(&[]));
    assert!(!supervisor.log().contains("generation 1: draining"), "{}", supervisor.log());
}

// handoff-run(1), Settled: "If the new one ends in that time, …, shuts its socket down or closes it, the old one serves again and
// the reload ends with 1".
#[test]
fn a_new_generation_that_fails_before_it_has_settled_is_rolled_back() {
    let left = "accepts no more, before it had settled";
    let ended = |how: &str| format!("{how} before it had settled, 0 connections when last looked at");
    for (act, why) in [
        ("s.shutdown(socket.SHUT_RDWR)", left.to_owned()),
        ("s.shutdown(socket.SHUT_RD)", left.to_owned()),
        ("s.close()", left.to_owned()),
        ("os._exit(0)", ended("ended with status 0")),
        ("os._exit(3)", ended("ended with status 3")),
        ("os.kill(os.getpid(), 9)", ended("was ended by SIGKILL")),
    ] {
        let (supervisor, reload) = unsettled(&then(act), &[]);
        let old = supervisor.generation(1);
        serves_alone(&supervisor, 2);
        assert_eq!(supervisor.states(), [(1, "standing-by".into()), (2, "serving".into())]);
        looked_at(&supervisor);
        supervisor.folder.open("act");
        is_rolled_back(&supervisor, &reload.output(), &why);
        assert_eq!(supervisor.generation(1), old);
        supervisor.wait_gone(2);
        assert_eq!(supervisor.states(), [(1, "serving".into())]);
        // What comes next is as if nothing had been.
        supervisor.rewrite(Server::Python("serve()"));
        let reload = supervisor.command("--reload", &[]).start();
        supervisor.wait_ready(3);
        serves_alone(&supervisor, 3);
        kill(old, Signal::SIGKILL).unwrap();
        assert_eq!(reload.output().failure(), (0, ""));
        assert!(!supervisor.status(&[]).contains("last failure"));
        supervisor.stopped();
    }
}

/// Nobody asks the supervisor anything meanwhile: it wakes only to look whether the new generation has its sockets.
fn looked_at(supervisor: &Supervisor) {
    let woken = || status_field(supervisor.pid, "voluntary_ctxt_switches").parse::<u64>().unwrap();
    let before = woken();
    wait_for("some looks", || (woken() > before + 4).then_some(()));
}

// handoff-run(1), Settled: "Lost are the connections that the new one had accepted, whose number is logged as it was last
// seen, and reset those that waited for it, whose number is logged too".
#[test]
fn how_many_are_lost_with_a_new_generation_is_said() {
    let code = "
if gen == '1': serve()
held = []
while not exists('act'):
    if not exists('deaf') and select.select([s], [], [], 0.01)[0]:
        held.append(s.accept()[0])
        mark('held', str(len(held)))
    else: time.sleep(0.01); exists('deaf') and mark('is-deaf')
os._exit(3)";
    let (supervisor, reload) = unsettled(code, &[]);
    let accepted = waiting(&supervisor, 2);
    wait_for("both to be accepted", || (supervisor.folder.read("held") == "2").then_some(()));
    supervisor.folder.open("deaf");
    supervisor.folder.read("is-deaf");
    let mut clients = waiting(&supervisor, 3);
    looked_at(&supervisor);
    supervisor.folder.open("act");
    is_rolled_back(
        &supervisor,
        &reload.output(),
        "ended with status 3 before it had settled, 2 connections when last looked at",
    );
    supervisor.wait_log("generation 2: reset 3 clients that waited for it and cannot be served\n");
    clients.extend(accepted);
    for mut client in clients {
        assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    supervisor.stopped();
}

// A generation that has closed its socket is nobody who could accept.
#[test]
fn what_waits_for_a_new_generation_that_closes_its_socket_is_reset_at_once() {
    let code = "
if gen == '1': serve()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
select.select([s], [], [])
mark('deaf')
wait_for('act')
s.close()
wait_for('never')";
    let (supervisor, reload) = unsettled(code, &["--drain-timeout", "1h"]);
    let clients = waiting(&supervisor, 3);
    supervisor.folder.read("deaf");
    let start = Instant::now();
    supervisor.folder.open("act");
    is_rolled_back(&supervisor, &reload.output(), "accepts no more, before it had settled");
    for mut client in clients {
        assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    supervisor.wait_log("generation 2: reset 3 clients that waited for it and cannot be served\n");
}

#[test]
fn a_generation_that_is_rolled_back_but_lives_answers_those_that_it_has() {
    let code = "
if gen == '1': serve()
client = s.accept()[0]
mark('accepted')
wait_for('act')
s.shutdown(socket.SHUT_RDWR)
wait_for('answer')
answer(client)
select.select([], [], [])";
    let (supervisor, reload) = unsettled(code, &["--drain", "idle", "--drain-timeout", "1h"]);
    let mut client = waiting(&supervisor, 1).remove(0);
    supervisor.folder.read("accepted");
    supervisor.folder.open("act");
    is_rolled_back(&supervisor, &reload.output(), "accepts no more, before it had settled");
    supervisor.folder.open("answer");
    assert_eq!(client.answer().unwrap().generation, 2);
    supervisor.wait_gone(2);
    supervisor.stopped();
}

// As one in the background is that reads from its terminal: it serves nobody.
#[test]
fn a_new_generation_that_is_stopped_before_it_has_settled_is_rolled_back() {
    let (supervisor, reload) = unsettled(&then("os.kill(os.getpid(), signal.SIGSTOP)"), &[]);
    supervisor.folder.open("act");
    let told = "handoff-run: generation 2: is stopped by SIGSTOP and serves nobody until SIGCONT\n\
                handoff-run: generation 2: accepts no more, before it had settled: generation 1 serves again\n";
    assert_eq!(reload.output().failure(), (1, told), "{}", supervisor.log());
    serves_alone(&supervisor, 1);
    supervisor.stopped();
}

#[test]
fn a_new_generation_by_sighup_is_rolled_back_too() {
    let supervisor = supervise(Server::Python(&then("os._exit(3)")), &LONG).serving();
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    serves_alone(&supervisor, 2);
    supervisor.folder.open("act");
    supervisor.wait_log("generation 2: ended with status 3 before it had settled");
    supervisor.wait_gone(2);
    serves_alone(&supervisor, 1);
    supervisor.stopped();
}

// handoff-run(1), Settled: "A reload is over when the new generation has settled".
#[test]
fn the_old_generation_that_ends_while_it_stands_by_is_not_missed() {
    let (supervisor, reload) = unsettled("serve()", &[]);
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    let output = reload.output();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with("generation 2: settled\n"), "{}", output.stdout);
    supervisor.wait_gone(1);
    serves_alone(&supervisor, 2);
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
    assert!(!supervisor.status(&[]).contains("last failure"));
    // From now on it is a crash.
    kill(supervisor.generation(2), Signal::SIGKILL).unwrap();
    supervisor.wait_ready(3);
    serves_alone(&supervisor, 3);
    supervisor.stopped();
}

#[test]
fn the_old_generation_that_accepts_no_more_while_it_stands_by_settles_the_new_one() {
    for act in ["s.shutdown(socket.SHUT_RDWR)", "s.close()"] {
        let code = format!(
            "if gen != '1': serve()\ns.setblocking(False)\n\
             while not exists('act'):\n    if select.select([s], [], [], 0.01)[0]: answer(s.accept()[0])\n\
             {act}\nwait_for('never')"
        );
        let (supervisor, reload) = unsettled(&code, &[]);
        supervisor.folder.open("act");
        assert_eq!(reload.output().failure(), (0, ""), "{act}");
        supervisor.wait_gone(1);
        serves_alone(&supervisor, 2);
        supervisor.stopped();
    }
}

#[test]
fn a_stop_while_one_stands_by_ends_everything_and_the_reload_is_told() {
    let (mut supervisor, reload) = unsettled("serve()", &[]);
    let output = supervisor.stop();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.contains("generation 1: gone\n"), "{}", output.stdout);
    assert!(output.stdout.contains("generation 2: gone\n"), "{}", output.stdout);
    assert_eq!(reload.output().failure(), (125, "handoff-run: the supervisor is stopping\n"));
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
}

#[test]
fn a_reload_while_one_stands_by_waits_until_the_new_one_has_settled_or_failed() {
    for (act, first) in [("os._exit(3)", 1), ("wait_for('never')", 0)] {
        let (supervisor, reload) = unsettled(&then(act), &[]);
        let next = supervisor.command("--reload", &[]).start();
        supervisor.wait_clients(2);
        assert!(!supervisor.log().contains("generation 3"), "{}", supervisor.log());
        supervisor.rewrite(Server::Python("serve()"));
        if first == 1 {
            supervisor.folder.open("act");
        } else {
            kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
        }
        assert_eq!(reload.output().code(), first);
        supervisor.wait_ready(3);
        serves_alone(&supervisor, 3);
        kill(supervisor.generation(if first == 1 { 1 } else { 2 }), Signal::SIGKILL).unwrap();
        assert_eq!(next.output().code(), 0);
        supervisor.stopped();
    }
}

// handoff-run(1), --settle: "0 for none".
#[test]
fn without_a_time_to_settle_the_old_generation_is_told_at_once_and_settling_is_not_spoken_of() {
    let supervisor = supervise(Server::Python("serve()"), &["--settle", "0"]).serving();
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (0, ""));
    let lines: Vec<&str> = output.stdout.lines().map(|line| line.split(" (").next().unwrap()).collect();
    assert_eq!(lines[0], "generation 2: started");
    assert!(lines[1].starts_with("generation 2: ready after "), "{lines:?}");
    assert_eq!(lines[2..], ["generation 1: draining, 0 connections", "generation 1: gone"]);
    assert!(!supervisor.stopped().contains("settled"));
}

#[test]
fn the_old_generation_is_not_told_before_the_time_is_over() {
    let supervisor = supervise(Server::Python("serve()"), &["--settle", "1s"]).serving();
    let mut told = None;
    let start = Instant::now();
    let reload = supervisor.command("--reload", &[]).start();
    wait_for("it to be told", || {
        told = supervisor.log().contains("generation 1: draining").then(|| start.elapsed());
        told
    });
    assert!(told.unwrap() >= Duration::from_secs(1), "{told:?}");
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.stopped();
}

#[test]
fn shared_sockets_have_a_time_to_settle_too() {
    let (supervisor, reload) = unsettled(&then("os._exit(3)"), &["--shared"]);
    supervisor.folder.open("act");
    assert_eq!(reload.output().code(), 1);
    supervisor.wait_gone(2);
    serves_alone(&supervisor, 1);
    assert!(Client::connect(&supervisor.address()).is_ok());
    supervisor.stopped();
}
