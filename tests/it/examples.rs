//! The servers of examples/: each is succeeded five times under load by the very line that started it, and loses nobody.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::case::{CASE, Case, compiled, is_installed, shell};
use crate::harness::client::{Client, ask};
use crate::harness::process::{Session, stat};
use crate::harness::{Folder, PROGRAM, Running, log, remark, server, wait_for};
use crate::load::Load;

/// A server, and all that comes after it.
struct Example {
    _session: Session,
    _running: Running,
    folder: Folder,
    address: String,
}

impl Drop for Example {
    fn drop(&mut self) {
        if std::thread::panicking() {
            remark(&fs::read_to_string(self.folder.path("log")).unwrap());
        }
    }
}

/// Start it as its first comment says, each successor with the next number as its version.
fn start(folder: Folder, program: &str) -> Example {
    let line = format!("HELLO_VERSION=$((HELLO_VERSION + 1)) exec {PROGRAM} --listen 127.0.0.1:0 -- {program}");
    let log = fs::File::create(folder.path("log")).unwrap();
    let running = shell(&line, &folder).env("UPGRADE", &line).stderr(log.try_clone().unwrap()).stdout(log).start();
    let address = wait_for("an address", || log::address(&fs::read_to_string(folder.path("log")).unwrap()));
    Example { _session: Session(running.pid()), _running: running, folder, address }
}

/// Ask the one that serves, by its pid, to start its successor.
type Upgrade = fn(&Example, Pid);

fn by_signal(_: &Example, serving: Pid) {
    kill(serving, Signal::SIGUSR2).unwrap();
}

fn by_request(example: &Example, _: Pid) {
    let url = format!("http://{}/upgrade", example.address);
    let output = shell(&format!("curl -sSf {url}"), &example.folder).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "the successor serves\n"));
}

/// Wait until a predecessor has ended, whether or not anybody has waited for it.
fn wait_end(pid: Pid) {
    wait_for("the predecessor to end", || stat(pid).is_none_or(|fields| fields[0] == "Z").then_some(()));
}

fn five_upgrades_lose_nobody(example: &Example, upgrade: Upgrade) {
    let address: SocketAddr = example.address.parse().unwrap();
    let ((), report) = Load::lasting(address).during(|| {
        for version in 1..=5 {
            let serving = wait_for("an answer", || ask(&example.address).ok());
            assert_eq!(serving.generation, version);
            upgrade(example, serving.pid);
            wait_end(serving.pid);
        }
    });
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(report.by_body.len() > 2, "{:?}", report.by_body);
    assert_eq!(ask(&example.address).unwrap().generation, 6);
}

/// What was accepted is answered by the one that accepted it, when its successor has served others.
fn a_client_that_it_holds_is_answered(example: &Example, upgrade: Upgrade) {
    let serving = ask(&example.address).unwrap();
    let mut held = Client::connect(&example.address).unwrap();
    held.send_part();
    upgrade(example, serving.pid);
    wait_for("the successor", || (ask(&example.address).unwrap().generation == serving.generation + 1).then_some(()));
    assert_eq!(held.finish().unwrap(), serving);
    wait_end(serving.pid);
}

/// examples/hello.EXTENSION, where what it needs is installed.
fn script(extension: &str, needs: &'static [&'static str]) {
    if is_installed(&Case { needs, ..CASE }) {
        let example = start(Folder::new(), source(extension).to_str().unwrap());
        five_upgrades_lose_nobody(&example, by_signal);
        a_client_that_it_holds_is_answered(&example, by_signal);
    }
}

fn source(extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/hello").with_extension(extension)
}

#[test]
fn five_upgrades_of_the_python_example_lose_nobody() {
    script("py", &["python3"]);
}

#[test]
fn five_upgrades_of_the_node_example_lose_nobody() {
    script("mjs", &["node"]);
}

#[test]
fn five_upgrades_of_the_ruby_example_lose_nobody() {
    script("rb", &["ruby"]);
}

#[test]
fn five_upgrades_of_the_shell_example_lose_nobody() {
    script("sh", &["bash", "perl"]);
}

#[test]
fn five_upgrades_of_the_rust_example_lose_nobody() {
    let example = start(Folder::new(), server::hello().to_str().unwrap());
    five_upgrades_lose_nobody(&example, by_signal);
    a_client_that_it_holds_is_answered(&example, by_signal);
}

/// The example in Go, compiled.
fn go() -> Option<Example> {
    let compile = "CGO_ENABLED=0 GOPROXY=off GOTOOLCHAIN=local go build -o hello hello.go";
    let case = Case { needs: &["go", "curl"], files: "hello-go", compile, ..CASE };
    is_installed(&case).then(|| {
        let folder = Folder::new();
        fs::copy(source("go"), folder.path("hello.go")).unwrap();
        compiled(&case, &folder);
        start(folder, "./hello")
    })
}

// The request that asks for it is one under way, and is answered by the predecessor.
#[test]
fn five_upgrades_of_the_go_example_by_a_request_lose_nobody() {
    if let Some(example) = go() {
        five_upgrades_lose_nobody(&example, by_request);
    }
}

// examples/hello.go: "the successor never served, serving on".
#[test]
fn an_upgrade_that_fails_leaves_the_example_serving() {
    let Some(example) = go() else { return };
    let serving = ask(&example.address).unwrap();
    fs::rename(example.folder.path("hello"), example.folder.path("away")).unwrap();
    let failed = shell(&format!("curl -s http://{}/upgrade", example.address), &example.folder).output();
    assert_eq!(failed.stdout, "the successor never served, serving on\n");
    assert_eq!(ask(&example.address).unwrap(), serving);
    fs::rename(example.folder.path("away"), example.folder.path("hello")).unwrap();
    five_upgrades_lose_nobody(&example, by_request);
}
