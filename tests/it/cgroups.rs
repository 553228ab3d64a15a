//! A generation in a cgroup of its own, where one is delegated: nothing of it is overlooked, and all of it ends.

use std::fs;
use std::io;
use std::mem;
use std::os::unix::fs::chown;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::economy::sleeps_soundly;
use crate::harness::cgroup::Home;
use crate::harness::facts::done;
use crate::harness::json::flat;
use crate::harness::log::gone;
use crate::harness::process::{Left, exists, stat, status_field};
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, wait_for};

/// Marks its cgroup, first of all, and serves.
pub const PLAIN: &str = "
mark('in-' + gen, open('/proc/self/cgroup').read().split('0::')[1].strip())
held = [f'/proc/self/fd/{number}' for number in os.listdir('/proc/self/fd')]
mark('held-' + gen, ' '.join(os.readlink(link) for link in held if os.path.exists(link)))
serve()";

/// When the gate `leave` opens, the first generation leaves a daemon that nothing leads to: it has no group, parent, environment
/// or socket of the generation, and does not end when it is asked to.
pub const DAEMON: &str = "
import threading
def leave():
    wait_for('leave')
    if os.fork(): return
    os.setsid()
    if os.fork(): os._exit(0)
    os.setsid()
    mark('daemon', str(os.getpid()))
    os.closerange(3, 100)
    code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)'
    os.execve(sys.executable, [sys.executable, '-IS', '-c', code], {})
if gen == '1': threading.Thread(target=leave).start()
serve()";

/// Have the first generation leave that daemon while the supervisor looks away.
pub fn daemon(supervisor: &Supervisor) -> Pid {
    supervisor.signal(Signal::SIGSTOP);
    supervisor.folder.open("leave");
    let pid = Pid::from_raw(supervisor.folder.read("daemon").parse().unwrap());
    let is_orphan = || (stat(pid)?[1] == supervisor.pid.to_string()).then_some(());
    wait_for("the daemon to have another parent", is_orphan);
    wait_for("its environment to be gone", || fs::read(format!("/proc/{pid}/environ")).ok()?.is_empty().then_some(()));
    supervisor.signal(Signal::SIGCONT);
    pid
}

/// The short drain of a daemon that does not end by itself.
pub const SHORT: [&str; 2] = ["--drain-timeout", "300ms"];

// handoff-run(1), CGROUPS: "each generation is in a cgroup of its own beside it".
#[test]
fn each_generation_is_in_a_cgroup_of_its_own_from_the_start_and_it_goes_with_it() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = home.supervise("", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.cgroups(), ["generation-1", "supervisor"]);
    assert_eq!(home.processes("supervisor"), [supervisor.pid]);
    assert_eq!(home.processes("generation-1"), [supervisor.generation(1)]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    for generation in [1, 2] {
        assert_eq!(home.folder.read(&format!("in-{generation}")), format!("/generation-{generation}"));
        assert!(!home.folder.read(&format!("held-{generation}")).contains("cgroup"));
    }
    // One that fails leaves nothing either.
    supervisor.rewrite(Server::Python("sys.exit(3)"));
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_gone(3);
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    supervisor.stopped();
    assert_eq!(home.cgroups(), ["supervisor"]);
}

// handoff-run(1), CGROUPS: "whatever it forks, renames or forgets".
#[test]
fn a_daemon_to_which_nothing_leads_ends_with_its_generation() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = home.supervise("", Server::Python(DAEMON), &SHORT).serving();
    let daemon = daemon(&supervisor);
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
    assert!(output.stdout.ends_with(&format!("generation 1: has not drained in time and is killed\n{}", gone(1))));
    assert!(!exists(daemon));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    supervisor.stopped();
}

// The same where nothing is delegated: it is what such a cgroup is for.
#[test]
fn without_delegation_nothing_is_created_and_all_is_as_it_was() {
    let Some(home) = Home::make() else { return };
    let supervisor = home.supervise("a", Server::Python(DAEMON), &SHORT).serving();
    let daemon = Left(daemon(&supervisor));
    assert_eq!(home.processes("a"), [supervisor.pid, supervisor.generation(1), daemon.0]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(exists(daemon.0));
    assert_eq!(home.cgroups(), ["a"]);
    let status = flat(supervisor.status(&["--json"]).trim_end());
    assert_eq!([&status["generations.0.memory"], &status["generations.0.cpu_time"]], ["None", "None"]);
    let log = supervisor.stopped();
    assert!(!log.contains("cgroup"), "{log}");
}

// handoff-run(1), CGROUPS: "A cgroup is delegated if systemd has marked it".
#[test]
fn a_cgroup_that_is_marked_is_used_and_of_a_subgroup_the_one_that_it_is_in() {
    let Some(home) = Home::make() else { return };
    home.mark("a");
    let supervisor = home.supervise("a", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.cgroups(), ["a", "a/generation-1", "a/supervisor"]);
    supervisor.stopped();
    // DelegateSubgroup=main.
    home.mark("b.service");
    let supervisor = home.supervise("b.service/main", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.processes("b.service/main"), [supervisor.pid]);
    assert_eq!(home.processes("b.service/generation-1"), [supervisor.generation(1)]);
    supervisor.stopped();
    // A unit of the one that b.service may be, a user's systemd: what is beside it is not ours.
    let supervisor = home.supervise("b.service/c.service", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.cgroups(), ["a", "a/supervisor", "b.service", "b.service/c.service", "b.service/main"]);
    supervisor.stopped();
}

// handoff-run(1), CGROUPS: "where the supervisor is pid 1 or started by that". Another's tree may begin there.
#[test]
fn the_root_of_a_container_is_used_by_its_first_process_alone() {
    let Some(home) = Home::make() else { return };
    home.supervise("", Server::Python(PLAIN), &[]).serving().stopped();
    assert_eq!(home.cgroups(), [""; 0]);
    let mut supervisor = home.contain("", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.cgroups(), ["generation-1", "supervisor"]);
    assert_eq!(home.processes("supervisor"), [supervisor.pid]);
    supervisor.upgrade();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    assert_eq!(supervisor.end_by(Signal::SIGTERM).0, 0);
    assert_eq!(home.cgroups(), ["supervisor"]);
}

// handoff-run(1), CGROUPS: "what is wrong is logged once".
#[test]
fn a_cgroup_that_is_delegated_but_read_only_is_not_used_which_is_logged_once() {
    let Some(home) = Home::make() else { return };
    home.mark("a");
    for (name, times) in [("a", 1), ("", 0)] {
        home.run(&["mount", "-o", "remount,bind,ro", "/sys/fs/cgroup"]);
        let supervisor = home.supervise(name, Server::Python(PLAIN), &[]).serving();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        let log = supervisor.stopped();
        let line = "handoff-run: the cgroup is delegated, but cannot be used (EROFS: Read-only file system): ";
        assert_eq!(log.matches(line).count(), times, "{log}");
        assert_eq!(log.matches("cgroup").count(), times, "{log}");
        assert_eq!(home.cgroups(), ["a"]);
    }
}

/// A supervisor that may not signal other users' processes, whose first generation has a worker that becomes one.
pub fn worker(home: &Home) -> Supervisor {
    let script = "
if gen == '1' and os.fork() == 0:
    os.setsid()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark('worker', str(os.getpid()))
    wait_for('never')
if gen == '1': wait_for('worker')
serve()";
    // Capability 5 is CAP_KILL of capabilities(7).
    // SAFETY: this operation takes integers.
    let without_kill = || -> io::Result<()> { done(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, 5, 0, 0, 0) }) };
    chown(&*home.folder, Some(65534), None).unwrap();
    let setup = home.supervise("", Server::Python(script), &SHORT);
    setup.run(|run| run.before_exec(without_kill)).serving()
}

// handoff-run(1), CGROUPS: "also what is frozen, or another user's".
#[test]
fn what_is_frozen_and_another_users_is_killed_at_the_deadline() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = worker(&home);
    let worker = Pid::from_raw(home.folder.read("worker").parse().unwrap());
    assert!(status_field(worker, "Uid").starts_with("65534"));
    fs::write(home.path("generation-1/cgroup.freeze"), "1").unwrap();
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
    assert!(!exists(worker));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    supervisor.stopped();
}

#[test]
fn a_supervisor_that_replaced_itself_knows_the_cgroups_of_its_generations() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = home.supervise("", Server::Python(DAEMON), &SHORT).serving();
    let daemon = daemon(&supervisor);
    let before = supervisor.descriptors(0).len();
    supervisor.upgrade();
    assert_eq!(supervisor.descriptors(0).len(), before);
    assert_eq!(supervisor.reload_and_wait().code(), 1);
    assert!(!exists(daemon));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    assert_eq!(home.processes("generation-2"), [supervisor.generation(2)]);
    supervisor.stopped();
}

// handoff-run(1), CGROUPS: "One that a supervisor left which was killed is not used again while something is in it".
#[test]
fn what_a_killed_supervisor_left_is_left_alone_and_what_is_empty_is_made_anew() {
    let Some(home) = Home::delegated() else { return };
    let mut killed =
        home.supervise("", Server::Python("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()"), &[]).serving();
    let left = Left(killed.generation(1));
    assert_eq!(killed.end_by(Signal::SIGKILL).0, 137);
    home.run(&["mkdir", "-p", "/sys/fs/cgroup/generation-2/below"]);
    fs::write(home.path("generation-2/cgroup.max.depth"), "7").unwrap();
    fs::remove_file(home.folder.path("control")).unwrap();
    let supervisor = home.supervise("supervisor", Server::Python(PLAIN), &[]).serving();
    assert_eq!(home.processes("generation-1"), [left.0]);
    assert_eq!(home.processes("generation-1-2"), [supervisor.generation(1)]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(home.cgroups(), ["generation-1", "generation-2", "supervisor"]);
    assert_eq!(home.processes("generation-2"), [supervisor.generation(2)]);
    assert_eq!(fs::read_to_string(home.path("generation-2/cgroup.max.depth")).unwrap(), "max\n");
    supervisor.stopped();
    assert!(exists(left.0));
}

// handoff-run(1), CGROUPS: "It may make cgroups in its own".
#[test]
fn cgroups_that_a_server_makes_in_its_own_are_a_part_of_it_as_is_a_process_that_moves_itself_out() {
    let Some(home) = Home::delegated() else { return };
    let script = "
def move(cgroup): open(cgroup + '/cgroup.procs', 'w').write('0')
def worker(name, cgroup):
    if os.fork() == 0:
        os.setsid()
        move(cgroup)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mark(name, str(os.getpid()))
        wait_for('never')
own = '/sys/fs/cgroup/generation-' + gen
if gen == '1':
    assert os.getxattr(own, 'user.delegate') == b'1'
    os.makedirs(own + '/one/two')
    worker('inside', own + '/one/two')
    worker('outside', '/sys/fs/cgroup/beside')
serve()";
    let supervisor = home.supervise("", Server::Python(script), &SHORT).serving();
    let [inside, outside] = ["inside", "outside"].map(|name| Pid::from_raw(home.folder.read(name).parse().unwrap()));
    assert_eq!(home.processes("generation-1/one/two"), [inside]);
    assert_eq!(supervisor.reload_and_wait().code(), 1);
    assert!(!exists(inside) && !exists(outside));
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    supervisor.stopped();
}

/// The first generation of a supervisor leaves its cgroup and does this; another supervisor makes one of this name; then the
/// first supervisor stops.
fn beside_another(then: &str, expected: &str) {
    let Some(mut home) = Home::delegated() else { return };
    let script = format!(
        "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open('/sys/fs/cgroup/beside/cgroup.procs', 'w').write('0')
{then}
serve()"
    );
    let supervisor = home.supervise("", Server::Python(&script), &SHORT).serving();
    assert_eq!(home.processes("generation-1"), []);
    let folder = mem::replace(&mut home.folder, Arc::new(Folder::new()));
    let other = home.supervise("supervisor", Server::Hello, &[]).serving();
    home.folder = folder;
    assert_eq!(home.processes(expected), [other.generation(1)]);
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_gone(1);
    assert_eq!(home.cgroups(), [expected, "supervisor"]);
    assert!(exists(other.generation(1)), "{}", other.log());
    other.stopped();
}

// The other one once took its place, and was killed with it.
#[test]
fn a_cgroup_that_another_supervisor_has_is_left_to_it_also_while_nothing_is_in_it() {
    beside_another("", "generation-1-2");
}

// All in it was killed once.
#[test]
fn a_cgroup_of_another_supervisor_that_has_the_name_of_one_that_was_removed_is_left_alone() {
    beside_another("os.rmdir('/sys/fs/cgroup/generation-1')", "generation-1");
}

// A supervisor inside a generation has the cgroup of that delegated.
#[test]
fn a_supervisor_in_a_generation_of_another_has_its_cgroups_in_that_ones() {
    let Some(home) = Home::delegated() else { return };
    let setup = home.supervise("", Server::Python(PLAIN), &[]);
    let inner = [PROGRAM, "--supervise", "--control", &home.folder.text("inner"), "--"];
    let line: Vec<String> =
        inner.into_iter().map(str::to_owned).chain(setup.target_line().split(' ').map(str::to_owned)).collect();
    let supervisor = setup.target(&line).serving();
    let expected = ["generation-1", "generation-1/generation-1", "generation-1/supervisor", "supervisor"];
    assert_eq!(home.cgroups(), expected);
    supervisor.stopped();
    assert_eq!(home.cgroups(), ["supervisor"]);
}

// handoff-run(1), CGROUPS: "The end of what is left is reported by the kernel", also of what is no descendant.
#[test]
fn what_is_left_of_a_generation_is_waited_for_without_a_look() {
    let Some(home) = Home::delegated() else { return };
    let supervisor = home.supervise("", Server::Python(PLAIN), &["--drain-timeout", "1h"]).serving();
    let left = Run::of("env").args(&["--ignore-signal=TERM", "sleep", "100"]).start();
    fs::write(home.path("generation-1/cgroup.procs"), left.pid().to_string()).unwrap();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    wait_for("the main process to end", || (stat(supervisor.generation(1))?[0] == "Z").then_some(()));
    sleeps_soundly(supervisor.pid);
    assert_eq!(supervisor.states(), [(1, "draining".into()), (2, "serving".into())]);
    drop(left);
    supervisor.wait_gone(1);
    assert_eq!(home.cgroups(), ["generation-2", "supervisor"]);
    sleeps_soundly(supervisor.pid);
}

// handoff-run(1), CGROUPS: "--status shows the memory, where the kernel accounts for it, and the time of the processor".
#[test]
fn a_status_shows_what_each_generation_uses() {
    let Some(home) = Home::delegated() else { return };
    let script = "
while gen == '1' and time.process_time() < 0.3: pass
serve()";
    let supervisor = home.supervise("", Server::Python(script), &[]).serving();
    let status = flat(supervisor.status(&["--json"]).trim_end());
    let used: f64 = status["generations.0.cpu_time"].parse().unwrap();
    assert!((0.3..30.0).contains(&used), "{used}");
    // Only where the machine has the controller in this hierarchy.
    let memory = fs::read_to_string(home.path("generation-1/memory.current"));
    assert_eq!(memory.is_ok(), status["generations.0.memory"] != "None");
    let table = supervisor.table();
    assert_eq!(table[0][6..], ["MEMORY", "CPU"]);
    let shown = &table[1][table[1].len() - 3..];
    assert_eq!((shown[0] == "?", &*shown[2]), (memory.is_err(), "s"), "{table:?}");
    supervisor.stopped();
}
