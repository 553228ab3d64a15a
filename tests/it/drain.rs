//! How a generation is asked to stop, and that nothing of it is left.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid};

use crate::harness::directed;
use crate::harness::process::{exists, with_variable};
use crate::harness::setup::Setup;
use crate::harness::{Run, Server, is_root_to, skip, supervise, wait_for};

// handoff-run(1), Retired: "su(1) and runuser(1) in front of the server kill it 2 seconds after the stop signal, which is
// logged".
#[test]
fn a_wrapper_that_would_cut_the_drain_short_is_warned_of() {
    let log = |wrapper: &[&str], options: &[&str]| {
        let setup = supervise(Server::Directed, options);
        let line: Vec<_> = wrapper.iter().map(OsString::from).chain(directed::line()).collect();
        setup.target(&line).serving().log()
    };
    let warning = |wrapper: &str| {
        format!(
            "generation 1: {wrapper} kills the server 2 s after the stop signal, before --drain-timeout; setpriv in its \
             place does not"
        )
    };
    let setpriv = log(&["setpriv", "--no-new-privs"], &[]);
    assert!(!setpriv.contains("kills the server"), "{setpriv}");
    if is_root_to("run runuser") {
        let runuser = log(&["runuser", "-u", "root", "--"], &[]);
        assert_eq!(runuser.matches(&warning("runuser")).count(), 1, "{runuser}");
        let in_time = log(&["runuser", "-u", "root", "--"], &["--drain-timeout", "2s"]);
        assert!(!in_time.contains("kills the server"), "{in_time}");
    }
}

// handoff-run(1), --stop-signal: "The signal that asks a generation to drain".
#[test]
fn a_generation_is_asked_by_the_stop_signal_or_by_the_one_that_its_preset_knows() {
    // Unicorn is stopped by QUIT.
    for options in [["--stop-signal", "quit"], ["--as", "unicorn"]] {
        let code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve(signal.SIGQUIT)";
        let supervisor = supervise(Server::Python(code), &options).serving();
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        assert!(!supervisor.stopped().contains("killed"));
    }
}

/// Nothing but SIGKILL ends it.
const STUBBORN: &str = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve(signal.SIGUSR1)";

// handoff-run(1), --drain-timeout: "Then what is left of it is killed."
#[test]
fn a_generation_that_does_not_drain_in_time_is_killed() {
    let mut supervisor = supervise(Server::Python(STUBBORN), &["--drain-timeout", "200ms"]).serving();
    kill(supervisor.generation(1), Signal::SIGSTOP).unwrap();
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
    let tail = "generation 1: has not drained in time and is killed\ngeneration 1: gone\n";
    assert!(output.stdout.ends_with(tail), "{}", output.stdout);
    let output = supervisor.stop();
    assert_eq!(output.failure(), (1, "handoff-run: a generation did not drain and was killed\n"));
    assert_eq!(supervisor.end().0, 137);
}

#[test]
fn a_reload_during_shutdown_is_refused() {
    let mut supervisor = supervise(Server::Python(STUBBORN), &[]).serving();
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_draining(1);
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
    let mut supervisor = supervise(Server::Script("exec ./server"), &[]).serving();
    supervisor.rewrite(Server::Script("exec sleep 1000"));
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| supervisor.reload());
        supervisor.generation(2);
        supervisor.signal(Signal::SIGTERM);
        let output = reload.join().unwrap();
        assert_eq!(output.failure(), (125, "handoff-run: the supervisor is stopping\n"));
    });
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
}

#[test]
fn a_generation_that_is_suspended_drains_all_the_same() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    kill(supervisor.generation(1), Signal::SIGSTOP).unwrap();
    supervisor.wait_log("generation 1: is stopped by SIGSTOP");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(!supervisor.stopped().contains("killed"));
}

// handoff-run(1), Signals: "drain and stop; one of them again, a second or more later: stop now".
#[test]
fn a_signal_that_stops_stops_at_once_when_one_comes_again_a_second_later() {
    for (first, again) in [
        (Signal::SIGINT, Signal::SIGINT),
        (Signal::SIGTERM, Signal::SIGTERM),
        (Signal::SIGQUIT, Signal::SIGQUIT),
        (Signal::SIGTERM, Signal::SIGINT),
    ] {
        let mut supervisor = supervise(Server::Python(STUBBORN), &[]).serving();
        supervisor.signal(first);
        let start = Instant::now();
        wait_for("the end", || {
            supervisor.signal(again);
            supervisor.log().contains("killed").then_some(())
        });
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(supervisor.end().0, 137);
    }
}

#[test]
fn a_stop_by_the_control_socket_is_no_first_signal() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    let stop = supervisor.command("--stop", &[]).start();
    supervisor.wait_draining(1);
    for _ in 0..3 {
        supervisor.signal(Signal::SIGTERM);
        supervisor.table();
    }
    drop(held);
    assert_eq!(stop.output().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn a_generation_has_a_process_group_of_its_own() {
    let supervisor = supervise(Server::Hello, &[]).serving();
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
    let mark = setup.folder.text("mark");
    let processes = |generation: u32| with_variable("MARK", &format!("{mark}-{generation}"));
    let supervisor = setup.options(&["--env", &format!("MARK={mark}-{{gen}}")]).serving();
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
    let setup = supervise(Server::Python("serve()"), &["--no-pid"]);
    let line = format!("{} & wait", setup.target_line());
    leaves_nobody_behind(setup.target(&["sh", "-c", &line]), 2);
}

#[test]
fn a_shell_that_has_more_to_do_leaves_nobody_behind() {
    let setup = supervise(Server::Python("serve()"), &["--no-pid"]);
    let line = format!("{}; true", setup.target_line());
    leaves_nobody_behind(setup.target(&["sh", "-c", &line]), 2);
}

#[test]
fn npm_leaves_nobody_behind() {
    if Run::of("sh").args(&["-c", "command -v npm"]).output().code() != 0 {
        return skip("there is no npm");
    }
    let setup = supervise(Server::Python("serve()"), &["--first-fd", "100", "--env", "SOCKET=100"]);
    let package = format!(r#"{{"scripts": {{"start": "{}; true"}}}}"#, setup.target_line());
    setup.folder.write("package.json", &package);
    leaves_nobody_behind(setup.target(&["npm", "start", "--silent"]), 3);
}

#[test]
fn daemons_that_left_the_group_and_their_parent_leave_nobody_behind() {
    let code = "if os.fork() == 0:\n    os.setsid()\n    if os.fork() > 0: os._exit(0)\nelse:\n    os.wait()\nserve()";
    leaves_nobody_behind(supervise(Server::Python(code), &[]), 2);
}

#[test]
fn workers_in_sessions_of_their_own_leave_nobody_behind() {
    let code = "for _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        break\nserve()";
    leaves_nobody_behind(supervise(Server::Python(code), &[]), 2);
}

// Once it went on for ever: a process forked between the survey and the signal was never killed.
#[test]
fn who_is_born_while_its_generation_is_killed_is_killed_too() {
    let code = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    for _ in range(1000):
        if os.fork() == 0: time.sleep(1000)
        time.sleep(0.001)
serve(signal.SIGUSR1)";
    let setup = supervise(Server::Python(code), &["--drain-timeout", "100ms"]);
    let folder = setup.folder.text("");
    let mut supervisor = setup.options(&["--env", &format!("MARK={folder}")]).serving();
    supervisor.signal(Signal::SIGTERM);
    assert_eq!(supervisor.end().0, 137);
    assert_eq!(with_variable("MARK", &folder), []);
}
