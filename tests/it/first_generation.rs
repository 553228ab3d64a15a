//! A first generation that fails: the supervisor ends with its status.

use crate::harness::log::plain;
use crate::harness::{Folder, Server, handoff_run_with, supervise};
use crate::lifecycle::TAKE_IT;

/// What is reported of a first generation, which no other took the socket before.
fn bound_itself(reason: &str) -> String {
    format!(
        "handoff-run: generation 1: {reason} before it was ready\n\
         handoff-run: if it tried to bind ADDRESS itself, it need not: {TAKE_IT}\n"
    )
}

// handoff-run(1), EXIT STATUS: "a supervisor whose first generation never became ready: its status".
#[test]
fn a_first_generation_that_fails_ends_the_supervisor_with_its_status() {
    for (script, status, reason) in [
        ("exit 3", 3, "ended with status 3"),
        // Once 0: `Restart=on-failure`, Docker and `&&` took it for a success.
        ("exit 0", 1, "ended with status 0"),
        ("kill -9 $$", 137, "was ended by SIGKILL"),
    ] {
        let mut supervisor = supervise(Server::Script(script), &[]).start();
        let address = supervisor.address();
        let (code, log) = supervisor.end();
        let expected = format!(
            "handoff-run: 127.0.0.1:0 listens on ADDRESS\n\
             handoff-run: generation 1: started (pid PID)\n{}\
             handoff-run: generation 1: gone\n",
            bound_itself(reason)
        );
        assert_eq!((code, plain(&log, &address)), (status, expected));
    }
}

#[test]
fn a_first_generation_that_cannot_be_executed_ends_the_supervisor_with_126_or_127() {
    for (program, status, cause) in
        [("/nonexistent/x", 127, "ENOENT: No such file or directory"), ("./log", 126, "EACCES: Permission denied")]
    {
        let mut supervisor = supervise(Server::Hello, &["-q"]).target(&[program]).start();
        let message = format!("handoff-run: generation 1: cannot run {program}: {cause}\n");
        assert_eq!(supervisor.end(), (status, message));
    }
}

#[test]
fn a_first_generation_that_hangs_ends_the_supervisor_with_137() {
    let mut supervisor = supervise(Server::Script("exec sleep 1000"), &["-q", "--ready-timeout", "100ms"]).start();
    let (status, log) = supervisor.end();
    let text = "handoff-run: generation 1: was not ready after 0.10 s and is killed: no process waits on 127.0.0.1:";
    assert!(
        log.starts_with(text) && log.contains(&format!("\nhandoff-run: {TAKE_IT}; where a start takes longer, ")),
        "{log}"
    );
    assert_eq!(status, 137);
}

#[test]
fn a_supervisor_that_cannot_listen_is_125_and_starts_nothing() {
    let folder = Folder::new();
    std::fs::write(folder.path("control"), "").unwrap();
    let arguments = ["--supervise", "-l", "127.0.0.1:0", "-q", "--control", &folder.text("control"), "--", "touch"];
    let output = handoff_run_with(&arguments).args(&[folder.text("started")]).output();
    assert_eq!(output.code(), 125, "{output:?}");
    assert_eq!(folder.names(), ["control"]);
}
