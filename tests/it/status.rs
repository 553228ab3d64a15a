//! What --status and --reload show.

use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::time::UNIX_EPOCH;

use nix::pty::openpty;

use crate::harness::client::Client;
use crate::harness::json::flat;
use crate::harness::log::{ready, started};
use crate::harness::{PROGRAM, Server, supervise};

#[test]
fn a_status_shows_every_generation_with_its_state_and_its_connections() {
    let setup = supervise(Server::Directed, &[]);
    let path = setup.folder.text("socket");
    let supervisor = setup.listen("tcp=127.0.0.1:0").listen(&format!("unix={path}")).serving();
    let held: Vec<_> = (0..3).map(|_| supervisor.hold()).collect();
    let mut unix = [(); 2].map(|()| Client::connect(&path).unwrap());
    for client in &mut unix {
        client.ask().unwrap();
    }
    supervisor.folder.close_gate();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    assert_eq!(supervisor.states(), [(1, "serving".into()), (2, "starting".into())]);
    supervisor.folder.open_gate();
    assert_eq!(reload.output().code(), 0);
    supervisor.wait_no_accept(1, 2);
    let _later = supervisor.hold();
    supervisor.folder.let_fail(3);
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_gone(3);

    let mut status = flat(supervisor.status(&["--json"]).strip_suffix('\n').unwrap());
    let time: f64 = status.remove("time").unwrap().parse().unwrap();
    assert!((time - UNIX_EPOCH.elapsed().unwrap().as_secs_f64()).abs() < 100.0, "{time}");
    for age in ["generations.0.age", "generations.1.age", "last_failure_age", "last_reload_age"] {
        let seconds: f64 = status.remove(age).unwrap().parse().unwrap();
        assert!(seconds > 0.0 && seconds < 100.0, "{seconds}");
    }
    let shown: Vec<String> = status.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let (first, second) = (supervisor.generation(1), supervisor.generation(2));
    let expected = [
        "generations.0.connections=5".into(),
        "generations.0.cpu_time=None".into(),
        "generations.0.generation=1".into(),
        "generations.0.memory=None".into(),
        format!("generations.0.pid={first}"),
        "generations.0.share=None".into(),
        "generations.0.state='draining'".into(),
        "generations.0.stopped=None".into(),
        "generations.1.connections=1".into(),
        "generations.1.cpu_time=None".into(),
        "generations.1.generation=2".into(),
        "generations.1.memory=None".into(),
        format!("generations.1.pid={second}"),
        "generations.1.share=None".into(),
        "generations.1.state='serving'".into(),
        "generations.1.stopped=None".into(),
        "last_failure='generation 3: ended with status 3 before it was ready'".into(),
        "last_reload='failed'".into(),
        "last_restart_age=None".into(),
        format!("listeners.0.address='{}'", supervisor.address()),
        "listeners.0.name='tcp'".into(),
        "listeners.0.problem=None".into(),
        format!("listeners.1.address='{}'", path),
        "listeners.1.name='unix'".into(),
        "listeners.1.problem=None".into(),
        format!("pid={}", supervisor.pid),
        "reloads.cancelled=0".into(),
        "reloads.failed=1".into(),
        "reloads.refused=0".into(),
        "reloads.rolled_back=0".into(),
        "reloads.succeeded=1".into(),
        "reloads.timed_out=0".into(),
        "reloads.unreachable=0".into(),
        "restarts=0".into(),
        "stopping=False".into(),
        "version=1".into(),
    ];
    assert_eq!(shown, expected);

    let table = supervisor.table();
    assert_eq!(table[0], ["GENERATION", "PID", "STATE", "AGE", "SHARE", "CONNECTIONS"]);
    let line = |number: usize| [table[number][..3].to_vec(), table[number][5..].to_vec()].concat();
    assert_eq!(line(1), ["1", &first.to_string(), "draining", "-", "5"]);
    assert_eq!(line(2), ["2", &second.to_string(), "serving", "-", "1"]);
    let rest: Vec<String> = table[3..].iter().map(|words| words.join(" ")).collect();
    let listening = format!("supervisor {}, listening on tcp={} unix={}", supervisor.pid, supervisor.address(), path);
    let (reloads, age) = rest[1].rsplit_once("; ").unwrap();
    assert_eq!(reloads, "reloads: 1 succeeded, 1 failed");
    assert!(age.starts_with("the last one ") && age.ends_with(" s ago"), "{age}");
    let (failure, age) = rest[2].rsplit_once(", ").unwrap();
    assert_eq!(
        [&rest[0], failure],
        [&listening, "last failure: generation 3: ended with status 3 before it was ready"]
    );
    assert!(age.ends_with(" s ago"), "{age}");
    drop((held, unix));
    supervisor.wait_gone(1);
}

// Once it was "unknown=127.0.0.1:8000", which is the protocol's word for a socket without a name.
#[test]
fn a_listener_without_a_name_is_shown_by_its_address() {
    let supervisor = supervise(Server::Directed, &[]).listen("127.0.0.1:0").listen("web=127.0.0.1:0").serving();
    let listening = format!("\nsupervisor {}, listening on {} web=", supervisor.pid, supervisor.address());
    let status = supervisor.status(&[]);
    assert!(status.contains(&listening), "{status}");
    assert!(supervisor.json().contains(&"listeners.0.name='unknown'".to_owned()));
}

/// What has come to a terminal until it shows `text`.
fn await_screen(terminal: &mut File, screen: &mut String, text: &str) {
    while !screen.contains(text) {
        let mut buffer = [0; 1024];
        let length = terminal.read(&mut buffer).unwrap();
        screen.push_str(str::from_utf8(&buffer[..length]).unwrap());
    }
}

#[test]
fn on_a_terminal_a_reload_shows_one_line_a_generation_that_changes() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (first, second) = (supervisor.hold(), supervisor.hold());
    let pty = openpty(None, None).unwrap();
    let mut client = Command::new(PROGRAM);
    client.args(["--reload", &supervisor.folder.text("control"), "--wait"]).stdout(pty.slave);
    // The command keeps the terminal open, and without it the terminal ends with the client.
    let mut child = client.spawn().unwrap();
    drop(client);
    let (mut terminal, mut screen) = (File::from(pty.master), String::new());
    await_screen(&mut terminal, &mut screen, "generation 1: draining, 2 connections");
    drop(first);
    await_screen(&mut terminal, &mut screen, "generation 1: draining, 1 connection\x1b");
    drop(second);
    await_screen(&mut terminal, &mut screen, "generation 1: gone\x1b");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // Drawn over and over: two lines back, and each line erased to its end.
    let last = screen.rsplit("\x1b[2A").next().unwrap();
    let lines: Vec<&str> = last.lines().take(2).collect();
    assert_eq!(lines[0], "\rgeneration 1: gone\x1b[K");
    assert!(lines[1].starts_with("\rgeneration 2: settled"), "{screen:?}");
}

#[test]
fn elsewhere_a_reload_shows_plain_lines() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let held = supervisor.hold();
    let client = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 1: draining, 1 connection");
    drop(held);
    let output = client.output();
    assert_eq!(output.failure(), (0, ""));
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], format!("{}{})", started(2), supervisor.generation(2)));
    assert!(lines[1].starts_with(&ready(2)), "{lines:?}");
    let rest = ["generation 2: settled", "generation 1: draining, 1 connection", "generation 1: gone"];
    assert_eq!(lines[2..], rest);
}

// Once a first generation, or one that was started again, had a share of 0 until it was ready, though it alone gets what comes.
#[test]
fn a_generation_that_starts_while_none_serves_gets_every_connection() {
    let supervisor = supervise(Server::Python("wait_for('go'); serve()"), &[]).start();
    supervisor.generation(1);
    let share = || flat(supervisor.status(&["--json"]).trim_end()).remove("generations.0.share").unwrap();
    assert_eq!((supervisor.states(), share()), (vec![(1, "starting".into())], "100".into()));
    supervisor.folder.open("go");
    supervisor.wait_ready(1);
    assert_eq!(share(), "100");
    supervisor.stopped();
}
