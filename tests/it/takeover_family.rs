//! `--from` where the processes are each other's kin: what belongs to the one is not taken for the other's.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::by_hand::{ByHand, by_hand};
use crate::harness::client::ask;
use crate::harness::process::exists;
use crate::harness::server::settings;
use crate::harness::{PROGRAM, Server, wait_for};

/// A process that starts a server, and then becomes handoff-run: `old & exec handoff-run --from $! -- new`, as the entry point
/// of a container does; and the pid of that server.
fn parent_of_server() -> (ByHand, Pid) {
    let code = "
child = os.fork()
if child:
    s.close()
    wait_for('line')
    log = os.open(path('log'), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    line = open(path('line')).read().split('\\n')
    del os.environ['SOCKET']
    os.execv(line[0], line)
signal.alarm(120)
mark('child', str(os.getpid()))
serve()";
    let parent = by_hand(code);
    let child = Pid::from_raw(parent.folder.read("child").parse().unwrap());
    (parent, child)
}

/// It becomes the successor of that server, with these options.
fn succeed(parent: &ByHand, child: Pid, options: &[&str], server: Server) {
    let from = child.to_string();
    let mut line = vec![PROGRAM, "-l", &parent.address, "--from", &from, "--settle", "50ms"];
    line.extend(options);
    let (settings, target) = (settings(&parent.folder), server.install(&parent.folder));
    line.extend(settings.iter().map(String::as_str));
    line.push("--");
    line.extend(target.iter().map(|word| word.to_str().unwrap()));
    parent.folder.write("line", &line.join("\n"));
}

#[test]
fn a_program_that_fails_leaves_the_server_alone_that_its_own_process_had_started() {
    let fails = "sys.exit(7)";
    // What the old one accepts is no sign that this one does.
    let hangs = "time.sleep(100)";
    for (code, options, status) in [
        (fails, &[][..], 7),
        (hangs, &["--ready-timeout", "400ms"], 137),
        (hangs, &["--ready-timeout", "400ms", "--shared"], 137),
    ] {
        let (mut parent, child) = parent_of_server();
        succeed(&parent, child, options, Server::Python(code));
        let running = std::mem::replace(&mut parent.running, crate::harness::Run::of("true").start());
        assert_eq!(crate::harness::run::code(running.status()), status, "{}", parent.folder.read("log"));
        let log = parent.folder.read("log");
        assert!(!log.contains(": ready") && !log.contains("left"), "{log}");
        for _ in 0..20 {
            assert_eq!(ask(&parent.address).unwrap().pid, child, "{log}");
        }
        kill(child, Signal::SIGKILL).unwrap();
    }
}

#[test]
fn the_server_that_its_own_process_had_started_is_told_to_stop_by_its_successor() {
    let (parent, child) = parent_of_server();
    succeed(&parent, child, &[], Server::Python("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nserve()"));
    wait_for("the successor to serve", || (ask(&parent.address).ok()?.pid == parent.pid()).then_some(()));
    wait_for("the old one to end", || (!exists(child)).then_some(()));
    assert_eq!(ask(&parent.address).unwrap().pid, parent.pid());
}
