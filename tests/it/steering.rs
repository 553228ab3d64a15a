//! Steering: each generation has a socket of its own, and new connections go to the one that serves, whatever the others do.

use std::net::TcpListener;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::harness::client::{Client, ask};
use crate::harness::filter::deny_option;
use crate::harness::log::cannot_listen;
use crate::harness::process::sockets;
use crate::harness::socket::{ipv6_is_missing, listeners_on};
use crate::harness::{Run, Server, Supervisor, handoff_run_with, supervise, wait_for};

/// It goes on accepting when it is asked to stop.
pub const STUBBORN: &str = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nserve(signal.SIGUSR1)";

/// Everybody who connects now is served by this generation.
#[track_caller]
pub fn serves_alone(supervisor: &Supervisor, generation: u64) {
    is_served_at(&supervisor.address(), generation);
}

#[track_caller]
fn is_served_at(address: &str, generation: u64) {
    for _ in 0..30 {
        assert_eq!(ask(address).unwrap().generation, generation, "{address}");
    }
}

/// The port of its first socket.
pub fn port(supervisor: &Supervisor) -> u16 {
    supervisor.address().rsplit_once(':').unwrap().1.parse().unwrap()
}

/// What the kernel was asked to choose, of each socket.
fn addresses(supervisor: &Supervisor) -> Vec<String> {
    let log = supervisor.log();
    log.lines().filter_map(|line| Some(line.split_once(" listens on ")?.1.to_owned())).collect()
}

/// Clients that have connected and asked, and wait.
pub fn waiting(supervisor: &Supervisor, count: usize) -> Vec<Client> {
    let connect = || {
        let mut client = Client::connect(&supervisor.address()).unwrap();
        client.send().unwrap();
        client
    };
    (0..count).map(|_| connect()).collect()
}

// handoff-run(1), STEERING: "a program in the kernel [...] names the one that new connections go to".
#[test]
fn new_connections_go_to_the_new_generation_alone_while_the_old_one_goes_on_accepting() {
    for (spec, hosts) in [
        ("127.0.0.1:0", &["127.0.0.1"][..]),
        ("0.0.0.0:0", &["127.0.0.1", "127.0.0.5"]),
        (":0", &["127.0.0.1", "[::1]"]),
        ("[::1]:0", &["[::1]"]),
        ("[::]:0,v6only", &["[::1]"]),
    ] {
        if hosts.contains(&"[::1]") && ipv6_is_missing() {
            continue;
        }
        let supervisor = supervise(Server::Python(STUBBORN), &[]).listen(spec).serving();
        for generation in 1..=3 {
            for host in hosts {
                is_served_at(&format!("{host}:{}", port(&supervisor)), generation);
            }
            assert_eq!(supervisor.reload().failure(), (0, ""), "{spec}");
        }
        let states = supervisor.states();
        assert_eq!(states.iter().filter(|(_, state)| state == "draining").count(), 3, "{states:?}");
    }
}

#[test]
fn each_of_two_sockets_is_steered_and_a_unix_socket_beside_them_is_shared() {
    let setup = supervise(Server::Directed, &["--settle", "1h"]);
    let path = setup.folder.text("s");
    let supervisor = setup.listen("127.0.0.1:0").listen("0.0.0.0:0").listen(&format!("unix:{path}")).serving();
    let addresses = addresses(&supervisor);
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    for address in &addresses {
        is_served_at(address, 2);
    }
    let shared = |generation| {
        let all = sockets(supervisor.generation(generation));
        all.into_iter().filter(|inode| sockets(supervisor.generation(3 - generation)).contains(inode)).count()
    };
    assert_eq!((shared(1), shared(2)), (1, 1));
    ask(&path).unwrap();
    // Each has its own, and the helm is nobody's.
    for address in &addresses {
        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        assert_eq!(listeners_on(port).len(), 3, "{address}");
    }
    assert_eq!(supervisor.command("--promote", &[]).output().code(), 0);
    assert_eq!(reload.output().failure(), (0, ""));
    let log = supervisor.log();
    assert!(!log.contains("all generations share"), "{log}");
}

// handoff-run(1), STEERING: "The address is nobody else's: another supervisor fails with EADDRINUSE".
#[test]
fn a_second_supervisor_at_the_same_address_fails_and_is_told_who_has_it() {
    for spec in ["127.0.0.1:0", "0.0.0.0:0"] {
        let supervisor = supervise(Server::Directed, &[]).listen(spec).serving();
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", supervisor.pid)).unwrap().replace('\0', " ");
        let line: String = line.trim_end().chars().take(80).collect();
        let in_use = cannot_listen(&supervisor.address(), "EADDRINUSE: Address already in use");
        let pid = supervisor.pid;
        let message = format!("{in_use}handoff-run: it is held by pid {pid}: {line}; --from {pid} takes it over\n");
        for _ in 0..2 {
            for options in [&["--supervise"][..], &["--supervise", "--shared"], &[]] {
                let run = handoff_run_with(options).args(&["-l", &supervisor.address(), "--", "true"]);
                assert_eq!(run.output().failure(), (125, &*message), "{options:?}");
            }
            assert_eq!(supervisor.reload().failure(), (0, ""));
        }
        serves_alone(&supervisor, 3);
    }
}

#[test]
fn a_port_that_the_kernel_chose_stays_the_same_over_ten_reloads_whatever_becomes_of_the_sockets() {
    let shuts = "signal.signal(signal.SIGTERM, lambda *_: (s.shutdown(socket.SHUT_RDWR), os._exit(0)))\nserve()";
    for code in ["serve()", shuts] {
        let supervisor = supervise(Server::Python(code), &[]).serving();
        let before = listeners_on(port(&supervisor));
        assert_eq!(before.len(), 3);
        for generation in 2..=11 {
            assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
            serves_alone(&supervisor, generation);
        }
        assert_eq!(listeners_on(port(&supervisor)), before);
        supervisor.stopped();
    }
}

// handoff-run(1), STEERING: "a generation that crashes is started again on its own, and what waited there is served".
#[test]
fn who_connects_before_and_after_a_crash_is_served_by_the_one_that_is_started_again() {
    let code = "if gen == '1':\n    select.select([s], [], [])\n    mark('deaf')\n    wait_for('never')\nserve()";
    let supervisor = supervise(Server::Python(code), &[]).serving();
    let mut clients = waiting(&supervisor, 5);
    supervisor.folder.read("deaf");
    kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
    supervisor.wait_log("generation 1: was ended by SIGKILL");
    clients.extend(waiting(&supervisor, 5));
    for mut client in clients {
        assert_eq!(client.answer().unwrap().generation, 2);
    }
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    serves_alone(&supervisor, 3);
    let log = supervisor.stopped();
    assert!(!log.contains("reset"), "{log}");
}

#[test]
fn who_connects_after_a_crash_while_a_new_one_starts_is_served_by_that_or_by_what_follows_it() {
    for fails in [false, true] {
        let supervisor = supervise(Server::Directed, &[]).serving();
        supervisor.folder.close_gate();
        if fails {
            supervisor.folder.let_fail(2);
        }
        supervisor.signal(Signal::SIGHUP);
        supervisor.generation(2);
        kill(supervisor.generation(1), Signal::SIGKILL).unwrap();
        supervisor.wait_gone(1);
        let clients = waiting(&supervisor, 5);
        supervisor.folder.open_gate();
        let by = if fails { 3 } else { 2 };
        for mut client in clients {
            assert_eq!(client.answer().unwrap().generation, by, "{}", supervisor.log());
        }
        serves_alone(&supervisor, by);
        supervisor.stopped();
    }
}

/// Binds the address itself, beside ours, and accepts there and on ours.
const BESIDE: &str = "
s2 = socket.socket()
s2.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s2.bind(s.getsockname())
s2.listen()
";

// handoff-run(1), STEERING: "the supervisor sees that when the generation is ready, and the deploy fails".
#[test]
fn a_new_generation_that_binds_the_address_itself_fails_and_the_old_one_serves() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python(&format!("{BESIDE}serve()")));
    let message = format!(
        "handoff-run: generation 2: some process listens on {} beside our sockets, and would take connections from \
         them\nhandoff-run: a server that binds the address itself, once per worker (SO_REUSEPORT), needs --shared\n",
        supervisor.address()
    );
    assert_eq!(supervisor.reload().failure(), (1, &*message));
    supervisor.wait_gone(2);
    serves_alone(&supervisor, 1);
    assert!(supervisor.status(&[]).contains("last failure: generation 2: some process listens on "));
    supervisor.rewrite(Server::Python("serve()"));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    serves_alone(&supervisor, 3);
    supervisor.stopped();
}

#[test]
fn a_first_generation_that_binds_the_address_itself_ends_the_supervisor() {
    let (status, log) = supervise(Server::Python(&format!("{BESIDE}serve()")), &[]).start().end();
    assert_eq!(status, 1, "{log}");
    assert!(log.contains("(SO_REUSEPORT), needs --shared\n"), "{log}");
}

/// The order in which the kernel has the sockets changes with it.
#[test]
fn a_release_that_binds_beside_ours_and_shuts_ours_down_before_it_ends_disturbs_nobody() {
    let supervisor = supervise(Server::Python("serve()"), &[]).serving();
    supervisor.rewrite(Server::Python(&format!("{BESIDE}s.shutdown(socket.SHUT_RDWR)\nwait_for('go')\nsys.exit(3)")));
    supervisor.signal(Signal::SIGHUP);
    supervisor.generation(2);
    wait_for("all to listen", || (listeners_on(port(&supervisor)).len() == 4).then_some(()));
    serves_alone(&supervisor, 1);
    supervisor.folder.open("go");
    supervisor.wait_gone(2);
    supervisor.rewrite(Server::Python("serve()"));
    for generation in 3..=6 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        serves_alone(&supervisor, generation);
    }
    supervisor.stopped();
}

/// Clients all the time are answered over three reloads, though all share a socket, and the log.
#[track_caller]
fn serves_shared(supervisor: Supervisor) -> String {
    assert_eq!(listeners_on(port(&supervisor)).len(), 1);
    for generation in 2..=4 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
        serves_alone(&supervisor, generation);
    }
    supervisor.stopped()
}

// handoff-run(1), STEERING: "--shared gives all generations one socket, as they have Unix sockets, inherited ones, and those
// with reuseport".
#[test]
fn an_inherited_socket_is_shared_which_is_said_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let setup = supervise(Server::Python("serve()"), &["--settle", "0"]).listen(&address);
    let supervisor = setup.run(|run| run.inherit(&listener, 3)).start();
    supervisor.wait_ready(1);
    let line = format!(
        "handoff-run: all generations share {address}: only what is bound here, without reuseport, is steered\n"
    );
    supervisor.wait_log(&line);
    for generation in 2..=4 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        is_served_at(&address, generation);
    }
    let log = supervisor.stopped();
    assert_eq!(log.matches("share").count(), 1, "{log}");
}

#[test]
fn a_socket_with_reuseport_is_shared_which_is_said_once_and_with_shared_nothing_is_said() {
    let supervisor = supervise(Server::Python("serve()"), &[]).listen("127.0.0.1:0,reuseport").serving();
    let address = supervisor.address();
    let log = serves_shared(supervisor);
    assert_eq!(log.matches(&format!("all generations share {address}: ")).count(), 1, "{log}");
    let log = serves_shared(supervise(Server::Python("serve()"), &["--shared"]).serving());
    assert!(!log.contains("share"), "{log}");
}

// handoff-run(1), STEERING: "Where the kernel or a sandbox refuses the program, or ignores it, that is logged once, and
// sockets are shared".
#[test]
fn where_the_program_is_refused_sockets_are_shared_which_is_said_once() {
    for errno in [Errno::EPERM, Errno::ENOPROTOOPT] {
        let option = libc::SO_ATTACH_REUSEPORT_CBPF;
        let deny = |run: Run| run.before_exec(deny_option(libc::SOL_SOCKET, option, errno));
        let log = serves_shared(supervise(Server::Python("serve()"), &[]).run(deny).serving());
        let line = format!("handoff-run: all generations share each socket: {errno}\n");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
        // Of what follows from it nothing more is said.
        assert_eq!(log.matches("share").count(), 1, "{log}");
    }
}
