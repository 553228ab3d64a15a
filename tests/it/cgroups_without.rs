//! A generation in a cgroup of its own where something of that cannot be had: the rest goes on.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroups::{DAEMON, PLAIN, SHORT, daemon, worker};
use crate::harness::cgroup::Home;
use crate::harness::process::{descriptors, exists};
use crate::harness::{Server, wait_for};

/// As in a kernel before 5.14: all of this generation's cgroup cannot be killed at once.
fn without_kill(home: &Home, generation: u64) {
    let file = format!("/sys/fs/cgroup/generation-{generation}/cgroup.kill");
    home.run(&["mount", "--bind", &file, &file]);
    home.run(&["mount", "-o", "remount,bind,ro", &file]);
}

#[test]
fn where_a_cgroup_cannot_be_killed_its_processes_are() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = home.supervise("", Server::Python(DAEMON), &SHORT).serving();
    without_kill(&home, 1);
    let daemon = daemon(&supervisor);
    assert_eq!(supervisor.reload_and_wait().code(), 1);
    assert!(!exists(daemon));
    supervisor.stopped();
}

// A reload that waits would never end: the cgroup is never empty.
#[test]
fn where_a_cgroup_cannot_be_killed_another_users_process_is_reported_and_left() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = worker(&home);
    without_kill(&home, 1);
    let pid = Pid::from_raw(home.folder.read("worker").parse().unwrap());
    let output = supervisor.reload_and_wait();
    let left = format!("generation 1: process {pid} is another user's and may not be killed: it is left as it is\n");
    assert!(output.stderr.contains(&left), "{output:?}");
    supervisor.wait_gone(1);
    assert_eq!(home.cgroups(), ["generation-1", "generation-2", "supervisor"]);
    assert_eq!(home.processes("generation-1"), [pid]);
    kill(pid, Signal::SIGKILL).unwrap();
    wait_for("it to be gone", || (!exists(pid)).then_some(()));
    supervisor.stopped();
}

#[test]
fn where_no_more_cgroups_may_be_made_a_generation_goes_on_without_one_which_is_logged() {
    let Some(home) = Home::delegated() else { return };
    // The holder's, the leaf, and the first generation's.
    fs::write(home.path("cgroup.max.descendants"), "3").unwrap();
    let supervisor = home.supervise("", Server::Python(PLAIN), &[]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(home.folder.read("in-2"), "/supervisor");
    assert_eq!(home.cgroups(), ["supervisor"]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(home.cgroups(), ["generation-3", "supervisor"]);
    let table = supervisor.table();
    assert_eq!(table[0][6..], ["MEMORY", "CPU"]);
    let log = supervisor.stopped();
    let line = "handoff-run: generation 2: has no cgroup of its own: EAGAIN: Try again\n";
    assert_eq!((log.matches(line).count(), log.matches("cgroup").count()), (1, 1), "{log}");
}

// Somebody who cleans up, when the last process has moved itself out.
#[test]
fn a_cgroup_that_was_removed_is_no_cause_to_spin_or_to_wait() {
    let Some(home) = Home::delegated() else { return };
    let script = "
if gen == '1':
    if os.fork() == 0:
        os.setsid()
        open('/sys/fs/cgroup/beside/cgroup.procs', 'w').write('0')
        signal.signal(signal.SIGTERM, lambda *_: mark('told'))
        mark('worker', str(os.getpid()))
        wait_for('end')
        os._exit(0)
serve()";
    let supervisor = home.supervise("", Server::Python(script), &[]).serving();
    home.folder.read("worker");
    let reload = supervisor.command("--reload", &["--wait"]).start();
    // Its main process has ended then.
    home.folder.read("told");
    home.run(&["rmdir", "/sys/fs/cgroup/generation-1"]);
    // Else poll(2) would report it for ever.
    let events = |pid| descriptors(pid).into_iter().filter(|(_, link)| link.contains("cgroup.events")).count();
    wait_for("its events to be closed", || (events(supervisor.pid) == 1).then_some(()));
    home.folder.open("end");
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.stopped();
}
