//! The control socket: who may use it, what it stands, and what its clients are told.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use nix::pty::openpty;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::harness::{Folder, Output, PROGRAM, Running, handoff_run, handoff_run_with, skip, wait_for};
use crate::stage::{Stage, flat_json, greet, server};

const STOPPING: &str = "handoff-run: the supervisor is stopping\n";

/// Everything that a client is told.
fn told(client: UnixStream) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(client).lines() {
        // A client that said too much is cut off when it has been answered.
        let Ok(line) = line else { break };
        lines.push(line);
    }
    lines
}

/// Wait until the other end has read everything.
fn await_read(client: &UnixStream) {
    wait_for("the request to be read", || {
        let mut unread: libc::c_int = 0;
        // SAFETY: the kernel writes one int, which lives through the call.
        let asked = unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
        (asked == 0 && unread == 0).then_some(())
    });
}

fn outputs(running: Vec<Running>) -> Vec<Output> {
    running.into_iter().map(Running::output).collect()
}

#[test]
fn the_control_socket_is_for_its_user_alone() {
    let stage = Stage::new(&[]);
    let file = fs::metadata(stage.folder.path("control")).unwrap();
    assert_eq!(file.mode() & 0o7777, 0o600);
}

#[test]
fn another_user_is_turned_away_even_if_the_mode_lets_him_in() {
    if !geteuid().is_root() {
        return skip("only root can become another user");
    }
    let stage = Stage::new(&[]);
    fs::set_permissions(stage.folder.path("control"), fs::Permissions::from_mode(0o666)).unwrap();
    let lines = thread::scope(|scope| {
        let stranger = || {
            // SAFETY: the bare system call takes integers and changes this thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
            let mut client = UnixStream::connect(stage.folder.path("control")).unwrap();
            // It may be turned away before it has said this.
            let _ = client.write_all(b"stop\n");
            told(client)
        };
        scope.spawn(stranger).join().unwrap()
    });
    assert_eq!(lines, ["error this supervisor belongs to another user", "exit 125"]);
    assert_eq!(stage.states(), [(1, "serving".into())]);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let stage = Stage::new(&[]);
    let long = format!("reload {}", "x".repeat(1000));
    let requests =
        [b"\n".as_slice(), b"hello\n", b"reload now\n", b"stop \n", b"STATUS\n", b"\xff\x00\x80\n", long.as_bytes()];
    for request in requests {
        let mut client = stage.connect();
        client.write_all(request).unwrap();
        let expected = ["error the supervisor does not understand the request", "exit 125"];
        assert_eq!(told(client), expected, "{}", request.escape_ascii());
    }
    // A connection without a word.
    drop(stage.connect());
    assert_eq!(stage.states(), [(1, "serving".into())]);
}

#[test]
fn a_client_that_says_nothing_is_dropped_and_others_are_served_meanwhile() {
    let stage = Stage::new(&[]);
    let (mut silent, mut interrupted) = (stage.connect(), stage.request("relo"));
    assert_eq!(stage.states(), [(1, "serving".into())]);
    silent.set_nonblocking(true).unwrap();
    assert!(silent.read(&mut [0]).is_err(), "it was dropped at once");
    silent.set_nonblocking(false).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    // The request that was begun is lost with the connection.
    assert!(matches!(interrupted.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(stage.states(), [(1, "serving".into())]);
}

#[test]
fn a_slow_client_is_understood() {
    let stage = Stage::new(&[]);
    let mut client = stage.connect();
    for byte in b"status json\n" {
        client.write_all(&[*byte]).unwrap();
        await_read(&client);
    }
    let lines = told(client);
    assert!(lines[0].starts_with("out {"), "{lines:?}");
    assert_eq!(lines[1..], ["exit 0"]);
}

#[test]
fn a_client_that_has_said_all_may_close_its_direction() {
    let stage = Stage::new(&[]);
    stage.close_gate();
    let (status, reload) = (stage.request("status\n"), stage.request("reload wait\n"));
    for client in [&status, &reload] {
        client.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(told(status).last().unwrap(), "exit 0");
    stage.await_log("generation 2: started");
    stage.open_gate();
    assert_eq!(told(reload).last().unwrap(), "exit 0");
}

#[test]
fn a_reload_whose_client_goes_away_takes_effect_all_the_same() {
    let stage = Stage::new(&[]);
    stage.close_gate();
    let client = stage.request("reload\n");
    stage.await_log("generation 2: started");
    drop(client);
    stage.open_gate();
    stage.await_log("generation 1: gone");
    assert_eq!(stage.states(), [(2, "serving".into())]);
    // Gone before the request was even read.
    drop(stage.request("reload\n"));
    stage.await_log("generation 3: ready");
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody() {
    let stage = Stage::new(&[]);
    let (held, _) = stage.hold();
    // Each hears of everything until its own end, and none of them listens.
    let clients: Vec<UnixStream> = (0..20).map(|_| stage.request("reload wait live\n")).collect();
    stage.await_log("ready after");
    for _ in 0..3 {
        assert_eq!(stage.ask("--reload", &[]).output().failure(), (0, ""));
    }
    drop(held);
    for client in clients {
        assert_eq!(told(client).last().unwrap(), "exit 0");
    }
}

#[test]
fn a_thousand_clients_at_once_are_all_answered() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    if most < 1500 {
        return skip("a thousand connections are not allowed here");
    }
    let stage = Stage::new(&[]);
    let clients: Vec<UnixStream> = (0..1000).map(|_| stage.request("status\n")).collect();
    for client in clients {
        assert_eq!(told(client).last().unwrap(), "exit 0");
    }
}

/// A supervisor whose second generation is held back and waited for by twenty clients.
fn twenty_reloads() -> (Stage, Vec<Running>) {
    let run = handoff_run().env("HANDOFF_LOG", "debug");
    let stage = Stage::on(Folder::new(), run, &[], &server());
    stage.await_log("generation 1: ready");
    stage.close_gate();
    let clients = (0..20).map(|_| stage.ask("--reload", &[]).start()).collect();
    stage.await_log_times(20, "handoff-run: Reload\n");
    (stage, clients)
}

#[test]
fn twenty_reloads_at_once_are_two_new_generations() {
    let (stage, clients) = twenty_reloads();
    stage.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.failure(), (0, ""));
    }
    stage.await_log("generation 2: gone");
    assert_eq!(stage.states(), [(3, "serving".into())]);
}

#[test]
fn everybody_who_waited_for_a_generation_that_fails_is_told() {
    let (stage, clients) = twenty_reloads();
    stage.put("fail-2");
    stage.put("fail-3");
    stage.open_gate();
    for output in outputs(clients) {
        assert_eq!(output.code(), 1);
        assert!(output.stderr.contains("ended with status 3 before it was ready"), "{}", output.stderr);
    }
    stage.await_log("generation 3: gone");
    assert_eq!(stage.states(), [(1, "serving".into())]);
}

#[test]
fn only_the_reload_whose_own_generation_failed_fails() {
    let (stage, clients) = twenty_reloads();
    stage.put("fail-2");
    stage.open_gate();
    let mut statuses: Vec<i32> = outputs(clients).iter().map(Output::code).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![0; 19], vec![1]].concat());
}

#[test]
fn a_reload_during_shutdown_is_refused() {
    let mut stage = Stage::new(&[]);
    let (held, _) = stage.hold();
    stage.signal(Signal::SIGTERM);
    stage.await_log("generation 1: draining");
    assert_eq!(stage.ask("--reload", &[]).output().failure(), (125, STOPPING));
    drop(held);
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_stop_ends_the_generation_that_gets_ready_too() {
    let mut stage = Stage::new(&[]);
    stage.close_gate();
    let reload = stage.ask("--reload", &[]).start();
    stage.await_log("generation 2: started");
    let queued = stage.ask("--reload", &["--wait"]).start();
    let stop = stage.ask("--stop", &[]).output();
    assert_eq!(stop.failure(), (0, ""));
    assert_eq!(reload.output().failure(), (125, STOPPING));
    assert_eq!(queued.output().code(), 125);
    assert_eq!(stage.end(), 0);
    for generation in [1, 2] {
        assert!(kill(stage.pid_of(generation), None).is_err(), "generation {generation} is still there");
    }
}

#[test]
fn two_who_stop_both_see_the_end() {
    let mut stage = Stage::new(&[]);
    let (held, _) = stage.hold();
    let stops = [(); 2].map(|()| stage.request("stop\n"));
    stops.iter().for_each(await_read);
    drop(held);
    for stop in stops {
        assert_eq!(told(stop).last().unwrap(), "exit 0");
    }
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_stop_that_had_to_kill_says_so() {
    let mut stage = Stage::new(&["--drain-timeout", "200ms"]);
    stage.put("stubborn-1");
    let output = stage.ask("--stop", &[]).output();
    let message = "handoff-run: a generation did not drain and was killed\n";
    assert_eq!(output.failure(), (1, message));
    assert_eq!(stage.end(), 137);
}

// handoff-run(1), --stop: "Ends when it has."
// Once it was told so while the sockets were still open, and whoever started the next one found them in use.
#[test]
fn after_a_stop_everything_is_free_at_once() {
    let folder = Folder::new();
    let (control, other, pid) = (folder.path("control"), folder.path("other"), folder.path("pid"));
    let options = ["-l", other.to_str().unwrap(), "--pid-file", pid.to_str().unwrap()];
    let mut stage = Stage::on(folder, handoff_run(), &options, &server());
    stage.await_log("generation 1: ready");
    let mut client = BufReader::new(stage.request("stop\n"));
    let mut line = String::new();
    while !line.starts_with("exit") {
        line.clear();
        assert_ne!(client.read_line(&mut line).unwrap(), 0);
    }
    assert_eq!([control.exists(), other.exists(), pid.exists()], [false; 3]);
    TcpListener::bind(stage.address()).unwrap();
    assert_eq!(stage.end(), 0);
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
    let stage = Stage::new(&[]);
    let control = stage.folder.path("control");
    let before = fs::metadata(&control).unwrap().ino();
    let message =
        format!("handoff-run: cannot listen on --control {}: EADDRINUSE: Address already in use\n", control.display());
    assert_eq!(second(&stage.folder), (125, message));
    assert_eq!(fs::metadata(&control).unwrap().ino(), before);
    assert_eq!(stage.states(), [(1, "serving".into())]);
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
    let folder = Folder::new();
    drop(UnixListener::bind(folder.path("control")).unwrap());
    let mut stage = Stage::on(folder, handoff_run(), &[], &server());
    stage.await_log("generation 1: ready");
    assert_eq!(stage.ask("--stop", &[]).output().failure(), (0, ""));
    assert_eq!(stage.end(), 0);
    assert!(!stage.folder.path("control").exists());
}

#[test]
fn a_control_path_that_became_somebody_else_s_is_not_removed() {
    for upgraded in [false, true] {
        let mut stage = Stage::new(&[]);
        let control = stage.folder.path("control");
        fs::remove_file(&control).unwrap();
        let _other = UnixListener::bind(&control).unwrap();
        if upgraded {
            stage.signal(Signal::SIGUSR2);
            stage.await_log("becoming");
        }
        stage.signal(Signal::SIGTERM);
        assert_eq!(stage.end(), 0);
        UnixStream::connect(&control).unwrap();
    }
}

#[test]
fn a_control_path_that_was_removed_costs_nothing_else() {
    let mut stage = Stage::new(&[]);
    fs::remove_file(stage.folder.path("control")).unwrap();
    stage.signal(Signal::SIGHUP);
    stage.await_log("generation 2: ready");
    stage.signal(Signal::SIGTERM);
    assert_eq!(stage.end(), 0);
}

#[test]
fn a_status_shows_every_generation_with_its_state_and_its_connections() {
    let folder = Folder::new();
    let path = folder.path("socket");
    let listener = format!("unix={},nonblock", path.display());
    let stage = Stage::on(folder, handoff_run(), &["-l", &listener], &server());
    stage.await_log("generation 1: ready");
    let held: Vec<_> = (0..3).map(|_| stage.hold()).collect();
    let unix: Vec<_> = (0..2).map(|_| greet(UnixStream::connect(&path).unwrap())).collect();
    stage.close_gate();
    let reload = stage.ask("--reload", &[]).start();
    stage.await_log("generation 2: started");
    assert_eq!(stage.states(), [(1, "serving".into()), (2, "starting".into())]);
    stage.open_gate();
    assert_eq!(reload.output().code(), 0);
    stage.await_no_accept(1, 2);
    let _later = stage.hold();
    stage.put("fail-3");
    assert_eq!(stage.ask("--reload", &[]).output().code(), 1);
    stage.await_log("generation 3: gone");

    let output = stage.ask("--status", &["--json"]).output();
    assert_eq!(output.failure(), (0, ""));
    let mut status = flat_json(output.stdout.strip_suffix('\n').unwrap());
    for age in ["generations.0.age", "generations.1.age"] {
        let seconds: f64 = status.remove(age).unwrap().parse().unwrap();
        assert!(seconds > 0.0 && seconds < 100.0, "{seconds}");
    }
    let shown: Vec<String> = status.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let (first, second) = (stage.pid_of(1), stage.pid_of(2));
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
        format!("listeners.0.address='{}'", stage.address()),
        "listeners.0.name='tcp'".into(),
        format!("listeners.1.address='{}'", path.display()),
        "listeners.1.name='unix'".into(),
        format!("pid={}", stage.pid),
        "restarts=0".into(),
        "stopping=False".into(),
        "version=1".into(),
    ];
    assert_eq!(shown, expected);

    let table = stage.table();
    assert_eq!(table[0], ["GENERATION", "PID", "STATE", "AGE", "CONNECTIONS"]);
    let line = |number: usize| [table[number][..3].to_vec(), table[number][5..].to_vec()].concat();
    assert_eq!(line(1), ["1", &first.to_string(), "draining", "5"]);
    assert_eq!(line(2), ["2", &second.to_string(), "serving", "1"]);
    let rest: Vec<String> = table[3..].iter().map(|words| words.join(" ")).collect();
    let listening = format!("supervisor {}, listening on tcp={} unix={}", stage.pid, stage.address(), path.display());
    assert_eq!(rest, [listening.as_str(), "last failure: generation 3: ended with status 3 before it was ready"]);
    drop((held, unix));
    stage.await_log("generation 1: gone");
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
    let stage = Stage::new(&[]);
    let (first, second) = (stage.hold(), stage.hold());
    let pty = openpty(None, None).unwrap();
    let mut client = Command::new(PROGRAM);
    client.args(["--reload", &stage.folder.text("control"), "--wait"]).stdout(pty.slave);
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
    assert!(lines[1].starts_with("\rgeneration 2: ready after "), "{screen:?}");
}

#[test]
fn elsewhere_a_reload_shows_plain_lines() {
    let stage = Stage::new(&[]);
    let held = stage.hold();
    let client = stage.ask("--reload", &["--wait"]).start();
    stage.await_log("generation 1: draining, 1 connection");
    drop(held);
    let output = client.output();
    assert_eq!(output.failure(), (0, ""));
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(lines[0], format!("generation 2: started (pid {})", stage.pid_of(2)));
    assert!(lines[1].starts_with("generation 2: ready after "), "{lines:?}");
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
    let stage = Stage::new(&[]);
    stage.close_gate();
    let client = stage.ask("--reload", &[]).start();
    stage.await_log("generation 2: started");
    stage.signal(Signal::SIGKILL);
    assert_eq!(client.output().failure(), (125, "handoff-run: the supervisor ended before it answered\n"));
}

/// How often a process has gone to sleep.
fn sleeps(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// The processor time that a process has used, in ticks of 10 ms.
fn ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_supervisor_without_descriptors_waits_and_goes_on_later() {
    let few = || Ok(setrlimit(Resource::RLIMIT_NOFILE, 24, 24)?);
    let stage = Stage::on(Folder::new(), handoff_run().before_exec(few), &[], &server());
    stage.await_log("generation 1: ready");
    let mut clients: Vec<UnixStream> = (0..40).map(|_| stage.connect()).collect();
    stage.await_log("cannot accept on");
    let before = (sleeps(stage.pid), ticks(stage.pid));
    // A reload needs descriptors, too, and has them.
    stage.signal(Signal::SIGHUP);
    stage.await_log("generation 1: gone");
    assert_eq!(clients[0].read(&mut [0]).unwrap(), 0);
    let (slept, worked) = (sleeps(stage.pid) - before.0, ticks(stage.pid) - before.1);
    // Three seconds at ten attempts a second, and a survey now and then.
    assert!(slept < 150 && worked < 100, "woken {slept} times, {worked} ticks");
    assert_eq!(stage.log().matches("cannot accept on").count(), 1, "{}", stage.log());
    drop(clients);
    assert_eq!(stage.states(), [(2, "serving".into())]);
    assert_eq!(stage.ask("--reload", &[]).output().failure(), (0, ""));
}
