//! SIGUSR2 with steered sockets: the same processes, and new connections go where they went.

use nix::sys::signal::{Signal, kill};

use crate::harness::client::Clients;
use crate::harness::socket::listeners_on;
use crate::harness::{Running, Server, Supervisor, supervise, wait_for};
use crate::steering::{STUBBORN, port, serves_alone, waiting};

/// What is open, in any order, when the supervisor does not look at anything just now.
fn open(supervisor: &Supervisor, clients: usize) -> Vec<String> {
    let read = || {
        let mut open = supervisor.descriptors(clients);
        open.sort();
        open
    };
    wait_for("the same descriptors twice", || {
        let before = read();
        // Whatever it was about, it is done with that when it answers.
        supervisor.table();
        Some(before).filter(|before| *before == read())
    })
}

/// Upgrade; nothing that can be seen has changed by it.
#[track_caller]
fn upgrade_changes_nothing(supervisor: &Supervisor, clients: usize) {
    // Clients come and go.
    let lasts = |fact: &String| !fact.contains(".connections=");
    let facts = || supervisor.json().into_iter().filter(lasts).collect::<Vec<_>>();
    let seen = || (facts(), listeners_on(port(supervisor)), open(supervisor, clients));
    let before = seen();
    supervisor.upgrade();
    assert_eq!(seen(), before);
}

/// The second generation serves, the first one stands by, and the client that waits.
fn standing_by(code: &str, settle: &str) -> (Supervisor, Running) {
    let supervisor = supervise(Server::Python(code), &["--settle", settle]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    (supervisor, reload)
}

#[test]
fn an_upgrade_keeps_the_steering_and_the_slots() {
    let supervisor = supervise(Server::Python(STUBBORN), &["--drain-timeout", "1h"]).serving();
    let clients = Clients::of(&supervisor);
    upgrade_changes_nothing(&supervisor, 0);
    for generation in 2..=4 {
        assert_eq!(supervisor.reload().failure(), (0, ""));
        supervisor.wait_draining(generation - 1);
        for _ in 0..2 {
            upgrade_changes_nothing(&supervisor, 0);
            serves_alone(&supervisor, generation);
        }
    }
    let (slots, descriptors) = (listeners_on(port(&supervisor)), supervisor.descriptors(0).len());
    // Three drain, and the helm.
    assert_eq!(slots.len(), 5);
    for generation in [2, 1, 3] {
        kill(supervisor.generation(generation), Signal::SIGUSR1).unwrap();
        supervisor.wait_gone(generation);
        serves_alone(&supervisor, 4);
    }
    supervisor.rewrite(Server::Python("serve()"));
    assert_eq!(supervisor.reload().failure(), (0, ""));
    kill(supervisor.generation(4), Signal::SIGUSR1).unwrap();
    supervisor.wait_gone(4);
    for generation in 6..=12 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        supervisor.upgrade();
        serves_alone(&supervisor, generation);
    }
    assert_eq!(listeners_on(port(&supervisor)), slots);
    assert!(supervisor.descriptors(0).len() <= descriptors);
    clients.all_served_by();
    supervisor.stopped();
}

#[test]
fn the_time_to_settle_goes_on_after_an_upgrade_and_the_reload_is_told() {
    let (supervisor, reload) = standing_by("serve()", "3s");
    supervisor.upgrade();
    serves_alone(&supervisor, 2);
    let output = reload.output();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with("generation 2: settled\n"), "{}", output.stdout);
    supervisor.wait_gone(1);
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    serves_alone(&supervisor, 3);
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_fails_after_an_upgrade_is_rolled_back() {
    let left = "accepts no more, before it had settled";
    for (act, why) in [
        ("os._exit(3)", "ended with status 3 before it had settled"),
        ("s.shutdown(socket.SHUT_RDWR)", left),
        ("s.close()", left),
    ] {
        let code = format!(
            "if gen == '1': serve()\ns.setblocking(False)\n\
             while not exists('act'):\n    if select.select([s], [], [], 0.01)[0]: answer(s.accept()[0])\n\
             {act}\nwhile True: time.sleep(1)"
        );
        let (supervisor, reload) = standing_by(&code, "1h");
        upgrade_changes_nothing(&supervisor, 1);
        serves_alone(&supervisor, 2);
        supervisor.folder.open("act");
        let output = reload.output();
        assert_eq!(output.code(), 1, "{act}: {}", supervisor.log());
        assert!(output.stderr.starts_with(&format!("handoff-run: generation 2: {why}")), "{output:?}");
        assert!(output.stderr.ends_with(": generation 1 serves again\n"), "{output:?}");
        serves_alone(&supervisor, 1);
        supervisor.wait_gone(2);
        supervisor.rewrite(Server::Python("serve()"));
        supervisor.signal(Signal::SIGHUP);
        supervisor.wait_ready(3);
        serves_alone(&supervisor, 3);
        supervisor.stopped();
    }
}

#[test]
fn what_went_wrong_before_a_reload_is_over_when_that_has_settled_after_an_upgrade() {
    let supervisor = supervise(Server::Python("serve()"), &["--settle", "1s"]).serving();
    supervisor.rewrite(Server::Python("sys.exit(3)"));
    assert_eq!(supervisor.reload().code(), 1);
    supervisor.rewrite(Server::Python("serve()"));
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(3);
    supervisor.upgrade();
    assert!(supervisor.status(&[]).contains("last failure"));
    assert_eq!(reload.output().failure(), (0, ""));
    assert!(!supervisor.status(&[]).contains("last failure"), "{}", supervisor.status(&[]));
    supervisor.stopped();
}

#[test]
fn the_old_generation_that_ends_after_an_upgrade_while_it_stands_by_is_not_missed() {
    let (supervisor, reload) = standing_by("serve()", "1h");
    supervisor.upgrade();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    assert_eq!(reload.output().failure(), (0, ""));
    serves_alone(&supervisor, 2);
    supervisor.stopped();
}

#[test]
fn a_generation_that_waits_for_its_connections_goes_on_waiting_after_an_upgrade() {
    let options = ["--drain", "idle", "--drain-timeout", "1h"];
    let supervisor = supervise(Server::Directed, &options).serving();
    let (mut held, _) = supervisor.hold();
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_log("generation 2: settled\n");
    upgrade_changes_nothing(&supervisor, 1);
    upgrade_changes_nothing(&supervisor, 1);
    for _ in 0..20 {
        assert_eq!(held.ask().unwrap().generation, 1);
    }
    serves_alone(&supervisor, 2);
    assert!(!supervisor.log().contains("generation 1: draining"), "{}", supervisor.log());
    drop(held);
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(supervisor.states(), [(2, "serving".into())]);
    supervisor.stopped();
}

#[test]
fn what_waits_where_nobody_is_after_an_upgrade_is_reset_and_what_waits_for_a_restart_is_served() {
    let code = "if gen == '1':\n    select.select([s], [], [])\n    mark('deaf')\n    wait_for('never')\nserve()";
    let supervisor = supervise(Server::Python(code), &["--settle", "1h"]).serving();
    let clients = waiting(&supervisor, 3);
    supervisor.folder.read("deaf");
    supervisor.signal(Signal::SIGHUP);
    supervisor.wait_ready(2);
    supervisor.upgrade();
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_log("generation 1: reset 3 clients that waited for it and cannot be served\n");
    for mut client in clients {
        assert!(client.rest().is_err());
    }
    supervisor.upgrade();
    kill(supervisor.generation(2), Signal::SIGKILL).unwrap();
    supervisor.wait_log("generation 2: was ended by SIGKILL");
    let clients = waiting(&supervisor, 3);
    supervisor.upgrade();
    for mut client in clients {
        assert_eq!(client.answer().unwrap().generation, 3);
    }
    supervisor.stopped();
}

#[test]
fn fifty_upgrades_leak_no_descriptor() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let before = open(&supervisor, 0);
    for _ in 0..50 {
        supervisor.upgrade();
    }
    assert_eq!(open(&supervisor, 0), before);
    assert_eq!(supervisor.served_by(), supervisor.generation(2));
    supervisor.stopped();
}
