//! `--from` where the processes are each other's kin: what belongs to the one is not taken for the other's.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::by_hand::{ByHand, by_hand};
use crate::harness::client::{Client, ask};
use crate::harness::process::{Left, exists};
use crate::harness::server::settings;
use crate::harness::setup::succeeding;
use crate::harness::{PROGRAM, Server, supervise, wait_for};

/// A process that starts a server, and then becomes handoff-run: `old & exec handoff-run --from $! -- new`, as the entry point
/// of a container does; and the pid of that server.
fn parent_of_server() -> (ByHand, Pid) {
    let code = "
child = os.fork()
if child:
    s.close()
    wait_for('line')
    log = os.open(path('log'), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    line = open(path('line')).read().split('\\n')
    del os.environ['SOCKET']
    os.execv(line[0], line)
signal.alarm(120)
mark('child', str(os.getpid()))
serve()";
    let parent = by_hand(code);
    let child = Pid::from_raw(parent.folder.read("child").parse().unwrap());
    (parent, child)
}

/// It becomes the successor of that server, with these options.
fn succeed(parent: &ByHand, child: Pid, options: &[&str], server: Server) {
    let from = child.to_string();
    let mut line = vec![PROGRAM, "-l", &parent.address, "--from", &from, "--settle", "50ms"];
    line.extend(options);
    let (settings, target) = (settings(&parent.folder), server.install(&parent.folder));
    line.extend(settings.iter().map(String::as_str));
    line.push("--");
    line.extend(target.iter().map(|word| word.to_str().unwrap()));
    parent.folder.write("line", &line.join("\n"));
}

#[test]
fn a_program_that_fails_leaves_the_server_alone_that_its_own_process_had_started() {
    let fails = "sys.exit(7)";
    // What the old one accepts is no sign that this one does.
    let hangs = "time.sleep(100)";
    for (code, options, status) in [
        (fails, &[][..], 7),
        (hangs, &["--ready-timeout", "400ms"], 137),
        (hangs, &["--ready-timeout", "400ms", "--shared"], 137),
    ] {
        let (mut parent, child) = parent_of_server();
        let _left = Left(child);
        succeed(&parent, child, options, Server::Python(code));
        let running = std::mem::replace(&mut parent.running, crate::harness::Run::of("true").start());
        assert_eq!(crate::harness::run::code(running.status()), status, "{}", parent.folder.read("log"));
        let log = parent.folder.read("log");
        assert!(!log.contains(": ready") && !log.contains("left"), "{log}");
        for _ in 0..20 {
            assert_eq!(ask(&parent.address).unwrap().pid, child, "{log}");
        }
    }
}

#[test]
fn the_server_that_its_own_process_had_started_is_told_to_stop_by_its_successor() {
    let (parent, child) = parent_of_server();
    succeed(&parent, child, &[], Server::Python("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nserve()"));
    wait_for("the successor to serve", || (ask(&parent.address).ok()?.pid == parent.pid()).then_some(()));
    wait_for("the old one to end", || (!exists(child)).then_some(()));
    assert_eq!(ask(&parent.address).unwrap().pid, parent.pid());
}

// Some clients once came to its socket, where nobody accepted.
#[test]
fn what_a_program_that_fails_has_started_is_ended_and_gets_no_client() {
    let child = "os.setsid(); signal.alarm(120); mark('child', str(os.getpid())); time.sleep(100)";
    let left_at_once = format!("if os.fork() == 0:\n    {child}\nwait_for('child'); os._exit(7)");
    let orphaned_before = format!(
        "if os.fork() == 0:
    if os.fork() == 0:
        {child}
    os._exit(0)
os.wait(); wait_for('child'); wait_for('go'); os._exit(7)"
    );
    for code in [left_at_once, orphaned_before] {
        let old = by_hand("serve()");
        let new = old.succeed("auto", &[], Server::Python(&code));
        let child = Pid::from_raw(new.folder.read("child").parse().unwrap());
        let _left = Left(child);
        new.folder.open("go");
        let (status, log) = new.end();
        assert_eq!(status, 7);
        assert!(log.contains("and left 1 process"), "{log}");
        for _ in 0..30 {
            assert_eq!(ask(&old.address).unwrap().pid, old.pid(), "{log}");
        }
        wait_for("it to be ended", || (!exists(child)).then_some(()));
    }
}

/// The workers of a master, which is killed.
const MASTER: &str = "
if os.fork() == 0:
    signal.alarm(120)
    mark('worker', str(os.getpid()))
    serve()
while True: signal.pause()";

fn worker_of(old: &ByHand) -> Pid {
    Pid::from_raw(old.folder.read("worker").parse().unwrap())
}

#[test]
fn workers_whose_master_dies_serve_until_the_successor_does() {
    let old = by_hand(MASTER);
    let worker = worker_of(&old);
    let _left = Left(worker);
    let new = old.succeed("auto", &["-v"], Server::Python("mark('up'); wait_for('go')\nserve()"));
    new.folder.read("up");
    old.running.signal(Signal::SIGKILL);
    wait_for("that to be seen", || new.log().contains("its main process has ended").then_some(()));
    for _ in 0..20 {
        assert_eq!(ask(&old.address).unwrap().pid, worker, "{}", new.log());
    }
    new.folder.open("go");
    new.wait_serving(&old.address);
    wait_for("the worker to end", || (!exists(worker)).then_some(()));
    new.wait_alone();
    assert_eq!(ask(&old.address).unwrap().pid, new.pid());
}

#[test]
fn workers_whose_master_dies_serve_on_if_the_successor_fails() {
    for settled in [false, true] {
        let old = by_hand(MASTER);
        let worker = worker_of(&old);
        let _left = Left(worker);
        let code = if settled { "wait_for('go')\nserve()" } else { "mark('up'); wait_for('go'); sys.exit(7)" };
        let new = old.succeed("auto", &["--settle", "60s", "-v"], Server::Python(code));
        let kill_master = || {
            old.running.signal(Signal::SIGKILL);
            wait_for("that to be seen", || new.log().contains("its main process has ended").then_some(()));
        };
        if settled {
            new.folder.open("go");
            new.wait_serving(&old.address);
            kill_master();
            new.running.signal(Signal::SIGKILL);
        } else {
            new.folder.read("up");
            kill_master();
            new.folder.open("go");
        }
        let (_, log) = new.end();
        for _ in 0..20 {
            assert_eq!(ask(&old.address).unwrap().pid, worker, "{log}");
        }
    }
}

#[test]
fn workers_that_die_after_their_master_are_seen_and_who_waits_is_served_by_the_successor() {
    let old = by_hand(MASTER);
    let worker = worker_of(&old);
    let supervisor = succeeding(&old.address, "auto", &[], Server::Python("wait_for('go')\nserve()"));
    let first = supervisor.generation(1);
    old.running.signal(Signal::SIGKILL);
    supervisor.wait_log("its main process has ended, and others of it serve on");
    assert_eq!(ask(&old.address).unwrap().pid, worker);
    kill(worker, Signal::SIGKILL).unwrap();
    supervisor.wait_log("gone");
    let mut waiting = Client::connect(&old.address).unwrap();
    supervisor.folder.open("go");
    assert_eq!(waiting.ask().unwrap().pid, first);
    supervisor.stopped();
}

// As a pipe for its log may have been started with it.
#[test]
fn a_child_that_only_has_the_socket_is_not_taken_to_serve() {
    let code = "
if os.fork() == 0:
    signal.alarm(120)
    mark('child', str(os.getpid()))
    while True: signal.pause()
serve()";
    let old = by_hand(code);
    let child = Pid::from_raw(old.folder.read("child").parse().unwrap());
    let _left = Left(child);
    let supervisor = succeeding(&old.address, "auto", &[], Server::Python("wait_for('go')\nserve()"));
    let first = supervisor.generation(1);
    old.running.signal(Signal::SIGKILL);
    supervisor.wait_log("what was left of it serves no more");
    let mut waiting = Client::connect(&old.address).unwrap();
    supervisor.folder.open("go");
    assert_eq!(waiting.ask().unwrap().pid, first);
    supervisor.stopped();
}

// handoff-run(1), TAKEOVER: "what it leaves serves on".
#[test]
fn the_generation_of_a_lender_that_dies_serves_until_the_successor_does() {
    for fails in [false, true] {
        let old = supervise(Server::Hello, &[]).serving();
        let (address, left) = (old.address(), old.generation(1));
        let _left = Left(left);
        let code = if fails { "wait_for('go'); sys.exit(7)" } else { "wait_for('go')\nserve()" };
        let mut next = succeeding(&address, &old.folder.text("control"), &[], Server::Python(code));
        let first = next.generation(1);
        old.signal(Signal::SIGKILL);
        next.wait_log("its main process has ended, and others of it serve on");
        for _ in 0..20 {
            assert_eq!(ask(&address).unwrap().pid, left, "{}", next.log());
        }
        next.folder.open("go");
        if fails {
            assert_eq!(next.end().0, 7);
            assert_eq!(ask(&address).unwrap().pid, left);
        } else {
            next.wait_ready(1);
            wait_for("the old generation to end", || (!exists(left)).then_some(()));
            assert_eq!(ask(&address).unwrap().pid, first);
            assert_eq!(next.reload_and_wait().failure(), (0, ""));
            next.stopped();
        }
    }
}
