//! The control socket: who may use it, and what it stands.

use std::fs::{self};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};
use nix::unistd::Pid;

use crate::harness::control::{
    NOT_UNDERSTOOD, RELOAD, RELOAD_AND_WAIT, RELOAD_LIVE, STATUS, STATUS_JSON, STOP, SUCCESS, await_read, received,
};
use crate::harness::process::{stat, status_field};
use crate::harness::socket::is_listening;
use crate::harness::{Folder, Running, Server, Supervisor, handoff_run_with, is_root_to, skip, supervise, wait_for};

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

/// A supervisor whose control socket is given like this.
fn with_control(options: &str) -> Supervisor {
    let setup = supervise(Server::Directed, &[]).unsupervised();
    let control = format!("{}{options}", setup.folder.text("control"));
    setup.options(&["--supervise", "--control", &control]).serving()
}

/// What a user with one group gets when it asks for the end, if it can connect.
fn ask_as(user: u32, group: u32, supervisor: &Supervisor) -> Option<Vec<String>> {
    let ask = || {
        // SAFETY: the bare system call takes no groups, and changes this thread alone.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) }, 0);
        // SAFETY: the bare system call takes integers, and changes this thread alone.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) }, 0);
        // SAFETY: the same.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }, 0);
        let mut client = UnixStream::connect(supervisor.folder.path("control")).ok()?;
        client.write_all(RELOAD.as_bytes()).unwrap();
        Some(received(client))
    };
    thread::scope(|scope| scope.spawn(ask).join().unwrap())
}

// handoff-run(1), --control: "with mode=, user= and group=, as in a SPEC, those whom they let in".
#[test]
fn a_control_socket_is_open_to_those_that_were_chosen() {
    if !is_root_to("become another user") {
        return;
    }
    let table = [
        (",group=4711", [(65534, 4711, true), (65534, 65534, false), (4711, 65534, false)]),
        (",user=4711", [(4711, 65534, true), (65534, 4711, false), (65534, 65534, false)]),
        (",mode=0640,group=4711", [(65534, 4711, false), (65534, 65534, false), (0, 0, true)]),
        (",mode=0666", [(65534, 4711, true), (65534, 65534, true), (0, 0, true)]),
    ];
    for (options, who) in table {
        let supervisor = with_control(options);
        for (user, group, is_let_in) in who {
            let lines = ask_as(user, group, &supervisor);
            assert_eq!(lines.as_ref().and_then(|lines| lines.last()).is_some_and(|line| line == SUCCESS), is_let_in);
            assert!(is_let_in || lines.is_none(), "{options}: {user}, {group}: {lines:?}");
        }
        // So it stays in a new supervisor.
        supervisor.upgrade();
        let (user, group, _) = who[0];
        assert_eq!(ask_as(user, group, &supervisor).is_some(), who[0].2);
        supervisor.stopped();
    }
}

// "A comma in PATH is written \\, here, but not with --reload and its like."
#[test]
fn a_control_socket_may_have_a_comma() {
    let setup = supervise(Server::Directed, &[]).unsupervised();
    let (control, path) = (setup.folder.text(r"a\,mode=0666"), setup.folder.text("a,mode=0666"));
    let supervisor = setup.options(&["--supervise", "--control", &control]).serving();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(handoff_run_with(&["--stop", &path]).output().failure(), (0, ""));
    drop(supervisor);
}

// Root's --reload took any user's word for it.
#[test]
fn a_client_believes_nobody_who_may_not_be_the_supervisor() {
    if !is_root_to("become another user") {
        return;
    }
    const STRANGER: u32 = 65534;
    let root = Folder::new();
    let table = [
        (0, 0o777, "ctl", false),
        (0, 0o1777, "ctl", false),
        (STRANGER, 0o755, "ctl", true),
        (STRANGER, 0o700, "ctl", true),
        (STRANGER, 0o775, "ctl", false),
        (STRANGER, 0o757, "ctl", false),
        (4711, 0o757, "ctl", false),
        // What is in a folder where anybody can write may lead to the stranger's own.
        (STRANGER, 0o755, "../open/link", false),
        (STRANGER, 0o755, "../closed/link", true),
    ];
    for (name, mode) in [("open", 0o1777), ("closed", 0o755)] {
        fs::create_dir(root.path(name)).unwrap();
        fs::set_permissions(root.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (at, (owner, mode, path, is_believed)) in table.into_iter().enumerate() {
        let folder = root.path(&at.to_string());
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
        chown(&folder, Some(owner), Some(owner)).unwrap();
        let (control, link) = (folder.join("ctl"), folder.join(path));
        if link != control {
            symlink(&control, &link).unwrap();
        }
        let server = || {
            // SAFETY: the bare system call takes integers and changes this thread alone.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, STRANGER, STRANGER, STRANGER) }, 0);
            let listener = UnixListener::bind(&control).unwrap();
            let (mut client, _) = listener.accept().unwrap();
            // It may not want to hear it.
            let _ = client.write_all(b"{\"exit\":0}\n");
        };
        let output = thread::scope(|scope| {
            scope.spawn(server);
            wait_for("the listener", || is_listening(control.to_str().unwrap()).then_some(()));
            handoff_run_with(&["--reload", link.to_str().unwrap()]).output()
        });
        let error = format!(
            "handoff-run: cannot trust what listens at {}: it is a process of user {STRANGER}, who is not the only one \
             that can write in this folder\n",
            link.display()
        );
        let expected = if is_believed { (0, "") } else { (125, error.as_str()) };
        assert_eq!(output.failure(), expected, "{owner} {mode:o} {path}");
    }
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
