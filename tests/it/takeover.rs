//! `--from` without a supervisor: a program becomes the successor of a process that runs, whoever started that.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::by_hand::{by_hand, by_hand_at, by_hand_with, succeed};
use crate::harness::client::{Client, ask};
use crate::harness::process::{children, exists, sockets, stat};
use crate::harness::socket::{ipv6_is_missing, listeners_on};
use crate::harness::{Folder, PROGRAM, Run, Server, handoff_run_with, wait_for};

const SERVE: &str = "serve()";
const SUCCESSOR: Server = Server::Python(SERVE);

// handoff-run(1), --from: "It need not know".
#[test]
fn a_server_that_was_started_by_hand_is_succeeded_and_then_told_to_stop() {
    let mut places = vec!["127.0.0.1:0", "0.0.0.0:0"];
    if !ipv6_is_missing() {
        places.extend(["[::1]:0", "[::]:0"]);
    }
    for place in places {
        let old = by_hand_at(place, SERVE);
        let new = old.succeed(&old.pid().to_string(), &[], SUCCESSOR);
        old.wait_end();
        new.wait_serving(&old.address);
        new.wait_alone();
        assert_eq!(new.log(), "", "{place}");
        assert!(children(new.pid()).is_empty(), "it has a child that it did not start");
        // Whoever comes next succeeds it in the same way.
        let next = succeed(Run::of(PROGRAM), &old.address, "auto", &[], SUCCESSOR);
        next.wait_serving(&old.address);
        wait_for("the first successor to end", || new.running.has_ended().then_some(()));
    }
}

// handoff-run(1), TAKEOVER: "each has a socket of its own".
#[test]
fn the_old_server_gets_no_connection_once_the_new_one_is_ready_and_what_it_holds_is_answered() {
    let code = "import threading\none = answer
def answer(client): threading.Thread(target=one, args=(client,)).start()
signal.signal(signal.SIGTERM, lambda *_: mark('told'))\nserve(signal.SIGUSR1)";
    let old = by_hand(code);
    let mut held = Client::connect(&old.address).unwrap();
    let new = old.succeed("auto", &["--settle", "1s"], SUCCESSOR);
    new.wait_serving(&old.address);
    assert!(!old.folder.path("told").exists(), "it stands by");
    for _ in 0..30 {
        assert_eq!(ask(&old.address).unwrap().pid, new.pid());
    }
    assert_eq!(held.ask().unwrap().pid, old.pid());
    assert!(sockets(old.pid()).iter().all(|inode| !sockets(new.pid()).contains(inode)));
    old.folder.read("told");
}

#[test]
fn what_does_not_drain_in_time_is_killed() {
    let old = by_hand("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\nserve(signal.SIGUSR1)");
    let worker = wait_for("its worker", || children(old.pid()).first().copied());
    let new = old.succeed("auto", &["--drain-timeout", "200ms"], SUCCESSOR);
    old.wait_end();
    wait_for("its worker to end", || stat(worker).is_none_or(|stat| stat[0] == "Z").then_some(()));
    new.wait_serving(&old.address);
    new.wait_alone();
    assert_eq!(new.log(), format!("handoff-run: pid {} (python3): has not drained in time and is killed\n", old.pid()));
}

#[test]
fn the_signal_is_the_one_that_was_asked_for() {
    let old = by_hand("signal.signal(signal.SIGTERM, lambda *_: mark('wrong'))\nserve(signal.SIGQUIT)");
    let new = old.succeed("auto", &["--from-signal", "QUIT"], SUCCESSOR);
    old.wait_end();
    assert!(!old.folder.path("wrong").exists());
    new.wait_serving(&old.address);
}

// handoff-run(1), --from: "goes on as it was if PROGRAM does not get ready".
#[test]
fn a_program_that_fails_changes_nothing_and_its_status_is_that_of_the_command() {
    let old = by_hand(SERVE);
    let pid = old.pid();
    let missing = handoff_run_with(&["-l", &old.address, "--from", "auto", "--", "/nonexistent/server"]).output();
    assert_eq!(
        missing.failure(),
        (127, "handoff-run: cannot run /nonexistent/server: ENOENT: No such file or directory\n")
    );
    old.assert_untouched();
    let (status, log) = old.succeed("auto", &[], Server::Python("sys.exit(7)")).end();
    assert_eq!(status, 7);
    assert!(log.contains("ended before it was ready") && log.lines().count() == 2, "{log}");
    old.assert_untouched();
    let (status, log) = old.succeed("auto", &["--ready-timeout", "300ms"], Server::Python("time.sleep(100)")).end();
    assert_eq!(status, 137);
    assert!(log.contains("was not ready after 0.30 s and is killed"), "{log}");
    old.assert_untouched();
    let leaves = "
import threading
threading.Thread(target=lambda: (wait_for('leave'), s.close(), wait_for('ever'))).start()
serve()";
    let new = old.succeed("auto", &["--settle", "60s"], Server::Python(leaves));
    new.wait_serving(&old.address);
    new.folder.open("leave");
    wait_for("what became of it", || new.log().contains("accepts no more, before it had settled").then_some(()));
    assert!(new.log().contains(&format!(": pid {pid} (python3) serves again")), "{}", new.log());
    old.assert_untouched();
    drop(new);
    old.assert_untouched();
}

// What starts it may not care for its children.
#[test]
fn where_sigchld_is_ignored_a_server_is_succeeded_as_anywhere() {
    let ignoring = Run::of("env").args(&["--ignore-signal=CHLD", PROGRAM]);
    let ignored = "mark('ignored', str(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN))\nserve()";
    let old = by_hand(SERVE);
    let new = old.succeed_by(ignoring, "auto", &[], Server::Python(ignored));
    new.wait_serving(&old.address);
    old.wait_end();
    assert_eq!(new.folder.read("ignored"), "True", "it is for the program");
}

// The watcher is not its parent, and nothing wakes it then.
#[test]
fn a_program_that_is_stopped_before_it_has_settled_gives_the_connections_back() {
    let old = by_hand(SERVE);
    let new = old.succeed("auto", &["--settle", "2s"], SUCCESSOR);
    new.wait_serving(&old.address);
    kill(new.pid(), Signal::SIGSTOP).unwrap();
    let line = format!(
        "handoff-run: pid {}: accepts no more, before it had settled: pid {} (python3) serves again\n",
        new.pid(),
        old.pid()
    );
    wait_for("what became of it", || new.log().contains(&line).then_some(()));
    old.assert_untouched();
}

#[test]
fn a_program_that_ends_before_it_has_settled_gives_the_connections_back() {
    let old = by_hand(SERVE);
    let new = old.succeed("auto", &["--settle", "60s", "--pid-file", "pid"], SUCCESSOR);
    new.wait_serving(&old.address);
    let pid = new.pid();
    assert_eq!(new.folder.read("pid"), format!("{pid}\n"));
    new.running.signal(Signal::SIGKILL);
    let folder = new.folder.clone();
    let (status, log) = new.end();
    assert_eq!(status, 137);
    let line =
        format!("handoff-run: pid {pid}: ended before it had settled: pid {} (python3) serves again\n", old.pid());
    // If it was looked at meanwhile.
    assert_eq!(log.replace(", 0 connections when last looked at", ""), line);
    old.assert_untouched();
    assert!(!folder.path("pid").exists());
}

#[test]
fn a_pid_file_has_what_it_had_if_the_program_fails() {
    let old = by_hand(SERVE);
    let new = old.succeed("auto", &["--settle", "60s", "--pid-file", "pid"], Server::Python("wait_for('go')\nserve()"));
    fs::write(new.folder.path("pid"), "12345\n").unwrap();
    new.folder.open("go");
    new.wait_serving(&old.address);
    wait_for("the pid", || (new.folder.read("pid") != "12345\n").then_some(()));
    new.running.signal(Signal::SIGKILL);
    let folder = new.folder.clone();
    new.end();
    assert_eq!(folder.read("pid"), "12345\n");
}

#[test]
fn the_old_server_may_die_at_any_time_and_who_waits_is_served_by_the_new_one() {
    let kill_at = |gate: &str, options: &[&str]| {
        let old = by_hand(SERVE);
        let new = old.succeed("auto", options, Server::Python("wait_for('go')\nserve()"));
        let open = || new.folder.open("go");
        if gate == "starting" {
            wait_for("the watcher", || new.watcher());
            kill(old.pid(), Signal::SIGKILL).unwrap();
            // The order before that leads clients to the new one.
            wait_for("its end to be seen", || new.log().contains("Retire(0)").then_some(()));
            let mut waiting = Client::connect(&old.address).unwrap();
            open();
            assert_eq!(waiting.ask().unwrap().pid, new.pid());
        } else {
            open();
            new.wait_serving(&old.address);
            kill(old.pid(), Signal::SIGKILL).unwrap();
        }
        for _ in 0..20 {
            assert_eq!(ask(&old.address).unwrap().pid, new.pid(), "{gate}");
        }
        new.wait_alone();
        assert_eq!(ask(&old.address).unwrap().pid, new.pid(), "{gate}");
    };
    kill_at("starting", &["-v"]);
    kill_at("standing by", &["--settle", "60s"]);
    kill_at("draining", &["--settle", "0"]);
}

// handoff-run(1), TAKEOVER: "SIGTERM makes it give up, with both processes left as they are".
#[test]
fn a_watcher_that_gives_up_while_the_program_starts_leaves_every_client_to_the_old_server() {
    let old = by_hand(SERVE);
    let new = old.succeed("auto", &[], Server::Python("mark('up'); time.sleep(1000)"));
    new.folder.read("up");
    kill(new.watcher().unwrap(), Signal::SIGTERM).unwrap();
    new.wait_alone();
    assert!(new.log().contains("is not retired"), "{}", new.log());
    for _ in 0..40 {
        assert_eq!(ask(&old.address).unwrap().pid, old.pid());
    }
    assert!(exists(new.pid()));
}

// handoff-run(1), TAKEOVER: "so that clients are refused and PROGRAM can be started again".
#[test]
fn nobody_waits_for_a_successor_that_has_ended_while_the_old_server_drains() {
    for (closing, listening) in [("s.close()", false), ("pass", true)] {
        let drains = format!(
            "def drain(*_):
    {closing}
    mark('told')
    while True: time.sleep(1)
signal.signal(signal.SIGTERM, drain)
serve(signal.SIGUSR1)"
        );
        let old = by_hand(&drains);
        let new = old.succeed("auto", &[], SUCCESSOR);
        new.wait_serving(&old.address);
        old.folder.read("told");
        assert_eq!(ask(&old.address).unwrap().pid, new.pid());
        new.running.signal(Signal::SIGKILL);
        if !listening {
            wait_for("nobody to listen there", || {
                let error = std::net::TcpStream::connect(&old.address).err()?;
                (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            });
        }
        wait_for("its socket to be closed", || {
            (listeners_on(port(&old.address)).len() == usize::from(listening)).then_some(())
        });
        let next = succeed(Run::of(PROGRAM), &old.address, "auto", &["-v"], SUCCESSOR);
        if listening {
            // Who came before that waits for the one that drains.
            wait_for("clients to be led to it", || next.log().contains("Steer(1)").then_some(()));
        }
        next.wait_serving(&old.address);
        for _ in 0..20 {
            assert_eq!(ask(&old.address).unwrap().pid, next.pid(), "{}", next.log());
        }
        assert!(!old.running.has_ended(), "it drains");
        old.running.signal(Signal::SIGKILL);
        new.wait_alone();
        next.wait_alone();
        for _ in 0..20 {
            assert_eq!(ask(&old.address).unwrap().pid, next.pid(), "{}", next.log());
        }
    }
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

#[test]
fn of_two_that_take_over_at_once_one_wins_and_the_other_says_who() {
    let old = by_hand(SERVE);
    let first = old.succeed("auto", &[], Server::Python("mark('up'); wait_for('go')\nserve()"));
    first.folder.read("up");
    let watcher = first.watcher().unwrap();
    let second = handoff_run_with(&["-l", &old.address, "--from", &old.pid().to_string(), "--", "true"]).output();
    let name = crate::harness::process::name(watcher);
    let line = format!(
        "handoff-run: cannot take over from pid {} (python3): pid {watcher} ({name}) does so already\n",
        old.pid()
    );
    assert_eq!(second.failure(), (125, line.as_str()));
    first.folder.open("go");
    old.wait_end();
    first.wait_serving(&old.address);
}

// Its own takeover would go on at the same address.
#[test]
fn a_successor_that_has_not_settled_is_succeeded_by_nobody() {
    let old = by_hand(SERVE);
    let first = old.succeed("auto", &["--settle", "60s"], SUCCESSOR);
    first.wait_serving(&old.address);
    let watcher = first.watcher().unwrap();
    let second = handoff_run_with(&["-l", &old.address, "--from", &first.pid().to_string(), "--", "true"]).output();
    let name = crate::harness::process::name(watcher);
    let line = format!(
        "handoff-run: cannot take over from pid {} (python3): pid {watcher} ({name}) leads the takeover that it began with: \
         try again when that is over\n",
        first.pid()
    );
    assert_eq!(second.failure(), (125, line.as_str()));
    first.wait_serving(&old.address);
    assert!(exists(old.pid()));
}

// handoff-run(1), --from: "If nobody is there, the sockets are bound".
#[test]
fn where_nobody_is_the_sockets_are_bound() {
    let folder = Folder::new();
    folder.write("empty", "");
    for who in ["auto", "2147483647", &folder.text("missing"), &folder.text("empty")] {
        let output =
            handoff_run_with(&["-l", "127.0.0.1:0", "--from", who, "--", "sh", "-c", "echo $LISTEN_FDS"]).output();
        assert_eq!((output.code(), output.stdout.as_str()), (0, "1\n"), "{who}: {}", output.stderr);
    }
}

#[test]
fn several_sockets_of_one_server_are_taken_together_and_a_new_one_is_bound() {
    let code = "s = opened()\nmore = opened(socket.AF_UNIX, host=path('second'))\nudp = opened(kind=socket.SOCK_DGRAM)
mark('udp', str(udp.getsockname()[1]))\nserve()";
    let code = code.replace("host=path('second')", "host=None");
    let code = code.replace(
        "more = opened(socket.AF_UNIX, host=None)\n",
        "more = opened()\nmark('more', str(more.getsockname()[1]))\n",
    );
    let old = by_hand_with("127.0.0.1:0", &code, |run| run);
    let (more, udp) = (old.folder.read("more"), old.folder.read("udp"));
    let options = ["-l", &format!("127.0.0.1:{more}"), "-l", &format!("udp:127.0.0.1:{udp}"), "-l", "127.0.0.1:0"];
    let code = "mark('ports', ' '.join(str(socket.socket(fileno=os.dup(3 + n)).getsockname()[1]) for n in range(4)))
others = [socket.socket(fileno=4), socket.socket(fileno=5), socket.socket(fileno=6)]
e = select.epoll()\nfor other in others: e.register(other, select.EPOLLIN)\nserve()";
    let new = old.succeed("auto", &options, Server::Python(code));
    old.wait_end();
    new.wait_serving(&old.address);
    let ports = new.folder.read("ports");
    let first = old.address.rsplit(':').next().unwrap();
    assert!(ports.starts_with(&format!("{first} {more} {udp} ")), "{ports}");
}

// handoff-run(1), TAKEOVER: "workers with a socket each (SO_REUSEPORT)".
#[test]
fn a_server_with_several_sockets_at_one_address_is_succeeded_and_nobody_is_refused() {
    let code = "s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
sockets = [s]\nport = s.getsockname()[1]
for _ in range(3):
    o = socket.socket(); o.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); o.bind(('127.0.0.1', port)); o.listen(9)
    sockets.append(o)
for own in sockets[1:]:
    if os.fork() == 0: s = own; break
serve()";
    let old = by_hand_with("127.0.0.1:0", code, |run| run);
    wait_for("its workers", || (children(old.pid()).len() == 3).then_some(()));
    let failing = old.succeed("auto", &[], Server::Python("sys.exit(3)"));
    assert_eq!(failing.end().0, 3);
    for _ in 0..20 {
        ask(&old.address).unwrap();
    }
    let new = old.succeed("auto", &[], SUCCESSOR);
    let mut last = Pid::from_raw(0);
    while !old.running.has_ended() {
        last = ask(&old.address).unwrap().pid;
    }
    new.wait_alone();
    for _ in 0..20 {
        assert_eq!(ask(&old.address).unwrap().pid, new.pid(), "after {last}");
    }
}

#[test]
fn datagrams_go_to_the_successor() {
    let udp = "s = opened(kind=socket.SOCK_DGRAM)";
    let echo = "
while True:
    data, client = s.recvfrom(100)
    s.sendto(f'{data.decode()} {os.getpid()}'.encode(), client)";
    let old = by_hand_with("127.0.0.1:0", &format!("{udp}{echo}"), |run| run);
    let ask = || {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        client.send_to(b"x", &old.address).unwrap();
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer).ok()?;
        String::from_utf8_lossy(&buffer[..length]).strip_prefix("x ")?.parse::<i32>().ok()
    };
    assert_eq!(ask(), Some(old.pid().as_raw()));
    let address = format!("udp:{}", old.address);
    let new = succeed(Run::of(PROGRAM), &address, "auto", &[], Server::Python(echo));
    wait_for("the successor to answer", || (ask()? == new.pid().as_raw()).then_some(()));
    old.wait_end();
    new.wait_alone();
    for _ in 0..10 {
        assert_eq!(ask(), Some(new.pid().as_raw()));
    }
    assert!(exists(new.pid()));
}
