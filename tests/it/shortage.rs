//! Where descriptors run out while generations end: an end is seen all the same.

use std::fs;
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{descriptors, stat};
use crate::harness::{Server, Supervisor, log, supervise, wait_for};

/// Give a running process this limit of open files, and return the one it had.
fn limit(pid: Pid, files: u64) -> u64 {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes limits, which live through the calls.
    let done = unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, ptr::null(), &raw mut old) };
    Errno::result(done).unwrap();
    let new = libc::rlimit { rlim_cur: files, ..old };
    // SAFETY: as above.
    Errno::result(unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_NOFILE, &raw const new, ptr::null_mut()) })
        .unwrap();
    old.rlim_cur
}

/// The lowest limit that leaves poll(2) all it needs, and room for nothing more.
fn fill(supervisor: &Supervisor) -> u64 {
    let numbers: Vec<u64> = descriptors(supervisor.pid).into_iter().map(|(number, _)| number as u64).collect();
    let free = (0..).find(|number| !numbers.contains(number)).unwrap();
    limit(supervisor.pid, free)
}

/// Generation 1 leaves a process behind that ends when the file `over` is there, and notes its pid.
const REMAINDER: &str = "
if gen == '1' and os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark('worker', str(os.getpid()))
    wait_for('over')
    os._exit(0)
serve()";

// It was once said to be killed, at the deadline.
#[test]
fn what_ends_while_there_is_no_descriptor_to_read_proc_is_gone() {
    let supervisor = supervise(Server::Python(REMAINDER), &[]).serving();
    let worker = Pid::from_raw(supervisor.folder.read("worker").parse().unwrap());
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_draining(1);
    let main = supervisor.generation(1);
    wait_for("the main process to end", || stat(main).is_none_or(|stat| stat[0] == "Z").then_some(()));
    // The client is connected, and the worker known, when it answers.
    supervisor.table();
    let before = fill(&supervisor);
    supervisor.folder.open("over");
    wait_for("the worker to be reaped", || (!fs::exists(format!("/proc/{worker}")).unwrap()).then_some(()));
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.wait_gone(1);
    limit(supervisor.pid, before);
    assert!(!supervisor.log().contains("is killed"), "{}", supervisor.log());
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
}

// poll(2) refuses a table that is longer than the limit.
#[test]
fn what_ends_while_poll_fails_is_seen() {
    for options in [&[][..], &["--ready", "fd:9", "--env", "TELLS=9"]] {
        let supervisor = supervise(Server::Directed, options).serving();
        supervisor.table();
        let before = limit(supervisor.pid, 1);
        kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
        supervisor.wait_log("generation 1: was ended by SIGKILL");
        supervisor.wait_gone(1);
        limit(supervisor.pid, before);
        supervisor.wait_line(|log| log.contains("ready after").then_some(()), "a start");
        let ready = |log: &str| log.rfind("ready after") > log.rfind("generation 1: gone");
        supervisor.wait_line(|log| ready(log).then_some(()), "another start");
        assert_eq!(supervisor.reload().failure(), (0, ""));
    }
}

/// While poll(2) fails every source is woken, and what has nothing to say stays open.
#[test]
fn a_generation_gets_ready_by_its_pipe_after_poll_has_failed() {
    let supervisor = supervise(Server::Directed, &["--ready", "fd:9", "--env", "TELLS=9"]);
    supervisor.folder.close_gate();
    let supervisor = supervisor.start();
    supervisor.generation(1);
    let before = limit(supervisor.pid, 1);
    // It still receives what a signal asks for.
    supervisor.signal(Signal::SIGUSR2);
    supervisor.wait_log("cannot take over, this supervisor goes on");
    limit(supervisor.pid, before);
    supervisor.folder.open_gate();
    supervisor.wait_log(&log::ready(1));
}
