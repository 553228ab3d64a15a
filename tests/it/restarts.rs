//! A serving generation that ends unasked, and clients that notice nothing but the wait.

use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::client::ask;
use crate::harness::process::exists;
use crate::harness::{Server, supervise, wait_for};

#[test]
fn a_generation_that_crashes_is_started_again_after_growing_backoffs() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    for (id, pause) in [(1, "0.10 s"), (2, "0.20 s"), (3, "0.40 s")] {
        supervisor.wait_ready(id);
        kill(supervisor.generation(id), Signal::SIGKILL).unwrap();
        supervisor.wait_log(&format!("generation {id}: was ended by SIGKILL\n"));
        supervisor.wait_log(&format!("generation {id}: is started again in {pause}\n"));
    }
    supervisor.wait_ready(4);
    assert_eq!(supervisor.served_by(), supervisor.generation(4));
    let status = supervisor.status(&[]);
    assert!(status.contains("restarts after a crash: 3\n"), "{status}");
    assert!(status.contains("last failure: generation 3: was ended by SIGKILL, "), "{status}");
    supervisor.stopped();
}

#[test]
fn a_generation_that_ends_with_0_unasked_is_started_again_too() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    kill(supervisor.generation(1), Signal::SIGTERM).unwrap();
    supervisor.wait_log("generation 1: ended with status 0\n");
    supervisor.wait_ready(2);
    supervisor.stopped();
}

#[test]
fn clients_of_an_outage_wait_and_all_are_answered() {
    let supervisor = supervise(Server::Script("exec ./server"), &[]).serving();
    supervisor.rewrite(Server::Script("test -e fixed || exit 1\nexec ./server"));
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_log("generation 1: was ended by SIGKILL\n");
    let address = supervisor.address();
    let start = Instant::now();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            thread::spawn({
                let address = address.clone();
                move || ask(&address)
            })
        })
        .collect();
    // 0.1, 0.2 and 0.4 seconds after each other; the next one comes after 0.8.
    supervisor.wait_log("generation 4: ended with status 1 before it was ready\n");
    supervisor.folder.open("fixed");
    let servers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap().unwrap().pid).collect();
    assert!(start.elapsed().as_secs() >= 1);
    assert_eq!(servers, vec![supervisor.generation(5); 100]);
    supervisor.stopped();
}

#[test]
fn a_reload_heals_at_once_what_would_be_started_again_later() {
    let supervisor = supervise(Server::Script("exec ./server"), &[]).serving();
    supervisor.rewrite(Server::Script("exit 1"));
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_log("generation 4: ended with status 1 before it was ready\n");
    supervisor.rewrite(Server::Script("exec ./server"));
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.stopped();
}

#[test]
fn what_is_left_of_a_generation_that_crashed_is_swept() {
    let supervisor = supervise(Server::Script("sleep 1000 & echo $! > sleeper; exec ./server"), &[]).serving();
    let sleeper = Pid::from_raw(supervisor.folder.read("sleeper").trim().parse().unwrap());
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    wait_for("the sleeper to go", || (!exists(sleeper)).then_some(()));
    supervisor.wait_ready(2);
    supervisor.stopped();
}

// handoff-run(1), --restart: "no: the supervisor ends with its status".
#[test]
fn where_nothing_is_started_again_the_supervisor_ends_with_the_status() {
    for (signal, how, status) in [
        (Signal::SIGKILL, "no", 137),
        (Signal::SIGTERM, "no", 0),
        (Signal::SIGTERM, "on-failure", 0),
        (Signal::SIGTERM, "on-failure:3", 0),
    ] {
        let mut supervisor = supervise(Server::Hello, &["--restart", how, "--pid-file", "pid"]).serving();
        supervisor.folder.read("pid");
        kill(supervisor.generation(1), signal).unwrap();
        let (code, log) = supervisor.end();
        assert_eq!(code, status, "{log}");
        let text = format!("generation 1: is not started again (--restart {how}): the supervisor ends\n");
        assert!(log.contains(&text), "{log}");
        assert!(!log.contains("generation 2"), "{log}");
        assert_eq!(["control", "pid"].map(|name| supervisor.folder.path(name).exists()), [false; 2]);
    }
}

// handoff-run(1), --restart: "on-failure: it is started again if its status is not 0", also after SIGUSR2.
#[test]
fn after_a_failure_it_is_started_again_so_often_in_a_row() {
    let supervisor = supervise(Server::Hello, &["--restart", "on-failure"]).serving();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_ready(2);
    supervisor.stopped();
    let mut supervisor = supervise(Server::Hello, &["--restart", "on-failure:2"]).serving();
    for generation in [1, 2, 3] {
        supervisor.wait_ready(generation);
        supervisor.upgrade();
        kill(supervisor.generation(generation), Signal::SIGKILL).unwrap();
    }
    let (code, log) = supervisor.end();
    assert_eq!(code, 137, "{log}");
    assert!(
        log.contains("generation 3: is not started again (--restart on-failure:2): the supervisor ends\n"),
        "{log}"
    );
}

// What is asked for is done, though nothing would be started again by itself.
#[test]
fn a_reload_under_way_goes_on_where_nothing_is_started_again() {
    let supervisor = supervise(Server::Script("exec ./server"), &["--restart", "no"]).serving();
    supervisor.rewrite(Server::Script("while ! test -e go; do sleep 0.01; done; exec ./server"));
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.generation(2);
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_gone(1);
    supervisor.folder.open("go");
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(
        supervisor.reload_and_wait().failure(),
        (0, ""),
        "and so is an old generation that ends as it was asked"
    );
    supervisor.stopped();
}

// Once it said so of a crash alone.
#[test]
fn a_restart_that_fails_says_when_the_next_comes() {
    let supervisor = supervise(Server::Script("exec ./server"), &["--ready-timeout", "1s"]).serving();
    supervisor.rewrite(Server::Script("test $GENERATION = 3 && exec sleep 100; exit 1"));
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    for (generation, backoff) in [(1, "0.10 s"), (2, "0.20 s"), (3, "0.40 s"), (4, "0.80 s")] {
        supervisor.wait_log(&format!("generation {generation}: is started again in {backoff}\n"));
    }
}
