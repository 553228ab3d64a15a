//! Takeovers in a chain, under load: nobody is lost, whoever started the first server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::{Signal, killpg};

use crate::harness::by_hand::{Successor, succeed};
use crate::harness::case::{CASE, Case, compiled, fill, fill_in, is_installed, line, shell};
use crate::harness::{Folder, PROGRAM, Run, Running, Server, handoff_run_with, server, wait_for};
use crate::load::{Load, Report};

/// Load on an address while `deploys` happen.
fn under_load(address: SocketAddr, deploys: impl FnOnce()) -> Report {
    Load::lasting(address).during(deploys).1
}

// handoff-run(1), TAKEOVER: "no connection is refused or lost".
#[test]
fn twenty_takeovers_of_a_graceful_server_in_a_chain_lose_nobody() {
    chain_of_hello(&[]);
}

// As one without any graceful stop does.
#[test]
fn twenty_takeovers_of_a_server_that_is_killed_lose_nobody() {
    chain_of_hello(&["--from-signal", "KILL", "--drain", "idle"]);
}

fn chain_of_hello(options: &[&str]) {
    let hello = server::hello();
    let mut first = handoff_run_with(&["-l", "127.0.0.1:0", "--", hello.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .start();
    let address: SocketAddr = first.line().rsplit(' ').next().unwrap().parse().unwrap();
    let text = address.to_string();
    let mut chain: Vec<Successor> = Vec::new();
    let report = under_load(address, || {
        for _ in 0..20 {
            let next = succeed(Run::of(PROGRAM), &text, "auto", options, Server::Hello);
            next.wait_serving(&text);
            next.wait_alone();
            chain.push(next);
        }
    });
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(report.by_body.len() > 18, "{:?}", report.by_body);
    assert!(first.has_ended() && chain[..19].iter().all(|one| one.running.has_ended()));
}

/// A real server in a session of its own, which ends with the value.
struct Real {
    running: Running,
    folder: Arc<Folder>,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = killpg(self.running.pid(), Signal::SIGKILL);
    }
}

/// Start it by this line, in a folder with the files of the case.
fn start(case: &Case, line: &str, port: u16, address: &str) -> Real {
    let folder = Arc::new(Folder::new());
    fill(&folder, case.files, port);
    if !case.compile.is_empty() {
        compiled(case, &folder);
    }
    let line = fill_in(&line.replace("@ADDR@", address), &folder, port);
    let log = std::fs::File::create(folder.path("log")).unwrap();
    let running = shell(&format!("exec {line} >&2"), &folder).stderr(log).start();
    Real { running, folder }
}

/// Ten takeovers, the first from a server that was started by hand.
fn ten_takeovers(by_hand: &Case, case: &Case, every: bool) {
    if !is_installed(by_hand) || !is_installed(case) {
        return;
    }
    let port = crate::harness::trial::free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let text = address.to_string();
    let first = start(by_hand, by_hand.line, port, &text);
    let serves = |real: &Real| {
        wait_for("the server to answer", || {
            let log = || std::fs::read_to_string(real.folder.path("log")).unwrap();
            assert!(!real.running.has_ended(), "{}", log());
            answers(address)
        })
    };
    serves(&first);
    let spec = if every { format!(":{port}") } else { text.clone() };
    let (words, _) = line(case, &format!("{PROGRAM} --from auto --settle 100ms --drain idle"));
    let mut chain = vec![first];
    let report = under_load(address, || {
        for _ in 0..10 {
            let next = start(case, &words, port, &spec);
            let last = chain.last().unwrap();
            wait_for("the last one to end", || {
                let log = || std::fs::read_to_string(next.folder.path("log")).unwrap();
                assert!(!next.running.has_ended(), "{}", log());
                last.running.has_ended().then_some(())
            });
            wait_for("the watcher to end", || watchers(port).is_none().then_some(()));
            chain.push(next);
        }
    });
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(report.ok > 100, "{report:?}");
}

/// Does a server answer there?
fn answers(address: SocketAddr) -> Option<()> {
    let report = Load { connections: 1, requests: 1, ..Load::on(address) }.run(&AtomicBool::new(false));
    (report.ok == 1).then_some(())
}

/// A process of handoff-run that takes over at this port.
fn watchers(port: u16) -> Option<nix::unistd::Pid> {
    let port = format!(":{port}");
    let takes_over = |pid: &nix::unistd::Pid| {
        let line =
            std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        line.starts_with(PROGRAM) && line.contains("--from") && line.contains(&port)
    };
    crate::harness::process::all().find(takes_over)
}

#[test]
fn ten_takeovers_of_nginx_lose_nobody() {
    let by_hand = Case { line: "nginx -c @DIR@/nginx.conf", needs: &["nginx"], files: "nginx", ..CASE };
    let case = Case { name: "nginx", instead: &[("/etc/nginx", "@DIR@")], ..by_hand };
    ten_takeovers(&by_hand, &case, false);
}

#[test]
fn ten_takeovers_of_gunicorn_lose_nobody() {
    let by_hand = Case { line: "gunicorn -b @ADDR@ app:wsgi", needs: &["gunicorn"], files: "python", ..CASE };
    ten_takeovers(&by_hand, &Case { name: "gunicorn", ..by_hand }, false);
}

#[test]
fn ten_takeovers_of_node_lose_nobody() {
    let by_hand = Case { line: "node server.js @PORT@", needs: &["node"], files: "plain", ..CASE };
    ten_takeovers(&by_hand, &Case { name: "node", needs: &["node"], files: "node", ..CASE }, true);
}

#[test]
fn ten_takeovers_of_a_go_program_without_shutdown_lose_nobody() {
    let compile = "CGO_ENABLED=0 GOPROXY=off GOTOOLCHAIN=local go build -o hello .";
    let by_hand = Case { line: "./hello @PORT@", needs: &["go"], files: "plain-go", compile, ..CASE };
    ten_takeovers(&by_hand, &Case { line: "./hello", files: "go-abrupt", ..by_hand }, true);
}
