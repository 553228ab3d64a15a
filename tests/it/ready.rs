//! --ready: each way to tell that a generation serves, and that nothing else tells it.

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::process::exists;
use crate::harness::{Server, handoff_run_with, supervise, wait_for};

/// Python that waits until the test wants it to get ready.
const WAIT: &str = "
import threading
def tell(): say('READY=1')
def wait(): mark('begun'); wait_for('go')
def later(act):
    def run():
        wait()
        act()
    threading.Thread(target=run, daemon=True).start()
";

/// The generation is looked at for long enough, and is ready only after `go`.
#[track_caller]
fn is_ready_only_when_told(how: &str, code: &str) {
    let supervisor = supervise(Server::Python(&format!("{WAIT}{code}")), &["--ready", how, "-vv"]).start();
    supervisor.folder.read("begun");
    supervisor.assert_keeps_starting(1);
    supervisor.folder.open("go");
    supervisor.wait_ready(1);
    supervisor.stopped();
}

// handoff-run(1), --ready: "auto: it is seen waiting on every socket".
#[test]
fn auto_means_that_it_waits_on_the_socket() {
    is_ready_only_when_told("auto", "wait()\nserve()");
}

#[test]
fn auto_does_not_believe_ready_1_where_it_can_see() {
    is_ready_only_when_told("auto", "tell()\nwait()\nserve()");
}

#[test]
fn accepting_means_that_it_waits_on_the_socket() {
    is_ready_only_when_told("accepting", "tell()\nwait()\nserve()");
}

// "notify: it sends READY=1 and, where that can be seen, waits on every socket."
#[test]
fn notify_needs_ready_1() {
    is_ready_only_when_told("notify", "later(tell)\nserve()");
}

#[test]
fn notify_needs_the_wait_on_the_socket_too() {
    is_ready_only_when_told("notify", "tell()\nwait()\nserve()");
}

// "fd:N: it writes a byte to descriptor N."
#[test]
fn a_byte_on_a_descriptor_tells() {
    is_ready_only_when_told("fd:9", "later(lambda: os.write(9, b'\\n'))\nserve()");
}

// "check:COMMAND: the command, run by sh, ends with status 0."
#[test]
fn a_check_tells() {
    is_ready_only_when_told("check:test -e go && kill -0 $MAINPID", "mark('begun')\nserve()");
}

// "after:DURATION: that time has passed and, where that can be seen, it waits on every socket."
#[test]
fn time_tells() {
    let supervisor = supervise(Server::Hello, &["--ready", "after:150ms"]).start();
    let after = supervisor.seconds_to_ready(1);
    assert!((0.15..5.0).contains(&after), "{after}");
    supervisor.stopped();
}

// The old one answers through the address that they share: a release that hangs was ready, and the service down.
#[test]
fn a_check_that_the_old_generation_answers_proves_nothing_of_the_new_one() {
    for how in ["check:test -e go", "after:1ms"] {
        let options = ["--ready", how, "--ready-timeout", "1s", "--shared"];
        let setup = supervise(Server::Python("serve()"), &options);
        setup.folder.open("go");
        let supervisor = setup.serving();
        supervisor.rewrite(Server::Python("wait_for('never')"));
        assert_eq!(supervisor.reload().code(), 124, "{how}");
        assert_eq!(supervisor.answer().generation, 1);
        // Said once, where it can happen.
        let warning = format!(
            "handoff-run: --ready check: {} is shared, so another generation than the new one may answer\n",
            supervisor.address()
        );
        assert_eq!(supervisor.log().matches(&warning).count(), usize::from(how.starts_with("check")));
        supervisor.stopped();
    }
}

// A server that waits on a part of its sockets is not ready by whatever a check says.
#[test]
fn a_check_and_a_time_count_when_all_sockets_are_waited_on() {
    for how in ["check:true", "after:1ms"] {
        let code = "
import threading
threading.Thread(target=lambda: select.select([3], [], [])).start()
mark('begun')
wait_for('go')
select.select([4], [], [])";
        let supervisor = supervise(Server::Python(code), &["-l", "127.0.0.1:0", "--ready", how]).start();
        supervisor.folder.read("begun");
        supervisor.assert_keeps_starting(1);
        supervisor.folder.open("go");
        supervisor.wait_ready(1);
        supervisor.stopped();
    }
}

#[test]
fn a_descriptor_that_is_closed_without_a_byte_tells_nothing() {
    let options = ["--ready", "fd:9", "--ready-timeout", "500ms"];
    let mut supervisor = supervise(Server::Python("os.close(9)\nserve()"), &options).start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 137, "{log}");
    assert!(
        log.contains("generation 1: was not ready after 0.50 s and is killed: it wrote nothing to descriptor 9\n"),
        "{log}"
    );
}

#[test]
fn all_sockets_have_to_be_waited_on() {
    let code = "
import threading
threading.Thread(target=lambda: select.select([3], [], [])).start()
mark('begun')
wait_for('go')
select.select([4], [], [])";
    let supervisor = supervise(Server::Python(code), &["-l", "127.0.0.1:0"]).start();
    supervisor.folder.read("begun");
    supervisor.assert_keeps_starting(1);
    supervisor.folder.open("go");
    supervisor.wait_ready(1);
    supervisor.stopped();
}

// handoff-run(1), --ready: "fd:N: it writes a byte to descriptor N", whatever number the pipe has in the supervisor. Once
// dup2(2) of the number to itself left it close-on-exec.
#[test]
fn the_readiness_descriptor_is_open_at_every_number() {
    for number in 4..=9 {
        let how = format!("fd:{number}");
        let supervisor =
            supervise(Server::Script(&format!("echo >&{number}; exec sleep 100")), &["--ready", &how]).start();
        supervisor.wait_ready(1);
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
    let mut supervisor = supervise(Server::Script("exec ./server"), &options).start();
    let sleep: i32 = supervisor.folder.read("check").trim().parse().unwrap();
    supervisor.end();
    wait_for("the check's child to end", || (!exists(Pid::from_raw(sleep))).then_some(()));
}

// Once each generation was killed at the timeout, after a time in which it could not get ready.
#[test]
fn a_time_to_be_ready_beyond_the_timeout_is_refused() {
    for (options, words) in [
        (&["--ready", "after:90s"] as &[&str], "1 m 30 s, is not shorter than --ready-timeout, 1 m 0 s"),
        (&["--ready", "after:1s", "--ready-timeout", "1s"], "1.00 s, is not shorter than --ready-timeout, 1.00 s"),
    ] {
        let run = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--supervise"]).args(options);
        let message = format!("handoff-run: --ready after:DURATION, {words}\n");
        assert_eq!(run.args(&["--", "true"]).output().failure(), (125, message.as_str()));
    }
    let supervisor = supervise(Server::Hello, &["--ready", "after:200ms", "--ready-timeout", "30s"]).serving();
    supervisor.stopped();
}

// Once its output was the supervisor's, without a word of whose it was.
#[test]
fn what_a_check_writes_is_logged_as_its_own() {
    let command =
        "check:echo to stdout; echo to stderr >&2; printf 'no end'; printf 'forged\\r' >&2; exit $(cat status)";
    let setup = supervise(Server::Hello, &["--ready", command]);
    setup.folder.write("status", "1");
    let output = setup.folder.path("stdout");
    let stdout = std::fs::File::create(&output).unwrap();
    let supervisor = setup.run(|run| run.stdout(stdout)).start();
    let lines = "handoff-run: check: to stdout\nhandoff-run: check: to stderr\nhandoff-run: check: no endforged\\r\n";
    supervisor.wait_log_times(2, lines);
    supervisor.folder.write("status", "0");
    supervisor.wait_ready(1);
    assert!(!std::fs::read_to_string(output).unwrap().contains("to stdout"));
    supervisor.stopped();
}

// The pipe of one that writes without end is full, and all goes on.
#[test]
fn a_check_that_never_ceases_to_write_holds_up_nothing() {
    let options = ["--ready", "check:test -e go || exec yes", "--ready-timeout", "20s"];
    let supervisor = supervise(Server::Hello, &options).start();
    supervisor.wait_log("check: y\n");
    supervisor.assert_keeps_starting(1);
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_gone(1);
}
