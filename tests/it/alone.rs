//! `--ready http:PATH`: the new generation is asked alone, and the clients of the old one notice nothing.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};

use crate::harness::client::Clients;
use crate::harness::socket::{ipv6_is_missing, tcp};
use crate::harness::{Folder, Server, Supervisor, handoff_run_with, supervise};

/// A server that notes which generation was asked for what, and answers 500 while a file `broken-GENERATION` is there.
const HTTP: &str = "
def answer(client):
    client.setblocking(True)
    words = client.recv(1000).decode().split(' ')
    with open(path('access'), 'a') as file: file.write(f'{gen} {words[1]}\\n')
    status = '500 Broken' if exists('broken-' + gen) else '200 OK'
    client.sendall(f'HTTP/1.1 {status}\\r\\n\\r\\nhello from {gen}, pid {os.getpid()}\\n'.encode())
    client.close()
";

fn serving(options: &[&str]) -> Supervisor {
    supervise(Server::Python(&format!("{HTTP}serve()")), &["--ready", "http:/health"]).options(options).serving()
}

/// What the generations were asked for.
fn access(supervisor: &Supervisor) -> BTreeSet<String> {
    fs::read_to_string(supervisor.folder.path("access")).unwrap().lines().map(str::to_owned).collect()
}

/// The new generation does not get ready in time, as it was asked alone: the reload ends so.
#[track_caller]
fn assert_late(supervisor: &Supervisor, why: &str) {
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    // It is killed after 2 seconds.
    while supervisor.states().contains(&(2, "starting".into())) {
        assert_eq!(supervisor.answer().generation, 1);
    }
    let line = "handoff-run: generation 2: was not ready after 2.00 s and is killed: ";
    let output = reload.output();
    assert_eq!(output.code(), 124);
    assert!(output.stderr.starts_with(line) && output.stderr.contains(why), "{}", output.stderr);
    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

// handoff-run(1), SUPERVISING: "the supervisor sends that GET itself, to the new generation alone".
// The old one answered through the address that they have: a broken release was ready.
#[test]
fn a_release_that_is_broken_is_not_ready_though_the_old_one_answers() {
    let supervisor = serving(&["--ready-timeout", "2s"]);
    supervisor.folder.open("broken-2");
    let clients = Clients::of(&supervisor);
    assert_late(&supervisor, "killed: GET /health was last answered with 500\n");
    assert_eq!(clients.all_served_by(), BTreeSet::from([supervisor.generation(1)]));
    assert_eq!(access(&supervisor), BTreeSet::from(["1 /health", "1 /", "2 /health"].map(str::to_owned)));
    supervisor.stopped();
}

/// A release that is broken at first is ready when it is no more, and until then clients are the old one's.
#[track_caller]
fn assert_ready_when_healthy(supervisor: &Supervisor, act: impl Fn(&Supervisor)) {
    fs::remove_file(supervisor.folder.path("access")).unwrap();
    supervisor.folder.open("broken-2");
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    let clients = Clients::of(supervisor);
    act(supervisor);
    supervisor.folder.read("access");
    supervisor.assert_keeps_starting(2);
    assert_eq!(clients.all_served_by(), BTreeSet::from([supervisor.generation(1)]));
    fs::remove_file(supervisor.folder.path("broken-2")).unwrap();
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(access(supervisor), BTreeSet::from(["1 /", "2 /health"].map(str::to_owned)));
    assert_eq!(supervisor.answer().generation, 2);
}

#[test]
fn a_release_that_becomes_healthy_later_is_ready_then_at_whatever_address() {
    for spec in ["127.0.0.1:0", "127.0.0.9:0", "0.0.0.0:0", ":0", "[::1]:0", "[::]:0", "[::]:0,v6only"] {
        if spec.contains('[') && ipv6_is_missing() {
            continue;
        }
        let setup = supervise(Server::Python(&format!("{HTTP}serve()")), &["--ready", "http:/health"]);
        let supervisor = setup.listen(spec).serving();
        assert_ready_when_healthy(&supervisor, |_| ());
        supervisor.stopped();
    }
}

#[test]
fn another_supervisor_asks_on() {
    let supervisor = serving(&[]);
    assert_ready_when_healthy(&supervisor, |supervisor| (0..2).for_each(|_| supervisor.upgrade()));
    supervisor.stopped();
}

// A request that is under way ends with the program that sent it.
#[test]
fn another_supervisor_asks_anew_where_a_request_was_under_way() {
    let code = HTTP.replace("    status = ", "    if gen == '2': mark('asked'); wait_for('go')\n    status = ");
    let supervisor = supervise(Server::Python(&format!("{code}serve()")), &["--ready", "http:/health"]).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.folder.read("asked");
    supervisor.upgrade();
    assert_eq!(supervisor.answer().generation, 1);
    supervisor.folder.open("go");
    assert_eq!(reload.output().failure(), (0, ""));
    assert_eq!(supervisor.answer().generation, 2);
    supervisor.stopped();
}

#[test]
fn the_first_generation_and_one_that_is_started_again_are_asked_too() {
    let setup = supervise(Server::Python(&format!("{HTTP}serve()")), &["--ready", "http:/health"]);
    setup.folder.open("broken-1");
    let supervisor = setup.start();
    for generation in [1, 2] {
        supervisor.generation(generation);
        let asked = format!("{generation} /health\n");
        assert!(supervisor.folder.read_with("access", &asked).contains(&asked));
        supervisor.assert_keeps_starting(generation);
        supervisor.folder.open(&format!("broken-{}", generation + 1));
        fs::remove_file(supervisor.folder.path(&format!("broken-{generation}"))).unwrap();
        supervisor.wait_ready(generation);
        kill(supervisor.generation(generation), Signal::SIGKILL).unwrap();
    }
    fs::remove_file(supervisor.folder.path("broken-3")).unwrap();
    supervisor.wait_ready(3);
    supervisor.stopped();
}

// "Redirects are not followed."
#[test]
fn a_redirect_counts_and_is_not_followed() {
    let code = HTTP.replace("200 OK", "302 Found\\r\\nLocation: /elsewhere\\r\\nContent-Length: 0");
    let supervisor = supervise(Server::Python(&format!("{code}serve()")), &["--ready", "http:/health"]).serving();
    assert_eq!(supervisor.reload().failure(), (0, ""));
    assert_eq!(access(&supervisor), BTreeSet::from(["1 /health", "2 /health"].map(str::to_owned)));
    supervisor.stopped();
}

// "--ready http: it answers a GET of PATH on its first socket", and waits on the others too.
#[test]
fn a_release_that_answers_and_does_not_wait_on_each_socket_is_not_ready() {
    let code = "
while True:
    ready = select.select([3, 4] if gen == '1' or exists('go') else [3], [], [], 0.01)[0]
    if ready: answer(s.accept()[0])";
    let options = ["-l", "127.0.0.1:0", "--ready", "http:/health"];
    let supervisor = supervise(Server::Python(&format!("{HTTP}{code}")), &options).serving();
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.generation(2);
    supervisor.assert_keeps_starting(2);
    assert!(!access(&supervisor).contains("2 /health"), "it is not asked before");
    supervisor.folder.open("go");
    assert_eq!(reload.output().failure(), (0, ""));
}

/// A second generation that does this with each client.
#[track_caller]
fn assert_no_answer(act: &str, why: &str) -> Supervisor {
    let code = format!(
        "{HTTP}
good = answer
def bad(client):
    client.setblocking(True)
    {act}
answer = bad if gen == '2' else good
serve()"
    );
    let options = ["--ready", "http:/health", "--ready-timeout", "2s"];
    let supervisor = supervise(Server::Python(&code), &options).serving();
    assert_late(&supervisor, why);
    supervisor
}

#[test]
fn a_header_that_never_ends_is_no_answer() {
    let act = "client.sendall(b'HTTP/1.1 200 OK\\r\\nX: ')\n    while True: client.sendall(b'x'); select.select([], [], [], 0.05)";
    assert_no_answer(act, "killed: GET /health has not been answered\n");
}

// The supervisor read it as fast as it came, and did nothing else.
#[test]
fn a_body_that_never_ends_is_no_answer_and_keeps_the_supervisor_from_nothing() {
    let act = "body, sent = bytes(65000), 0
    client.sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n')
    while True:
        client.sendall(body)
        sent += len(body)
        mark('sent', str(sent))";
    let supervisor = assert_no_answer(act, "killed: GET /health has not been answered\n");
    // A quarter of a megabyte at each look, and what the buffers hold.
    let sent: u64 = supervisor.folder.read("sent").parse().unwrap();
    assert!(sent < 50_000_000, "{sent}");
}

#[test]
fn a_server_that_accepts_and_says_nothing_gives_no_answer() {
    assert_no_answer("wait_for('never')", "killed: GET /health has not been answered\n");
}

#[test]
fn a_connection_that_is_closed_at_once_is_no_answer() {
    assert_no_answer("client.close()", "killed: GET /health last failed: ");
}

#[test]
fn what_is_not_http_is_no_answer() {
    assert_no_answer("client.sendall(b'220 ready\\r\\n')", "killed: GET /health last failed: the answer is not HTTP\n");
}

// "Where the first socket is shared this is an error".
#[test]
fn where_the_first_socket_is_no_tcp_socket_of_its_own_a_request_is_an_error() {
    let folder = Folder::new();
    let (inherited, address) = tcp();
    let path = folder.text("socket");
    let run = |options: &[&str]| {
        let run = handoff_run_with(&["-q", "--supervise", "--ready", "http:/health"]).args(options);
        run.args(&["--", "touch", &folder.text("started")])
    };
    let table = [
        (run(&["-l", "127.0.0.1:0", "--shared"]), "127.0.0.1:"),
        (run(&["-l", &path]), path.as_str()),
        (run(&["-l", &path, "-l", "127.0.0.1:0"]), path.as_str()),
        (run(&["-l", "127.0.0.1:0,reuseport"]), "127.0.0.1:"),
        (run(&["-l", "udp:127.0.0.1:0"]), "127.0.0.1:"),
        (run(&[]).inherit(&inherited, 3), address.as_str()),
    ];
    for (run, shared) in table {
        let output = run.output();
        let line = "handoff-run: --ready http: needs a TCP socket of its own for each generation as the first one, which can be \
                    reached from this machine; ";
        assert_eq!((output.code(), output.stderr.lines().count()), (125, 1), "{}", output.stderr);
        assert!(output.stderr.starts_with(&format!("{line}{shared}")), "{}", output.stderr);
        assert!(output.stderr.ends_with(" is none\n"), "{}", output.stderr);
        assert_eq!(folder.names(), [""; 0]);
    }
}
