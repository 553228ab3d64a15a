//! What waits for a generation that is relieved: it is waited for, and what nobody will accept is reset at once.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};

use crate::harness::client::{Client, ask};
use crate::harness::{Server, Supervisor, supervise, wait_for};
use crate::steering::{serves_alone, waiting};

/// The first generation accepts no more when the first client has come.
const DEAF: &str = "
if gen == '1':
    select.select([s], [], [])
    mark('deaf')
    wait_for('never')
serve()";

/// A supervisor whose first generation accepts no more, and those that wait for it.
fn deaf(options: &[&str], clients: usize) -> (Supervisor, Vec<Client>) {
    let supervisor = supervise(Server::Python(DEAF), options).serving();
    let clients = waiting(&supervisor, clients);
    supervisor.folder.read("deaf");
    (supervisor, clients)
}

#[track_caller]
fn are_reset(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.rest().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

const RESET: &str = "generation 1: reset 5 clients that waited for it and cannot be served\n";

// handoff-run(1), Retired: "it is told in any case, and how many still wait is logged"; STEERING: "What waits, or comes, where
// no generation is, is reset at once and logged".
#[test]
fn what_waits_for_a_generation_that_ends_without_accepting_it_is_reset_and_counted() {
    for signal in ["kill", "term"] {
        let (supervisor, clients) = deaf(&["--stop-signal", signal, "--drain-timeout", "500ms"], 5);
        let output = supervisor.reload_and_wait();
        assert_eq!(output.failure(), (0, ""));
        let (_, told) = output.stdout.split_once("generation 2: settled\n").unwrap();
        let lines = ["generation 1: draining, 0 connections\n", "generation 1: 5 clients still wait to be accepted\n"];
        assert_eq!(told, format!("{}{}{RESET}generation 1: gone\n", lines[0], lines[1]));
        are_reset(clients);
        serves_alone(&supervisor, 2);
        let log = supervisor.stopped();
        assert!(log.contains(&format!("handoff-run: {RESET}")), "{log}");
        assert_eq!(log.matches("reset").count(), 1, "{log}");
    }
}

#[test]
fn what_waits_for_a_generation_that_ends_while_it_stands_by_is_reset_at_once() {
    let (supervisor, clients) = deaf(&["--settle", "1h"], 5);
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    are_reset(clients);
    supervisor.wait_log(RESET);
    serves_alone(&supervisor, 2);
    supervisor.stopped();
}

#[test]
fn one_client_that_waits_is_told_of_as_one() {
    let (supervisor, clients) = deaf(&["--drain-timeout", "100ms"], 1);
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.contains("generation 1: 1 client still waits to be accepted\n"), "{}", output.stdout);
    let reset = "generation 1: reset 1 client that waited for it and cannot be served\n";
    assert!(output.stdout.contains(reset), "{}", output.stdout);
    are_reset(clients);
    supervisor.stopped();
}

/// It has no graceful stop: it is only not in the middle of an answer when the signal ends it.
const SLOW: &str = "
select.select([s], [], [])
if gen == '1': wait_for('go')
while True:
    select.select([s], [], [])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if gen == '1': time.sleep(0.05)
    answer(s.accept()[0])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})";

// handoff-run(1), Retired: "When the new generation has settled and nothing waits for the old one any more".
#[test]
fn an_old_generation_that_accepts_slowly_is_told_to_stop_when_it_has_accepted_all_that_waited() {
    for settle in ["0", "50ms"] {
        let supervisor = supervise(Server::Python(SLOW), &["--settle", settle]).serving();
        let clients = waiting(&supervisor, 20);
        let reload = supervisor.command("--reload", &["--wait"]).start();
        supervisor.wait_ready(2);
        supervisor.folder.open("go");
        for mut client in clients {
            assert_eq!(client.answer().unwrap().generation, 1);
        }
        let output = reload.output();
        assert_eq!(output.failure(), (0, ""));
        assert!(!output.stdout.contains("wait"), "{}", output.stdout);
        serves_alone(&supervisor, 2);
        assert!(!supervisor.stopped().contains("reset"));
    }
}

/// The kernel has it in no queue until its client sends something, or the second is over.
#[test]
fn what_waits_with_the_kernel_for_its_first_bytes_is_waited_for_too() {
    let code = "
while True:
    c = s.accept()[0]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    answer(c)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})";
    for settle in ["0", "50ms"] {
        let setup = supervise(Server::Python(code), &["--settle", settle]).listen("127.0.0.1:0,defer-accept=1");
        let supervisor = setup.serving();
        let mut early = Client::connect(&supervisor.address()).unwrap();
        let reload = supervisor.command("--reload", &["--wait"]).start();
        supervisor.wait_ready(2);
        let late = Instant::now();
        wait_for("half a second", || (late.elapsed() > Duration::from_millis(500)).then_some(()));
        early.send().unwrap();
        assert_eq!(
            early.answer().expect("the old one is told when it is served").generation,
            1,
            "{}",
            supervisor.log()
        );
        assert_eq!(reload.output().failure(), (0, ""));
        serves_alone(&supervisor, 2);
        supervisor.stopped();
    }
}

#[test]
fn nobody_is_lost_over_twenty_reloads_of_a_server_without_a_graceful_stop() {
    // A signal that comes while it answers is for later, or that client would be lost by the server itself.
    let code = "
while True:
    select.select([s], [], [])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    answer(s.accept()[0])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})";
    let supervisor = supervise(Server::Python(code), &[]).serving();
    let address = supervisor.address();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut by = 0;
                    while by < 21 {
                        by = ask(&address).unwrap().generation;
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            assert_eq!(supervisor.reload().failure(), (0, ""));
        }
        for client in clients {
            client.join().expect("every client is answered");
        }
    });
    supervisor.stopped();
}

/// In generation 1 or 2, as the test wants, a worker accepts, which lives on when the main process is killed, has no graceful
/// stop, and accepts nothing between its first client and the word to go on.
fn with_worker(generation: u64) -> Server<'static> {
    let code = format!(
        "
if gen == '{generation}':
    if os.fork(): signal.pause()
    select.select([s], [], [])
    mark('deaf')
    wait_for('go')
    while True:
        select.select([s], [], [])
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
        answer(s.accept()[0])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGTERM}})
if gen == '2': wait_for('start')
serve()"
    );
    Server::Python(code.leak())
}

/// Kill the main process of this generation while five clients wait for it, which is seen by this line: the worker answers
/// them before it is told to stop.
#[track_caller]
fn is_answered_by_the_worker(supervisor: &Supervisor, generation: u64, clients: Vec<Client>, line: &str) {
    supervisor.folder.read("deaf");
    kill(supervisor.generation(generation), Signal::SIGKILL).unwrap();
    supervisor.wait_log(line);
    supervisor.folder.open("go");
    for mut client in clients {
        assert_eq!(client.answer().unwrap().generation, generation, "{}", supervisor.log());
    }
}

// A soak once found clients that waited until the worker was killed: it was told to stop at once, and accepted no more.
#[test]
fn what_waits_for_a_generation_whose_main_process_ends_while_another_starts_is_answered_by_its_worker() {
    let supervisor = supervise(with_worker(1), &[]).serving();
    let clients = waiting(&supervisor, 5);
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    is_answered_by_the_worker(&supervisor, 1, clients, "generation 1: was ended by SIGKILL\n");
    supervisor.folder.open("start");
    assert_eq!(reload.output().failure(), (0, ""));
    serves_alone(&supervisor, 2);
    assert!(!supervisor.stopped().contains("reset"));
}

#[test]
fn what_waits_for_a_generation_whose_main_process_ends_while_it_stands_by_is_answered_by_its_worker() {
    let supervisor = supervise(with_worker(1), &["--settle", "1h"]).serving();
    let clients = waiting(&supervisor, 5);
    supervisor.folder.open("start");
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    is_answered_by_the_worker(&supervisor, 1, clients, "generation 2: settled\n");
    serves_alone(&supervisor, 2);
    assert!(!supervisor.stopped().contains("reset"));
}

#[test]
fn what_waits_for_a_generation_that_is_killed_with_its_worker_is_reset_at_once() {
    let supervisor = supervise(with_worker(1), &["--settle", "1h"]).serving();
    let clients = waiting(&supervisor, 5);
    supervisor.folder.open("start");
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    killpg(supervisor.generation(1), Signal::SIGKILL).unwrap();
    are_reset(clients);
    supervisor.wait_log(RESET);
    supervisor.wait_gone(1);
    serves_alone(&supervisor, 2);
    supervisor.stopped();
}

#[test]
fn what_waits_for_a_generation_whose_main_process_ends_before_it_has_settled_is_answered_by_its_worker() {
    let supervisor = supervise(with_worker(2), &["--settle", "1h"]).serving();
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    let clients = waiting(&supervisor, 5);
    is_answered_by_the_worker(&supervisor, 2, clients, "generation 2: was ended by SIGKILL before it had settled");
    serves_alone(&supervisor, 1);
    assert!(!supervisor.stopped().contains("reset"));
}
