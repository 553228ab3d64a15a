//! A deploy from the first generation to the last: what clients see, what is said, and the exit statuses.

use std::collections::BTreeSet;
use std::fs::File;
use std::thread;

use nix::sys::signal::Signal;

use crate::harness::client::Clients;
use crate::harness::log::{gone, plain, ready};
use crate::harness::process::exists;
use crate::harness::{Server, Supervisor, supervise};

/// The second line for a server that did not take our socket.
pub const TAKE_IT: &str = "its socket is open at descriptor 3 and announced in LISTEN_FDS; \
                       see 'handoff-run --help-servers' for how servers take it, or use --intercept";

/// Reload, which fails, while clients see the old generation and nothing else; gives the status and the whole stderr.
fn failing_reload(supervisor: &Supervisor) -> (i32, String) {
    let clients = Clients::of(supervisor);
    let output = supervisor.reload();
    assert_eq!(supervisor.served_by(), supervisor.generation(1));
    assert_eq!(clients.all_served_by(), BTreeSet::from([supervisor.generation(1)]));
    (output.code(), plain(&output.stderr, &supervisor.address()))
}

fn ended(reason: &str) -> String {
    format!(
        "handoff-run: generation 2: {reason} before it was ready\n\
         handoff-run: an earlier generation took the socket, so see what this one wrote to the supervisor's stderr\n"
    )
}

// handoff-run(1), --supervise: "The one that serves is asked to stop only when the new one is ready".
#[test]
fn the_old_generation_serves_until_the_new_one_is_ready() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python("wait_for('go')\nserve()"));
    let clients = Clients::of(&supervisor);
    supervisor.signal(Signal::SIGHUP);
    let (old, new) = (supervisor.generation(1), supervisor.generation(2));
    for _ in 0..20 {
        assert_eq!(supervisor.served_by(), old);
    }
    supervisor.folder.open("go");
    supervisor.wait_gone(1);
    assert_eq!(supervisor.served_by(), new);
    assert_eq!(clients.all_served_by(), BTreeSet::from([old, new]));
    let address = supervisor.address();
    let expected = "handoff-run: 127.0.0.1:0 listens on ADDRESS\n\
                    handoff-run: generation 1: started (pid PID)\n\
                    handoff-run: generation 1: ready after TIME s\n\
                    handoff-run: generation 2: started (pid PID)\n\
                    handoff-run: generation 2: ready after TIME s\n";
    assert!(plain(&supervisor.stopped(), &address).starts_with(expected));
}

// handoff-run(1), --reload: "Ends when the new generation serves and has settled, with status 0".
#[test]
fn a_reload_tells_what_happens_and_ends_with_0_when_the_new_generation_serves() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let output = supervisor.reload();
    let expected = "generation 2: started (pid PID)\ngeneration 2: ready after TIME s\ngeneration 2: settled\n";
    assert_eq!(output.failure(), (0, ""));
    assert_eq!(plain(&output.stdout, &supervisor.address()), expected);
    supervisor.wait_gone(1);
    supervisor.stopped();
}

// handoff-run(1), --wait: "end when the old generation is gone".
#[test]
fn a_reload_that_waits_ends_when_the_old_generation_is_gone() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let old = supervisor.generation(1);
    let output = supervisor.reload_and_wait();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with(&gone(1)), "{}", output.stdout);
    assert!(!exists(old));
    supervisor.stopped();
}

// handoff-run(1), --stop: "Drain and stop the supervisor … Ends when it has."
#[test]
fn a_stop_drains_and_ends_with_0_and_nobody_is_left_to_talk_to() {
    let mut supervisor = supervise(Server::Hello, &[]).serving();
    let control = supervisor.folder.text("control");
    let output = supervisor.stop();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with(&gone(1)), "{}", output.stdout);
    assert_eq!(supervisor.end().0, 0);
    let output = supervisor.reload();
    let message = format!("handoff-run: cannot reach a supervisor at {control}: ENOENT: No such file or directory\n");
    assert_eq!(output.failure(), (125, &*message));
}

// handoff-run(1), --reload: "or when it failed: 1 … then the old one still serves".
#[test]
fn a_new_generation_that_ends_at_once_is_a_failed_reload() {
    let supervisor = supervise(Server::Script("exec ./server"), &[]).serving();
    supervisor.rewrite(Server::Script("exit 3"));
    assert_eq!(failing_reload(&supervisor), (1, ended("ended with status 3")));
    supervisor.wait_gone(2);
    let failure = "last failure: generation 2: ended with status 3 before it was ready, ";
    assert!(supervisor.status(&[]).contains(failure));
    supervisor.upgrade();
    let status = supervisor.status(&[]);
    let (_, age) = status.split_once(failure).unwrap();
    assert!(age.ends_with(" s ago\n") && !age.starts_with("0.00"), "{status}");
    // A reload that succeeds ends it.
    supervisor.rewrite(Server::Script("exec ./server"));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert!(!supervisor.status(&[]).contains("last failure"));
    assert!(supervisor.status(&["--json"]).contains("\"last_failure\":null,\"last_failure_age\":null"));
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_is_killed_is_a_failed_reload() {
    let supervisor = supervise(Server::Script("exec ./server"), &[]).serving();
    supervisor.rewrite(Server::Script("kill -KILL $$"));
    assert_eq!(failing_reload(&supervisor), (1, ended("was ended by SIGKILL")));
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_is_missing_or_cannot_be_executed_is_a_failed_reload() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let program = supervisor.folder.text("server");
    for (id, (target, cause)) in
        [(2, ("/nonexistent/server", "ENOENT: No such file or directory")), (3, ("log", "EACCES: Permission denied"))]
    {
        supervisor.point(target);
        let message = format!("handoff-run: generation {id}: cannot run {program}: {cause}\n");
        assert_eq!(failing_reload(&supervisor), (1, message));
    }
    supervisor.stopped();
}

// handoff-run(1), --reload: "or was not ready in time: 124; then the old one still serves".
#[test]
fn a_new_generation_that_hangs_is_killed_in_time_and_124() {
    let supervisor = supervise(Server::Script("exec ./server"), &["--ready-timeout", "1s"]).serving();
    supervisor.rewrite(Server::Script("exec sleep 1000"));
    let text = "handoff-run: generation 2: was not ready after 1.00 s and is killed: no process waits on ADDRESS\n\
                handoff-run: where a start takes longer, as with a build, use --ready-timeout\n";
    assert_eq!(failing_reload(&supervisor), (124, text.to_owned()));
    supervisor.wait_gone(2);
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_binds_the_port_itself_is_a_failed_reload() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python(&format!(
        "try: socket.create_server(('127.0.0.1', {}))\n\
         except OSError as error: sys.exit(error.errno)",
        supervisor.address().rsplit_once(':').unwrap().1
    )));
    assert_eq!(failing_reload(&supervisor), (1, ended("ended with status 98")));
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_waits_on_one_of_two_sockets_is_told_on_which_it_does_not() {
    let setup = supervise(Server::Python("serve()"), &["--ready-timeout", "500ms"]);
    let path = setup.folder.text("other");
    let mut supervisor = setup.listen("127.0.0.1:0").listen(&path).start();
    let (status, log) = supervisor.end();
    assert_eq!(status, 137);
    let text = format!(
        "was not ready after 0.50 s and is killed: no process waits on {path}\nhandoff-run: its sockets are open from descriptor 3 on and announced"
    );
    assert!(log.contains(&text), "{log}");
}

// Once it named a descriptor that is not the socket's, and a variable that is not set.
#[test]
fn a_server_is_told_where_its_socket_is_also_with_first_fd() {
    let setup = supervise(Server::Script("exec sleep 100"), &["--ready-timeout", "300ms", "--first-fd", "20"]);
    let (_, log) = setup.listen("127.0.0.1:0").start().end();
    assert!(log.contains("handoff-run: its socket is open at descriptor 20; see "), "{log}");
}

// The words of what readiness waits for.
#[test]
fn a_generation_that_is_late_is_told_what_was_waited_for() {
    let waits = "serve()";
    let sleeps = "time.sleep(100)";
    for (how, code, words) in [
        ("check:exit 7", waits, "its check last ended with status 7"),
        ("check:kill -9 $$", waits, "its check last was ended by SIGKILL"),
        ("check:sleep 100", waits, "its check has not ended"),
        ("notify", waits, "it did not send READY=1"),
        ("fd:9", waits, "it wrote nothing to descriptor 9"),
        ("check:exit 7", sleeps, "its check last ended with status 7, and no process waits on ADDRESS"),
    ] {
        let options = ["--ready", how, "--ready-timeout", "1s"];
        let mut supervisor = supervise(Server::Python(code), &options).start();
        let address = supervisor.address();
        let (status, log) = supervisor.end();
        assert_eq!(status, 137);
        let line = format!("generation 1: was not ready after 1.00 s and is killed: {words}\n");
        assert!(plain(&log, &address).contains(&line), "{log}");
    }
}

// Once it was asked whether it tried to bind the port.
#[test]
fn a_program_that_goes_to_the_background_is_told_to_stay() {
    let daemon = "if os.fork(): os._exit(0)\nos.setsid()\n";
    let mut supervisor = supervise(Server::Python(&format!("{daemon}time.sleep(1)\nserve()")), &[]).start();
    let (status, log) = supervisor.end();
    let text = "generation 1: ended with status 0 and left 1 process in the background before it was ready\n\
                handoff-run: it must stay in the foreground";
    assert_eq!(status, 1);
    assert!(log.contains(text), "{log}");

    // Its child serves before it ends.
    let late = "if os.fork():\n    while 'ready' not in open(path('log')).read(): time.sleep(0.01)\n    os._exit(0)\nos.setsid()\n";
    let code = format!("{late}serve()");
    let mut supervisor = supervise(Server::Python(&code), &["--restart", "on-failure"]).start();
    let (status, log) = supervisor.end();
    let text = "generation 1: ended with status 0 and left 1 process in the background\n\
                handoff-run: it must stay in the foreground";
    assert_eq!(status, 0);
    assert!(log.contains(text), "{log}");
}

// Once it was "draining, 0 connections" and "gone": the signal came before they were counted.
#[test]
fn a_generation_that_ends_by_the_stop_signal_with_its_connections_does_not_drain() {
    let hold = "signal.signal(signal.SIGTERM, signal.SIG_DFL)\nkept = []\ns.setblocking(False)\n";
    let accept = "while True:\n    select.select([s], [], [])\n    c, _ = s.accept()\n    c.setblocking(True)\n    kept.append(c)\n    c.recv(99)\n    c.sendall(f'hello from {gen}, pid {os.getpid()}\\n'.encode())";
    let like_java = "signal.signal(signal.SIGTERM, lambda *_: os._exit(143))\n";
    for (handler, ending) in [("", "was ended by SIGTERM"), (like_java, "ended with status 143")] {
        let supervisor = supervise(Server::Python(&format!("{hold}{handler}{accept}")), &[]).serving();
        let held = [(); 3].map(|()| supervisor.hold());
        let output = supervisor.reload_and_wait();
        assert_eq!(output.failure(), (0, ""));
        let lines: Vec<&str> = output.stdout.lines().skip_while(|line| !line.contains("draining")).collect();
        assert_eq!(lines[0], "generation 1: draining, 3 connections");
        assert!(lines[1].starts_with(&format!("generation 1: {ending} 0.")), "{lines:?}");
        assert!(lines[1].ends_with(" s after the stop signal, with 3 connections: it does not drain"), "{lines:?}");
        drop(held);
        // Without any there is nothing to be said.
        assert!(!supervisor.stopped().contains("generation 2: was ended"));
    }
}

#[test]
fn a_new_generation_that_listens_elsewhere_is_told_where() {
    let supervisor = supervise(Server::Python("serve()"), &["--ready-timeout", "1s"]).serving();
    supervisor.rewrite(Server::Python(
        "s = socket.create_server(('127.0.0.1', 0))\nmark('port', '%d' % s.getsockname()[1])\nserve()",
    ));
    let (status, stderr) = failing_reload(&supervisor);
    let port = supervisor.folder.read("port");
    let text = format!(
        "handoff-run: generation 2: was not ready after 1.00 s and is killed: it listens on 127.0.0.1:{port}, not on \
         our socket\nhandoff-run: {TAKE_IT}\n"
    );
    assert_eq!((status, stderr), (124, text));
    supervisor.stopped();
}

#[test]
fn a_generation_that_ends_its_parent_when_it_serves_means_that_it_is_ready() {
    let code = "os.kill(os.getppid(), signal.SIGTERM)\nserve()";
    // Nothing but the signal can make it ready.
    let mut supervisor = supervise(Server::Python(code), &["--ready", "check:false"]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(supervisor.served_by(), supervisor.generation(2));
    supervisor.signal(Signal::SIGTERM);
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
}

// Once the whole service stopped: facebookgo/grace sends it after it has the listener, and may be seen accepting before.
#[test]
fn a_generation_may_end_its_parent_also_just_after_it_was_seen_ready() {
    for sender in ["os.kill(parent, signal.SIGTERM)", "os.fork() or (os.kill(parent, signal.SIGTERM), os._exit(0))"] {
        let code = format!(
            "parent = os.getppid()\n\
             os.write(9, b'x')\n\
             while f'generation {{gen}}: ready' not in open(path('log')).read(): time.sleep(0.005)\n\
             {sender}\n\
             serve()"
        );
        let setup = supervise(Server::Python(&code), &["--ready", "fd:9"]);
        let supervisor = setup.run(|run| run.env("HANDOFF_LOG", "debug")).serving();
        for generation in [1, 2] {
            supervisor.wait_log(&format!("generation {generation} asks its parent to end: it is ready\n"));
            assert_eq!(supervisor.served_by(), supervisor.generation(generation));
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        }
        supervisor.wait_log("generation 3 asks its parent to end: it is ready\n");
        supervisor.stopped();
    }
}

#[test]
fn reloads_during_a_reload_are_one_and_each_client_is_told() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python("wait_for('go')\nserve()"));
    supervisor.signal(Signal::SIGHUP);
    supervisor.generation(2);
    let outputs: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(|| supervisor.reload())).collect();
        supervisor.wait_clients(3);
        supervisor.folder.open("go");
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for output in outputs {
        assert_eq!(output.failure(), (0, ""));
        assert!(output.stdout.contains(&ready(3)), "{}", output.stdout);
    }
    assert!(!supervisor.log().contains("generation 4"));
    supervisor.stopped();
}

// It once said 125 of a deploy that had taken effect: what cannot be shown does not change what comes of it.
#[test]
fn a_reload_whose_progress_nobody_can_see_still_tells_the_truth() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let reload = || supervisor.command("--reload", &[]);
    let full = || File::create("/dev/full").unwrap();
    assert_eq!(reload().stdout(full()).output().failure(), (0, ""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(reload().stdout(writer).output().failure(), (0, ""));
    supervisor.point("/nonexistent/program");
    assert_eq!(reload().stdout(full()).output().code(), 1);
}

// handoff-run(1), --quiet: "Log less".
#[test]
fn a_quiet_reload_says_nothing_on_success() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let output = supervisor.command("--reload", &["-q"]).output();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (0, "", ""));
}
