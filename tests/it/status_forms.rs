//! `--status --json` keeps to its schema and `--status --prometheus` to Prometheus' format, in every state.

use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::harness::by_hand::by_hand;
use crate::harness::canary::STAGE;
use crate::harness::forms::{Forms, are_readers_installed};
use crate::harness::intercept::intercept;
use crate::harness::setup::succeeding;
use crate::harness::{Folder, Server, handoff_run_with, supervise};

#[test]
fn of_steered_generations() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Directed, &["--settle", "1h"]).serving();
    let _held = [supervisor.hold(), supervisor.hold()];
    let forms = supervisor.forms();
    assert_eq!(forms.by_label("generations"), [("serving", 1.0)]);
    assert_eq!(forms.by_label("connections"), [("serving", 2.0)]);
    assert_eq!(forms.by_label("share_ratio"), [("serving", 1.0)]);
    assert_eq!(forms.metric("connections{state=starting}"), Some(0.0));
    assert_eq!(forms.by_label("reloads_total"), []);
    let never = ["last_reload_timestamp_seconds", "last_reload_age_seconds", "last_restart_timestamp_seconds"];
    assert_eq!(never.map(|name| forms.metric(name)), [None; 3]);
    supervisor.folder.close_gate();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    assert_eq!(supervisor.forms().by_label("generations"), [("serving", 1.0), ("starting", 1.0)]);
    supervisor.folder.open_gate();
    supervisor.wait_ready(2);
    assert_eq!(supervisor.forms().by_label("generations"), [("serving", 1.0), ("standing-by", 1.0)]);
    assert_eq!(supervisor.promote().code(), 0);
    assert_eq!(reload.output().code(), 0);
    supervisor.wait_draining(1);
    let forms = supervisor.forms();
    assert_eq!(forms.by_label("generations"), [("draining", 1.0), ("serving", 1.0)]);
    assert_eq!(forms.by_label("connections"), [("draining", 2.0)]);
    assert_eq!(forms.by_label("reloads_total"), [("succeeded", 1.0)]);
}

#[test]
fn of_generations_that_share_a_socket() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Directed, &["--shared"]).serving();
    let forms = supervisor.forms();
    assert_eq!(forms.field("generations.0.share"), "None");
    assert_eq!(forms.metric("share_ratio{state=serving}"), None);
    assert_eq!(forms.metric("connections{state=serving}"), Some(0.0));
}

#[test]
fn of_a_generation_on_trial() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Directed, &[]).serving();
    let _reload = supervisor.try_out(2, &["--canary", STAGE]);
    let forms = supervisor.forms();
    assert_eq!(forms.by_label("generations"), [("on-trial", 1.0), ("serving", 1.0)]);
    assert_eq!(forms.by_label("share_ratio"), [("on-trial", 0.2), ("serving", 0.8)]);
}

#[test]
fn of_a_generation_that_is_stopped_by_a_signal() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Hello, &[]).serving();
    assert_eq!(supervisor.forms().metric("stopped_generations"), Some(0.0));
    let pid = supervisor.generation(1);
    kill(pid, Signal::SIGSTOP).unwrap();
    supervisor.wait_log("generation 1: is stopped by SIGSTOP");
    let forms = supervisor.forms();
    assert_eq!(forms.field("generations.0.stopped"), "'SIGSTOP'");
    assert_eq!(forms.metric("stopped_generations"), Some(1.0));
    kill(pid, Signal::SIGCONT).unwrap();
}

// handoff-run(1), STATUS: "with an age, when something else was".
#[test]
fn of_a_generation_that_ended_unasked_and_was_started_again() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Hello, &[]).serving();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_ready(2);
    let forms = supervisor.forms();
    assert_eq!((forms.field("restarts"), forms.metric("restarts_total")), ("1", Some(1.0)));
    let restarted = forms.number("time") - forms.number("last_restart_age");
    let shown = forms.metric("last_restart_timestamp_seconds").unwrap();
    assert!((shown - restarted).abs() < 1.0, "{shown} is not {restarted}");
    // Whoever looks for a change of it sees none while there is none.
    supervisor.upgrade();
    assert_eq!(supervisor.forms().metric("last_restart_timestamp_seconds"), Some(shown));
    assert!(forms.metric("last_restart_age_seconds").unwrap() >= forms.number("last_restart_age"));
    assert_eq!(forms.by_label("reloads_total"), []);
}

#[test]
fn of_a_supervisor_without_a_generation() {
    if !are_readers_installed() {
        return;
    }
    // The backoff doubles until a look falls into it.
    let code = "if gen != '1': sys.exit(4)\nserve()";
    let supervisor = supervise(Server::Python(code), &[]).serving();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_log("is started again in 3.20 s");
    supervisor.wait_gone(6);
    let forms = supervisor.forms();
    assert_eq!(forms.by_label("generations"), []);
    assert_eq!(forms.by_label("share_ratio"), []);
    assert!(forms.field("last_failure").contains("ended with status 4 before it was ready"));
}

#[test]
fn of_a_supervisor_that_stops() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Directed, &[]).serving();
    let held = supervisor.hold();
    assert_eq!(supervisor.forms().metric("stopping"), Some(0.0));
    let stop = supervisor.command("--stop", &[]).start();
    supervisor.wait_draining(1);
    let forms = supervisor.forms();
    assert_eq!((forms.field("stopping"), forms.metric("stopping")), ("True", Some(1.0)));
    assert_eq!(forms.by_label("connections"), [("draining", 1.0)]);
    drop(held);
    assert_eq!(stop.output().code(), 0);
}

#[test]
fn of_a_listener_that_clients_cannot_reach() {
    if !are_readers_installed() {
        return;
    }
    let setup = supervise(Server::Python("serve()"), &[]);
    let path = setup.folder.text("s");
    let supervisor = setup.listen(&format!("unix:{path}")).serving();
    assert_eq!(supervisor.forms().metric("listener_problems"), Some(0.0));
    supervisor.folder.write("s", "precious");
    supervisor.wait_log("its path is another file's now");
    let forms = supervisor.forms();
    assert!(forms.field("listeners.0.problem").contains("its path is another file's now"));
    assert_eq!(forms.metric("listener_problems"), Some(1.0));
}

#[test]
fn of_a_program_that_is_intercepted() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = intercept("s = opened()\nserve()", &[]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let forms = supervisor.forms();
    assert_eq!(forms.by_label("generations"), [("serving", 1.0)]);
    assert_eq!(forms.field("listeners.0.address"), format!("'{}'", supervisor.address()));
}

#[test]
fn of_a_supervisor_with_a_predecessor() {
    if !are_readers_installed() {
        return;
    }
    let old = by_hand("serve()");
    let supervisor = succeeding(&old.address, "auto", &["--settle", "1h"], Server::Hello);
    supervisor.wait_ready(1);
    let forms = supervisor.forms();
    assert_eq!(forms.field("generations.0.generation"), "0");
    assert_eq!(forms.by_label("generations"), [("serving", 1.0), ("standing-by", 1.0)]);
}

// handoff-run(1), STATUS: "files of several supervisors have no sample in common". The collector also rejects a HELP that is
// another in another file.
#[test]
fn files_of_two_supervisors_are_taken_together() {
    let texts = [(); 2].map(|()| supervise(Server::Hello, &[]).serving().status(&["--prometheus"]));
    let lines = |text: &str, is_comment: bool| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with('#') == is_comment);
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let [first, second] = &texts;
    assert_eq!(lines(first, true), lines(second, true));
    assert_eq!(lines(first, true).len(), 2 * 8, "{first}");
    assert!(lines(first, false).iter().all(|sample| !lines(second, false).contains(sample)), "{first}{second}");
}

// handoff-run(1), STATUS: "with the absolute path of the control socket as it was given".
#[test]
fn a_path_of_any_characters_is_one_label() {
    if !are_readers_installed() {
        return;
    }
    let supervisor = supervise(Server::Hello, &[]).serving();
    let name = "a \"b\" \\n{c=\"d\"},\n# é";
    fs::rename(supervisor.folder.path("control"), supervisor.folder.path(name)).unwrap();
    let status =
        |form: &str| handoff_run_with(&["--status", &format!("./{name}"), form]).current_dir(&*supervisor.folder);
    let [json, metrics] = ["--json", "--prometheus"].map(|form| status(form).output());
    assert_eq!((json.failure(), metrics.failure()), ((0, ""), (0, "")));
    let forms = Forms::read(&supervisor.folder.text(name), &json.stdout, &metrics.stdout);
    assert_eq!(forms.by_label("generations"), [("serving", 1.0)]);
    fs::rename(supervisor.folder.path(name), supervisor.folder.path("control")).unwrap();
}

// handoff-run(1), STATUS: "the status is 125, nothing is printed, and the file stays as it was."
#[test]
fn where_no_supervisor_answers_there_is_no_metric() {
    let folder = Folder::new();
    folder.write("app.prom", "before");
    let output = handoff_run_with(&["--status", &folder.text("control"), "--prometheus"]).output();
    let path = folder.text("control");
    let line = format!("handoff-run: cannot reach a supervisor at {path}: ENOENT: No such file or directory\n");
    assert_eq!((output.failure(), output.stdout.as_str()), ((125, line.as_str()), ""));
}
