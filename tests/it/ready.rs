//! --ready: each way to tell that a generation serves, and that nothing else tells it.

use std::fs;

use nix::unistd::Pid;

use crate::harness::{handoff_run_with, skip, wait_for};
use crate::supervisor::{exists, python, supervise, supervise_python, supervise_script};

/// Python that waits until the test wants it to get ready.
const WAIT: &str = "
def tell():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:])
    s.send(b'READY=1')
def wait():
    write('begun', '')
    while not os.path.exists('go'): time.sleep(0.005)
def later(act):
    def run():
        wait()
        act()
    threading.Thread(target=run, daemon=True).start()
";

/// The generation is looked at for long enough, and is ready only after `go`.
#[track_caller]
fn is_ready_only_when_told(how: &str, code: &str) {
    let Some(python) = python() else { return skip("there is no python3") };
    let mut supervisor = supervise_python(&python, &["--ready", how, "-vv"], &format!("{WAIT}{code}")).start();
    supervisor.read("begun");
    // Until the supervisor has had many occasions to be wrong: it answers, and has waited for its looks in between.
    for _ in 0..20 {
        assert!(supervisor.status().contains(" starting "), "{how}: {}", supervisor.log());
    }
    fs::write(supervisor.folder().path("go"), "").unwrap();
    supervisor.wait_log("generation 1: ready after ");
    supervisor.stopped();
}

// handoff-run(1), --ready: "auto: it is seen waiting on every socket".
#[test]
fn auto_means_that_it_waits_on_the_socket() {
    is_ready_only_when_told("auto", "wait()\nserve(ours())");
}

#[test]
fn auto_does_not_believe_ready_1_where_it_can_see() {
    is_ready_only_when_told("auto", "tell()\nwait()\nserve(ours())");
}

#[test]
fn accepting_means_that_it_waits_on_the_socket() {
    is_ready_only_when_told("accepting", "tell()\nwait()\nserve(ours())");
}

// "notify: it says READY=1 and, where that can be seen, waits on every socket."
#[test]
fn notify_needs_ready_1() {
    is_ready_only_when_told("notify", "later(tell)\nserve(ours())");
}

#[test]
fn notify_needs_the_wait_on_the_socket_too() {
    is_ready_only_when_told("notify", "tell()\nwait()\nserve(ours())");
}

// "fd:N: it writes a byte to descriptor N."
#[test]
fn a_byte_on_a_descriptor_tells() {
    is_ready_only_when_told("fd:9", "later(lambda: os.write(9, b'\\n'))\nserve(ours())");
}

// "check:COMMAND: the command, run by sh, ends with status 0."
#[test]
fn a_check_tells() {
    is_ready_only_when_told("check:test -e go && kill -0 $MAINPID", "write('begun', '')\nserve(ours())");
}

// "after:DURATION: that time is over."
#[test]
fn time_tells() {
    let mut supervisor = supervise(&["--ready", "after:150ms"]).target(&["sleep", "1000"]).start();
    supervisor.wait_log("generation 1: ready after ");
    let log = supervisor.log();
    let (_, rest) = log.split_once("ready after ").unwrap();
    let after: f64 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!((0.15..5.0).contains(&after), "{log}");
    supervisor.stopped();
}

#[test]
fn a_descriptor_that_is_closed_without_a_byte_tells_nothing() {
    let Some(python) = python() else { return skip("there is no python3") };
    let options = ["--ready", "fd:9", "--ready-timeout", "1s"];
    let mut supervisor = supervise_python(&python, &options, "os.close(9)\nserve(ours())").start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 137, "{log}");
    assert!(log.contains("generation 1: was not ready after 1.00 s and is killed\n"), "{log}");
}

#[test]
fn all_sockets_have_to_be_waited_on() {
    let Some(python) = python() else { return skip("there is no python3") };
    let code = "
threading.Thread(target=lambda: select.select([3], [], [])).start()
write('begun', '')
while not os.path.exists('go'): time.sleep(0.005)
select.select([4], [], [])";
    let mut supervisor = supervise_python(&python, &["-l", "127.0.0.1:0"], code).start();
    supervisor.read("begun");
    for _ in 0..10 {
        assert!(supervisor.status().contains(" starting "));
    }
    fs::write(supervisor.folder().path("go"), "").unwrap();
    supervisor.wait_log("generation 1: ready after ");
    supervisor.stopped();
}

// handoff-run(1), --ready: "fd:N: it writes a byte to descriptor N", whatever number the pipe has in the supervisor. Once
// dup2(2) of the number to itself left it close-on-exec.
#[test]
fn the_readiness_descriptor_is_open_at_every_number() {
    for number in 4..=9 {
        let how = format!("fd:{number}");
        let mut supervisor = supervise_script(&["--ready", &how], &format!("echo >&{number}; exec sleep 100")).start();
        supervisor.wait_log("generation 1: ready after ");
        supervisor.stopped();
    }
}

#[test]
fn a_readiness_descriptor_must_not_take_the_place_of_a_socket() {
    let output =
        handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--supervise", "--ready", "fd:3", "--", "true"]).output();
    let message = "handoff-run: --ready fd:3 is the number of a descriptor that the program has already\n";
    assert_eq!(output.failure(), (125, message));
}

// What a check started once outlived it.
#[test]
fn whatever_a_hanging_check_started_ends_with_it() {
    let options = ["--ready", "check:sleep 100 & echo $! > c; mv c check; wait", "--ready-timeout", "300ms"];
    let mut supervisor = supervise_script(&options, "exec sleep 100").start();
    let sleep: i32 = supervisor.read("check").trim().parse().unwrap();
    supervisor.end();
    wait_for("the check's child to end", || (!exists(Pid::from_raw(sleep))).then_some(()));
}
