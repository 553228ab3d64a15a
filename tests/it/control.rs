//! The control socket: who may use it, and what it stands.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::control::{RELOAD, STOP, SUCCESS, received};
use crate::harness::process::{stat, status_field};
use crate::harness::socket::is_listening;
use crate::harness::{Folder, Server, Supervisor, handoff_run_with, is_root_to, supervise, wait_for};

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
    for (other, what) in [(folder.text(""), "a directory"), (folder.text("file"), "a regular file")] {
        folder.write("file", "");
        let error = format!("handoff-run: cannot reach a supervisor at {other}: it is {what}, not a socket\n");
        assert_eq!(handoff_run_with(&["--reload", &other]).output().failure(), (125, error.as_str()));
    }
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
