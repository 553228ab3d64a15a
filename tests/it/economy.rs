//! What the supervisor costs where there is much to look at.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::harness::process::{stat, status_field};
use crate::harness::{Server, supervise, wait_for};

/// What a process has used of the processor, in clock ticks, of which there are a hundred a second.
fn ticks(pid: Pid) -> u64 {
    let stat = stat(pid).unwrap();
    stat[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

// It once was all of a processor, for each look at them took copies of all sockets for each.
#[test]
fn a_server_that_does_not_accept_on_400_sockets_costs_little() {
    let mut setup = supervise(Server::Script("exec sleep 100"), &[]);
    for _ in 0..400 {
        setup = setup.listen("127.0.0.1:0");
    }
    let supervisor = setup.start();
    supervisor.generation(1);
    let (start, before) = (Instant::now(), ticks(supervisor.pid));
    wait_for("two seconds of looking at it", || (start.elapsed() > Duration::from_secs(2)).then_some(()));
    let cost = ticks(supervisor.pid) - before;
    assert!(cost < 40, "{cost} ticks");
}

#[test]
fn a_server_that_accepts_on_400_sockets_is_ready_soon() {
    let script = "
e = select.epoll()
for number in range(3, 3 + int(os.environ['LISTEN_FDS'])): e.register(number, select.EPOLLIN)
e.poll()";
    let mut setup = supervise(Server::Python(script), &[]);
    for _ in 0..400 {
        setup = setup.listen("127.0.0.1:0");
    }
    let supervisor = setup.serving();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    assert!(supervisor.seconds_to_ready(2) < 5.0, "{}", supervisor.log());
}

// Each of its descriptors once was read, at 33 ms for ten thousand.
#[test]
fn a_status_with_2000_connections_costs_little() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let held: Vec<_> = (0..2000).map(|_| supervisor.hold()).collect();
    let before = ticks(supervisor.pid);
    for _ in 0..20 {
        let table = supervisor.table();
        let serving = table.iter().find(|line| line.get(2).is_some_and(|state| state == "serving")).unwrap();
        assert_eq!(serving.last().unwrap(), "2000");
    }
    let cost = ticks(supervisor.pid) - before;
    assert!(cost < 30, "{cost} ticks");
    drop(held);
}

/// It makes no system call for as long: none but one that waits for something.
pub fn sleeps_soundly(pid: Pid) {
    let woken = || status_field(pid, "voluntary_ctxt_switches");
    let mut since = (woken(), Instant::now());
    wait_for("two seconds of sleep", || {
        if woken() != since.0 {
            since = (woken(), Instant::now());
        }
        (since.1.elapsed() > Duration::from_secs(2)).then_some(())
    });
}

#[test]
fn an_idle_supervisor_sleeps_also_after_reloads() {
    let setup = supervise(Server::Directed, &["--settle", "1s"]).listen("127.0.0.1:0").listen("[::]:0");
    let supervisor = setup.serving();
    sleeps_soundly(supervisor.pid);
    let (held, _) = supervisor.hold();
    supervisor.folder.let_be_stubborn(1);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.wait_draining(1);
    // While one drains too.
    sleeps_soundly(supervisor.pid);
    supervisor.upgrade();
    sleeps_soundly(supervisor.pid);
    supervisor.folder.let_fail(3);
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.wait_gone(3);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    sleeps_soundly(supervisor.pid);
    drop(held);
}
