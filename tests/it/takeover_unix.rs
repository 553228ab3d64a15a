//! `--from` and Unix sockets: the socket is shared, and its name outlives the server that made it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::Signal;

use crate::harness::by_hand::{ByHand, by_hand, by_hand_at, by_hand_with, succeed};
use crate::harness::client::ask;
use crate::harness::namespace::in_namespace;
use crate::harness::process::sockets;
use crate::harness::{Folder, PROGRAM, Run, Server, supervise, wait_for};

/// As nginx and gunicorn do: it removes its socket's file when it is told to stop.
const UNLINKS: &str = "def end(*_): os.unlink(address()); os._exit(0)\nsignal.signal(signal.SIGTERM, end)\nserve()";
const SUCCESSOR: Server = Server::Python("serve()");

/// One that listens at `s` in a folder of its own.
fn at_path(code: &str) -> (ByHand, Folder) {
    let folder = Folder::new();
    let old = by_hand_at(&folder.text("s"), code);
    (old, folder)
}

// handoff-run(1), TAKEOVER: "The name of a Unix socket is kept".
#[test]
fn a_name_that_the_old_server_removes_at_its_end_is_restored() {
    let (old, folder) = at_path(UNLINKS);
    let path = folder.text("s");
    let inode = fs::metadata(&path).unwrap().ino();
    let new = old.succeed("auto", &[], SUCCESSOR);
    old.wait_end();
    new.wait_serving(&path);
    new.wait_alone();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(folder.names(), ["s"]);
    assert!(new.log().contains(&format!("is shared with pid {} (python3): a second Unix socket", old.pid())));
    assert_eq!(ask(&path).unwrap().pid, new.pid());
}

#[test]
fn a_supervisor_keeps_the_name_that_it_took_over_and_removes_it_at_its_own_end() {
    let (old, folder) = at_path(UNLINKS);
    let path = folder.text("s");
    let supervisor = supervise(Server::Python(UNLINKS), &["--from", "auto"]);
    let supervisor = supervisor.run(|run| run.env("ADDRESS", &path)).listen(&format!("unix:{path}")).start();
    supervisor.wait_ready(1);
    supervisor.wait_log(&format!("pid {} (python3): gone", old.pid()));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    assert_eq!(ask(&path).unwrap().pid, supervisor.generation(2));
    supervisor.stopped();
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_failed_successor_leaves_the_file_where_it_is() {
    let (old, folder) = at_path("serve()");
    let path = folder.text("s");
    let before = fs::metadata(&path).unwrap();
    assert_eq!(old.succeed("auto", &[], Server::Python("sys.exit(2)")).end().0, 2);
    let mut supervisor = supervise(Server::Python("sys.exit(2)"), &["--from", "auto"]).listen(&path).start();
    assert_eq!(supervisor.end().0, 2);
    assert_eq!(
        crate::harness::handoff_run_with(&["-l", &path, "--from", "auto", "--", "/nonexistent"]).output().code(),
        127
    );
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()));
    assert_eq!(ask(&path).unwrap().pid, old.pid());
    wait_for("what was made beside it to go", || (folder.names() == ["s"]).then_some(()));
}

// Its line had no --control, so nobody tells it that the file is another's by now.
#[test]
fn the_name_outlives_a_supervisor_that_removes_it_at_its_end() {
    let folder = Folder::new();
    let path = folder.text("s");
    let server = Server::Python("serve()");
    let first = std::sync::Arc::new(Folder::new());
    let line = server.install(&first);
    let run = crate::harness::handoff_run_with(&["--supervise", "-l", &path]);
    let run = run.args(&crate::harness::server::settings(&first)).args(&["--"]).args(&line);
    let old = crate::harness::Supervisor::start(first, run, crate::harness::supervisor::Role::Supervisor);
    old.wait_ready(1);
    let new = succeed(Run::of(PROGRAM), &path, "auto", &[], server);
    old.wait_gone(1);
    new.wait_serving(&path);
    new.wait_alone();
    assert_eq!(folder.names(), ["s"]);
    assert_eq!(ask(&path).unwrap().pid, new.pid());
}

#[test]
fn an_abstract_socket_is_taken_over() {
    let name = format!("@handoff-run-test-{}", std::process::id());
    let code = format!("s = socket.socket(socket.AF_UNIX); s.bind('\\0{}'); s.listen()\nserve()", &name[1..]);
    let old = by_hand_with("@", &code, |run| run);
    let new = succeed(Run::of(PROGRAM), &format!("unix:{name}"), "auto", &[], SUCCESSOR);
    old.wait_end();
    new.wait_alone();
    assert!(!new.running.has_ended());
    assert_eq!(sockets(new.pid()).len(), 1);
}

// handoff-run(1), TAKEOVER: "or is of another network namespace".
#[test]
fn a_socket_of_another_network_namespace_is_shared() {
    let started = in_namespace(libc::CLONE_NEWNET, || {
        let up = Run::of("ip").args(&["link", "set", "lo", "up"]).output();
        up.status.success().then(|| by_hand("serve()"))
    });
    let Some(Some(old)) = started else {
        return crate::harness::skip("no network namespace with a loopback interface");
    };
    let who = old.pid().to_string();
    let new = old.succeed(&who, &[], SUCCESSOR);
    old.wait_end();
    assert!(new.log().contains("it is of another network namespace"), "{}", new.log());
    assert!(!new.running.has_ended());
    new.running.signal(Signal::SIGKILL);
}

#[test]
fn a_server_in_a_mount_namespace_of_its_own_is_taken_over() {
    let Some(old) = in_namespace(libc::CLONE_NEWNS, || by_hand("serve()")) else { return };
    let new = old.succeed("auto", &[], SUCCESSOR);
    old.wait_end();
    new.wait_serving(&old.address);
}
