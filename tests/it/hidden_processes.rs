//! Where /proc shows less than usual, or is not there at all, a supervisor still does its work.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::process::children;
use crate::harness::run::copy_program;
use crate::harness::{PROGRAM, Run, Server, Supervisor, is_root_to, supervise, wait_for};

/// /proc in which each user sees his own processes only, for a user that is not root.
const HIDDEN: &str = "mount -t proc -o hidepid=2 proc /proc
exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
/// No /proc.
const NONE: &str = "mount -t tmpfs tmpfs /proc && exec \"$@\"";

/// A supervisor of a server in Python whose /proc is as `mount` leaves it.
fn start(mount: &str, options: &[&str], script: &str) -> Option<Supervisor> {
    if !is_root_to("mount /proc") {
        return None;
    }
    let setup = supervise(Server::Python(script), options).options(&["-v"]);
    fs::set_permissions(&*setup.folder, Permissions::from_mode(0o777)).unwrap();
    // Where it was built, another user may not go.
    let program = setup.folder.text("handoff-run");
    copy_program(PROGRAM, &program);
    let run = Run::of("unshare").args(&["--mount", "sh", "-ec", mount, "sh", &program]);
    Some(setup.by(run).start())
}

#[test]
fn with_hidepid_a_server_is_seen_accepting_and_rolled() {
    let Some(mut service) = start(HIDDEN, &[], "serve()") else { return };
    assert_eq!(service.answer().generation, 1);
    service.signal(Signal::SIGHUP);
    service.wait_gone(1);
    assert_eq!(service.answer().generation, 2);
    assert!(!service.log().contains("/proc"), "{}", service.log());
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

/// A server that /proc hides, as one that changed its user.
const UNSEEN: &str = "
import ctypes
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
mark('unseen'); wait_for('go'); say('READY=1'); serve()";

// handoff-run(1): "auto: it is seen waiting on every socket, or where that cannot be seen, sends READY=1".
#[test]
fn a_server_that_hidepid_hides_is_ready_when_it_says_so_and_is_drained() {
    let Some(mut service) = start(HIDDEN, &[], UNSEEN) else { return };
    service.folder.read("unseen");
    service.wait_log("so whether it accepts cannot be seen");
    service.folder.open("go");
    service.wait_ready(1);
    service.signal(Signal::SIGHUP);
    service.wait_gone(1);
    assert_eq!(service.answer().generation, 2);
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

#[test]
fn a_server_that_hidepid_hides_and_that_crashes_is_started_again() {
    let script = format!("if gen == '1': mark('pid', str(os.getpid()))\n{UNSEEN}");
    let Some(mut service) = start(HIDDEN, &["--ready", "after:200ms"], &script) else { return };
    let pid = service.folder.read("pid");
    service.wait_ready(1);
    service.folder.read("unseen");
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    service.wait_gone(1);
    service.wait_ready(2);
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

// Without /proc no generation was ever found to be gone, so that nothing ended.
#[test]
fn without_proc_generations_are_rolled_and_drained_and_it_says_once_what_is_missing() {
    let Some(mut service) = start(NONE, &[], "say('READY=1'); serve()") else { return };
    service.wait_ready(1);
    service.signal(Signal::SIGHUP);
    service.wait_gone(1);
    assert_eq!(service.answer().generation, 2);
    let log = service.log();
    assert_eq!(log.matches("/proc cannot be read").count(), 1, "{log}");
    assert!(!log.contains("connections"), "{log}");
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

#[test]
fn without_proc_a_failed_deploy_leaves_the_old_generation_and_a_crash_is_followed_by_a_restart() {
    let script = "
if gen == '2': sys.exit(3)
if gen == '1': mark('pid', str(os.getpid()))
if os.fork() == 0: time.sleep(100)
say('READY=1'); serve()";
    let Some(mut service) = start(NONE, &[], script) else { return };
    service.wait_ready(1);
    service.signal(Signal::SIGHUP);
    service.wait_gone(2);
    assert_eq!(service.answer().generation, 1);
    let pid = service.folder.read("pid");
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    service.wait_ready(3);
    assert_eq!(service.answer().generation, 3);
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

// As `unshare --pid --fork` leaves it. Other processes were taken for its own, for they have the same numbers there.
#[test]
fn with_the_proc_of_another_pid_namespace_it_does_as_without() {
    if !is_root_to("make a PID namespace") {
        return;
    }
    let run = Run::of("unshare").args(&["--pid", "--fork", "--kill-child", PROGRAM]);
    let setup = supervise(Server::Python("say('READY=1'); serve()"), &[]).by_parent(run);
    let path = setup.folder.text("s");
    let mut service = setup.listen(&format!("unix:{path}")).start();
    service.wait_ready(1);
    assert!(service.status(&["--json"]).contains("\"connections\":null"), "{}", service.log());
    assert_eq!(service.reload_and_wait().failure(), (0, ""), "{}", service.log());
    assert_eq!(service.answer().generation, 2);
    let log = service.log();
    assert_eq!(log.matches("/proc cannot be read (it is of another PID namespace)").count(), 1, "{log}");
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}

// Children that nobody can list are reaped all the same.
#[test]
fn without_proc_orphans_are_reaped() {
    let script = "
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0: time.sleep(0.05)
        os._exit(0)
    os.wait()
mark('orphaned'); serve()";
    let Some(mut service) = start(NONE, &["--ready", "after:1ms"], script) else { return };
    service.folder.read("orphaned");
    wait_for("nothing but the server", || (children(service.pid).len() == 1).then_some(()));
    assert_eq!(service.answer().generation, 1);
    assert_eq!(service.end_by(Signal::SIGTERM).0, 0);
}
