//! How a generation is asked to stop, and that nothing of it is left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::harness::{Run, skip, wait_for};
use crate::supervisor::{Setup, exists, marked, python, supervise, supervise_python, supervise_script};

// handoff-run(1), --stop-signal: "The signal that asks a generation to drain".
#[test]
fn a_generation_is_asked_by_the_stop_signal_or_by_the_one_that_its_preset_knows() {
    let Some(python) = python() else { return skip("there is no python3") };
    // Unicorn is stopped by QUIT.
    for options in [["--stop-signal", "quit"], ["--as", "unicorn"]] {
        let code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve(ours(), signal.SIGQUIT)";
        let supervisor = supervise_python(&python, &options, code).serving();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert!(!supervisor.stopped().contains("killed"));
    }
}

/// Nothing but SIGKILL ends it.
const STUBBORN: &str = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve(ours(), signal.SIGUSR1)";

// handoff-run(1), --drain-timeout: "Then what is left of it is killed."
#[test]
fn a_generation_that_does_not_drain_in_time_is_killed() {
    let Some(python) = python() else { return skip("there is no python3") };
    let mut supervisor = supervise_python(&python, &["--drain-timeout", "200ms"], STUBBORN).serving();
    kill(supervisor.generation(1), Signal::SIGSTOP).unwrap();
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (0, ""));
    let tail = "generation 1: has not drained in time and is killed\ngeneration 1: gone\n";
    assert!(output.stdout.ends_with(tail), "{}", output.stdout);
    let output = supervisor.stop();
    assert_eq!(output.failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
    assert_eq!(supervisor.end().0, 137);
}

#[test]
fn a_reload_during_shutdown_is_refused() {
    let Some(python) = python() else { return skip("there is no python3") };
    let mut supervisor = supervise_python(&python, &[], STUBBORN).serving();
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_log("generation 1: draining");
    assert_eq!(supervisor.reload().failure(), (125, "handoff-run: the supervisor is stopping\n"));
    supervisor.signal(Signal::SIGHUP);
    // What it waits for by itself.
    kill(supervisor.generation(1), Signal::SIGUSR1).unwrap();
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
    assert!(!log.contains("generation 2"), "{log}");
}

#[test]
fn a_stop_while_a_generation_starts_cancels_it_and_who_waits_is_told() {
    let mut supervisor = supervise_script(&[], "exec ./server").serving();
    supervisor.rewrite("exec sleep 1000");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.reload());
        wait_for("the second one", || supervisor.log().contains("generation 2: started").then_some(()));
        supervisor.signal(Signal::SIGTERM);
        let output = reload.join().unwrap();
        assert_eq!(output.failure(), (125, "handoff-run: the supervisor is stopping\n"));
    });
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
}

#[test]
fn a_generation_that_is_suspended_drains_all_the_same() {
    let mut supervisor = supervise(&[]).serving();
    kill(supervisor.generation(1), Signal::SIGSTOP).unwrap();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(!supervisor.stopped().contains("killed"));
}

#[test]
fn quit_stops_at_once() {
    let Some(python) = python() else { return skip("there is no python3") };
    let mut supervisor = supervise_python(&python, &[], STUBBORN).serving();
    supervisor.signal(Signal::SIGQUIT);
    let (status, log) = supervisor.end();
    assert_eq!(status, 137, "{log}");
}

#[test]
fn a_generation_has_a_process_group_of_its_own() {
    let mut supervisor = supervise(&[]).serving();
    supervisor.reload();
    for id in [1, 2] {
        let Ok(group) = getpgid(Some(supervisor.generation(id))) else { continue };
        assert_eq!(group, supervisor.generation(id));
    }
    assert_eq!(getpgid(Some(supervisor.generation(2))), Ok(supervisor.generation(2)));
    supervisor.stopped();
}

/// Reload and stop, and see that no process of either generation is left, wherever it went.
#[track_caller]
fn leaves_nobody_behind(setup: Setup, at_least: usize) {
    let mark = setup.folder().text("mark");
    let processes = |generation: u32| marked(&format!("MARK={mark}-{generation}"));
    let supervisor = setup.run(|run| run.args(&["--env", &format!("MARK={mark}-{{gen}}")])).serving();
    let first = processes(1);
    assert!(first.len() >= at_least, "{first:?}");
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(processes(1), []);
    assert_eq!(first.into_iter().filter(|pid| exists(*pid)).collect::<Vec<Pid>>(), []);
    assert!(processes(2).contains(&supervisor.served_by()));
    let log = supervisor.stopped();
    assert!(!log.contains("killed"), "{log}");
    assert_eq!(processes(2), []);
}

#[test]
fn a_shell_that_waits_for_a_server_in_the_background_leaves_nobody_behind() {
    let Some(python) = python() else { return skip("there is no python3") };
    let line = format!("{} -S -E code.py & wait", python.display());
    let setup = supervise_python(&python, &["--no-pid"], "serve(ours())").target(&["sh", "-c", &line]);
    leaves_nobody_behind(setup, 2);
}

#[test]
fn a_shell_that_has_more_to_do_leaves_nobody_behind() {
    let Some(python) = python() else { return skip("there is no python3") };
    let line = format!("{} -S -E code.py; true", python.display());
    let setup = supervise_python(&python, &["--no-pid"], "serve(ours())").target(&["sh", "-c", &line]);
    leaves_nobody_behind(setup, 2);
}

#[test]
fn npm_leaves_nobody_behind() {
    let Some(python) = python() else { return skip("there is no python3") };
    if Run::of("sh").args(&["-c", "command -v npm"]).output().code() != 0 {
        return skip("there is no npm");
    }
    let code = "serve(socket.socket(fileno=100))";
    let setup = supervise_python(&python, &["--first-fd", "100"], code).target(&["npm", "start", "--silent"]);
    let package = format!(r#"{{"scripts": {{"start": "{} -S -E code.py; true"}}}}"#, python.display());
    std::fs::write(setup.folder().path("package.json"), package).unwrap();
    leaves_nobody_behind(setup, 3);
}

#[test]
fn daemons_that_left_the_group_and_their_parent_leave_nobody_behind() {
    let Some(python) = python() else { return skip("there is no python3") };
    let code =
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() > 0: os._exit(0)\nelse:\n    os.wait()\nserve(ours())";
    leaves_nobody_behind(supervise_python(&python, &[], code), 2);
}

#[test]
fn workers_in_sessions_of_their_own_leave_nobody_behind() {
    let Some(python) = python() else { return skip("there is no python3") };
    let code = "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        break\nserve(ours())";
    leaves_nobody_behind(supervise_python(&python, &[], code), 2);
}

// Once it went on for ever: who was born between the look at the processes and the signal was never killed.
#[test]
fn who_is_born_while_its_generation_is_killed_is_killed_too() {
    let Some(python) = python() else { return skip("there is no python3") };
    let code = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    for _ in range(1000):
        if os.fork() == 0: time.sleep(1000)
        time.sleep(0.001)
serve(ours(), signal.SIGUSR1)";
    let setup = supervise_python(&python, &["--drain-timeout", "100ms"], code);
    let mark = format!("MARK={}", setup.folder().text("mark"));
    let mut supervisor = setup.run(|run| run.args(&["--env", &mark])).serving();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.end().0, 137);
    assert_eq!(marked(&mark), []);
}
