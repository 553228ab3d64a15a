//! `--supervise --from`: the process that is succeeded is the supervisor's generation 0, and somebody else's.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, setpgid};

use crate::harness::by_hand::{ByHand, by_hand, by_hand_at, by_hand_with, succeed};
use crate::harness::client::{Client, ask};
use crate::harness::process::{Left, children, exists, sockets, stat};
use crate::harness::setup::{succeeding, supervise_in};
use crate::harness::socket::listeners_on;
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, handoff_run_with, supervise, wait_for};

const SERVE: &str = "serve()";

/// A supervisor that is to succeed it, with these options.
fn successor(old: &ByHand, options: &[&str], server: Server) -> Supervisor {
    succeeding(&old.address, "auto", options, server)
}

fn port(address: &str) -> u16 {
    address.rsplit_once(':').unwrap().1.parse().unwrap()
}

/// Kill it; its folder, and its generations, which end with the value.
fn killed(supervisor: Supervisor) -> (Supervisor, Vec<Left>) {
    let left = children(supervisor.pid).into_iter().map(Left).collect();
    supervisor.signal(Signal::SIGKILL);
    wait_for("the supervisor to be gone", || (sockets(supervisor.pid).is_empty()).then_some(()));
    (supervisor, left)
}

// handoff-run(1), TAKEOVER: "it is shown as generation 0".
#[test]
fn the_predecessor_is_generation_0_until_it_has_drained_and_then_generations_roll() {
    for address in ["127.0.0.1:0", "[::]:0"] {
        let old = by_hand_at(address, SERVE);
        let supervisor = successor(&old, &["--settle", "1s"], Server::Hello);
        supervisor.wait_ready(1);
        let pid = old.pid();
        assert_eq!(supervisor.states(), [(0, "standing-by".into()), (1, "serving".into())]);
        supervisor.wait_log(&format!("handoff-run: pid {pid} (python3): gone\n"));
        assert_eq!(supervisor.states(), [(1, "serving".into())]);
        for generation in 2..=4 {
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
            assert_eq!(ask(&old.address).unwrap().pid, supervisor.generation(generation));
        }
        supervisor.stopped();
    }
}

#[test]
fn a_first_generation_that_fails_ends_the_supervisor_with_its_status_and_the_predecessor_serves_on() {
    let old = by_hand(SERVE);
    let mut supervisor = successor(&old, &[], Server::Python("sys.exit(7)"));
    let (status, log) = supervisor.end();
    assert_eq!(status, 7, "{log}");
    old.assert_untouched();
    let mut supervisor = successor(&old, &["--settle", "60s"], Server::Python("wait_for('end')\nos._exit(3)"));
    supervisor.folder.open("end");
    assert_eq!(supervisor.end().0, 3);
    old.assert_untouched();
    // Ready, but not settled.
    let late = "import threading\nthreading.Thread(target=lambda: (wait_for('end'), os._exit(9))).start()\nserve()";
    let mut supervisor = successor(&old, &["--settle", "60s"], Server::Python(late));
    supervisor.wait_ready(1);
    supervisor.folder.open("end");
    let (status, log) = supervisor.end();
    assert_eq!(status, 9, "{log}");
    assert!(log.contains(&format!(": pid {} (python3) serves again\n", old.pid())), "{log}");
    old.assert_untouched();
}

#[test]
fn a_stop_before_it_has_settled_leaves_the_predecessor_serving() {
    for gate in ["starting", "settling"] {
        let old = by_hand(SERVE);
        let supervisor = successor(&old, &["--settle", "60s"], Server::Python("wait_for('go')\nserve()"));
        if gate == "settling" {
            supervisor.folder.open("go");
            supervisor.wait_ready(1);
        } else {
            supervisor.generation(1);
        }
        supervisor.stopped();
        old.assert_untouched();
    }
}

#[test]
fn the_predecessor_may_die_while_the_first_generation_starts_and_nobody_is_refused() {
    let old = by_hand(SERVE);
    let supervisor = successor(&old, &[], Server::Python("wait_for('go')\nserve()"));
    let first = supervisor.generation(1);
    kill(old.pid(), Signal::SIGKILL).unwrap();
    supervisor.wait_log(&format!("pid {} (python3): gone", old.pid()));
    let mut waiting = Client::connect(&old.address).unwrap();
    supervisor.folder.open("go");
    assert_eq!(waiting.ask().unwrap().pid, first);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    supervisor.stopped();
}

// handoff-run(1), TAKEOVER: "the status is that of PROGRAM".
#[test]
fn where_the_predecessor_dies_after_a_rollback_to_it_nothing_is_started_or_left_behind() {
    let old = by_hand(SERVE);
    let server = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), os._exit(0)))\nserve()";
    let mut supervisor = successor(&old, &["--settle", "60s"], Server::Python(server));
    supervisor.wait_ready(1);
    let first = supervisor.generation(1);
    let control = supervisor.folder.text("control");
    assert_eq!(handoff_run_with(&["--rollback", &control]).output().failure(), (0, ""));
    supervisor.folder.read("told");
    kill(old.pid(), Signal::SIGKILL).unwrap();
    supervisor.wait_log(&format!("pid {} (python3): gone", old.pid()));
    supervisor.folder.open("go");
    let (status, log) = supervisor.end();
    assert!(status == 1 && !log.contains("again in") && !log.contains("generation 2"), "{status}: {log}");
    assert!(!exists(first) && listeners_on(port(&old.address)).is_empty());
}

// A process of another user's group, say, must not be hit.
#[test]
fn only_the_predecessor_and_what_descends_from_it_are_ended() {
    let code = "os.setpgid(0, 0)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.fork()\nserve(signal.SIGUSR1)";
    let old = by_hand(code);
    let worker = wait_for("its worker", || children(old.pid()).first().copied());
    // In its group, and no child of it.
    let group = old.pid();
    let join = move || Ok(setpgid(Pid::from_raw(0), group)?);
    let beside = by_hand_with("127.0.0.1:0", "s = opened()\nserve()", |run| run.before_exec(join));
    assert_eq!(getpgid(Some(beside.pid())), Ok(group));
    let supervisor = successor(&old, &["--drain-timeout", "200ms"], Server::Hello);
    supervisor.wait_log("has not drained in time and is killed");
    supervisor.wait_log(&format!("pid {} (python3): gone", old.pid()));
    wait_for("its worker to end", || stat(worker).is_none_or(|stat| stat[0] == "Z").then_some(()));
    beside.assert_untouched();
    supervisor.stopped();
}

#[test]
fn the_supervisor_can_be_replaced_while_the_predecessor_stands_by() {
    let old = by_hand(SERVE);
    let supervisor = successor(&old, &["--settle", "60s"], Server::Hello);
    supervisor.wait_ready(1);
    supervisor.upgrade();
    assert_eq!(supervisor.states(), [(0, "standing-by".into()), (1, "serving".into())]);
    let promote = || supervisor.command("--promote", &[]).output();
    assert_eq!(promote().failure(), (0, ""));
    old.wait_end();
    supervisor.wait_log(&format!("pid {} (python3): gone", old.pid()));
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    assert_eq!(promote().failure(), (0, ""));
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(ask(&old.address).unwrap().pid, supervisor.generation(2));
    supervisor.stopped();
}

#[test]
fn a_supervisor_that_was_replaced_and_fails_puts_back_what_was_set_before() {
    for reuseport in [0, 1] {
        let code = format!(
            "s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, {reuseport}))\nserve()"
        );
        let old = by_hand_with("127.0.0.1:0", &code, |run| run);
        let supervisor = successor(&old, &["--settle", "60s"], Server::Hello);
        supervisor.wait_ready(1);
        supervisor.upgrade();
        supervisor.stopped();
        assert_eq!(old.reuseport(), reuseport);
        assert_eq!(ask(&old.address).unwrap().pid, old.pid());
    }
}

#[test]
fn a_supervisor_that_was_replaced_has_its_predecessor_to_itself_and_all_of_its_sockets() {
    let code = "s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
more = socket.socket(); more.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
more.bind(s.getsockname()); more.listen(9)
serve()";
    let old = by_hand_with("127.0.0.1:0", code, |run| run);
    let supervisor = successor(&old, &["--settle", "60s"], Server::Hello);
    supervisor.wait_ready(1);
    for _ in 0..2 {
        supervisor.upgrade();
        let line = ["-l", &old.address, "--from", &old.pid().to_string(), "--", "true"];
        let refused = format!(
            "handoff-run: cannot take over from pid {} (python3): pid {} (handoff-run) does so already\n",
            old.pid(),
            supervisor.pid
        );
        assert_eq!(handoff_run_with(&line).output().failure(), (125, refused.as_str()));
        let its = listeners_on(port(&old.address));
        let had: Vec<u64> = sockets(old.pid()).into_iter().filter(|inode| its.contains(inode)).collect();
        assert_eq!(had.len(), 2);
        assert!(had.iter().all(|inode| sockets(supervisor.pid).contains(inode)), "what waits there is waited for");
    }
    supervisor.stopped();
}

// handoff-run(1), TAKEOVER: "a supervisor that was killed".
#[test]
fn the_generation_of_a_supervisor_that_was_killed_is_taken_over_by_the_same_line() {
    for options in [&[][..], &["--shared"]] {
        let (first, _left) = killed(supervise(Server::Hello, options).serving());
        let (address, left) = (first.address(), first.generation(1));
        assert_eq!(ask(&address).unwrap().pid, left);
        let next = succeeding(&address, "auto", options, Server::Hello);
        next.wait_ready(1);
        next.wait_log(&format!("pid {left} (server): gone"));
        assert_eq!(next.reload_and_wait().failure(), (0, ""));
        assert_eq!(ask(&address).unwrap().pid, next.generation(2));
        next.stopped();
    }
}

#[test]
fn of_several_generations_that_were_left_the_last_is_retired_and_the_others_drain() {
    let first = supervise(Server::Hello, &["--drain", "idle"]).serving();
    let address = first.address();
    let held: Vec<(Client, u64)> = (1..=2)
        .map(|generation| {
            let mut client = Client::connect(&address).unwrap();
            client.send_part();
            wait_for("it is accepted", || (first.table()[generation as usize][6] == "1").then_some(()));
            assert_eq!(first.reload().failure(), (0, ""));
            (client, generation)
        })
        .collect();
    let pids: Vec<Pid> = (1..=3).map(|generation| first.generation(generation)).collect();
    let first = killed(first);
    let next = succeeding(&address, "auto", &["--drain", "idle"], Server::Hello);
    next.wait_ready(1);
    next.wait_log(&format!("pid {} (server): gone", pids[2]));
    for _ in 0..30 {
        assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    }
    for generation in 2..=4 {
        assert_eq!(next.reload_and_wait().failure(), (0, ""), "{}", next.log());
        assert_eq!(ask(&address).unwrap().pid, next.generation(generation));
    }
    // They give no number to the next one.
    next.upgrade();
    assert_eq!(next.reload_and_wait().failure(), (0, ""), "{}", next.log());
    assert_eq!(ask(&address).unwrap().pid, next.generation(5));
    assert!(pids[..2].iter().all(|pid| exists(*pid)), "they hold connections");
    for (mut client, generation) in held {
        assert_eq!(client.finish().unwrap().pid, pids[generation as usize - 1]);
        next.wait_log(&format!("pid {} (server): gone", pids[generation as usize - 1]));
    }
    for generation in 6..=7 {
        assert_eq!(next.reload_and_wait().failure(), (0, ""));
        assert_eq!(ask(&address).unwrap().pid, next.generation(generation));
    }
    next.stopped();
    assert!(listeners_on(port(&address)).is_empty());
    drop(first);
}

// The younger one never served anybody.
#[test]
fn a_generation_that_was_left_before_it_accepted_is_not_taken_for_the_one_that_serves() {
    let first = supervise(Server::Python("if gen == '2': mark('hangs'); time.sleep(1000)\nserve()"), &[]).serving();
    let address = first.address();
    let reload = first.command("--reload", &[]).start();
    first.folder.read("hangs");
    let pids: Vec<Pid> = (1..=2).map(|generation| first.generation(generation)).collect();
    let first = killed(first);
    let next = succeeding(&address, "auto", &[], Server::Python("wait_for('go')\nserve()"));
    next.generation(1);
    next.wait_log(&format!("pid {} (python3): drains: a supervisor left it that is gone", pids[1]));
    next.wait_log(&format!("pid {} (python3): gone", pids[1]));
    assert!(exists(pids[0]), "{}", next.log());
    next.folder.open("go");
    next.wait_ready(1);
    next.wait_log(&format!("pid {} (python3): gone", pids[0]));
    assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    drop((first, reload));
}

// A pidfd for each of them is open while two sockets are put at their numbers.
#[test]
fn a_program_with_two_sockets_succeeds_what_a_killed_supervisor_left() {
    let first =
        supervise(Server::Hello, &["--ready", "after:10ms"]).listen("127.0.0.1:0").listen("127.0.0.1:0").serving();
    let all: Vec<String> = wait_for("both addresses", || {
        let log = first.log();
        let all = log.lines().filter_map(|line| Some(line.split_once(" listens on ")?.1.to_owned()));
        Some(all.collect::<Vec<_>>()).filter(|all| all.len() == 2)
    });
    let mut client = Client::connect(&all[0]).unwrap();
    client.send_part();
    wait_for("it is accepted", || (first.table()[1][6] == "1").then_some(()));
    assert_eq!(first.reload().failure(), (0, ""));
    let left = first.generation(1);
    let first = killed(first);
    let new = succeed(Run::of(PROGRAM), &all[0], "auto", &["-l", &all[1], "--ready", "after:10ms"], Server::Hello);
    new.wait_serving(&all[0]);
    assert_eq!(client.finish().unwrap().pid, left);
    drop(first);
}

#[test]
fn a_supervisor_without_a_control_socket_is_told_to_stop_and_its_generation_drains() {
    let folder = Arc::new(Folder::new());
    let server = Server::Hello.install(&folder);
    let run = handoff_run_with(&["--supervise", "-l", "127.0.0.1:0", "--"]).args(&server);
    let old = Supervisor::start(folder, run, crate::harness::supervisor::Role::Supervisor);
    old.wait_ready(1);
    let address = old.address();
    let next = succeeding(&address, "auto", &["--from-signal", "USR1"], Server::Hello);
    next.wait_ready(1);
    next.wait_log("(handoff-run): gone");
    old.wait_gone(1);
    for _ in 0..30 {
        assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    }
    assert_eq!(next.reload_and_wait().failure(), (0, ""));
    assert_eq!(ask(&address).unwrap().pid, next.generation(2));
    next.stopped();
}

#[test]
fn an_intercepted_program_succeeds_a_server_that_was_started_by_hand() {
    let old = by_hand(SERVE);
    let code = "s = opened()\nserve()";
    let folder = Arc::new(Folder::new());
    let setup = supervise_in(&folder, Server::Python(code), &["--from", "auto", "--intercept"]).listen(&old.address);
    let mut next = setup.run(|run| run.env("ADDRESS", &old.address).env("SOCKET", "")).start();
    next.expect_at(&old.address);
    next.wait_ready(1);
    old.wait_end();
    assert_eq!(ask(&old.address).unwrap().pid, next.generation(1));
    next.stopped();
}
