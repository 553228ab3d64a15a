//! A new generation on trial: what it gets, how a trial goes on, and who ends it.

use nix::sys::signal::{Signal, kill};

use crate::harness::canary::{CHECK, STAGE, leaving};
use crate::harness::json::flat;
use crate::harness::log::{on_trial, plain, started};
use crate::harness::process::exists;
use crate::harness::{Server, Supervisor, supervise};

const NOTHING_ON_TRIAL: &str = "handoff-run: no generation is on trial, and none stands by\n";

// handoff-run(1), CANARY: "the kernel gives it 5 % of new connections".
#[test]
fn a_generation_on_trial_gets_its_share_of_new_connections_and_the_status_shows_it() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let _reload = supervisor.try_out(2, &["--canary", STAGE]);
    supervisor.assert_on_trial();
    let json = flat(&supervisor.status(&["--json"]));
    let field = |name: &str| ["0", "1"].map(|at| json[&format!("generations.{at}.{name}")].as_str());
    assert_eq!(field("state"), ["'serving'", "'on-trial'"]);
    assert_eq!(field("share"), ["80", "20"]);
}

// "and then it serves and has to settle as ever."
#[test]
fn after_the_last_stage_the_new_generation_serves_and_settles() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let output = supervisor.command("--reload", &["--canary", "20%:50ms", "--canary", "50%:50ms"]).output();
    let expected = "generation 2: started (pid PID)\n\
                    generation 2: ready after TIME s\n\
                    generation 2: on trial with 20 % of new connections\n\
                    generation 2: on trial with 50 % of new connections\n\
                    generation 2: serves\n\
                    generation 2: settled\n";
    assert_eq!(output.failure(), (0, ""));
    assert_eq!(plain(&output.stdout, &supervisor.address()), expected);
    supervisor.wait_gone(1);
    assert_eq!(supervisor.shares(), [(2, "serving".into(), "100%".into())]);
    assert_eq!(supervisor.percent_of(2, 1), 100.0);
    supervisor.stopped();
}

#[test]
fn a_reload_that_waits_ends_when_the_trial_is_over_and_the_old_generation_gone() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let output = supervisor.command("--reload", &["--wait", "--canary", "20%:50ms"]).output();
    assert_eq!(output.failure(), (0, ""));
    assert!(!exists(supervisor.generation(1)));
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
}

// "At the end of each stage the command of --check is run by sh, with HANDOFF_GENERATION and HANDOFF_SHARE".
#[test]
fn each_stage_ends_with_a_check_that_is_told_the_generation_and_the_share() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--canary", "50%:1ms", "--check", CHECK]);
    let lines = ["handoff-run: check: stage 20 of 2\n", "handoff-run: check: stage 50 of 2\n"];
    supervisor.folder.read("begun-20");
    supervisor.assert_on_trial();
    supervisor.folder.write("passed-20", "0");
    supervisor.wait_log(&on_trial(2, 50));
    supervisor.folder.read("begun-50");
    assert_eq!(supervisor.shares()[1], (2, "on-trial".into(), "50%".into()));
    supervisor.folder.write("passed-50", "0");
    assert_eq!(reload.output().failure(), (0, ""));
    let log = supervisor.stopped();
    assert!(lines.iter().all(|line| log.matches(line).count() == 1), "{log}");
}

// "--promote ends the trial at once in favour of the new one, and the time to settle too."
#[test]
fn a_promotion_ends_a_trial_and_the_time_to_settle() {
    let supervisor = supervise(Server::Directed, &["--settle", "1h"]).serving();
    let reload = supervisor.try_out(2, &["--canary", STAGE]);
    assert_eq!(supervisor.promote().failure(), (0, ""));
    assert_eq!(supervisor.percent_of(2, 1), 100.0);
    let states = [(1, "standing-by".into()), (2, "serving".into())];
    assert_eq!(supervisor.states(), states);
    assert_eq!(supervisor.promote().failure(), (0, ""));
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.wait_gone(1);
    assert_eq!(supervisor.promote().failure(), (125, NOTHING_ON_TRIAL));
    supervisor.stopped();
}

#[test]
fn a_promotion_while_a_check_runs_ends_the_check() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let check = "echo $$ > check.new; mv check.new check; exec sleep 100";
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", check]);
    let pid = supervisor.folder.read("check").trim().parse().unwrap();
    assert_eq!(supervisor.promote().failure(), (0, ""));
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.wait_end(pid);
    supervisor.stopped();
}

// "With status 125 if there is no such one."
#[test]
fn a_promotion_and_a_rollback_with_nothing_on_trial_are_refused_and_what_is_not_ready_can_be_rolled_back() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    for output in [supervisor.promote(), supervisor.rollback()] {
        assert_eq!(output.failure(), (125, NOTHING_ON_TRIAL));
        assert_eq!(output.stdout, "");
    }
    supervisor.folder.close_gate();
    let reload = supervisor.command("--reload", &["--canary", STAGE]).start();
    supervisor.generation(2);
    assert_eq!(supervisor.promote().failure(), (125, NOTHING_ON_TRIAL), "it is not ready yet");
    assert_eq!(supervisor.states(), [(1, "serving".into()), (2, "starting".into())]);
    // --rollback: "The new one, which is getting ready".
    assert_eq!(supervisor.rollback().failure(), (0, ""));
    let output = reload.output();
    assert_eq!(output.failure(), (1, "handoff-run: generation 2: is rolled back: generation 1 serves on\n"));
    supervisor.wait_gone(2);
    assert_eq!(supervisor.answer().generation, 1);
}

// "If the old one ends or accepts no more during a trial, the new one serves at once."
#[test]
fn a_serving_generation_that_is_killed_during_a_trial_is_succeeded_at_once() {
    for restart in ["always", "no"] {
        let supervisor = supervise(Server::Directed, &["--restart", restart]).serving();
        let reload = supervisor.try_out(2, &["--canary", STAGE]);
        kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
        assert_eq!(reload.output().failure(), (0, ""));
        assert_eq!(supervisor.percent_of(2, 1), 100.0);
        supervisor.wait_gone(1);
        assert_eq!(supervisor.states(), [(2, "serving".into())]);
        let log = supervisor.stopped();
        assert!(!log.contains(&started(3)), "{log}");
    }
}

#[test]
fn a_serving_generation_that_accepts_no_more_during_a_trial_is_succeeded_at_once() {
    for (act, upgrades) in [("s.shutdown(socket.SHUT_RDWR)", 0), ("s.close()", 0), ("s.close()", 1)] {
        let supervisor = supervise(Server::Python(&leaving(1, act)), &[]).serving();
        let reload = supervisor.try_out(2, &["--canary", STAGE]);
        (0..upgrades).for_each(|_| supervisor.upgrade());
        supervisor.folder.open("leave");
        assert_eq!(reload.output().failure(), (0, ""));
        assert_eq!(supervisor.percent_of(2, 1), 100.0);
        supervisor.wait_gone(1);
        supervisor.stopped();
    }
}

// "A reload meanwhile waits for the end of the trial."
#[test]
fn a_reload_during_a_trial_waits_for_its_end() {
    for (end, status) in [(Supervisor::promote as fn(&_) -> _, 0), (Supervisor::rollback, 1)] {
        let supervisor = supervise(Server::Directed, &[]).run(|run| run.env("HANDOFF_LOG", "debug")).serving();
        let first = supervisor.try_out(2, &["--canary", STAGE]);
        let second = supervisor.command("--reload", &[]).start();
        supervisor.wait_log_times(2, "handoff-run: Reload(");
        supervisor.assert_on_trial();
        // A deploy would otherwise be tried with the share and the check of another.
        let third = supervisor.command("--reload", &["--canary", STAGE]).output();
        let why = "a reload waits already that is to take over in another way: try again when it is over";
        assert_eq!(third.failure(), (125, format!("handoff-run: {why}\n").as_str()));
        assert_eq!(end(&supervisor).failure(), (0, ""));
        assert_eq!(first.output().code(), status);
        assert_eq!(second.output().code(), 0);
        supervisor.wait_gone(1);
        supervisor.wait_gone(2);
        assert_eq!(supervisor.states(), [(3, "serving".into())]);
    }
}

#[test]
fn a_stop_during_a_trial_drains_both_generations() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let check = "echo $$ > check.new; mv check.new check; exec sleep 100";
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", check]);
    let check = supervisor.folder.read("check").trim().parse().unwrap();
    let mut held = [1, 2].map(|generation| supervisor.hold_of(generation));
    let stop = supervisor.command("--stop", &[]).start();
    assert_eq!(reload.output().failure(), (125, "handoff-run: the supervisor is stopping\n"));
    supervisor.wait_end(check);
    for (client, generation) in held.iter_mut().zip([1, 2]) {
        supervisor.wait_draining(generation);
        assert_eq!(client.ask().unwrap().generation, generation);
    }
    drop(held);
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}

/// A reload with these options is refused, and nothing is started.
#[track_caller]
fn assert_refused(supervisor: &Supervisor, options: &[&str], why: &str) {
    let before = supervisor.states();
    let output = supervisor.command("--reload", options).output();
    assert_eq!(output.failure(), (125, format!("handoff-run: {why}\n").as_str()));
    assert_eq!(supervisor.states(), before);
}

// "Every socket has to be steered, and a generation has to serve, or it is an error (125)."
#[test]
fn a_trial_where_generations_share_a_socket_is_refused_with_its_address() {
    let why = |address: &str| format!("a trial needs a socket for each generation, and {address} is shared by all");
    let supervisor = supervise(Server::Directed, &["--shared"]).serving();
    assert_refused(&supervisor, &["--canary", STAGE], &why(&supervisor.address()));
    let supervisor = supervise(Server::Directed, &["-l", "./socket"]).serving();
    assert_refused(&supervisor, &["--canary", STAGE], &why("./socket"));
    // It is a reload as ever without.
    assert_eq!(supervisor.reload().failure(), (0, ""));
}

#[test]
fn a_trial_where_nothing_serves_is_refused() {
    let setup = supervise(Server::Directed, &[]);
    setup.folder.close_gate();
    let supervisor = setup.start();
    supervisor.generation(1);
    assert_refused(&supervisor, &["--canary", STAGE], "a trial needs a generation that serves");
    supervisor.folder.open_gate();
    supervisor.wait_ready(1);
    supervisor.folder.close_gate();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.generation(2);
    assert_refused(&supervisor, &["--canary", STAGE], "a trial needs a generation that serves");
    supervisor.folder.open_gate();
    supervisor.wait_ready(2);
}

#[test]
fn shares_that_do_not_grow_are_refused() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    for second in ["20%:1s", "10%:1s"] {
        let options = ["--canary", STAGE, "--canary", second];
        assert_refused(&supervisor, &options, "the shares of a trial have to grow");
    }
}
