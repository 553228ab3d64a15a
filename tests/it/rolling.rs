//! Reloading under load: nobody is lost.
//!
//! HANDOFF_RELOADS says how often real servers are reloaded, 10 times unless told.

use std::env;

use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::client::{Answer, Client};
use crate::harness::trial::Trial;
use crate::harness::{Server, remark, server, supervise};
use crate::load::{Load, Report};
use crate::servers::CASES;

/// The server of examples/hello.rs.
fn hello() -> Case {
    Case { line: server::hello().to_str().unwrap().to_owned().leak(), ..CASE }
}

/// Reload so many times while clients come all the time, and stop; what became of them.
pub fn reload_under_load(case: &Case, options: &str, reloads: u32) -> Report {
    let server = Trial::start(case, options);
    server.process.wait_ready(1);
    let ((), report) = Load::lasting(server.address()).during(|| {
        for _ in 0..reloads {
            let output = server.reload(&[]);
            assert_eq!(output.failure(), (0, ""), "{}", server.log());
        }
    });
    if report.failed() > 0 {
        remark(&server.log());
    }
    server.stop();
    report
}

// handoff-run(1), --supervise: "The one that serves is asked to stop only when the new one is ready".
#[test]
fn a_hundred_reloads_of_a_graceful_server_lose_nobody() {
    let report = reload_under_load(&hello(), "--env HELLO_VERSION={gen}", 100);
    assert_eq!(report.failed(), 0, "{report:?}");
    let generations = report.by_body.keys().map(|body| body.split(',').next().unwrap()).collect::<Vec<_>>();
    // On a busy machine the load may begin a reload or two late.
    assert!(generations.len() > 90 && generations.contains(&"hello from 100"), "{generations:?}");
}

// handoff-run(1): "with --drain idle nothing is lost whatever the server does when it is told to stop".
#[test]
fn a_hundred_reloads_of_a_server_that_is_killed_at_its_stop_lose_nobody() {
    let report = reload_under_load(&hello(), "--env HELLO_VERSION={gen} --stop-signal KILL --drain idle", 100);
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(report.by_body.len() > 90, "{:?}", report.by_body);
}

/// How often a real server is reloaded.
pub fn reloads() -> u32 {
    env::var("HANDOFF_RELOADS").map_or(10, |number| number.parse().unwrap())
}

/// Whatever the server does with accepted connections when it is asked to stop.
fn nobody_is_lost(name: &str) {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    if is_installed(case) {
        let report = reload_under_load(case, "--drain idle", reloads());
        assert_eq!(report.failed(), 0, "{report:?}");
        assert!(report.ok > u64::from(reloads()), "{report:?}");
    }
}

#[test]
fn reloads_of_gunicorn_lose_nobody() {
    nobody_is_lost("gunicorn");
}

#[test]
fn reloads_of_node_lose_nobody() {
    nobody_is_lost("node");
}

#[test]
fn reloads_of_nginx_lose_nobody() {
    nobody_is_lost("nginx");
}

// handoff-run(1), --stop-signal: "The signal that asks a generation to drain".
#[test]
fn a_request_that_outlasts_reloads_is_answered_by_the_generation_that_accepted_it() {
    let script = "
client = None
signal.signal(signal.SIGTERM, lambda *_: client or os._exit(0))
client, _ = s.accept()
request = client.recv(1000)
mark('begun-' + gen)
wait_for('go')
client.sendall(f'hello from {gen}, pid {os.getpid()}\\n'.encode())";
    let supervisor = supervise(Server::Python(script), &[]).serving();
    let mut under_way = Vec::new();
    for generation in 1..=5 {
        let mut client = Client::connect(&supervisor.address()).unwrap();
        client.send().unwrap();
        supervisor.folder.read(&format!("begun-{generation}"));
        assert_eq!(supervisor.reload().failure(), (0, ""));
        under_way.push((client, Answer { generation, pid: supervisor.generation(generation) }));
    }
    supervisor.folder.open("go");
    for (mut client, by) in under_way {
        assert_eq!(client.answer().unwrap(), by);
    }
    supervisor.stopped();
}
