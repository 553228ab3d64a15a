//! Reloads are counted by how they ended, whoever asked for them.

use std::fs;

use nix::sys::signal::Signal;

use crate::harness::forms::are_readers_installed;
use crate::harness::{Server, Supervisor, supervise};

/// What `--json` has of this, but for those that are 0.
fn counts(supervisor: &Supervisor) -> Vec<String> {
    let json = supervisor.json();
    let counts = json.iter().filter_map(|fact| fact.strip_prefix("reloads.")).filter(|fact| !fact.ends_with("=0"));
    counts.map(str::to_owned).collect()
}

fn last(supervisor: &Supervisor) -> String {
    supervisor.json().iter().find_map(|fact| fact.strip_prefix("last_reload=")).unwrap().to_owned()
}

// handoff-run(1), STATUS: "how many reloads ended in which way, by --reload, SIGHUP or the service manager".
#[test]
fn every_way_in_which_a_reload_can_end_is_counted() {
    let setup = supervise(Server::Directed, &["--settle", "1h"]);
    let path = setup.folder.text("s");
    let setup = setup.listen("127.0.0.1:0").listen(&format!("unix:{path}"));
    let supervisor = setup.run(|run| run.env("HANDOFF_LOG", "debug")).serving();
    assert_eq!((counts(&supervisor), last(&supervisor)), (vec![], "None".into()));

    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    assert_eq!(counts(&supervisor), [""; 0], "it has not settled");
    assert_eq!(supervisor.promote().code(), 0);
    assert_eq!((counts(&supervisor), last(&supervisor)), (vec!["succeeded=1".to_owned()], "'succeeded'".into()));

    supervisor.folder.let_fail(3);
    assert_eq!(supervisor.reload().code(), 1);
    assert_eq!(last(&supervisor), "'failed'");

    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(4);
    assert_eq!(supervisor.rollback().code(), 0);
    assert_eq!(reload.output().code(), 1);
    assert_eq!(last(&supervisor), "'rolled_back'");

    // What is counted goes on in the place of this supervisor, also of a reload that is under way.
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(5);
    supervisor.upgrade();
    supervisor.folder.write("s", "precious");
    supervisor.wait_log("its path is another file's now");
    assert_eq!(supervisor.promote().code(), 0);
    assert_eq!(last(&supervisor), "'unreachable'");
    fs::remove_file(&path).unwrap();

    // A socket is shared. What is refused was not the last.
    assert_eq!(supervisor.command("--reload", &["--canary", "5%:1s"]).output().code(), 125);
    assert_eq!(last(&supervisor), "'unreachable'");

    let _held = supervisor.hold();
    supervisor.folder.close_gate();
    let reloads = [(); 2].map(|()| supervisor.command("--reload", &[]).start());
    supervisor.wait_log_times(6, "handoff-run: Reload(");
    let _stop = supervisor.command("--stop", &[]).start();
    assert_eq!(reloads.map(|reload| reload.output().code()), [125; 2]);
    supervisor.signal(Signal::SIGHUP);
    assert_eq!(supervisor.reload().code(), 125);
    let all = ["cancelled=2", "failed=1", "refused=3", "rolled_back=1", "succeeded=1", "unreachable=1"];
    assert_eq!((counts(&supervisor), last(&supervisor)), (all.map(str::to_owned).to_vec(), "'cancelled'".into()));
    if are_readers_installed() {
        let ends = ["cancelled", "failed", "refused", "rolled_back", "succeeded", "unreachable"];
        let counts = ends.into_iter().zip([2.0, 1.0, 3.0, 1.0, 1.0, 1.0]).collect::<Vec<_>>();
        assert_eq!(supervisor.forms().by_label("reloads_total"), counts);
    }
    let table = supervisor.status(&[]);
    let line = "\nreloads: 1 succeeded, 1 failed, 1 rolled back, 1 left a listener that cannot be reached, 2 cancelled, \
                3 refused; the last one ";
    assert!(table.contains(line), "{table}");
}

#[test]
fn a_reload_that_is_not_ready_in_time_is_counted() {
    let supervisor = supervise(Server::Directed, &["--ready-timeout", "2s"]).serving();
    supervisor.folder.close_gate();
    assert_eq!(supervisor.reload().code(), 124);
    assert_eq!((counts(&supervisor), last(&supervisor)), (vec!["timed_out=1".into()], "'timed_out'".into()));
    // Another one that was asked for meanwhile is another reload, and takes the failure away.
    supervisor.folder.open_gate();
    assert_eq!(supervisor.reload().code(), 0);
    assert_eq!(counts(&supervisor), ["succeeded=1", "timed_out=1"]);
    assert!(supervisor.json().contains(&"last_failure=None".to_owned()));
}

// Once only the first of them was known to be one, and the failure stayed.
#[test]
fn a_reload_that_was_asked_for_while_another_failed_mends_that() {
    let supervisor = supervise(Server::Directed, &[]).run(|run| run.env("HANDOFF_LOG", "debug")).serving();
    supervisor.folder.close_gate();
    supervisor.folder.let_fail(2);
    let first = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    let second = supervisor.command("--reload", &[]).start();
    supervisor.wait_log_times(2, "handoff-run: Reload(");
    supervisor.folder.open_gate();
    assert_eq!((first.output().code(), second.output().code()), (1, 0));
    assert_eq!(counts(&supervisor), ["failed=1", "succeeded=1"]);
    assert!(supervisor.json().contains(&"last_failure=None".to_owned()));
}
