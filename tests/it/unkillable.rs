//! A generation that changed its user, under a supervisor that may not signal other users' processes.

use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::facts::done;
use crate::harness::process::{exists, stat, status_field};
use crate::harness::setup::Setup;
use crate::harness::{Server, is_root_to, supervise, wait_for};

/// It, or a process of it, becomes another user once it was seen to accept.
fn setup(code: &str) -> Setup {
    // Capability 5 is CAP_KILL of capabilities(7).
    // SAFETY: this operation takes integers.
    let without_kill = || -> io::Result<()> { done(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 5, 0, 0, 0) }) };
    let setup = supervise(Server::Python(code), &["--drain-timeout", "100ms"]);
    setup.run(|run| run.before_exec(without_kill))
}

/// The main process.
const MAIN: &str = "
if gen == '1': os.setgroups([]); os.setgid(65534); os.setuid(65534)
serve()";
/// A worker in a session of its own, which the main process leaves behind.
const WORKER: &str = "
if gen == '1' and os.fork() == 0:
    os.setsid()
    mark('worker', str(os.getpid()))
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    wait_for('never')
serve()";

fn end(pid: Pid) {
    kill(pid, Signal::SIGKILL).unwrap();
    wait_for("it to be gone", || (!exists(pid) || stat(pid)?[0] == "Z").then_some(()));
}

fn left(pid: Pid) -> String {
    format!("handoff-run: generation 1: process {pid} is another user's and may not be killed: it is left as it is\n")
}

// A reload that waits, and a stop, once never ended, though the log said that it is killed.
#[test]
fn a_process_that_may_not_be_killed_is_reported_and_not_waited_for() {
    if !is_root_to("change a user") {
        return;
    }
    for code in [MAIN, WORKER] {
        let mut supervisor = setup(code).serving();
        let pid = match code {
            WORKER => Pid::from_raw(supervisor.folder.read("worker").parse().unwrap()),
            _ => supervisor.generation(1),
        };
        wait_for("another user", || status_field(pid, "Uid").starts_with("65534").then_some(()));
        let reload = supervisor.reload_and_wait();
        assert!(reload.stderr.contains(&left(pid)), "{reload:?}");
        supervisor.wait_gone(1);
        assert!(supervisor.log().contains(&left(pid)));
        assert_eq!(supervisor.states(), [(2, "serving".into())]);
        assert!(exists(pid));
        assert_eq!(supervisor.stop().failure(), (0, ""));
        assert_eq!(supervisor.end().0, 0);
        end(pid);
    }
}

#[test]
fn a_stop_and_quit_end_although_a_process_may_not_be_killed() {
    if !is_root_to("change a user") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut supervisor = setup(MAIN).serving();
        let pid = supervisor.generation(1);
        let (status, log) = supervisor.end_by(signal);
        assert!(log.contains(&left(pid)), "{log}");
        assert_eq!(status, 137);
        end(pid);
    }
}
