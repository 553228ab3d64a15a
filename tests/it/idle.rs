//! --drain idle: a generation that was relieved is told to stop when its connections have ended, or its time is over.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::Client;
use crate::harness::{PROGRAM, Run, Server, Supervisor, is_root_to, supervise};
use crate::steering::serves_alone;

/// Holds every connection, answers each request, and is ended by the signal that asks it to stop.
const KEEPS: &str = "
s.setblocking(False)
held = []
while True:
    for ready in select.select([s] + held, [], [])[0]:
        if ready is s: held.append(s.accept()[0])
        elif ready.setblocking(True) or ready.recv(1000): ready.sendall(f'hello from {gen}, pid {os.getpid()}\\n'.encode())
        else: held.remove(ready); ready.close()";

const IDLE: [&str; 4] = ["--drain", "idle", "--drain-timeout", "1h"];

/// The second generation serves, and the first one has a connection.
fn relieved(code: &str, options: &[&str]) -> (Supervisor, Client) {
    let supervisor = supervise(Server::Python(code), options).serving();
    let (held, generation) = supervisor.hold();
    assert_eq!(generation, 1);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    (supervisor, held)
}

// handoff-run(1), Retired: "With --drain idle it is told only when the last of its connections has ended".
#[test]
fn a_connection_is_answered_by_the_old_generation_until_it_ends() {
    let (supervisor, mut held) = relieved(KEEPS, &IDLE);
    for _ in 0..50 {
        serves_alone(&supervisor, 2);
        assert_eq!(held.ask().unwrap().generation, 1);
    }
    assert_eq!(supervisor.states(), [(1, "draining".into()), (2, "serving".into())]);
    assert!(!supervisor.log().contains("generation 1: draining"), "{}", supervisor.log());
    drop(held);
    supervisor.wait_log("generation 1: draining, 0 connections\n");
    supervisor.wait_gone(1);
    let log = supervisor.log();
    assert!(!log.contains("does not drain"), "{log}");
    supervisor.stopped();
}

#[test]
fn without_a_connection_the_old_generation_is_told_at_once_and_the_reload_that_waits_ends() {
    let supervisor = supervise(Server::Python(KEEPS), &IDLE).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let (held, generation) = supervisor.hold();
    assert_eq!(generation, 2);
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 3: settled\n");
    assert_eq!(supervisor.states(), [(2, "draining".into()), (3, "serving".into())]);
    drop(held);
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.stopped();
}

#[test]
fn several_generations_wait_for_their_connections_each_for_its_own() {
    let (supervisor, first) = relieved(KEEPS, &IDLE);
    let (second, _) = supervisor.hold();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    let (third, _) = supervisor.hold();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    serves_alone(&supervisor, 4);
    for (client, generation) in [(second, 2), (first, 1), (third, 3)] {
        assert!(supervisor.states().contains(&(generation, "draining".into())), "{}", supervisor.log());
        drop(client);
        supervisor.wait_gone(generation);
    }
    assert_eq!(supervisor.states(), [(4, "serving".into())]);
    supervisor.stopped();
}

// handoff-run(1), Retired: "or --drain-timeout after the new one began to serve"; --drain: "After one more --drain-timeout it is
// killed".
#[test]
fn a_generation_whose_connections_do_not_end_is_told_at_the_timeout_and_killed_one_more_later() {
    let stubborn = format!("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{KEEPS}");
    let options = ["--drain", "idle", "--drain-timeout", "1s"];
    let supervisor = supervise(Server::Python(&stubborn), &options).serving();
    let (mut held, _) = supervisor.hold();
    let begin = Instant::now();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.wait_log("generation 1: draining, 1 connection\n");
    let told = begin.elapsed();
    assert!(told >= Duration::from_secs(1), "{told:?}");
    assert_eq!(held.ask().unwrap().generation, 1);
    supervisor.wait_log("generation 1: has not drained in time and is killed\n");
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    supervisor.wait_gone(1);
    assert!(held.rest().unwrap_or_default().is_empty());
    serves_alone(&supervisor, 2);
}

#[test]
fn a_generation_that_is_told_at_the_timeout_and_ends_is_not_killed() {
    let (supervisor, _held) = relieved(KEEPS, &["--drain", "idle", "--drain-timeout", "300ms"]);
    supervisor.wait_gone(1);
    let log = supervisor.log();
    assert!(log.contains("generation 1: was ended by SIGTERM 0."), "{log}");
    assert!(!log.contains("killed"), "{log}");
}

// handoff-run(1), Retired: "At a stop all are told at once".
#[test]
fn at_a_stop_all_are_told_at_once() {
    for by_signal in [false, true] {
        let (mut supervisor, _first) = relieved(KEEPS, &IDLE);
        let (_second, generation) = supervisor.hold();
        assert_eq!(generation, 2);
        if by_signal {
            supervisor.signal(Signal::SIGTERM);
        } else {
            assert_eq!(supervisor.stop().failure(), (0, ""));
        }
        let (status, log) = supervisor.end();
        assert_eq!(status, 0, "{log}");
        assert!(!log.contains("killed"), "{log}");
    }
}

// handoff-run(1), --drain: "Every socket has to be steered".
#[test]
fn where_a_socket_is_shared_it_is_an_error_which_names_it() {
    let refused = |setup: crate::harness::setup::Setup, address: &str| {
        let (status, log) = setup.start().end();
        let line =
            format!("handoff-run: --drain idle needs a socket for each generation, and {address} is shared by all\n");
        assert_eq!((status, log.lines().last().map(|last| format!("{last}\n"))), (125, Some(line)), "{log}");
        assert!(!log.contains("started"), "{log}");
    };
    let setup = || supervise(Server::Python(KEEPS), &IDLE);
    let first = setup();
    let path = first.folder.text("s");
    refused(first.listen("127.0.0.1:0").listen(&path), &path);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    refused(setup().listen(&address).run(|run| run.inherit(&listener, 3)), &address);
    refused(setup().listen("127.0.0.1:1,reuseport").listen("127.0.0.1:0"), "127.0.0.1:1");
    refused(setup().listen("127.0.0.1:1").options(&["--shared"]), "127.0.0.1:1");
}

// Whose connections are whose cannot be seen then: those that there were when the new one began to serve have to end.
#[test]
fn a_generation_that_cannot_be_looked_into_is_told_when_the_connections_of_before_have_ended() {
    if !is_root_to("hide a process from itself") {
        return;
    }
    let code = format!("os.setgid(65534)\nos.setuid(65534)\nsay('READY=1')\n{KEEPS}");
    let setup = supervise(Server::Python(&code), &IDLE).options(&["--settle", "1s"]);
    let supervisor = setup.by(Run::of("setpriv").args(&["--bounding-set=-sys_ptrace", PROGRAM])).serving();
    let (mut held, _) = supervisor.hold();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    // This one comes in the time to settle.
    let (_new, generation) = supervisor.hold();
    assert_eq!(generation, 2);
    assert_eq!(reload.output().failure(), (0, ""));
    let (_newer, generation) = supervisor.hold();
    assert_eq!(generation, 2);
    for _ in 0..20 {
        assert_eq!(held.ask().unwrap().generation, 1);
        assert_eq!(supervisor.states().len(), 2);
    }
    drop(held);
    supervisor.wait_gone(1);
    serves_alone(&supervisor, 2);
    supervisor.stopped();
}
