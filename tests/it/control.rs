//! The control socket: who may use it, what it stands, and what its clients are told.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use nix::pty::openpty;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::client::Client;
use crate::harness::control::{
    NOT_UNDERSTOOD, RELOAD, RELOAD_AND_WAIT, RELOAD_LIVE, STATUS, STATUS_JSON, STOP, SUCCESS, await_read, received,
};
use crate::harness::json::flat;
use crate::harness::log::{ready, started};
use crate::harness::process::{exists, stat, status_field};
use crate::harness::{
    Folder, Output, PROGRAM, Running, Server, Supervisor, handoff_run_with, is_root_to, skip, supervise,
};

const STOPPING: &str = "handoff-run: the supervisor is stopping\n";

fn outputs(running: Vec<Running>) -> Vec<Output> {
    running.into_iter().map(Running::output).collect()
}

#[test]
fn the_control_socket_is_for_its_user_alone() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let file = fs::metadata(supervisor.folder.path("control")).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o600);
}

#[test]
fn another_user_is_turned_away_even_if_the_mode_lets_him_in() {
    if !is_root_to("become another user") {
        return;
    }
    let supervisor = supervise(Server::Directed, &[]).serving();
    fs::set_permissions(supervisor.folder.path("control"), fs::Permissions::from_mode(0o666)).unwrap();
    let lines = thread::scope(|scope| {
        let stranger = || {
            // SAFETY: the bare system call takes integers and changes this thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            let mut client = UnixStream::connect(supervisor.folder.path("control")).unwrap();
            // It may be turned away before it has said this.
            let _ = client.write_all(STOP.as_bytes());
            received(client)
        };
        scope.spawn(stranger).join().unwrap()
    });
    assert_eq!(lines, ["{\"error\":\"this supervisor belongs to another user\"}", "{\"exit\":125}"]);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let long = format!("{{\"request\":\"{}", "x".repeat(1000));
    let texts = ["\n", "hello\n", "{}\n", "{\"request\":\"STOP\"}\n", "{\"request\":{\"reload\":\"now\"}}\n", &long];
    let requests = texts.iter().map(|text| text.as_bytes()).chain([b"\xff\x00\x80\n".as_slice()]);
    for request in requests {
        let mut client = supervisor.control();
        client.write_all(request).unwrap();
        assert_eq!(received(client), NOT_UNDERSTOOD, "{}", request.escape_ascii());
    }
    // A connection without a word.
    drop(supervisor.control());
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_client_that_says_nothing_is_dropped_and_others_are_served_meanwhile() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (mut silent, mut interrupted) = (supervisor.control(), supervisor.request("{\"request\""));
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
    silent.set_nonblocking(true).unwrap();
    assert!(silent.read(&mut [0]).is_err(), "it was dropped at once");
    silent.set_nonblocking(false).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    // The request that was begun is lost with the connection.
    assert!(matches!(interrupted.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_slow_client_is_understood() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let mut client = supervisor.control();
    for byte in STATUS_JSON.as_bytes() {
        client.write_all(&[*byte]).unwrap();
        await_read(&client);
    }
    let lines = received(client);
    assert!(lines[0].starts_with("{\"output\":\"{"), "{lines:?}");
    assert_eq!(lines[1..], [SUCCESS]);
}

#[test]
fn a_client_that_has_said_all_may_close_its_direction() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let (status, reload) = (supervisor.request(STATUS), supervisor.request(RELOAD_AND_WAIT));
    for client in [&status, &reload] {
        client.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(received(status).last().unwrap(), SUCCESS);
    supervisor.generation(2);
    supervisor.folder.open_gate();
    assert_eq!(received(reload).last().unwrap(), SUCCESS);
}

#[test]
fn a_reload_whose_client_goes_away_takes_effect_all_the_same() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let client = supervisor.request(RELOAD);
    supervisor.generation(2);
    drop(client);
    supervisor.folder.open_gate();
    supervisor.wait_gone(1);
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
    // Gone before the request was even read.
    drop(supervisor.request(RELOAD));
    supervisor.wait_ready(3);
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    // Each hears of everything until its own end, and none of them listens.
    let clients: Vec<UnixStream> = (0..20).map(|_| supervisor.request(RELOAD_LIVE)).collect();
    supervisor.wait_ready(2);
    for _ in 0..3 {
        assert_eq!(supervisor.reload().failure(), (0, ""));
    }
    drop(held);
    for client in clients {
        assert_eq!(received(client).last().unwrap(), SUCCESS);
    }
}

#[test]
fn a_thousand_clients_at_once_are_all_answered() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    if most < 1500 {
        return skip("a thousand connections are not allowed here");
    }
    let supervisor = supervise(Server::Directed, &[]).serving();
    let clients: Vec<UnixStream> = (0..1000).map(|_| supervisor.request(STATUS)).collect();
    for client in clients {
        assert_eq!(received(client).last().unwrap(), SUCCESS);
    }
}

/// A supervisor whose second generation is held back and waited for by twenty clients.
fn twenty_reloads() -> (Supervisor, Vec<Running>) {
    let supervisor = supervise(Server::Directed, &[]).run(|run| run.env("HANDOFF_LOG", "debug")).serving();
    supervisor.folder.close_gate();
    let clients = (0..20).map(|_| supervisor.command("--reload", &[]).start()).collect();
    supervisor.wait_log_times(20, "handoff-run: Reload\n");
    (supervisor, clients)
}

#[test]
fn twenty_reloads_at_once_are_two_new_generations() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.failure(), (0, ""));
    }
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(3, "serving".into())]);
}

#[test]
fn everybody_who_waited_for_a_generation_that_fails_is_told() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.let_fail(2);
    supervisor.folder.let_fail(3);
    supervisor.folder.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.code(), 1);
        assert!(output.stderr.contains("ended with status 3 before it was ready"), "{}", output.stderr);
    }
    supervisor.wait_gone(3);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn only_the_reload_whose_own_generation_failed_fails() {
    let (supervisor, clients) = twenty_reloads();
    supervisor.folder.let_fail(2);
    supervisor.folder.open_gate();
    let mut statuses: Vec<i32> = outputs(clients).iter().map(Output::code).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![0; 19], vec![1]].concat());
}

#[test]
fn a_reload_during_shutdown_is_refused() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    supervisor.signal(Signal::SIGTERM);
    supervisor.wait_draining(1);
    assert_eq!(supervisor.reload().failure(), (125, STOPPING));
    drop(held);
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn a_stop_ends_the_generation_that_gets_ready_too() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    let queued = supervisor.command("--reload", &["--wait"]).start();
    let stop = supervisor.stop();
    assert_eq!(stop.failure(), (0, ""));
    assert_eq!(reload.output().failure(), (125, STOPPING));
    assert_eq!(queued.output().code(), 125);
    assert_eq!(supervisor.end().0, 0);
    for generation in [1, 2] {
        assert!(!exists(supervisor.generation(generation)), "generation {generation} is still there");
    }
}

#[test]
fn two_who_stop_both_see_the_end() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    let stops = [(); 2].map(|()| supervisor.request(STOP));
    stops.iter().for_each(await_read);
    drop(held);
    for stop in stops {
        assert_eq!(received(stop).last().unwrap(), SUCCESS);
    }
    assert_eq!(supervisor.end().0, 0);
}

#[test]
fn a_stop_that_had_to_kill_says_so() {
    let mut supervisor = supervise(Server::Directed, &["--drain-timeout", "200ms"]).serving();
    supervisor.folder.let_be_stubborn(1);
    let output = supervisor.stop();
    let message = "handoff-run: a generation did not drain and was killed\n";
    assert_eq!(output.failure(), (1, message));
    assert_eq!(supervisor.end().0, 137);
}

// handoff-run(1), --stop: "Ends when it has."
// Once it was told so while the sockets were still open, and whoever started the next one found them in use.
#[test]
fn after_a_stop_everything_is_free_at_once() {
    let mut supervisor = supervise(Server::Directed, &["-l", "./other", "--pid-file", "pid"]).serving();
    let [control, other, pid] = ["control", "other", "pid"].map(|name| supervisor.folder.path(name));
    supervisor.folder.read("pid");
    let mut client = BufReader::new(supervisor.request(STOP));
    let mut line = String::new();
    while line.trim_end() != SUCCESS {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
    assert_eq!([control.exists(), other.exists(), pid.exists()], [false; 3]);
    TcpListener::bind(supervisor.address()).unwrap();
    assert_eq!(supervisor.end().0, 0);
}

/// A second supervisor at the control path of the first, or of nobody.
fn second(folder: &Folder) -> (i32, String) {
    let (control, socket) = (folder.text("control"), folder.text("socket"));
    let output = handoff_run_with(&["--supervise", "--control", &control, "-l", &socket, "--", "true"]).output();
    assert!(!folder.path("socket").exists());
    (output.code(), output.stderr)
}

#[test]
fn a_control_path_that_is_in_use_is_left_alone() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let control = supervisor.folder.path("control");
    let before = fs::metadata(&control).unwrap().ino();
    let message =
        format!("handoff-run: cannot listen on --control {}: EADDRINUSE: Address already in use\n", control.display());
    assert_eq!(second(&supervisor.folder), (125, message));
    assert_eq!(fs::metadata(&control).unwrap().ino(), before);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_control_path_that_is_no_socket_is_left_alone() {
    let folder = Folder::new();
    let control = folder.path("control");
    fs::write(&control, "mine").unwrap();
    let message = format!(
        "handoff-run: cannot listen on --control {0}: {0} exists and is a regular file, not a socket\n",
        control.display()
    );
    assert_eq!(second(&folder), (125, message));
    assert_eq!(fs::read_to_string(&control).unwrap(), "mine");
}

#[test]
fn a_dead_control_socket_is_replaced() {
    let setup = supervise(Server::Directed, &[]);
    drop(UnixListener::bind(setup.folder.path("control")).unwrap());
    let mut supervisor = setup.serving();
    assert_eq!(supervisor.stop().failure(), (0, ""));
    assert_eq!(supervisor.end().0, 0);
    assert!(!supervisor.folder.path("control").exists());
}

#[test]
fn a_control_path_that_became_somebody_else_s_is_not_removed() {
    for upgraded in [false, true] {
        let mut supervisor = supervise(Server::Directed, &[]).serving();
        let control = supervisor.folder.path("control");
        fs::remove_file(&control).unwrap();
        let _other = UnixListener::bind(&control).unwrap();
        if upgraded {
            supervisor.signal(Signal::SIGUSR2);
            supervisor.wait_log("becoming");
        }
        assert_eq!(supervisor.end_by(Signal::SIGTERM).0, 0);
        UnixStream::connect(&control).unwrap();
    }
}

#[test]
fn a_control_path_that_was_removed_costs_nothing_else() {
    let mut supervisor = supervise(Server::Directed, &[]).serving();
    fs::remove_file(supervisor.folder.path("control")).unwrap();
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    assert_eq!(supervisor.end_by(Signal::SIGTERM).0, 0);
}

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
    for age in ["generations.0.age", "generations.1.age"] {
        let seconds: f64 = status.remove(age).unwrap().parse().unwrap();
        assert!(seconds > 0.0 && seconds < 100.0, "{seconds}");
    }
    let shown: Vec<String> = status.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let (first, second) = (supervisor.generation(1), supervisor.generation(2));
    let expected = [
        "generations.0.connections=5".into(),
        "generations.0.generation=1".into(),
        format!("generations.0.pid={first}"),
        "generations.0.state='draining'".into(),
        "generations.1.connections=1".into(),
        "generations.1.generation=2".into(),
        format!("generations.1.pid={second}"),
        "generations.1.state='serving'".into(),
        "last_failure='generation 3: ended with status 3 before it was ready'".into(),
        format!("listeners.0.address='{}'", supervisor.address()),
        "listeners.0.name='tcp'".into(),
        format!("listeners.1.address='{}'", path),
        "listeners.1.name='unix'".into(),
        format!("pid={}", supervisor.pid),
        "restarts=0".into(),
        "stopping=False".into(),
        "version=1".into(),
    ];
    assert_eq!(shown, expected);

    let table = supervisor.table();
    assert_eq!(table[0], ["GENERATION", "PID", "STATE", "AGE", "CONNECTIONS"]);
    let line = |number: usize| [table[number][..3].to_vec(), table[number][5..].to_vec()].concat();
    assert_eq!(line(1), ["1", &first.to_string(), "draining", "5"]);
    assert_eq!(line(2), ["2", &second.to_string(), "serving", "1"]);
    let rest: Vec<String> = table[3..].iter().map(|words| words.join(" ")).collect();
    let listening = format!("supervisor {}, listening on tcp={} unix={}", supervisor.pid, supervisor.address(), path);
    assert_eq!(rest, [listening.as_str(), "last failure: generation 3: ended with status 3 before it was ready"]);
    drop((held, unix));
    supervisor.wait_gone(1);
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
    assert!(lines[1].starts_with(&format!("\r{}", ready(2))), "{screen:?}");
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
    assert_eq!(lines[2..], ["generation 1: draining, 1 connection", "generation 1: gone"]);
}

#[test]
fn without_a_supervisor_there_is_an_error() {
    let folder = Folder::new();
    let path = folder.text("control");
    let ask = |request: &str| handoff_run_with(&[request, &path]).output();
    for request in ["--reload", "--status", "--stop"] {
        let missing = format!("handoff-run: cannot reach a supervisor at {path}: ENOENT: No such file or directory\n");
        assert_eq!(ask(request).failure(), (125, missing.as_str()));
    }
    drop(UnixListener::bind(&path).unwrap());
    let dead = format!("handoff-run: cannot reach a supervisor at {path}: ECONNREFUSED: Connection refused\n");
    assert_eq!(ask("--status").failure(), (125, dead.as_str()));
}

#[test]
fn a_supervisor_that_dies_during_a_reload_is_noticed() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let client = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    supervisor.signal(Signal::SIGKILL);
    assert_eq!(client.output().failure(), (125, "handoff-run: the supervisor ended before it answered\n"));
}

/// How often a process has gone to sleep.
fn sleeps(pid: Pid) -> u64 {
    status_field(pid, "voluntary_ctxt_switches").parse().unwrap()
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: Pid) -> u64 {
    let fields = stat(pid).unwrap();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_supervisor_without_descriptors_waits_and_goes_on_later() {
    let few = || Ok(setrlimit(Resource::RLIMIT_NOFILE, 24, 24)?);
    let supervisor = supervise(Server::Directed, &[]).run(|run| run.before_exec(few)).serving();
    let mut clients: Vec<UnixStream> = (0..40).map(|_| supervisor.control()).collect();
    supervisor.wait_log("cannot accept on");
    let before = (sleeps(supervisor.pid), ticks(supervisor.pid));
    // A reload needs descriptors, too, and has them.
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_gone(1);
    assert_eq!(clients[0].read(&mut [0]).unwrap(), 0);
    let (slept, worked) = (sleeps(supervisor.pid) - before.0, ticks(supervisor.pid) - before.1);
    // Three seconds at ten attempts a second, and a survey now and then.
    assert!(slept < 150 && worked < 100, "woken {slept} times, {worked} ticks");
    assert_eq!(supervisor.log().matches("cannot accept on").count(), 1, "{}", supervisor.log());
    drop(clients);
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
    assert_eq!(supervisor.reload().failure(), (0, ""));
}
