//! Steering of datagrams: each goes to the generation that serves, and none is lost.

use std::net::UdpSocket;

use nix::sys::signal::{Signal, kill};

use crate::harness::filter::deny_option;
use crate::harness::log::cannot_listen;
use crate::harness::setup::Setup;
use crate::harness::socket::ipv6_is_missing;
use crate::harness::{DEADLINE, Run, Server, Supervisor, handoff_run_with, supervise};

/// Answers each datagram; a signal that comes meanwhile is for later.
const ECHO: &str = "
def echo():
    s.setblocking(False)
    while True:
        select.select([s], [], [])
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            while True:
                data, client = s.recvfrom(1000)
                s.sendto(f'{gen} {os.getpid()} '.encode() + data, client)
        except OSError: pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
";

fn echo(code: &str, options: &[&str]) -> Setup {
    supervise(Server::Python(&format!("{ECHO}{code}")), options)
}

/// A client of a server at this address, which has a port of its own.
struct Client {
    socket: UdpSocket,
    sent: u32,
}

impl Client {
    fn of(supervisor: &Supervisor) -> Client {
        let address = supervisor.address();
        let own = if address.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(own).unwrap();
        socket.connect(address.replace("[::]", "[::1]")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Client { socket, sent: 0 }
    }

    /// Send one and wait for its answer: by which generation.
    fn ask(&mut self) -> u64 {
        self.sent += 1;
        self.socket.send(self.sent.to_string().as_bytes()).unwrap();
        let mut answer = [0; 1000];
        let length = self.socket.recv(&mut answer).expect("each is answered");
        let answer = str::from_utf8(&answer[..length]).unwrap();
        let mut words = answer.split(' ');
        let generation = words.next().unwrap().parse().unwrap();
        assert_eq!(words.next_back(), Some(&*self.sent.to_string()));
        generation
    }

    #[track_caller]
    fn is_served_by(&mut self, generation: u64) {
        for _ in 0..20 {
            assert_eq!(self.ask(), generation);
        }
    }
}

// handoff-run(1), STEERING: "With UDP each datagram goes to the generation that serves".
#[test]
fn every_datagram_is_answered_over_twenty_reloads() {
    for (spec, settle) in [("udp:127.0.0.1:0", "0"), ("udp:127.0.0.1:0", "50ms"), ("udp:[::]:0", "0")] {
        if spec.contains("::") && ipv6_is_missing() {
            continue;
        }
        let supervisor = echo("echo()", &["--settle", settle]).listen(spec).serving();
        let address = supervisor.address();
        std::thread::scope(|scope| {
            let mut client = Client::of(&supervisor);
            let asks = scope.spawn(move || while client.ask() < 21 {});
            for _ in 0..20 {
                assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
            }
            asks.join().unwrap();
        });
        Client::of(&supervisor).is_served_by(21);
        assert_eq!(supervisor.address(), address);
        supervisor.stopped();
    }
}

#[test]
fn an_old_generation_that_does_not_end_gets_no_datagram() {
    let supervisor =
        echo("signal.signal(signal.SIGTERM, signal.SIG_IGN)\necho()", &[]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    for generation in 1..=5 {
        client.is_served_by(generation);
        Client::of(&supervisor).is_served_by(generation);
        assert_eq!(supervisor.reload().failure(), (0, ""));
    }
    client.is_served_by(6);
}

#[test]
fn an_old_generation_is_told_when_it_has_read_what_waited_for_it() {
    let code = "
if gen == '1':
    select.select([s], [], [])
    wait_for('go')
echo()";
    let supervisor = echo(code, &["--settle", "0"]).listen("udp:127.0.0.1:0").serving();
    let client = Client::of(&supervisor);
    for number in 0..20 {
        client.socket.send(format!("{number}").as_bytes()).unwrap();
    }
    let reload = supervisor.command("--reload", &["--wait"]).start();
    supervisor.wait_ready(2);
    supervisor.folder.open("go");
    for number in 0..20 {
        let mut answer = [0; 100];
        let length = client.socket.recv(&mut answer).unwrap();
        let answer = str::from_utf8(&answer[..length]).unwrap();
        assert!(answer.starts_with("1 ") && answer.ends_with(&format!(" {number}")), "{answer}");
    }
    assert_eq!(reload.output().failure(), (0, ""));
    Client::of(&supervisor).is_served_by(2);
    supervisor.stopped();
}

#[test]
fn a_socket_that_a_server_shut_down_is_replaced() {
    let shut = "try: s.shutdown(socket.SHUT_RDWR)\nexcept OSError: pass\n";
    let supervisor = echo("echo()", &[]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    for round in 0..3 {
        supervisor.rewrite(Server::Python(&format!("{shut}sys.exit(3)")));
        assert_eq!(supervisor.reload().code(), 1);
        client.is_served_by(1 + 2 * round);
        supervisor.rewrite(Server::Python(&format!("{ECHO}echo()")));
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        client.is_served_by(3 + 2 * round);
    }
    let open = supervisor.descriptors(0).len();
    // One that drains shuts its own down, and so does the next.
    let at_end = format!(
        "{ECHO}def stop(*_):\n    {}\n    os._exit(0)\nsignal.signal(signal.SIGTERM, stop)\necho()",
        "try: s.shutdown(socket.SHUT_RDWR)\n    except OSError: pass"
    );
    supervisor.rewrite(Server::Python(&at_end));
    for generation in 8..=14 {
        assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
        client.is_served_by(generation);
    }
    assert_eq!(supervisor.descriptors(0).len(), open);
    supervisor.stopped();
}

#[test]
fn a_generation_that_crashes_is_started_again_on_its_socket() {
    let supervisor = echo("echo()", &[]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    for generation in 1..4 {
        client.is_served_by(generation);
        kill(supervisor.generation(generation), Signal::SIGKILL).unwrap();
        supervisor.wait_log(&format!("generation {generation}: was ended by SIGKILL"));
        // It waits.
        client.is_served_by(generation + 1);
    }
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_ends_before_it_has_settled_is_rolled_back() {
    let code = "import threading\nif gen == '2': threading.Thread(target=lambda: (wait_for('act'), os._exit(3)), daemon=True).start()\necho()";
    let supervisor = echo(code, &["--settle", "1h"]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    client.is_served_by(2);
    supervisor.folder.open("act");
    let output = reload.output();
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(
        output.stderr.starts_with("handoff-run: generation 2: ended with status 3 before it had settled"),
        "{output:?}"
    );
    client.is_served_by(1);
    supervisor.stopped();
}

// Of a datagram socket that is shut down poll(2) cannot be asked to tell.
#[test]
fn a_new_generation_that_shuts_its_socket_down_before_it_has_settled_is_rolled_back() {
    let code = "
import threading
def shut():
    wait_for('act')
    try: s.shutdown(socket.SHUT_RDWR)
    except OSError: pass
if gen == '2': threading.Thread(target=shut, daemon=True).start()
echo()";
    let supervisor = echo(code, &["--settle", "1h"]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    let reload = supervisor.command("--reload", &[]).start();
    supervisor.wait_ready(2);
    client.is_served_by(2);
    supervisor.folder.open("act");
    let output = reload.output();
    let told = "handoff-run: generation 2: accepts no more, before it had settled: generation 1 serves again\n";
    assert_eq!(output.failure(), (1, told));
    client.is_served_by(1);
    // What it shut down keeps its place until it is gone, and is then no longer counted.
    supervisor.wait_gone(2);
    for generation in 3..6 {
        let reload = supervisor.command("--reload", &[]).start();
        supervisor.wait_ready(generation);
        client.is_served_by(generation);
        assert_eq!(supervisor.command("--promote", &[]).output().code(), 0);
        assert_eq!(reload.output().failure(), (0, ""));
        supervisor.wait_gone(if generation == 3 { 1 } else { generation - 1 });
        client.is_served_by(generation);
    }
    supervisor.stopped();
}

// handoff-run(1), STEERING: "The address is nobody else's".
#[test]
fn a_second_supervisor_at_the_same_address_fails() {
    let supervisor = echo("echo()", &[]).listen("udp:127.0.0.1:0").serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    let spec = format!("udp:{}", supervisor.address());
    for options in [&["--supervise"][..], &["--supervise", "--shared"], &[]] {
        let output = handoff_run_with(options).args(&["-l", &spec, "--", "true"]).output();
        assert_eq!(output.code(), 125);
        assert!(output.stderr.starts_with(&cannot_listen(&spec, "EADDRINUSE: Address already in use")), "{output:?}");
        assert!(output.stderr.contains(&format!("it is held by pid {}: ", supervisor.pid)), "{output:?}");
    }
    Client::of(&supervisor).is_served_by(2);
    supervisor.stopped();
}

#[test]
fn a_new_generation_that_binds_the_address_itself_fails() {
    let supervisor = echo("echo()", &[]).listen("udp:127.0.0.1:0").serving();
    let beside = "s2 = socket.socket(type=socket.SOCK_DGRAM)\ns2.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\ns2.bind(s.getsockname())\necho()";
    supervisor.rewrite(Server::Python(&format!("{ECHO}{beside}")));
    let output = supervisor.reload();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("(SO_REUSEPORT), needs --shared\n"), "{output:?}");
    supervisor.wait_gone(2);
    Client::of(&supervisor).is_served_by(1);
    supervisor.rewrite(Server::Python(&format!("{ECHO}echo()")));
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    Client::of(&supervisor).is_served_by(3);
    supervisor.stopped();
}

#[test]
fn where_the_program_is_refused_it_is_served_shared() {
    let deny = |run: Run| {
        let option = libc::SO_ATTACH_REUSEPORT_CBPF;
        run.before_exec(deny_option(libc::SOL_SOCKET, option, nix::errno::Errno::EPERM))
    };
    let supervisor = echo("echo()", &[]).listen("udp:127.0.0.1:0").run(deny).serving();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""));
    Client::of(&supervisor).is_served_by(2);
    let log = supervisor.stopped();
    assert_eq!(log.matches("all generations share").count(), 1, "{log}");
}

#[test]
fn an_upgrade_keeps_the_steering_of_datagrams() {
    let supervisor =
        echo("signal.signal(signal.SIGTERM, signal.SIG_IGN)\necho()", &[]).listen("udp:127.0.0.1:0").serving();
    let mut client = Client::of(&supervisor);
    assert_eq!(supervisor.reload().failure(), (0, ""));
    for generation in 2..=4 {
        supervisor.upgrade();
        client.is_served_by(generation);
        Client::of(&supervisor).is_served_by(generation);
        assert_eq!(supervisor.reload().failure(), (0, ""));
    }
    client.is_served_by(5);
}
