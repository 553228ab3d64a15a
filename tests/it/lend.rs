//! One supervisor succeeds another by its control socket: the sockets are lent, and given back if it fails.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};

use crate::harness::by_hand::succeed;
use crate::harness::client::{Client, ask};
use crate::harness::process::{Left, exists, sockets};
use crate::harness::run::copy_for_everybody;
use crate::harness::setup::supervise_in;
use crate::harness::socket::listeners_on;
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, handoff_run_with, is_root_to, supervise, wait_for};

/// It serves on all that it was given.
const SERVE_ALL: &str = "
all = [socket.socket(fileno=3 + at) for at in range(int(os.environ['LISTEN_FDS']))]
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
for each in all: each.setblocking(False)
while True:
    for each in select.select(all, [], [])[0]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try: answer(each.accept()[0])
        except OSError: pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})";
const SERVER: Server = Server::Python(SERVE_ALL);

/// A supervisor that succeeds another one by the same control socket.
fn successor(old: &Supervisor, specs: &[&str], options: &[&str], server: Server) -> Supervisor {
    let folder = Arc::new(Folder::new());
    let control = old.folder.text("control");
    let target = server.install(&folder);
    let mut run = handoff_run_with(&["--supervise", "--control", &control, "--from", &control]).current_dir(&*folder);
    if !options.contains(&"--settle") {
        run = run.args(&["--settle", "50ms"]);
    }
    run = specs.iter().fold(run, |run, spec| run.args(&["-l", spec])).args(options);
    let run = run.args(&crate::harness::server::settings(&folder)).args(&["--"]).args(&target);
    let mut next = Supervisor::start(folder, run, crate::harness::supervisor::Role::Supervisor);
    next.expect_at(specs[0]);
    next
}

fn ask_supervisor(control: &str, request: &str) -> crate::harness::Output {
    handoff_run_with(&[request, control]).output()
}

// handoff-run(1), TAKEOVER: "listeners can be added and removed".
#[test]
fn listeners_are_added_and_removed_by_a_new_line_and_nobody_is_refused_on_those_that_stay() {
    let folder = Folder::new();
    let path = folder.text("s");
    let unix = format!("unix:{path}");
    let setup = supervise(SERVER, &[]).listen("127.0.0.1:0").listen("gone=127.0.0.1:0").listen(&unix);
    let mut old = setup.serving();
    let address = old.address();
    let removed = wait_for("the second address", || {
        let log = old.log();
        let mut all = log.lines().filter_map(|line| Some(line.split_once(" listens on ")?.1.to_owned()));
        all.nth(1)
    });
    // The serving slot is not the first one.
    assert_eq!(old.reload_and_wait().failure(), (0, ""));
    let control = old.folder.text("control");
    let next = successor(&old, &[&address, "added=127.0.0.1:0", &unix], &["--settle", "1s"], SERVER);
    next.wait_ready(1);
    for at in [&address, &path] {
        ask(at).unwrap();
    }
    assert_eq!(ask(&removed).unwrap().pid, old.generation(2), "until it drains");
    assert_eq!(
        ask_supervisor(&control, "--status").stdout.lines().filter(|line| line.contains("standing-by")).count(),
        1
    );
    let (status, log) = old.end();
    assert_eq!(status, 0, "{log}");
    assert!(log.contains(&format!("succeeded by pid {} (handoff-run)\n", next.pid)), "{log}");
    next.wait_log("(handoff-run): gone");
    for _ in 0..20 {
        assert_eq!(ask(&address).unwrap().pid, next.generation(1));
        assert_eq!(ask(&path).unwrap().pid, next.generation(1));
    }
    ask(&removed).unwrap_err();
    let added = next.wait_line(crate::harness::log::address, "the new address");
    assert_eq!(ask(&added).unwrap().pid, next.generation(1));
    assert_eq!(folder.names(), [".s.kept", "s"]);
    // It rolls generations, and takes requests at the same path.
    for generation in 2..=4 {
        assert_eq!(ask_supervisor(&control, "--reload").failure(), (0, ""));
        assert_eq!(ask(&address).unwrap().pid, next.generation(generation));
        assert_eq!(ask(&added).unwrap().pid, next.generation(generation));
    }
    assert_eq!(ask_supervisor(&control, "--stop").failure(), (0, ""));
    let mut next = next;
    assert_eq!(next.end().0, 0);
    assert_eq!(folder.names(), [""; 0]);
    assert!(!std::path::Path::new(&control).exists());
}

#[test]
fn a_successor_that_fails_or_dies_gives_everything_back() {
    let old = supervise(SERVER, &[]).serving();
    let address = old.address();
    for kind in ["fails", "is killed", "is stopped", "is killed as it serves"] {
        let before = old.log().matches("this supervisor goes on").count();
        let code = if kind == "fails" { "sys.exit(5)" } else { "wait_for('go')\nserve()" };
        let mut next = successor(&old, &[&address], &["--settle", "60s"], Server::Python(code));
        match kind {
            "fails" => assert_eq!(next.end().0, 5),
            "is killed" => {
                next.generation(1);
                next.signal(Signal::SIGKILL);
            }
            "is stopped" => {
                next.generation(1);
                next.signal(Signal::SIGTERM);
                assert_eq!(next.end().0, 0);
            }
            _ => {
                next.folder.open("go");
                next.wait_ready(1);
                let child = next.generation(1);
                next.signal(Signal::SIGKILL);
                kill(child, Signal::SIGKILL).unwrap();
            }
        }
        old.wait_log_times(before + 1, "this supervisor goes on");
        drop(next);
        let generation = old.states()[0].0;
        for _ in 0..20 {
            assert_eq!(old.served_by(), old.generation(generation), "{kind}: {}", old.log());
        }
        assert_eq!(old.reload_and_wait().failure(), (0, ""), "{kind}");
        assert_eq!(old.served_by(), old.generation(generation + 1), "{kind}: {}", old.log());
    }
    old.stopped();
}

// Its program lives on, at a socket that no other generation gets.
#[test]
fn a_program_that_a_killed_successor_left_shares_no_socket_with_a_generation() {
    let old = supervise(SERVER, &[]).serving();
    let address = old.address();
    let next = successor(&old, &[&address], &["--settle", "60s"], SERVER);
    next.wait_ready(1);
    let left = next.generation(1);
    let _left = Left(left);
    next.signal(Signal::SIGKILL);
    old.wait_log(&format!("pid {left} (python3) was left by the successor: it gets no connection any more"));
    assert!(exists(left));
    for generation in [2, 3] {
        assert_eq!(old.reload_and_wait().failure(), (0, ""));
        for _ in 0..20 {
            assert_eq!(ask(&address).unwrap().pid, old.generation(generation), "{}", old.log());
        }
    }
    drop(next);
}

#[test]
fn while_it_is_lent_and_while_it_deploys_a_supervisor_refuses_a_second_successor() {
    let old = supervise(Server::Python("wait_for('go-' + gen)\nserve()"), &[]).start();
    let control = old.folder.text("control");
    let refusal = |why: &str| format!("handoff-run: cannot take over from the supervisor at {control}: {why}\n");
    let try_to = || handoff_run_with(&["-l", "127.0.0.1:0", "--from", &control, "--", "true"]).output();
    let deploying = "it is in the middle of a deploy, or nothing serves: try again when that is over";
    old.generation(1);
    assert_eq!(try_to().failure(), (125, refusal(deploying).as_str()));
    old.folder.open("go-1");
    old.wait_ready(1);
    let next = successor(&old, &[&old.address()], &["--settle", "60s"], Server::Python("wait_for('go')\nserve()"));
    next.generation(1);
    // Nobody accepts there but the successor, which is another supervisor.
    let pid = old.pid;
    let who = handoff_run_with(&["-l", &old.address(), "--from", &pid.to_string(), "--", "true"]).output();
    assert_eq!(who.code(), 125, "{}", who.stderr);
    drop(next);
    old.wait_log("this supervisor goes on");
    old.stopped();
}

// The names of what it lent are the successor's business from then on.
#[test]
fn a_supervisor_that_is_stopped_while_it_is_lent_leaves_the_names_to_its_successor() {
    let folder = Folder::new();
    let path = folder.text("s");
    let unix = format!("unix:{path}");
    let mut old = supervise(SERVER, &[]).listen("127.0.0.1:0").listen(&unix).serving();
    let address = old.address();
    let control = old.folder.text("control");
    let next = successor(&old, &[&address, &unix], &["--settle", "60s"], SERVER);
    next.wait_ready(1);
    old.signal(Signal::SIGTERM);
    let (status, log) = old.end();
    assert!(status == 0 && !log.contains("succeeded by"), "{status}: {log}");
    next.wait_log("(handoff-run): gone");
    assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    assert_eq!(ask(&path).unwrap().pid, next.generation(1));
    assert_eq!(folder.names(), [".s.kept", "s"]);
    assert_eq!(ask_supervisor(&control, "--stop").failure(), (0, ""));
    let mut next = next;
    assert_eq!(next.end().0, 0);
    assert_eq!(folder.names(), [""; 0]);
}

// More descriptors than go with one message.
#[test]
fn many_sockets_are_lent() {
    let setup = supervise(SERVER, &[]);
    let old = (0..100).fold(setup, |setup, _| setup.listen("127.0.0.1:0")).serving();
    let all = wait_for("every address", || {
        let log = old.log();
        let all: Vec<String> =
            log.lines().filter_map(|line| Some(line.split_once(" listens on ")?.1.to_owned())).collect();
        (all.len() == 100).then_some(all)
    });
    let specs: Vec<&str> = all.iter().map(String::as_str).collect();
    let next = successor(&old, &specs, &[], SERVER);
    next.wait_ready(1);
    old.wait_log("succeeded by pid ");
    for address in [&all[0], &all[57], &all[99]] {
        wait_for("the new generation", || (ask(address).unwrap().pid == next.generation(1)).then_some(()));
    }
}

// handoff-run(1), --control: who may deploy by it does not get the sockets.
#[test]
fn who_may_use_the_control_socket_by_its_mode_is_lent_nothing_and_the_successor_s_mode_counts() {
    if !is_root_to("run it as another user") {
        return;
    }
    let folder = Arc::new(Folder::new());
    let control = folder.text("open");
    let given = format!("{control},mode=0666");
    let old = supervise_in(&folder, SERVER, &["--control", &given]).unsupervised().options(&["--supervise"]).serving();
    let address = old.address();
    let program = copy_for_everybody(&folder);
    let ask_as_somebody = |words: &[&str]| {
        let somebody = || Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(65534))?);
        Run::of(&program).args(words).current_dir("/").before_exec(somebody).output()
    };
    assert_eq!(ask_as_somebody(&["--status", &control]).code(), 0);
    let refused = ask_as_somebody(&["-l", &address, "--from", &control, "--", "true"]);
    let line = format!(
        "handoff-run: cannot take over from the supervisor at {control}: only its own user and root may succeed this \
         supervisor\n"
    );
    assert_eq!(refused.failure(), (125, line.as_str()));
    let own = format!("{control},mode=0600");
    let next = supervise_in(&Arc::new(Folder::new()), SERVER, &["--control", &own, "--from", &control, "--supervise"]);
    let next = next.unsupervised().listen(&address).options(&["--settle", "50ms"]).serving();
    old.wait_log("succeeded by pid ");
    next.wait_log("(handoff-run): gone");
    assert_ne!(ask_as_somebody(&["--status", &control]).code(), 0);
    assert_eq!(ask_supervisor(&control, "--status").code(), 0);
}

// Once the lender ended, and what it listened on was served by nobody.
#[test]
fn where_nothing_is_asked_for_that_a_supervisor_has_it_goes_on_as_the_wrong_one() {
    let old = supervise(SERVER, &[]).listen("127.0.0.1:0").listen("other=127.0.0.1:0").serving();
    let log = old.log();
    let addresses: Vec<&str> =
        log.lines().filter_map(|line| Some(line.split_once(" listens on ")?.1)).take(2).collect();
    let expected = format!(
        "handoff-run: cannot take over from pid {} (handoff-run): it has no socket at that address\n\
         handoff-run: it listens on {}\n",
        old.pid,
        addresses.join(" and ")
    );
    let control = old.folder.text("control");
    for options in [&[][..], &["--supervise"]] {
        for specs in [&["another=127.0.0.1:0"][..], &["another=127.0.0.1:0", "unix:/nowhere/s"]] {
            let before = old.log().matches("this supervisor goes on").count();
            let run = specs.iter().fold(handoff_run_with(options), |run, spec| run.args(&["-l", spec]));
            let output = run.args(&["--from", &control, "--", "true"]).output();
            assert_eq!(output.failure(), (125, expected.as_str()), "{options:?} {specs:?}");
            old.wait_log_times(before + 1, "this supervisor goes on");
            assert_eq!(old.served_by(), old.generation(1));
        }
    }
    // One is enough.
    let next = successor(&old, &[addresses[1], "another=127.0.0.1:0"], &[], SERVER);
    next.wait_ready(1);
    old.wait_log("succeeded by pid ");
}

// handoff-run(1), TAKEOVER: "found by its pid or by auto, it is asked through its control socket".
#[test]
fn a_supervisor_that_is_found_by_its_address_is_asked_through_its_control_socket() {
    let old = supervise(Server::Hello, &[]).serving();
    let address = old.address();
    let next = supervise(Server::Hello, &["--from", "auto"]).listen(&address).start();
    next.wait_ready(1);
    old.wait_log("succeeded by pid ");
    next.wait_log("(handoff-run): gone");
    wait_for("the new generation", || (ask(&address).unwrap().pid == next.generation(1)).then_some(()));
    assert!(!old.folder.path("control").exists(), "it was its own");
    assert!(next.folder.path("control").exists());
}

#[test]
fn a_program_succeeds_a_supervisor_and_is_then_alone() {
    let old = supervise(Server::Hello, &[]).serving();
    let address = old.address();
    assert_eq!(old.reload_and_wait().failure(), (0, ""));
    let new = succeed(Run::of(PROGRAM), &address, &old.folder.text("control"), &[], Server::Python("serve()"));
    old.wait_log("succeeded by pid ");
    new.wait_serving(&address);
    new.wait_alone();
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    wait_for("the old supervisor to be gone", || (!exists(old.pid) || sockets(old.pid).is_empty()).then_some(()));
    assert_eq!(listeners_on(port).len(), 1);
    for _ in 0..20 {
        assert_eq!(ask(&address).unwrap().pid, new.pid());
    }
}

// It has the sockets that were lent, too, and so may a service manager: neither is of the program that fails.
#[test]
fn a_program_that_fails_leaves_the_supervisor_alone_that_lent_it_sockets() {
    for code in ["sys.exit(7)", "if os.fork() == 0: signal.alarm(120); time.sleep(100)\nos._exit(7)"] {
        let old = supervise(Server::Hello, &[]).serving();
        let address = old.address();
        let new = succeed(Run::of(PROGRAM), &address, &old.folder.text("control"), &[], Server::Python(code));
        assert_eq!(new.end().0, 7);
        old.wait_log("this supervisor goes on");
        assert_eq!(old.served_by(), old.generation(1));
        assert_eq!(old.reload_and_wait().failure(), (0, ""), "{}", old.log());
        for _ in 0..20 {
            assert_eq!(ask(&address).unwrap().pid, old.generation(2));
        }
        old.stopped();
    }
}

#[test]
fn what_generations_that_drain_hold_is_answered_though_the_supervisor_is_another() {
    let old = supervise(Server::Hello, &[]).serving();
    let address = old.address();
    let mut client = Client::connect(&address).unwrap();
    client.send_part();
    wait_for("it is accepted", || (old.table()[1][6] == "1").then_some(()));
    assert_eq!(old.reload().failure(), (0, ""));
    let next = successor(&old, &[&address], &[], Server::Hello);
    next.wait_ready(1);
    old.wait_log("succeeded by pid ");
    for _ in 0..20 {
        assert_eq!(ask(&address).unwrap().pid, next.generation(1));
    }
    assert_eq!(client.finish().unwrap().pid, old.generation(1));
    next.wait_log("(handoff-run): gone");
    assert_eq!(ask(&address).unwrap().pid, next.generation(1));
}

#[test]
fn nobody_there_is_no_error_and_a_stranger_is_refused() {
    let folder = Arc::new(Folder::new());
    let control = folder.text("control");
    let options = ["--from", &control];
    let next = supervise_in(&folder, Server::Hello, &options).serving();
    next.stopped();
    if !is_root_to("become another user") {
        return;
    }
    let old = supervise(Server::Hello, &[]).serving();
    let copy = Folder::new();
    let run =
        Run::of(copy_for_everybody(&copy)).args(&["-l", ":0", "--from", &old.folder.text("control"), "--", "true"]);
    let run = run.current_dir("/").before_exec(|| {
        nix::unistd::setgid(nix::unistd::Gid::from_raw(65_432))?;
        Ok(nix::unistd::setuid(nix::unistd::Uid::from_raw(65_432))?)
    });
    let output = run.output();
    assert_eq!(output.code(), 125, "{}", output.stderr);
    assert!(!old.log().contains("lent"), "{}", old.log());
    old.stopped();
}

// Where accept(2) returns at once, a server that means to wait there ends.
#[test]
fn the_first_generation_gets_a_socket_that_blocks_though_the_lender_had_it_idle() {
    const BLOCKING: Server = Server::Python(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
mark('flags-' + gen, oct(fcntl.fcntl(s, fcntl.F_GETFL) & os.O_NONBLOCK))
while True: answer(s.accept()[0])",
    );
    let old = supervise(BLOCKING, &[]).serving();
    let next = successor(&old, &[&old.address()], &[], BLOCKING);
    next.wait_ready(1);
    assert_eq!(next.folder.read("flags-1"), "0o0");
    assert_eq!(ask_supervisor(&old.folder.text("control"), "--reload").failure(), (0, ""));
    assert_eq!(next.folder.read("flags-2"), "0o0");
}
