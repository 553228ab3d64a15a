//! What generations do to the sockets that are theirs alone, and what becomes of these when their generations have gone.

use nix::sys::signal::{Signal, kill};

use crate::harness::client::Clients;
use crate::harness::socket::listeners_on;
use crate::harness::{Server, Supervisor, supervise, wait_for};
use crate::steering::{port, serves_alone};

/// It does this to its socket when it is asked to stop, and ends when the test wants it to.
fn when_asked_to_stop(act: &str) -> String {
    format!(
        "def stop(*_):\n    {act}\n    mark('done-' + gen)\n    wait_for('end')\n    os._exit(0)\n\
         signal.signal(signal.SIGTERM, stop)\nserve()"
    )
}

/// All clients are answered while three generations do this, and those that come then by the one that serves; so it is with
/// the generations that have their sockets after them.
#[track_caller]
fn nobody_is_disturbed_by(act: &str) {
    let supervisor = supervise(Server::Python(&when_asked_to_stop(act)), &["--backlog", "77"]).serving();
    let clients = Clients::of(&supervisor);
    for generation in 1..=3 {
        assert_eq!(supervisor.reload().failure(), (0, ""), "{act}: {}", supervisor.log());
        supervisor.folder.read(&format!("done-{generation}"));
        serves_alone(&supervisor, generation + 1);
    }
    supervisor.folder.open("end");
    for generation in 1..=3 {
        supervisor.wait_gone(generation);
    }
    serves_alone(&supervisor, 4);
    for generation in 5..=8 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{act}: {}", supervisor.log());
        serves_alone(&supervisor, generation);
    }
    clients.all_served_by();
    let log = supervisor.stopped();
    assert!(!log.contains("reset"), "{log}");
}

// handoff-run(1), STEERING: "A server may shut its socket down or close it: new connections go on to the generation that
// serves".
#[test]
fn a_generation_that_drains_and_shuts_its_socket_down_disturbs_nobody() {
    for how in ["RDWR", "RD", "WR"] {
        nobody_is_disturbed_by(&format!("s.shutdown(socket.SHUT_{how})"));
    }
}

#[test]
fn a_generation_that_drains_and_closes_its_socket_disturbs_nobody() {
    nobody_is_disturbed_by("s.close()");
}

#[test]
fn a_generation_that_drains_and_shortens_its_backlog_disturbs_nobody() {
    nobody_is_disturbed_by("s.listen(1)");
}

// It then has another place among the sockets of its group.
#[test]
fn a_generation_that_drains_shuts_its_socket_down_and_listens_again_disturbs_nobody() {
    nobody_is_disturbed_by("s.shutdown(socket.SHUT_RDWR); s.listen(1)");
}

#[test]
fn a_generation_that_shuts_its_socket_down_and_listens_again_before_it_accepts_serves() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python("s.shutdown(socket.SHUT_RDWR)\ns.listen()\nserve()"));
    for generation in 2..=5 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        serves_alone(&supervisor, generation);
    }
    supervisor.stopped();
}

#[test]
fn a_release_that_fails_whatever_it_did_to_its_socket_disturbs_nobody() {
    for act in ["s.shutdown(socket.SHUT_RDWR)", "s.shutdown(socket.SHUT_RDWR)\ns.listen(1)", "s.listen(1)", "s.close()"]
    {
        let supervisor = supervise(Server::Python("serve()"), &[]).serving();
        let clients = Clients::of(&supervisor);
        supervisor.rewrite(Server::Python(&format!("{act}\nsys.exit(3)")));
        for _ in 0..3 {
            assert_eq!(supervisor.reload().code(), 1);
        }
        serves_alone(&supervisor, 1);
        supervisor.rewrite(Server::Python("serve()"));
        for generation in 5..=7 {
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{act}: {}", supervisor.log());
            serves_alone(&supervisor, generation);
        }
        clients.all_served_by();
        supervisor.stopped();
    }
}

/// Generations from 1 on drain and go on accepting; the one behind them serves.
fn with_stubborn_ones(supervisor: &Supervisor, count: u64) {
    for generation in 1..=count {
        supervisor.folder.let_be_stubborn(generation);
        assert_eq!(supervisor.reload().failure(), (0, ""), "{}", supervisor.log());
        serves_alone(supervisor, generation + 1);
    }
}

// handoff-run(1), STEERING: "There are two such slots, and more where more generations drain at once".
#[test]
fn several_that_drain_at_once_have_a_socket_each_and_these_are_used_again() {
    let supervisor = supervise(Server::Directed, &["--drain-timeout", "1h"]).serving();
    with_stubborn_ones(&supervisor, 8);
    // And the helm.
    assert_eq!(listeners_on(port(&supervisor)).len(), 10);
    // One from the middle, and the rest in the other order.
    for generation in [4, 8, 7, 6, 5, 3, 2, 1] {
        kill(supervisor.generation(generation), Signal::SIGKILL).unwrap();
        supervisor.wait_gone(generation);
        serves_alone(&supervisor, 9);
    }
    let (sockets, open) = (listeners_on(port(&supervisor)), supervisor.descriptors(0).len());
    for generation in 10..=29 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        serves_alone(&supervisor, generation);
    }
    assert_eq!(listeners_on(port(&supervisor)), sockets);
    assert_eq!(supervisor.descriptors(0).len(), open);
    supervisor.stopped();
}

#[test]
fn several_that_drain_may_do_what_they_like_with_their_sockets() {
    let acts = "s.shutdown(socket.SHUT_RDWR) if int(gen) % 2 else s.close()";
    let supervisor = supervise(Server::Python(&when_asked_to_stop(acts)), &["--drain-timeout", "1h"]).serving();
    let clients = Clients::of(&supervisor);
    for generation in 1..=6 {
        assert_eq!(supervisor.reload().failure(), (0, ""), "{}", supervisor.log());
        supervisor.folder.read(&format!("done-{generation}"));
        serves_alone(&supervisor, generation + 1);
    }
    // All of them at once leave.
    supervisor.folder.open("end");
    (1..=6).for_each(|generation| supervisor.wait_gone(generation));
    for generation in 8..=14 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        serves_alone(&supervisor, generation);
    }
    clients.all_served_by();
    supervisor.stopped();
}

#[test]
fn twenty_reloads_cost_no_descriptor_and_no_socket() {
    let supervisor = supervise(Server::Hello, &[]).listen("127.0.0.1:0").listen("udp:127.0.0.1:0").serving();
    let count = || supervisor.descriptors(0).len();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let (before, sockets) = (count(), listeners_on(port(&supervisor)));
    for _ in 0..20 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    }
    wait_for("nothing more to be open", || (count() == before).then_some(()));
    assert_eq!(listeners_on(port(&supervisor)), sockets);
    supervisor.stopped();
}
