//! `--from` finds a supervisor by its address: where it takes requests, and what becomes of one that does not any more.

use std::fs;

use crate::harness::by_hand::by_hand_with;
use crate::harness::client::ask;
use crate::harness::process::sockets;
use crate::harness::setup::succeeding;
use crate::harness::socket::listeners_on;
use crate::harness::{Folder, PROGRAM, Run, Server, is_root_to, supervise, wait_for};

// It was once asked for its sockets at the server's own.
#[test]
fn a_unix_listener_that_the_generation_has_closed_is_not_taken_for_the_control_socket() {
    let folder = Folder::new();
    let unix = format!("unix:{}", folder.text("a.sock"));
    let closes = "while not exists('close'): select.select([3, 4], [], [], 0.01)\nos.close(4)\nmark('closed')\nserve()";
    let old = supervise(Server::Python(closes), &[]).listen("127.0.0.1:0").listen(&unix).serving();
    old.folder.open("close");
    old.folder.read("closed");
    let address = old.address();
    let both = "u = socket.socket(fileno=4)
while True:
    for ready in select.select([s, u], [], [])[0]: answer(ready.accept()[0])";
    let mut next = supervise(Server::Python(both), &["--from", "auto"]).listen(&address).listen(&unix).start();
    next.expect_at(&address);
    next.wait_ready(1);
    old.wait_log("succeeded by pid ");
    next.wait_log("(handoff-run): gone");
    assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    next.stopped();
}

// handoff-run(1), TAKEOVER: "or whose control socket has lost its file".
#[test]
fn a_supervisor_whose_control_socket_was_removed_is_succeeded_as_one_without() {
    for who in ["auto", "pid"] {
        let mut old = supervise(Server::Hello, &[]).serving();
        let address = old.address();
        fs::remove_file(old.folder.path("control")).unwrap();
        let who = if who == "pid" { old.pid.to_string() } else { who.to_owned() };
        let next = succeeding(&address, &who, &[], Server::Hello);
        next.wait_ready(1);
        next.wait_log("(handoff-run): gone");
        assert_eq!(old.end().0, 0);
        for _ in 0..20 {
            assert_eq!(ask(&address).unwrap().pid, next.generation(1));
        }
        next.stopped();
    }
}

// Once the message was that its process is not known.
#[test]
fn a_supervisor_in_another_pid_namespace_is_not_succeeded_and_serves_on() {
    if !is_root_to("make a PID namespace") {
        return;
    }
    let old = supervise(Server::Hello, &[]).serving();
    let (address, control) = (old.address(), old.folder.text("control"));
    let line = ["--pid", "--fork", "--mount-proc", PROGRAM, "-l", &address, "--from", &control, "--", "true"];
    let message = format!(
        "handoff-run: cannot take over from the supervisor at {control}: it is in another PID namespace, as in another \
         container\n"
    );
    assert_eq!(Run::of("unshare").args(&line).output().failure(), (125, message.as_str()));
    assert_eq!(old.answer().generation, 1);
    old.stopped();
}

// As they are adopted: each is given to one, in their order.
#[test]
fn two_sockets_of_one_address_are_taken_over_one_by_each_of_two_specs() {
    let code = "s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
more = socket.socket(); more.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
more.bind(s.getsockname()); more.listen(9)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    for ready in select.select([s, more], [], [])[0]: answer(ready.accept()[0])";
    let old = by_hand_with("127.0.0.1:0", code, |run| run);
    let port: u16 = old.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let theirs = listeners_on(port);
    assert_eq!(theirs.len(), 2);
    let spec = format!("{},reuseport", old.address);
    let both = "import threading
more = socket.socket(fileno=4)
def accept(at):
    while True: answer(at.accept()[0])
threading.Thread(target=accept, args=(more,), daemon=True).start()
serve()";
    let new = old.succeed("auto", &["-l", &spec, "--shared"], Server::Python(both));
    wait_for("the old server to end", || old.running.has_ended().then_some(()));
    new.wait_alone();
    let its = sockets(new.pid());
    assert!(theirs.iter().all(|inode| its.contains(inode)), "{}", new.log());
    for _ in 0..40 {
        assert_eq!(ask(&old.address).unwrap().pid, new.pid());
    }
}
