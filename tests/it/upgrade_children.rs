//! SIGUSR2: no process of a generation is forgotten, and none of the supervisor's own is left behind.

use std::fs;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::{children, exists, stat};
use crate::harness::{Folder, PROGRAM, Run, Server, is_root_to, supervise, wait_for};
use crate::straits::leave_proc;
use crate::upgrade_program::{install, running};

/// The program by a script that is slow to become it, once it may not refuse any more, and tells that by a file.
fn slow(folder: &Folder) -> String {
    let [taking, gate] = ["taking", "gate"].map(|name| folder.text(name));
    format!(
        "#!/bin/sh\ncase $HANDOFF_STATE in take:*) : >{taking}; while test ! -e {gate}; do sleep 0.01; done;; esac\n\
         exec {PROGRAM} \"$@\"\n"
    )
}

// The kernel forgets a SIGCHLD that is pending when its disposition is set, even to the one that it has.
#[test]
fn a_process_that_ends_while_the_supervisor_becomes_another_is_noticed() {
    let script = "
if gen == '1' and os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark('worker', str(os.getpid()))
    wait_for('over')
    os._exit(0)
serve()";
    let supervisor = supervise(Server::Python(script), &[]);
    let program = supervisor.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let supervisor = supervisor.by(Run::of(&program)).serving();
    let folder = supervisor.folder.clone();
    let worker = Pid::from_raw(folder.read("worker").parse().unwrap());
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 1: draining");
    wait_for("the main process to end", || {
        stat(supervisor.generation(1)).is_none_or(|stat| stat[0] == "Z").then_some(())
    });
    install(&program, slow(&folder).as_bytes());
    supervisor.signal(Signal::SIGUSR2);
    folder.read("taking");
    folder.open("over");
    wait_for("the worker to end", || stat(worker).is_none_or(|stat| stat[0] == "Z").then_some(()));
    folder.open("gate");
    assert_eq!(reload.output().failure(), (0, ""));
    supervisor.wait_gone(1);
}

// It left its group and its parent, and is known because it was seen before it overwrote its environment.
#[test]
fn a_daemon_without_an_environment_is_not_forgotten() {
    let script = "
if os.environ.get('DAEMON'):
    mark('daemon', str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    wait_for('never')
if gen == '1' and os.fork() == 0:
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
    mark('forked')
    wait_for('known')
    again = {name: os.environ[name] for name in ('GENERATION', 'FOLDER')}
    os.execve(sys.executable, [sys.executable, '-IS', sys.argv[0]], dict(again, DAEMON='1'))
serve()";
    for upgrades in [0, 1, 2] {
        let supervisor = supervise(Server::Python(script), &[]).serving();
        supervisor.folder.read("forked");
        supervisor.table();
        supervisor.folder.open("known");
        let daemon = Pid::from_raw(supervisor.folder.read("daemon").parse().unwrap());
        for _ in 0..upgrades {
            supervisor.upgrade();
        }
        assert!(exists(daemon));
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert!(!exists(daemon), "{upgrades}");
    }
}

/// What a check command notes of itself.
const CHECK: &str = "check:echo $$ >check.new; mv check.new check; sleep 100";

#[test]
fn a_check_does_not_outlive_the_supervisor_s_program() {
    let supervisor = supervise(Server::Directed, &["--ready", CHECK]).start();
    let folder = supervisor.folder.clone();
    let check = || Pid::from_raw(folder.read("check").trim_end().parse().unwrap());
    let first = check();
    let its = children(first);
    supervisor.upgrade();
    wait_for("the check to be gone", || (!exists(first) && !its.iter().any(|pid| exists(*pid))).then_some(()));
    wait_for("another check", || (check() != first).then_some(()));
    assert_eq!(supervisor.stop().code(), 0);
}

#[test]
fn a_check_does_not_outlive_a_supervisor_that_is_killed() {
    let supervisor = supervise(Server::Directed, &["--ready", CHECK]).start();
    let check = Pid::from_raw(supervisor.folder.read("check").trim_end().parse().unwrap());
    let generation = supervisor.generation(1);
    supervisor.signal(Signal::SIGKILL);
    wait_for("the check to end", || stat(check).is_none_or(|stat| stat[0] == "Z").then_some(()));
    kill(generation, Signal::SIGKILL).unwrap();
}

/// By the name that it was started with, and by any other.
#[test]
fn without_proc_the_program_is_known_by_its_path() {
    if !is_root_to("unmount /proc") {
        return;
    }
    for named in ["as it is", "otherwise"] {
        let setup = supervise(Server::Directed, &["--ready", "after:10ms"]).target(&["sleep", "100"]);
        let program = setup.folder.path("program");
        install(&program, &fs::read(PROGRAM).unwrap());
        let run = match named {
            "otherwise" => Run::of("bash").args(&["-c", "exec -a another ./program \"$@\"", "-"]),
            _ => Run::of(&program),
        };
        let supervisor = setup.by(run).run(|run| run.before_exec(|| -> io::Result<()> { leave_proc() })).serving();
        install(&program, &fs::read(PROGRAM).unwrap());
        supervisor.upgrade();
        assert_eq!(running(supervisor.pid), running_of(&program), "{named}");
        assert_eq!(supervisor.stop().failure(), (0, ""));
    }
}

fn running_of(program: &std::path::Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(program).unwrap())
}
