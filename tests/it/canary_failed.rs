//! A new generation that fails its trial: it is rolled back, and the old one never stopped to serve.

use nix::unistd::Pid;

use crate::harness::canary::{CHECK, STAGE, leaving};
use crate::harness::process::exists;
use crate::harness::{Running, Server, Supervisor, supervise};

/// The reload ends with 1 and a line that has these parts, and the generation that served serves on.
#[track_caller]
fn assert_rolled_back(supervisor: &Supervisor, reload: Running, serving: Pid, parts: (&str, &str)) {
    let output = reload.output();
    let line = output.stderr.strip_prefix("handoff-run: generation 2: ").unwrap_or_default();
    let line =
        ["serves on", "serves again"].iter().find_map(|end| line.strip_suffix(&*format!(": generation 1 {end}\n")));
    let line = line.unwrap_or_default();
    assert!(line.starts_with(parts.0) && line.ends_with(parts.1) && !line.contains('\n'), "{output:?}");
    assert_eq!(output.code(), 1);
    assert!(supervisor.log().contains(&output.stderr), "{}", supervisor.log());
    assert_eq!(supervisor.percent_of(1, 2), 100.0);
    assert_eq!(supervisor.served_by(), serving);
    assert_eq!(supervisor.shares()[0], (1, "serving".into(), "100%".into()));
    assert!(supervisor.status(&[]).contains(&format!("last failure: generation 2: {line}")));
}

/// The same; what the new generation holds is answered meanwhile, and then it is gone.
#[track_caller]
fn assert_drains(supervisor: &Supervisor, reload: Running, why: &str) {
    let serving = supervisor.generation(1);
    let mut held = supervisor.hold_of(2);
    if why.starts_with("failed its check") {
        supervisor.folder.write("passed-20", "3");
    } else {
        assert_eq!(supervisor.rollback().failure(), (0, ""));
    }
    assert_rolled_back(supervisor, reload, serving, (why, ""));
    supervisor.wait_log("generation 2: draining, 1 connection\n");
    assert_eq!(held.ask().unwrap().generation, 2);
    drop(held);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
    // Another one may succeed.
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(!supervisor.status(&[]).contains("last failure"));
}

// handoff-run(1), CANARY: "if it fails, [...] the new generation is rolled back."
// The old one got no signal: SIGTERM would have ended it.
#[test]
fn a_generation_that_fails_its_check_drains_and_the_old_one_was_never_stopped() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--canary", "50%:1h", "--check", CHECK]);
    supervisor.folder.read("begun-20");
    assert_drains(&supervisor, reload, "failed its check, which ended with status 3");
}

// "So it is when [...] --rollback is asked for".
#[test]
fn a_generation_that_is_rolled_back_by_hand_drains() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let reload = supervisor.try_out(2, &["--canary", STAGE]);
    assert_drains(&supervisor, reload, "is rolled back");
}

#[test]
fn a_generation_that_has_not_settled_is_rolled_back_by_hand_too() {
    let supervisor = supervise(Server::Directed, &["--settle", "1h"]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    let mut held = supervisor.hold_of(2);
    assert_eq!(supervisor.rollback().failure(), (0, ""));
    assert_rolled_back(&supervisor, reload, supervisor.generation(1), ("is rolled back", ""));
    assert_eq!(held.ask().unwrap().generation, 2);
    drop(held);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

// "or has not ended within --ready-timeout".
#[test]
fn a_check_that_hangs_is_killed_with_all_that_it_forked_and_the_generation_rolled_back() {
    let supervisor = supervise(Server::Directed, &["--ready-timeout", "2s"]).serving();
    let check = "sleep 100 & echo $$ $! > check.new; mv check.new check; wait";
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", check]);
    let pids = supervisor.folder.read("check");
    let pids: Vec<Pid> = pids.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
    assert!(pids.iter().all(|pid| exists(*pid)), "{pids:?}");
    assert_rolled_back(&supervisor, reload, supervisor.generation(1), ("was not checked in time", ""));
    pids.iter().for_each(|pid| supervisor.wait_end(pid.as_raw()));
}

// What counts is the status of the shell, whoever still holds its output.
#[test]
fn what_a_check_leaves_behind_ends_with_it() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let check = "echo before; sleep 100 & echo $! > check.new; mv check.new check";
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", check]);
    assert_eq!(reload.output().failure(), (0, ""));
    let child = Pid::from_raw(supervisor.folder.read("check").trim().parse().unwrap());
    supervisor.wait_end(child.as_raw());
    assert_eq!(supervisor.stopped().matches("handoff-run: check: before\n").count(), 1);
}

#[test]
fn a_check_that_writes_more_than_a_pipe_holds_ends_and_is_logged() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let check =
        "i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); echo line $i of what is told here at length; done; exit 7";
    let reload = supervisor.try_out(2, &["--canary", "20%:1ms", "--check", check]);
    assert_rolled_back(
        &supervisor,
        reload,
        supervisor.generation(1),
        ("failed its check, which ended with status 7", ""),
    );
    supervisor.wait_log("check: line 1 of what");
}

/// How a generation that does `act` on trial is rolled back, also by another supervisor.
#[track_caller]
fn assert_rolled_back_when_it_leaves(act: &str, parts: (&str, &str)) {
    for upgrades in [0, 1] {
        let supervisor = supervise(Server::Python(&leaving(2, act)), &[]).serving();
        let serving = supervisor.generation(1);
        let reload = supervisor.try_out(2, &["--canary", STAGE]);
        (0..upgrades).for_each(|_| supervisor.upgrade());
        supervisor.folder.open("leave");
        assert_rolled_back(&supervisor, reload, serving, parts);
        supervisor.wait_gone(2);
        supervisor.stopped();
    }
}

// "So it is when it ends, accepts no more".
#[test]
fn a_generation_that_ends_on_trial_is_rolled_back() {
    assert_rolled_back_when_it_leaves("os._exit(3)", ("ended with status 3 on trial", ""));
}

#[test]
fn a_generation_that_is_killed_on_trial_is_rolled_back() {
    assert_rolled_back_when_it_leaves("os.kill(os.getpid(), signal.SIGKILL)", ("was ended by SIGKILL on trial", ""));
}

#[test]
fn a_generation_that_shuts_its_socket_down_on_trial_is_rolled_back() {
    assert_rolled_back_when_it_leaves("s.shutdown(socket.SHUT_RDWR)", ("accepts no more", "on trial"));
}

#[test]
fn a_generation_that_closes_its_socket_on_trial_is_rolled_back() {
    assert_rolled_back_when_it_leaves("s.close()", ("accepts no more", "on trial"));
}
