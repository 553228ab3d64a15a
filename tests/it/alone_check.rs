//! `--ready check:COMMAND` with HANDOFF_SOURCE: what comes from that address reaches the new generation alone.

use std::fs;

use crate::harness::python::python;
use crate::harness::setup::Setup;
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{Server, Supervisor, is_root_to, supervise};

/// A server that answers `bad` while a file `broken-GENERATION` is there.
const SERVER: &str = "
good = answer
def bad(client):
    with open(path('asked-' + gen), 'a') as file: file.write(client.getpeername()[0] + '\\n')
    if exists('broken-' + gen): client.sendall(b'bad')
    else: good(client)
answer = bad
serve()";

/// Connects from HANDOFF_SOURCE to the port in a file, as `curl --interface` does, and wants something good.
const PROBE: &str = "
import os, socket, sys
source = os.environ['HANDOFF_SOURCE']
client = socket.create_connection(('127.0.0.1', int(open('port').read())), 5, (source, 0))
client.sendall(b'?')
sys.exit(client.recv(100)[:3] == b'bad')";

fn probed(options: &[&str]) -> Setup {
    let setup = supervise(Server::Python(SERVER), options);
    setup.folder.write("probe.py", PROBE);
    let check = format!("check:test -e port && exec {} -IS probe.py", python().display());
    setup.options(&["--ready", &check])
}

fn serving(setup: Setup) -> Supervisor {
    let supervisor = setup.start();
    supervisor.folder.write("port", supervisor.address().rsplit_once(':').unwrap().1);
    supervisor.wait_ready(1);
    supervisor
}

// handoff-run(1), SUPERVISING: "Whoever connects to a steered socket from the address in HANDOFF_SOURCE, 127.0.0.2, reaches
// the new generation, and everybody else the one that serves".
#[test]
fn a_dead_release_does_not_pass_a_check_that_comes_from_the_source() {
    let supervisor = serving(probed(&["--ready-timeout", "3s"]));
    supervisor.folder.open("broken-2");
    fs::remove_file(supervisor.folder.path("asked-1")).unwrap();
    let reload = supervisor.command("--reload", &[]).start();
    assert!(supervisor.folder.read_with("asked-2", "127.0.0.2\n").starts_with("127.0.0.2\n"));
    assert_eq!(supervisor.answer().generation, 1);
    let output = reload.output();
    let why =
        "handoff-run: generation 2: was not ready after 3.00 s and is killed: its check last ended with status 1\n";
    assert_eq!(output.failure(), (124, why));
    assert_eq!(supervisor.folder.read("asked-1"), "127.0.0.1\n");
    supervisor.wait_gone(2);
    // What comes from there is the serving one's again.
    assert_eq!(supervisor.reload().failure(), (0, ""));
    supervisor.stopped();
}

#[test]
fn a_release_that_becomes_healthy_passes_its_check_then_at_a_dual_stack_address_too() {
    for (spec, upgrades) in [("127.0.0.1:0", 1), (":0", 0), ("0.0.0.0:0", 0)] {
        let supervisor = serving(probed(&[]).listen(spec));
        supervisor.folder.open("broken-2");
        fs::remove_file(supervisor.folder.path("asked-1")).unwrap();
        let reload = supervisor.command("--reload", &[]).start();
        supervisor.folder.read("asked-2");
        (0..upgrades).for_each(|_| supervisor.upgrade());
        supervisor.assert_keeps_starting(2);
        fs::remove_file(supervisor.folder.path("broken-2")).unwrap();
        assert_eq!(reload.output().failure(), (0, ""));
        assert!(!supervisor.folder.path("asked-1").exists(), "{spec}");
        let asked = fs::read_to_string(supervisor.folder.path("asked-2")).unwrap();
        assert!(asked.lines().all(|line| line.ends_with("127.0.0.2")), "{asked}");
        supervisor.stopped();
    }
}

/// A check of a supervisor that listens there has no HANDOFF_SOURCE, which is said once.
#[track_caller]
fn assert_no_source(spec: &str, options: &[&str], warning: &str) {
    let setup = supervise(Server::Directed, &["--ready", "check:echo source ${HANDOFF_SOURCE-none}"]).options(options);
    let supervisor = setup.listen(spec).serving();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    let warning = warning.replace("ADDRESS", &supervisor.address());
    let log = supervisor.stopped();
    let warning = format!("handoff-run: --ready check: {warning}, so another generation than the new one may answer\n");
    assert_eq!(log.matches(&warning).count(), 1, "{log}");
    assert!(log.contains("handoff-run: check: source none\n"), "{log}");
    assert!(!log.contains("check: source 127"), "{log}");
}

const NO_SOURCE: &str = "there is no HANDOFF_SOURCE";

// "a check there may be answered by the old generation [...]: a warning at the start says so."
#[test]
fn where_a_socket_is_shared_there_is_no_source_and_a_warning() {
    assert_no_source("127.0.0.1:0", &["--shared"], "ADDRESS is shared");
}

#[test]
fn without_ipv4_there_is_no_source_and_a_warning() {
    if !ipv6_is_missing() {
        assert_no_source("[::1]:0", &[], NO_SOURCE);
        assert_no_source("[::]:0,v6only", &[], NO_SOURCE);
    }
}

#[test]
fn on_a_device_there_is_no_source_and_a_warning() {
    if is_root_to("listen on a device") {
        assert_no_source("127.0.0.1:0,device=lo", &[], NO_SOURCE);
    }
}

// Of two sockets one is enough.
#[test]
fn beside_a_socket_without_ipv4_there_is_a_source() {
    if ipv6_is_missing() {
        return;
    }
    let setup = supervise(Server::Directed, &["--ready", "check:echo source $HANDOFF_SOURCE"]);
    let supervisor = setup.listen("[::1]:0").listen("127.0.0.1:0").serving();
    let log = supervisor.stopped();
    assert!(log.contains("handoff-run: check: source 127.0.0.2\n") && !log.contains(NO_SOURCE), "{log}");
}
