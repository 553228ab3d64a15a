//! SIGUSR2 while a new generation is on trial or settles: the next supervisor goes on where this one was.

use crate::harness::canary::{CHECK, STAGE, leaving};
use crate::harness::{Server, supervise};

#[test]
fn a_trial_goes_on_with_the_same_share_and_is_ended_by_the_next_supervisor() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let reload = supervisor.try_out(2, &["--canary", STAGE]);
    for _ in 0..2 {
        supervisor.upgrade();
        supervisor.assert_on_trial();
    }
    assert_eq!(supervisor.promote().failure(), (0, ""));
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.wait_gone(1);
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
    supervisor.stopped();
}

#[test]
fn the_stages_that_are_left_follow_in_the_next_supervisor() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let reload = supervisor.try_out(2, &["--canary", "20%:1s", "--canary", "50%:50ms"]);
    supervisor.upgrade();
    let output = reload.output();
    assert_eq!(output.failure(), (0, ""));
    let end = "generation 2: on trial with 50 % of new connections\ngeneration 2: serves\ngeneration 2: settled\n";
    assert!(output.stdout.ends_with(end), "{}", output.stdout);
    supervisor.stopped();
}

#[test]
fn a_check_that_runs_is_run_again_by_the_next_supervisor() {
    for (status, code) in [("0", 0), ("1", 1)] {
        let supervisor = supervise(Server::Directed, &[]).serving();
        let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", CHECK]);
        let line = "handoff-run: check: stage 20 of 2\n";
        supervisor.wait_log(line);
        supervisor.upgrade();
        supervisor.wait_log_times(2, line);
        supervisor.assert_on_trial();
        supervisor.folder.write("passed-20", status);
        assert_eq!(reload.output().code(), code);
        assert_eq!(supervisor.answer().generation, if code == 0 { 2 } else { 1 });
    }
}

#[test]
fn a_generation_settles_in_the_next_supervisor_as_it_would_have() {
    let supervisor = supervise(Server::Directed, &["--settle", "1h"]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    supervisor.upgrade();
    assert_eq!(supervisor.states(), [(1, "standing-by".into()), (2, "serving".into())]);
    assert_eq!(supervisor.promote().failure(), (0, ""));
    let output = reload.output();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with("generation 2: settled\n"), "{}", output.stdout);
    supervisor.wait_gone(1);
    supervisor.stopped();
}

// The next supervisor watched nobody, and called it a trial.
#[test]
fn a_generation_that_closes_its_socket_before_it_has_settled_is_rolled_back_by_the_next_supervisor() {
    let supervisor = supervise(Server::Python(&leaving(2, "s.close()")), &["--settle", "1h"]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    supervisor.upgrade();
    supervisor.folder.open("leave");
    let why = "handoff-run: generation 2: accepts no more, before it had settled: generation 1 serves again\n";
    assert_eq!(reload.output().failure(), (1, why));
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.wait_gone(2);
    supervisor.stopped();
}
