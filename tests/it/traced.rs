//! A debugger that holds a process which has ended: to its parent it seems to run, and cannot be waited for.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::harness::process::{exists, stat};
use crate::harness::{Server, skip, supervise, wait_for};
use crate::upgrade_program::{hang, installed};

/// A process that this thread traces.
struct Traced(Pid);

impl Traced {
    /// None where it may not be traced, which is a test less.
    fn seize(pid: Pid) -> Option<Traced> {
        // SAFETY: PTRACE_SEIZE takes integers.
        let seized = Errno::result(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw(), 0, 0) });
        if let Err(errno) = seized {
            skip(&format!("ptrace: {errno}"));
        }
        seized.is_ok().then_some(Traced(pid))
    }

    /// It ends, and is held.
    fn kill(&self) {
        kill(self.0, Signal::SIGKILL).unwrap();
        wait_for("its end", || (stat(self.0)?[0] == "Z").then_some(()));
    }

    /// Let it go.
    fn release(self) {
        wait_for("it to be let go", || (waitpid(self.0, Some(WaitPidFlag::__WALL)) != Err(Errno::EINTR)).then_some(()));
    }
}

/// Clock ticks that a process has run for.
fn ticks(pid: Pid) -> u64 {
    let stat = stat(pid).unwrap();
    stat[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

// The supervisor once spun until the debugger ended, and started nothing.
#[test]
fn a_serving_generation_whose_end_is_held_is_started_again() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let Some(traced) = Traced::seize(supervisor.generation(1)) else { return };
    traced.kill();
    supervisor.wait_log("generation 1: was ended by SIGKILL");
    supervisor.wait_ready(2);
    supervisor.wait_gone(1);
    let before = ticks(supervisor.pid);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
    assert!(ticks(supervisor.pid) - before < 100, "it spins");
    let pid = traced.0;
    traced.release();
    wait_for("it to be reaped", || (!exists(pid)).then_some(()));
}

#[test]
fn a_generation_that_ends_in_a_debugger_has_its_status() {
    // One that forks would be held at the SIGCHLD already.
    let server = Server::Python("os.write(9, b'x')\nwhile not exists('go'): time.sleep(0.01)\nos._exit(7)");
    let supervisor = supervise(server, &["--ready", "fd:9"]).serving();
    let Some(_traced) = Traced::seize(supervisor.generation(1)) else { return };
    supervisor.folder.open("go");
    supervisor.wait_log("generation 1: ended with status 7");
}

#[test]
fn a_check_whose_end_is_held_is_followed_by_another() {
    let check = "check:test -e go || { echo $$ >check.new; mv check.new check; exec sleep 100; }";
    let supervisor = supervise(Server::Directed, &["--ready", check]).start();
    let pid = Pid::from_raw(supervisor.folder.read("check").trim_end().parse().unwrap());
    let Some(traced) = Traced::seize(pid) else { return };
    supervisor.folder.open("go");
    traced.kill();
    supervisor.wait_ready(1);
    assert_eq!(supervisor.stop().failure(), (0, ""));
}

#[test]
fn a_probe_whose_end_is_held_has_failed() {
    let supervisor = installed();
    let sleeper = hang(&supervisor);
    let Some(traced) = Traced::seize(sleeper) else { return };
    traced.kill();
    supervisor.wait_log("this supervisor goes on: it was ended by SIGKILL");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.stop().failure(), (0, ""));
}
