//! As the first process of a PID namespace, as in a container: it reaps, it passes on how all ended, and it stops when
//! it is told to although the kernel spares a first process every signal that it does not handle.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::{Folder, Output, PROGRAM, Run, Running, skip, wait_for};
use crate::python::{allow, ask, marked, server, try_ask};

/// A namespace whose first process is handoff-run with a server on the socket `s` in the folder.
struct Container {
    folder: Folder,
    unshare: Running,
    /// Of its first process, out here.
    first: Pid,
}

impl Container {
    fn start(folder: Folder, options: &[&str], script: &str) -> Option<Container> {
        if !geteuid().is_root() {
            skip("a PID namespace needs root");
            return None;
        }
        let listen = format!("unix:{}", folder.text("s"));
        let log = fs::File::create(folder.path("log")).unwrap();
        let run = Run::of("unshare").args(&["--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM, "-l", &listen]);
        let unshare = run.args(options).args(&["--"]).args(&server(&folder, script)).stderr(log).start();
        let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
        let first = wait_for("the first process", || {
            fs::read_to_string(&children).ok()?.split_ascii_whitespace().next()?.parse().ok()
        });
        Some(Container { folder, unshare, first: Pid::from_raw(first) })
    }

    fn ask(&self) -> (u64, i32) {
        ask(&self.folder.path("s"))
    }

    fn signal(&self, signal: Signal) {
        kill(self.first, signal).unwrap();
    }

    /// What unshare makes of how the first process ended.
    fn output(self) -> (Folder, Output) {
        (self.folder, self.unshare.output())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap()
    }

    /// How many children of the first process have ended and were not waited for.
    fn zombies(&self) -> usize {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.first)).unwrap();
        let is_zombie = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"))
        };
        children.split_ascii_whitespace().filter(is_zombie).count()
    }
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
    let Some(container) = Container::start(Folder::new(), &["--supervise"], ORPHANS) else { return };
    marked(&container.folder, "orphaned");
    wait_for("no zombies", || (container.zombies() == 0).then_some(()));
    assert_eq!(container.ask().0, 1);
    // Reaping them did not cost the generation its place.
    assert!(!container.log().contains("gone"), "{}", container.log());
    container.signal(Signal::SIGTERM);
    assert_eq!(container.output().1.code(), 0);
}

#[test]
fn term_drains_and_the_namespace_ends_with_0() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), os._exit(0)))\nserve()";
    let Some(container) = Container::start(Folder::new(), &["--supervise"], script) else { return };
    container.ask();
    container.signal(Signal::SIGTERM);
    marked(&container.folder, "told");
    allow(&container.folder, "go");
    let (folder, output) = container.output();
    assert_eq!(output.code(), 0);
    assert!(!folder.path("s").exists());
}

#[test]
fn what_does_not_drain_is_killed_and_the_namespace_ends_with_137() {
    let script = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve()";
    let options = ["--supervise", "--drain-timeout", "200ms"];
    let Some(container) = Container::start(Folder::new(), &options, script) else { return };
    container.ask();
    container.signal(Signal::SIGTERM);
    assert_eq!(container.output().1.code(), 137);
}

#[test]
fn a_first_generation_that_fails_ends_the_namespace_with_its_status() {
    let Some(container) = Container::start(Folder::new(), &["--supervise"], "sys.exit(7)") else { return };
    assert_eq!(container.output().1.code(), 7);
}

// A signal from outside the namespace has no sender that could be named inside.
#[test]
fn a_hup_from_outside_reloads_and_one_from_inside_does_too() {
    let script = "if gen == '2': wait_for('served'); os.kill(1, signal.SIGHUP)\nserve()";
    let options = ["--supervise", "--ready", "after:300ms"];
    let Some(container) = Container::start(Folder::new(), &options, script) else { return };
    container.ask();
    wait_for("generation 1", || container.log().contains("generation 1: ready").then_some(()));
    container.signal(Signal::SIGHUP);
    wait_for("generation 2", || container.log().contains("generation 2: ready").then_some(()));
    allow(&container.folder, "served");
    wait_for("generation 3", || container.log().contains("generation 3: ready").then_some(()));
    wait_for("its answer", || (container.ask().0 == 3).then_some(()));
    container.signal(Signal::SIGTERM);
    assert_eq!(container.output().1.code(), 0);
}

// As docker stop does it: TERM, and KILL for who takes too long.
#[test]
fn killed_while_it_drains_it_takes_everything_along_and_the_same_line_starts_again() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: mark('told'))\nserve()";
    let Some(container) = Container::start(Folder::new(), &["--supervise"], script) else { return };
    container.ask();
    container.signal(Signal::SIGTERM);
    marked(&container.folder, "told");
    container.signal(Signal::SIGKILL);
    let (folder, output) = container.output();
    // What unshare itself makes of a child that was killed differs.
    assert_ne!(output.code(), 0);
    // The socket's file is all that is left, and nobody answers there.
    assert_eq!(try_ask(&folder.path("s")), None);
    let Some(container) = Container::start(folder, &["--supervise"], "serve()") else { return };
    assert_eq!(container.ask().0, 1);
    container.signal(Signal::SIGINT);
    assert_eq!(container.output().1.code(), 0);
}

#[test]
fn without_supervise_the_target_is_the_first_process_itself() {
    let script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))\nserve()";
    let Some(container) = Container::start(Folder::new(), &[], script) else { return };
    assert_eq!(container.ask(), (1, 1));
    container.signal(Signal::SIGTERM);
    assert_eq!(container.output().1.code(), 3);
}

#[test]
fn a_server_that_crashes_is_started_again_in_the_same_namespace() {
    let script = "if gen == '1': s.accept(); os.abort()\nserve()";
    let Some(container) = Container::start(Folder::new(), &["--supervise"], script) else { return };
    let socket = container.folder.path("s");
    wait_for("generation 1", || container.log().contains("generation 1: ready").then_some(()));
    // Whoever comes while it is gone waits in the queue.
    wait_for("generation 2", || (try_ask(&socket)?.0 == 2).then_some(()));
    assert!(container.log().contains("was ended by SIGABRT"), "{}", container.log());
    assert!(Path::new(&socket).exists());
    container.signal(Signal::SIGTERM);
    assert_eq!(container.output().1.code(), 0);
}
