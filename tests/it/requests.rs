//! Reloads and stops by the control socket: many at once, during one another, and what becomes of each.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};

use crate::harness::control::{STOP, SUCCESS, await_read, received};
use crate::harness::process::exists;
use crate::harness::{Output, Running, Server, Supervisor, supervise};

const STOPPING: &str = "handoff-run: the supervisor is stopping\n";

fn outputs(running: Vec<Running>) -> Vec<Output> {
    running.into_iter().map(Running::output).collect()
}

/// A supervisor whose second generation is held back and waited for by twenty clients.
fn twenty_reloads() -> (Supervisor, Vec<Running>) {
    let supervisor = supervise(Server::Directed, &[]).run(|run| run.env("HANDOFF_LOG", "debug")).serving();
    supervisor.folder.close_gate();
    let clients = (0..20).map(|_| supervisor.command("--reload", &[]).start()).collect();
    supervisor.wait_log_times(20, "handoff-run: Reload(");
    (supervisor, clients)
}

#[test]
fn twenty_reloads_at_once_are_two_new_generations() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.failure(), (0, ""));
    }
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
}

#[test]
fn everybody_who_waited_for_a_generation_that_fails_is_told() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.let_fail(2);
    supervisor.folder.let_fail(3);
    supervisor.folder.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.code(), 1);
        assert!(output.stderr.contains("ended with status 3 before it was ready"), "{}", output.stderr);
    }
    supervisor.wait_gone(3);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn only_the_reload_whose_own_generation_failed_fails() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.let_fail(2);
    supervisor.folder.open_gate();
    let mut statuses: Vec<i32> = outputs(clients).iter().map(Output::code).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![0; 19], vec![1]].concat());
}

#[test]
fn a_stop_ends_the_generation_that_gets_ready_too() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    let queued = supervisor.command("--reload", &["--wait"]).start();
    let stop = supervisor.stop();
    assert_eq!(stop.failure(), (0, ""));
    assert_eq!(reload.output().failure(), (125, STOPPING));
    assert_eq!(queued.output().code(), 125);
    assert_eq!(supervisor.end().0, 0);
    for generation in [1, 2] {
        assert!(!exists(supervisor.generation(generation)), "generation {generation} is still there");
    }
}

#[test]
fn two_who_stop_both_see_the_end() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    let stops = [(); 2].map(|()| supervisor.request(STOP));
    stops.iter().for_each(await_read);
    drop(held);
    for stop in stops {
        assert_eq!(received(stop).last().unwrap(), SUCCESS);
    }
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn a_stop_that_had_to_kill_says_so() {
    let mut supervisor = supervise(Server::Directed, &["--drain-timeout", "200ms"]).serving();
    supervisor.folder.let_be_stubborn(1);
    let output = supervisor.stop();
    let message = "handoff-run: a generation did not drain and was killed\n";
    assert_eq!(output.failure(), (1, message));
    assert_eq!(supervisor.end().0, 137);
}

// handoff-run(1), --wait: "With status 1 if it did not drain and was killed".
#[test]
fn a_reload_that_waits_and_sees_the_old_generation_killed_says_so() {
    for upgraded in [false, true] {
        let supervisor = supervise(Server::Directed, &["--drain-timeout", "1s"]).serving();
        supervisor.folder.let_be_stubborn(1);
        let reload = supervisor.command("--reload", &["--wait", "-q"]).start();
        supervisor.wait_draining(1);
        if upgraded {
            supervisor.upgrade();
        }
        let message = "handoff-run: a generation did not drain and was killed\n";
        assert_eq!(reload.output().failure(), (1, message));
        assert_eq!(supervisor.states(), [(2, "serving".into())]);
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "what was killed for another is none of its");
    }
}

// handoff-run(1), --wait: "or if the new one has ended by then and nothing serves".
#[test]
fn a_reload_that_waits_while_the_new_generation_ends_says_so() {
    for restart in ["always", "no"] {
        let supervisor = supervise(Server::Directed, &["--restart", restart]).serving();
        let (held, _) = supervisor.hold();
        let reload = supervisor.command("--reload", &["--wait", "-q"]).start();
        supervisor.wait_draining(1);
        supervisor.folder.close_gate();
        kill(supervisor.generation(2), Signal::SIGKILL).unwrap();
        supervisor.wait_log("generation 2: was ended by SIGKILL\n");
        drop(held);
        let output = reload.output();
        let message = "handoff-run: the new generation has ended, and nothing serves\n";
        assert_eq!(output.failure(), (1, message));
    }
}

// handoff-run(1), --stop: "Ends when it has."
// Once the reply came while the sockets were still open, and the next supervisor found them in use.
#[test]
fn after_a_stop_everything_is_free_at_once() {
    let mut supervisor = supervise(Server::Directed, &["-l", "./other", "--pid-file", "pid"]).serving();
    let [control, other, pid] = ["control", "other", "pid"].map(|name| supervisor.folder.path(name));
    supervisor.folder.read("pid");
    let mut client = BufReader::new(supervisor.request(STOP));
    let mut line = String::new();
    while line.trim_end() != SUCCESS {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
    assert_eq!([control.exists(), other.exists(), pid.exists()], [false; 3]);
    TcpListener::bind(supervisor.address()).unwrap();
    assert_eq!(supervisor.end().0, 0);
}
