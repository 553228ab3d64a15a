//! `--from` in what a supervisor started, as in a container whose process 1 it is: that one is never told to stop.

use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::harness::setup::{Setup, supervise_in};
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, is_root_to};

/// A server that, when it may go, runs handoff-run to succeed `who` at its own address, and notes how that ended.
fn server(who: &str) -> String {
    format!(
        "import subprocess
if gen == '1' and os.fork() == 0:
    wait_for('go')
    at = s.getsockname()
    address = 'unix:' + at if isinstance(at, str) else f'{{at[0]}}:{{at[1]}}'
    line = [{PROGRAM:?}, '-l', address, '--from', {who}, '--', 'true']
    run = subprocess.run(line, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    mark('status', str(run.returncode))
    mark('output', run.stderr)
    os._exit(0)
serve()"
    )
}

/// A supervisor that started it, and a container whose process 1 such a one is.
fn supervisors(who: &str) -> Vec<Supervisor> {
    let code = server(who);
    let setup = |folder: &Arc<Folder>| supervise_in(folder, Server::Python(&code), &[]);
    let (outside, inside) = (Arc::new(Folder::new()), Arc::new(Folder::new()));
    let mut setups: Vec<Setup> = vec![setup(&outside).listen("127.0.0.1:0")];
    if is_root_to("make a PID namespace") {
        let run = Run::of("unshare").args(&["--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM]);
        setups.push(setup(&inside).by_parent(run).listen(&format!("unix:{}", inside.text("s"))));
    }
    setups.into_iter().map(Setup::start).collect()
}

/// The status of the run of handoff-run in it, and what that wrote, with `PID` for the supervisor's number.
fn end(supervisor: &Supervisor) -> (String, String) {
    supervisor.wait_ready(1);
    supervisor.folder.open("go");
    let output = supervisor.folder.read("output");
    let output = output.replace(&format!("pid {} ", supervisor.pid), "pid PID ").replace("pid 1 ", "pid PID ");
    (supervisor.folder.read("status"), output)
}

/// It serves with the same generation, lent nothing, and rolls generations still.
fn assert_untouched(mut supervisor: Supervisor) {
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.answer().generation, 2);
    let (status, log) = supervisor.end_by(Signal::SIGTERM);
    assert_eq!(status, 0, "{log}");
    assert!(!log.contains("lent") && !log.contains("restarted") && !log.contains("again in"), "{log}");
}

// handoff-run(1), TAKEOVER: "its control socket is refused".
#[test]
fn the_control_socket_of_a_supervisor_that_started_us_is_refused_and_a_reload_named() {
    for supervisor in supervisors("path('control')") {
        let control = supervisor.folder.text("control");
        let (status, output) = end(&supervisor);
        let start = format!("handoff-run: cannot take over from the supervisor at {control}: pid PID (handoff-run)");
        assert!(status == "125" && output.starts_with(&start), "{status}: {output}");
        let end = format!(" is never told to stop: use --reload {control}\n");
        assert!(output.ends_with(&end) && output.lines().count() == 1, "{output}");
        assert_untouched(supervisor);
    }
}

// handoff-run(1), TAKEOVER: "what it started is not told to stop either". Once it was, and was started again.
#[test]
fn by_auto_the_generation_of_a_supervisor_that_started_us_is_refused_and_a_reload_named() {
    for supervisor in supervisors("'auto'") {
        let control = supervisor.folder.text("control");
        let expected = format!(
            "handoff-run: cannot take over by --from auto: pid PID (handoff-run) supervises what has the socket, and is \
             never retired\nhandoff-run: its next generation is started by --reload {control}\n"
        );
        assert_eq!(end(&supervisor), ("125".to_owned(), expected));
        assert_untouched(supervisor);
    }
}

#[test]
fn of_a_generation_of_a_supervisor_that_started_us_the_socket_is_copied_and_it_serves_on() {
    for supervisor in supervisors("str(os.getppid())") {
        let (status, output) = end(&supervisor);
        let why = " is not asked to stop: pid PID (handoff-run) would start it again\n";
        assert!(status == "0" && output.ends_with(why) && output.lines().count() == 1, "{status}: {output}");
        assert_untouched(supervisor);
    }
}
