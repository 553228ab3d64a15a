//! Clients of the control socket: slow, silent, gone, many, and those that speak another language.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};

use crate::harness::control::{
    NOT_UNDERSTOOD, RELOAD, RELOAD_AND_WAIT, RELOAD_LIVE, STATUS, STATUS_JSON, STOP, SUCCESS, await_read, received,
};
use crate::harness::{Folder, Running, Server, handoff_run_with, skip, supervise};

#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let long = format!("{{\"request\":\"{}", "x".repeat(17_000));
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

// A time that the clock never reaches once was the supervisor's end.
#[test]
fn a_stage_that_no_command_line_has_is_refused_and_changes_nothing() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let most = u64::MAX;
    for (percent, seconds) in [(5, most), (5, 86_400_001), (5, 0), (0, 60), (101, 60)] {
        let stage = format!(r#"{{"percent":{percent},"duration":{{"secs":{seconds},"nanos":0}}}}"#);
        let request =
            format!(r#"{{"request":{{"reload":{{"until":"serving","rollout":{{"stages":[{stage}]}}}}}}}}"#) + "\n";
        assert_eq!(received(supervisor.request(&request)), NOT_UNDERSTOOD, "{stage}");
    }
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
    // Each is sent everything until its own end, and none of them reads.
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

// Once 200 that waited for a drain kept --status and --stop out until it was over.
#[test]
fn clients_that_wait_keep_nobody_out() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (held, _) = supervisor.hold();
    let mut waiting: Vec<UnixStream> = (0..200).map(|_| supervisor.request(RELOAD_AND_WAIT)).collect();
    waiting.iter().for_each(await_read);
    supervisor.wait_draining(1);
    assert_eq!(supervisor.states()[0], (1, "draining".into()));
    let message = "handoff-run: too many clients are waiting for a reload\n";
    assert_eq!(supervisor.reload().failure(), (125, message));
    // They are counted when they wait, not for good.
    drop(waiting.pop());
    supervisor.wait_clients(199);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    let mut stops: Vec<UnixStream> = (0..200).map(|_| supervisor.request(STOP)).collect();
    stops.iter().for_each(await_read);
    let message = "handoff-run: the supervisor stops, but too many clients wait for that\n";
    assert_eq!(supervisor.stop().failure(), (125, message));
    assert!(supervisor.status(&[]).contains("\nstopping\n"));
    drop(held);
    assert_eq!(received(stops.pop().unwrap()).last().unwrap(), SUCCESS);
}

// The same where it is descriptors that they take.
#[test]
fn clients_that_wait_leave_descriptors_to_others() {
    let few = || Ok(setrlimit(Resource::RLIMIT_NOFILE, 40, 40)?);
    let supervisor = supervise(Server::Directed, &[]).run(|run| run.before_exec(few)).serving();
    let (_held, _) = supervisor.hold();
    let waiting: Vec<UnixStream> = (0..10).map(|_| supervisor.request(RELOAD_AND_WAIT)).collect();
    waiting.iter().for_each(await_read);
    supervisor.wait_draining(1);
    assert_eq!(supervisor.reload().code(), 125);
    assert_eq!(supervisor.states()[0], (1, "draining".into()));
}

/// A listening socket that nobody accepts from.
fn unanswered(folder: &Folder, name: &str) -> (UnixListener, String) {
    let path = folder.text(name);
    (UnixListener::bind(&path).unwrap(), path)
}

// Once it waited for ever.
#[test]
fn a_client_gives_up_on_a_supervisor_that_is_stopped_or_hangs_and_on_no_other() {
    let patient = supervise(Server::Directed, &[]).serving();
    patient.folder.close_gate();
    let long = patient.command("--reload", &[]).start();
    let supervisor = supervise(Server::Directed, &[]).serving();
    supervisor.folder.close_gate();
    let under_way = supervisor.command("--reload", &["-q"]).start();
    supervisor.generation(2);
    supervisor.signal(Signal::SIGSTOP);
    let others = [("--status", &[] as &[&str]), ("--stop", &[]), ("--reload", &["--wait"])];
    let others = others.map(|(request, options)| supervisor.command(request, options).start());
    let folder = Folder::new();
    let (_hangs, hanging) = unanswered(&folder, "hangs");
    let (full, filled) = unanswered(&folder, "full");
    // Only changes the backlog.
    listen(&full, Backlog::new(0).unwrap()).unwrap();
    let _first = UnixStream::connect(&filled).unwrap();
    let hung = [&hanging, &filled].map(|path| handoff_run_with(&["--stop", path]).start());
    let control = supervisor.folder.text("control");
    let pid = supervisor.pid;
    let line = format!(
        "handoff-run: the supervisor at {control} does not answer: pid {pid} is stopped and may do it after SIGCONT\n"
    );
    for client in [under_way].into_iter().chain(others) {
        assert_eq!(client.output().failure(), (125, line.as_str()));
    }
    let ours = std::process::id();
    let [hangs, is_full] = hung.map(Running::output);
    let line = format!("handoff-run: the supervisor at {hanging} does not answer: pid {ours} hangs, or is too busy\n");
    assert_eq!(hangs.failure(), (125, line.as_str()));
    let line = format!("handoff-run: the supervisor at {filled} does not answer: its accept queue is full\n");
    assert_eq!(is_full.failure(), (125, line.as_str()));
    // All that took twice as long as it takes to ask whether one lives.
    patient.folder.open_gate();
    assert_eq!(long.output().failure(), (0, ""));
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
