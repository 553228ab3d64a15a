//! Where /proc shows less than usual, or is not there at all, a supervisor still does its work.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::{Folder, Output, PROGRAM, Run, Running, skip, wait_for};
use crate::python::{allow, ask, marked, server};

/// /proc in which each user sees his own processes only, for a user that is not root.
const HIDDEN: &str = "mount -t proc -o hidepid=2 proc /proc
exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
/// No /proc.
const NONE: &str = "mount -t tmpfs tmpfs /proc && exec \"$@\"";

/// A supervisor whose /proc is as `mount` leaves it, with a server on the socket `s` in the folder.
struct Service {
    folder: Folder,
    running: Running,
}

impl Service {
    fn start(mount: &str, options: &[&str], script: &str) -> Option<Service> {
        if !geteuid().is_root() {
            skip("to mount /proc needs root");
            return None;
        }
        let folder = Folder::new();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        // Where it was built, another user may not go.
        fs::copy(PROGRAM, folder.path("handoff-run")).unwrap();
        let listen = format!("unix:{}", folder.text("s"));
        let program = folder.text("handoff-run");
        let run = Run::of("unshare").args(&["--mount", "sh", "-ec", mount, "sh", &program, "-v", "--supervise", "-l"]);
        let run = run.args(&[listen.as_str()]).args(options).args(&["--"]).args(&server(&folder, script));
        let running = run.stderr(File::create(folder.path("log")).unwrap()).start();
        Some(Service { folder, running })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path("log")).unwrap()
    }

    fn wait_for_log(&self, text: &str) {
        wait_for(text, || self.log().contains(text).then_some(()));
    }

    /// Which generation answers.
    fn generation(&self) -> u64 {
        ask(&self.folder.path("s")).0
    }

    fn stop(self) -> Output {
        self.running.signal(Signal::SIGTERM);
        self.running.output()
    }
}

#[test]
fn with_hidepid_a_server_is_seen_accepting_and_rolled() {
    let Some(service) = Service::start(HIDDEN, &[], "serve()") else { return };
    assert_eq!(service.generation(), 1);
    service.running.signal(Signal::SIGHUP);
    service.wait_for_log("generation 1: gone");
    assert_eq!(service.generation(), 2);
    assert!(!service.log().contains("/proc"), "{}", service.log());
    assert_eq!(service.stop().code(), 0);
}

/// A server that /proc hides, as one that changed its user.
const UNSEEN: &str = "
import ctypes
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
mark('unseen'); wait_for('go'); say('READY=1'); serve()";

// handoff-run(1): "auto: it is seen waiting on every socket, or where that cannot be seen, says READY=1".
#[test]
fn a_server_that_hidepid_hides_is_ready_when_it_says_so_and_is_drained() {
    let Some(service) = Service::start(HIDDEN, &[], UNSEEN) else { return };
    marked(&service.folder, "unseen");
    service.wait_for_log("so whether it accepts cannot be seen");
    allow(&service.folder, "go");
    service.wait_for_log("generation 1: ready");
    service.running.signal(Signal::SIGHUP);
    service.wait_for_log("generation 1: gone");
    assert_eq!(service.generation(), 2);
    assert_eq!(service.stop().code(), 0);
}

#[test]
fn a_server_that_hidepid_hides_and_that_crashes_is_started_again() {
    let script = format!("if gen == '1': mark('pid', str(os.getpid()))\n{UNSEEN}");
    let Some(service) = Service::start(HIDDEN, &["--ready", "after:200ms"], &script) else { return };
    let pid = marked(&service.folder, "pid");
    service.wait_for_log("generation 1: ready");
    marked(&service.folder, "unseen");
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    service.wait_for_log("generation 1: gone");
    service.wait_for_log("generation 2: ready");
    assert_eq!(service.stop().code(), 0);
}

// Without /proc no generation was ever found to be gone, so that nothing ended.
#[test]
fn without_proc_generations_are_rolled_and_drained_and_it_says_once_what_is_missing() {
    let Some(service) = Service::start(NONE, &[], "say('READY=1'); serve()") else { return };
    service.wait_for_log("generation 1: ready");
    service.running.signal(Signal::SIGHUP);
    service.wait_for_log("generation 1: gone");
    assert_eq!(service.generation(), 2);
    let log = service.log();
    assert_eq!(log.matches("/proc cannot be read").count(), 1, "{log}");
    assert!(!log.contains("connections"), "{log}");
    assert_eq!(service.stop().code(), 0);
}

#[test]
fn without_proc_a_failed_deploy_leaves_the_old_generation_and_a_crash_is_followed_by_a_restart() {
    let script = "
if gen == '2': sys.exit(3)
if gen == '1': mark('pid', str(os.getpid()))
if os.fork() == 0: time.sleep(100)
say('READY=1'); serve()";
    let Some(service) = Service::start(NONE, &[], script) else { return };
    service.wait_for_log("generation 1: ready");
    service.running.signal(Signal::SIGHUP);
    service.wait_for_log("generation 2: gone");
    assert_eq!(service.generation(), 1);
    let pid = marked(&service.folder, "pid");
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    service.wait_for_log("generation 3: ready");
    assert_eq!(service.generation(), 3);
    assert_eq!(service.stop().code(), 0);
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
    let Some(service) = Service::start(NONE, &["--ready", "after:1ms"], script) else { return };
    marked(&service.folder, "orphaned");
    let children = format!("/proc/{0}/task/{0}/children", service.running.pid());
    wait_for("nothing but the server", || {
        (fs::read_to_string(&children).unwrap().split_ascii_whitespace().count() == 1).then_some(())
    });
    assert_eq!(service.generation(), 1);
    assert_eq!(service.stop().code(), 0);
}
