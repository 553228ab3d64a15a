//! `--from` without a supervisor: which descriptors the program has, and which the watcher.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};
use nix::unistd::getsid;

use crate::harness::by_hand::{by_hand, by_hand_with};
use crate::harness::process::{children, descriptors, stat};
use crate::harness::socket::tcp;
use crate::harness::{PROGRAM, Run, Server, handoff_run_with};

const SERVE: &str = "serve()";
const SUCCESSOR: Server = Server::Python(SERVE);

// handoff-run(1), TAKEOVER: "It is no child of PROGRAM, has a session of its own, and only stderr open".
#[test]
fn the_watcher_is_nobodys_child_and_keeps_nothing_open_but_stderr() {
    let old = by_hand(SERVE);
    let (kept, _) = tcp();
    let (_ours, announced) = std::io::pipe().unwrap();
    let run = Run::of(PROGRAM).inherit(&kept, 17).inherit(&announced, 3).env("LISTEN_FDS", "1");
    let new = old.succeed_by(run, "auto", &["--settle", "60s"], SUCCESSOR);
    new.wait_serving(&old.address);
    let watcher = new.watcher().unwrap();
    assert!(children(new.pid()).is_empty());
    assert_ne!(stat(watcher).unwrap()[1], new.pid().to_string());
    assert_ne!(getsid(Some(watcher)), getsid(None));
    let open = descriptors(watcher);
    let of = |number| open.iter().find(|(fd, _)| *fd == number).map(|(_, link)| link.as_str());
    assert_eq!((of(0), of(1)), (Some("/dev/null"), Some("/dev/null")));
    assert_eq!(of(2), new.folder.path("log").to_str());
    let link = format!("socket:[{}]", inode(&kept));
    assert!(open.iter().all(|(_, other)| *other != link), "{open:?}");
    let pipe = crate::harness::socket::link(&announced);
    assert!(open.iter().all(|(_, other)| *other != pipe), "{open:?}");
    assert!(descriptors(new.pid()).iter().any(|(fd, other)| (*fd, other) == (4, &pipe)), "the program has that, too");
    assert!(descriptors(new.pid()).iter().any(|(fd, other)| (*fd, other) == (17, &link)), "the program has it");
    kill(watcher, Signal::SIGTERM).unwrap();
    new.wait_alone();
    assert!(new.log().contains("is not retired"), "{}", new.log());
}

fn inode(listener: &TcpListener) -> u64 {
    let link = crate::harness::socket::link(listener);
    link.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
}

// handoff-run(1), --ready: "fd:N: it writes a byte to descriptor N."
#[test]
fn the_readiness_descriptor_takes_the_place_of_none_that_was_inherited() {
    let old = by_hand(SERVE);
    let kept = fs::File::open("/dev/null").unwrap();
    let line = ["-l", &old.address, "--from", "auto", "--ready", "fd:17", "--", "true"];
    let output = Run::of(PROGRAM).args(&line).inherit(&kept, 17).output();
    let why = "handoff-run: --ready fd:17 is the number of a descriptor that the program has already\n";
    assert_eq!(output.failure(), (125, why));
    let line = ["-l", &old.address, "--from", "auto", "--ready", "fd:3", "--", "true"];
    let why = "handoff-run: --ready fd:3 is the number of a descriptor that the program has already\n";
    assert_eq!(handoff_run_with(&line).output().failure(), (125, why));
    old.assert_untouched();
}

#[test]
fn whatever_the_readiness_descriptor_is_a_program_that_cannot_be_run_is_not_ready() {
    let old = by_hand(SERVE);
    for number in (4..24).chain(64..70) {
        let ready = format!("fd:{number}");
        let line = ["-l", &old.address, "--from", "auto", "--ready", &ready, "--", "/nonexistent/server"];
        let why = "handoff-run: cannot run /nonexistent/server: ENOENT: No such file or directory\n";
        assert_eq!(handoff_run_with(&line).output().failure(), (127, why), "{number}");
    }
    old.assert_untouched();
    let new = old.succeed("auto", &["--ready", "fd:65"], Server::Python("os.write(65, b'x')\nserve()"));
    old.wait_end();
    new.wait_serving(&old.address);
}

// Each process has a pidfd, and each socket a copy, until the new server is ready.
#[test]
fn several_addresses_with_several_sockets_each_are_taken_over() {
    let code = "s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
sockets = [s]
def another(port):
    o = socket.socket(); o.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    o.bind(('127.0.0.1', port)); o.listen(9); sockets.append(o)
    return o.getsockname()[1]
ports = []
for first in (s.getsockname()[1], 0, 0):
    ports.append(first or another(0))
    for _ in range(2): another(ports[-1])
mark('ports', ' '.join(map(str, ports)))
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    for each in select.select(sockets, [], [])[0]: answer(each.accept()[0])";
    let old = by_hand_with("127.0.0.1:0", code, |run| run);
    let ports = old.folder.read("ports");
    let others: Vec<String> = ports.split(' ').skip(1).map(|port| format!("127.0.0.1:{port}")).collect();
    let options = ["-l", &others[0], "-l", &others[1], "--ready", "fd:9"];
    let code = "mark('count', os.environ['LISTEN_FDS'])\nos.write(9, b'x')\nserve()";
    let new = old.succeed("auto", &options, Server::Python(code));
    old.wait_end();
    new.wait_serving(&old.address);
    new.wait_alone();
    assert_eq!(new.folder.read("count"), "3");
}
