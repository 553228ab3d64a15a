//! As the first process of a PID namespace, as in a container: it reaps, it passes on how all ended, and it stops when
//! it is told to although the kernel spares a first process every signal that it does not handle.

use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::{Answer, ask};
use crate::harness::process::{children, stat};
use crate::harness::setup::{Setup, supervise_in};
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, is_root_to, wait_for};

/// A namespace whose first process is handoff-run with a server in Python on the socket `s` in the folder.
fn contain(folder: &Arc<Folder>, options: &[&str], script: &str) -> Option<Setup> {
    let run = Run::of("unshare").args(&["--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM]);
    let setup = supervise_in(folder, Server::Python(script), options).by_parent(run);
    is_root_to("make a PID namespace").then(|| setup.listen(&format!("unix:{}", folder.text("s"))))
}

/// The same, running.
fn start(options: &[&str], script: &str) -> Option<Supervisor> {
    contain(&Arc::new(Folder::new()), options, script).map(Setup::start)
}

/// How many children of the first process have ended and were not waited for.
fn zombies(container: &Supervisor) -> usize {
    let is_zombie = |fields: &Vec<String>| fields[0] == "Z";
    children(container.pid).into_iter().filter_map(stat).filter(is_zombie).count()
}

/// Three hundred processes that lose their parent at once, some in sessions of their own.
const ORPHANS: &str = "
for count in range(300):
    if os.fork() == 0:
        if os.fork() == 0:
            if count % 3 == 0: os.setsid()
            time.sleep(count % 7 / 100)
        os._exit(0)
    os.wait()
mark('orphaned')
serve()";

#[test]
fn orphans_are_reaped() {
    let Some(mut container) = start(&[], ORPHANS) else { return };
    container.folder.read("orphaned");
    wait_for("no zombies", || (zombies(&container) == 0).then_some(()));
    assert_eq!(container.answer().generation, 1);
    // Reaping them did not cost the generation its place.
    assert!(!container.log().contains("gone"), "{}", container.log());
    assert_eq!(container.end_by(Signal::SIGTERM).0, 0);
}

#[test]
fn term_drains_and_the_namespace_ends_with_0() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), os._exit(0)))\nserve()";
    let Some(mut container) = start(&[], script) else { return };
    container.answer();
    container.signal(Signal::SIGTERM);
    container.folder.read("told");
    container.folder.open("go");
    assert_eq!(container.end().0, 0);
    assert!(!container.folder.path("s").exists());
}

#[test]
fn what_does_not_drain_is_killed_and_the_namespace_ends_with_137() {
    let script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()";
    let options = ["--drain-timeout", "200ms"];
    let Some(mut container) = start(&options, script) else { return };
    container.answer();
    assert_eq!(container.end_by(Signal::SIGTERM).0, 137);
}

#[test]
fn a_first_generation_that_fails_ends_the_namespace_with_its_status() {
    for (script, status) in [("sys.exit(7)", 7), ("sys.exit(0)", 1)] {
        let Some(mut container) = start(&[], script) else { return };
        assert_eq!(container.end().0, status);
    }
}

// A signal from outside the namespace has no sender that could be named inside.
#[test]
fn a_hup_from_outside_reloads_and_one_from_inside_does_too() {
    let script = "import threading\ndef hang_up(): wait_for('served'); os.kill(1, signal.SIGHUP)\n\
                  if gen == '2': threading.Thread(target=hang_up, daemon=True).start()\nserve()";
    let options = ["--ready", "after:300ms"];
    let Some(mut container) = start(&options, script) else { return };
    container.answer();
    container.wait_ready(1);
    container.signal(Signal::SIGHUP);
    container.wait_ready(2);
    container.folder.open("served");
    container.wait_ready(3);
    wait_for("its answer", || (container.answer().generation == 3).then_some(()));
    assert_eq!(container.end_by(Signal::SIGTERM).0, 0);
}

// As docker stop does it: TERM, and KILL for who takes too long.
#[test]
fn killed_while_it_drains_it_takes_everything_along_and_the_same_line_starts_again() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: mark('told'))\nserve()";
    let Some(mut container) = start(&[], script) else { return };
    container.answer();
    container.signal(Signal::SIGTERM);
    container.folder.read("told");
    container.signal(Signal::SIGKILL);
    // What unshare itself makes of a child that was killed differs.
    assert_ne!(container.end().0, 0);
    // The socket's file is all that is left, and nobody answers there.
    assert!(ask(&container.folder.text("s")).is_err());
    let Some(setup) = contain(&container.folder, &[], "serve()") else { return };
    let mut container = setup.start();
    assert_eq!(container.answer().generation, 1);
    assert_eq!(container.end_by(Signal::SIGINT).0, 0);
}

#[test]
fn without_supervise_the_target_is_the_first_process_itself() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))\nserve()";
    let Some(setup) = contain(&Arc::new(Folder::new()), &[], script) else { return };
    let mut container = setup.unsupervised().start();
    assert_eq!(container.answer(), Answer { generation: 1, pid: Pid::from_raw(1) });
    assert_eq!(container.end_by(Signal::SIGTERM).0, 3);
}

#[test]
fn a_server_that_crashes_is_started_again_in_the_same_namespace() {
    let script = "if gen == '1': s.accept(); os.abort()\nserve()";
    let Some(mut container) = start(&[], script) else { return };
    let socket = container.folder.text("s");
    container.wait_ready(1);
    // Whoever comes while it is gone waits in the queue.
    wait_for("generation 2", || (ask(&socket).ok()?.generation == 2).then_some(()));
    assert!(container.log().contains("was ended by SIGABRT"), "{}", container.log());
    assert!(Path::new(&socket).exists());
    assert_eq!(container.end_by(Signal::SIGTERM).0, 0);
}

#[test]
fn what_is_not_started_again_ends_the_namespace_with_its_status() {
    for (how, script, last, status) in [
        ("no", "s.accept()\nsys.exit(int(gen))", 1, 1),
        ("on-failure", "s.accept()\nsys.exit(0)", 1, 0),
        ("on-failure:1", "s.accept()\nsys.exit(int(gen))", 2, 2),
    ] {
        let Some(mut container) = start(&["--restart", how], script) else { return };
        for generation in 1..=last {
            container.wait_ready(generation);
            // It ends instead of an answer.
            ask(&container.folder.text("s")).unwrap_err();
        }
        let (code, log) = container.end();
        assert_eq!(code, status, "{log}");
    }
}
