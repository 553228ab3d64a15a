//! `--from` in its later steps: what is stopped, replaced or left behind when one process has nearly succeeded another.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::by_hand::{by_hand, succeed};
use crate::harness::client::{Client, ask};
use crate::harness::manager::Manager;
use crate::harness::process::{Left, exists, sockets};
use crate::harness::setup::{succeeding, supervise_in};
use crate::harness::supervisor::Role;
use crate::harness::{
    Folder, Output, PROGRAM, Run, Server, Supervisor, handoff_run_with, is_root_to, supervise, wait_for,
};

const SERVE: &str = "serve()";

/// A supervisor that is to succeed another, with these options.
fn successor(old: &Supervisor, options: &[&str], server: Server) -> Supervisor {
    succeeding(&old.address(), &old.folder.text("control"), options, server)
}

fn promote(control: &str) -> Output {
    handoff_run_with(&["--promote", control]).output()
}

// It would never read that it has been succeeded, and was killed with all that it had.
#[test]
fn a_supervisor_that_is_stopped_after_it_has_lent_is_continued_and_its_generation_is_told_to_stop() {
    let told = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), os._exit(0)))\nserve(signal.SIGUSR1)";
    let old = supervise(Server::Python(told), &[]).serving();
    let next = successor(&old, &["--settle", "60s"], Server::Hello);
    next.wait_ready(1);
    old.signal(Signal::SIGSTOP);
    assert_eq!(promote(&next.folder.text("control")).failure(), (0, ""));
    next.wait_log("(handoff-run): gone");
    old.folder.read("told");
    assert!(!next.log().contains("killed"), "{}", next.log());
    assert_eq!(ask(&old.address()).unwrap().pid, next.generation(1));
}

#[test]
fn a_supervisor_without_a_control_socket_is_told_to_stop_by_term_also_by_one_that_was_replaced() {
    let folder = Arc::new(Folder::new());
    let server = Server::Hello.install(&folder);
    let run = handoff_run_with(&["--supervise", "-l", "127.0.0.1:0", "--"]).args(&server);
    let mut old = Supervisor::start(folder, run, Role::Supervisor);
    old.wait_ready(1);
    let address = old.address();
    let next = succeeding(&address, "auto", &["--from-signal", "USR1", "--settle", "60s"], Server::Hello);
    next.wait_ready(1);
    next.upgrade();
    assert_eq!(promote(&next.folder.text("control")).failure(), (0, ""));
    next.wait_log("(handoff-run): gone");
    let (status, log) = old.end();
    assert!(status == 0 && !log.contains("generation 2"), "{status}: {log}");
    next.stopped();
}

// handoff-run(1), TAKEOVER: "with its pid file as it was".
#[test]
fn the_pid_file_of_a_predecessor_is_put_back_by_a_supervisor_that_fails() {
    for upgrades in [0, 1] {
        let old = by_hand(SERVE);
        let folder = Arc::new(Folder::new());
        let (path, text) = (folder.text("app.pid"), format!("{}\n", old.pid()));
        folder.write("app.pid", &text);
        let options = ["--from", &path, "--pid-file", &path, "--settle", "60s"];
        let mut next = supervise_in(&folder, Server::Python(SERVE), &options).listen(&old.address).start();
        next.expect_at(&old.address);
        next.wait_ready(1);
        assert_eq!(folder.read("app.pid"), format!("{}\n", next.pid));
        (0..upgrades).for_each(|_| next.upgrade());
        kill(next.generation(1), Signal::SIGKILL).unwrap();
        assert_eq!(next.end().0, 137, "{}", next.log());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        old.assert_untouched();
    }
}

#[test]
fn a_control_socket_that_is_not_ours_yet_stays_so_while_the_supervisor_is_replaced() {
    if !is_root_to("look at a socket of root's") {
        return;
    }
    let folder = Arc::new(Folder::new());
    let control = folder.text("open");
    let mode = || fs::metadata(&control).unwrap().permissions().mode() & 0o777;
    let start = |mode: &str, options: &[&str]| {
        let given = format!("{control},mode={mode}");
        let setup = supervise_in(&Arc::new(Folder::new()), Server::Hello, &["--supervise", "--control", &given]);
        setup.unsupervised().options(options)
    };
    let mut old = start("0600", &[]).serving();
    let address = old.address();
    for wanted in ["0666", "0600"] {
        let before = mode();
        let mut next = start(wanted, &["--from", &control, "--settle", "60s"]).listen(&address).start();
        next.expect_at(&address);
        next.wait_ready(1);
        next.signal(Signal::SIGUSR2);
        next.wait_log("becoming ");
        assert_eq!(handoff_run_with(&["--status", &control]).output().code(), 0);
        assert_eq!(mode(), before, "it is the other's still");
        assert_eq!(promote(&control).failure(), (0, ""));
        next.wait_log("(handoff-run): gone");
        assert_eq!(mode(), u32::from_str_radix(wanted, 8).unwrap());
        old = next;
    }
    old.signal(Signal::SIGTERM);
    assert_eq!(old.end().0, 0);
}

// sd_notify(3): with Type=notify-reload the manager waits for READY=1.
#[test]
fn a_manager_that_asks_for_a_reload_while_the_sockets_are_lent_is_answered() {
    let folder = Folder::new();
    let manager = Manager::at_path(&folder);
    let old = supervise(Server::Hello, &[]).run(|run| manager.manage(run)).serving();
    let next = successor(&old, &["--settle", "60s"], Server::Hello);
    next.wait_ready(1);
    manager.received();
    old.signal(Signal::SIGHUP);
    let mut said = String::new();
    wait_for("the end of a reload", || {
        said += &manager.within(Duration::from_millis(100))?;
        let reloading = said.find("RELOADING=1\n")?;
        said[reloading..].contains("READY=1\n").then_some(())
    });
    assert!(old.log().contains("the sockets are lent to a successor: no generation is started"));
}

// Its program lives on, and whoever takes over next has to know at which socket.
#[test]
fn what_a_killed_successor_left_shares_no_socket_with_the_next_successor() {
    let old = supervise(Server::Python(SERVE), &[]).serving();
    let address = old.address();
    let killed = successor(&old, &["--settle", "60s"], Server::Python(SERVE));
    killed.wait_ready(1);
    let left = killed.generation(1);
    let _left = Left(left);
    killed.signal(Signal::SIGKILL);
    old.wait_log(&format!("pid {left} (python3) was left by the successor: it gets no connection any more"));
    let next = successor(&old, &[], Server::Python(SERVE));
    next.wait_ready(1);
    next.wait_log("(handoff-run): gone");
    for _ in 0..40 {
        assert_eq!(ask(&address).unwrap().pid, next.generation(1), "{}", next.log());
    }
    drop(killed);
}

/// Two generations that a killed supervisor left, of which the first has a client.
fn two_generations() -> (Supervisor, Client, [Pid; 2]) {
    let old = supervise(Server::Hello, &["--drain", "idle"]).serving();
    let mut client = Client::connect(&old.address()).unwrap();
    client.send_part();
    wait_for("it is accepted", || (old.table()[1][6] == "1").then_some(()));
    assert_eq!(old.reload().failure(), (0, ""));
    let pids = [1, 2].map(|generation| old.generation(generation));
    old.signal(Signal::SIGKILL);
    wait_for("the supervisor to be gone", || sockets(old.pid).is_empty().then_some(()));
    (old, client, pids)
}

// handoff-run(1), TAKEOVER: "at the latest --drain-timeout after PROGRAM has settled".
#[test]
fn a_watcher_does_not_wait_for_ever_for_what_a_killed_supervisor_left() {
    let (old, client, pids) = two_generations();
    let _left = pids.map(Left);
    let address = old.address();
    let new = succeed(Run::of(PROGRAM), &address, "auto", &["--drain-timeout", "300ms"], Server::Python(SERVE));
    new.wait_serving(&address);
    new.wait_alone();
    wait_for("both to be gone", || pids.iter().all(|pid| !exists(*pid)).then_some(()));
    assert!(
        new.log().contains(&format!("pid {} (server): has not drained in time and is killed", pids[0])),
        "{}",
        new.log()
    );
    assert_eq!(ask(&address).unwrap().pid, new.pid());
    drop(client);
}

// handoff-run(1), TAKEOVER: "older ones, which drain, are told to stop when they have no connection".
#[test]
fn older_generations_that_a_killed_supervisor_left_are_told_to_stop_when_a_program_succeeds_it() {
    let (old, mut client, pids) = two_generations();
    let _left = pids.map(Left);
    let address = old.address();
    let new = succeed(Run::of(PROGRAM), &address, "auto", &["--drain", "idle"], Server::Python(SERVE));
    new.wait_serving(&address);
    wait_for("the last generation to be told", || (!exists(pids[1])).then_some(()));
    assert!(exists(pids[0]) && new.watcher().is_some(), "it holds a connection: {}", new.log());
    assert_eq!(client.finish().unwrap().pid, pids[0]);
    wait_for("the older one to be told", || (!exists(pids[0])).then_some(()));
    new.wait_alone();
    assert_eq!(ask(&address).unwrap().pid, new.pid());
}

// Else clients would be accepted by the kernel, and by nobody else.
#[test]
fn nobody_waits_for_a_successor_that_has_closed_its_socket_while_the_old_server_drains() {
    let old = by_hand(
        "signal.signal(signal.SIGTERM, lambda *_: mark('told'))
while not exists('told'):
    if select.select([s], [], [], 0.01)[0]: answer(s.accept()[0])
s.close()
wait_for('ever')",
    );
    let closes = "
while not exists('close'):
    if select.select([s], [], [], 0.01)[0]: answer(s.accept()[0])
s.close()
wait_for('ever')";
    let new = old.succeed("auto", &[], Server::Python(closes));
    new.wait_serving(&old.address);
    old.folder.read("told");
    new.folder.open("close");
    wait_for("clients to be refused", || {
        let error = std::net::TcpStream::connect(&old.address).err()?;
        (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(!old.running.has_ended() && !new.running.has_ended(), "both drain");
}

/// A supervisor that listens at `s` in `folder`, after three that were killed, of which each succeeded the one before, or was
/// about to.
fn after_three(folder: &Folder, runtime: &Folder, after_each: impl Fn()) -> (Supervisor, Vec<Supervisor>) {
    let path = folder.text("s");
    let start = |how: &[&str]| {
        let setup = supervise(Server::Python(SERVE), how).listen(&format!("unix:{path}"));
        setup.run(|to| to.env("RUNTIME_DIRECTORY", runtime.text("")).env("ADDRESS", &path)).serving()
    };
    let mut supervisor = start(&[]);
    let mut killed = Vec::new();
    for settle in ["60s", "60s", "0"] {
        supervisor.signal(Signal::SIGKILL);
        wait_for("the supervisor to be gone", || sockets(supervisor.pid).is_empty().then_some(()));
        killed.push(supervisor);
        after_each();
        supervisor = start(&["--from", "auto", "--settle", settle]);
    }
    supervisor.wait_log(": gone");
    wait_for("one generation", || (supervisor.states().len() == 1).then_some(()));
    (supervisor, killed)
}

// Each once left its second name of the socket, and where there were both, the next one made none.
#[test]
fn a_path_is_kept_after_supervisors_that_were_killed_and_no_name_of_theirs_is_left() {
    let (folder, runtime) = (Folder::new(), Folder::new());
    let (supervisor, _killed) = after_three(&folder, &runtime, || ());
    assert_eq!(folder.names().len(), 2, "{:?}", folder.names());
    fs::remove_file(folder.path("s")).unwrap();
    wait_for("the path", || folder.path("s").exists().then_some(()));
    supervisor.stopped();
    assert_eq!(folder.names(), [""; 0]);
}

// Each once left the folders of its generations' notify sockets.
#[test]
fn no_notify_socket_is_left_of_supervisors_that_were_killed_but_what_was_just_made_may_live() {
    let (folder, runtime) = (Folder::new(), Folder::new());
    let age = || {
        for made in runtime.names() {
            let long_ago = SystemTime::now() - Duration::from_secs(60);
            File::open(runtime.path(&made)).unwrap().set_modified(long_ago).unwrap();
        }
    };
    let (supervisor, _killed) = after_three(&folder, &runtime, age);
    assert_eq!(runtime.names().len(), 1, "{:?}", runtime.names());
    supervisor.stopped();
    let (supervisor, _killed) = after_three(&folder, &runtime, || ());
    assert_eq!(runtime.names().len(), 4);
    supervisor.stopped();
    // A live one of another supervisor, however old, and what only looks like one.
    let [live, sources] = ["handoff-run-0123456789abcdef", "handoff-run-1.0.0"];
    [live, sources].iter().for_each(|made| fs::create_dir(runtime.path(made)).unwrap());
    let socket = UnixDatagram::bind(runtime.path(&format!("{live}/live"))).unwrap();
    drop(UnixDatagram::bind(runtime.path(&format!("{sources}/dead"))).unwrap());
    // connect(2) to a file that is no socket once passed for a socket that is dead, and the file was removed.
    [live, sources].iter().for_each(|made| runtime.write(&format!("{made}/README"), "text"));
    let (supervisor, _killed) = after_three(&folder, &runtime, age);
    for kept in
        [format!("{live}/live"), format!("{sources}/dead"), format!("{live}/README"), format!("{sources}/README")]
    {
        assert!(runtime.path(&kept).exists(), "{kept}");
    }
    assert_eq!(runtime.names().len(), 3, "{:?}", runtime.names());
    supervisor.stopped();
    drop(socket);
}
