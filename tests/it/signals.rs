//! Signals: which mean something to the supervisor, which are passed on, and that a generation has them as the caller
//! had.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};
use std::{env, fs, io};

use nix::errno::Errno;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, signal};
use nix::unistd::{Pid, setsid, write};

use crate::harness::intercept::intercept;
use crate::harness::log::gone;
use crate::harness::process::{descriptors, name, status_field};
use crate::harness::{PROGRAM, Run, Server, Supervisor, supervise, wait_for};

/// Writes a file for each signal it gets.
const TELLS_SIGNALS: &str = "
for number in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGRTMIN, signal.SIGRTMIN + 5, signal.SIGRTMAX):
    signal.signal(number, lambda number, _: mark('signal-%d-%d' % (number, os.getpid())))
serve()";

fn send(supervisor: &Supervisor, number: i32) {
    // SAFETY: kill takes integers.
    assert_eq!(unsafe { libc::kill(supervisor.pid.as_raw(), number) }, 0);
}

/// The signals that generations said they got.
fn got(supervisor: &Supervisor) -> Vec<String> {
    supervisor.folder.names().into_iter().filter(|name| name.starts_with("signal-")).collect()
}

#[test]
fn usr1_winch_and_real_time_signals_of_a_process_go_to_the_serving_generation() {
    let supervisor = supervise(Server::Python(TELLS_SIGNALS), &[]).serving();
    for id in [1, 2] {
        let pid = supervisor.generation(id);
        // 34 is SIGRTMIN to Python, which is built with glibc, whatever this program is built with.
        for number in [libc::SIGUSR1, libc::SIGWINCH, 34, 34 + 5, libc::SIGRTMAX()] {
            send(&supervisor, number);
            supervisor.folder.read(&format!("signal-{number}-{pid}"));
        }
        assert_eq!(supervisor.reload_and_wait().code(), 0);
    }
    assert_eq!(got(&supervisor).len(), 10);
    supervisor.stopped();
}

// A copy of its socket is closed, and closing one that lingers is interrupted by a signal: with musl the first handler that
// was set for one let those through that the supervisor had blocked, and SIGRTMIN killed it.
#[test]
fn a_real_time_signal_reaches_a_server_whose_own_socket_the_supervisor_has_looked_at() {
    for linger in [0, 60] {
        let code = format!(
            "import struct
s = opened(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, {linger})))
signal.signal(34, lambda *_: mark('got'))
serve()"
        );
        let supervisor = intercept(&code, &[]).serving();
        send(&supervisor, 34);
        supervisor.folder.read("got");
        supervisor.stopped();
    }
}

#[test]
fn a_hang_up_that_was_ignored_at_start_stays_ignored() {
    // SAFETY: signal(2) is async-signal-safe, and no handler is installed.
    let ignore = || unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }.map(drop).map_err(io::Error::from);
    let supervisor = supervise(Server::Hello, &[]).run(|run| run.before_exec(ignore)).serving();
    supervisor.signal(Signal::SIGHUP);
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    assert_eq!(supervisor.served_by(), supervisor.generation(2));
    // Bit 0 is signal 1.
    assert_eq!(signals_of(supervisor.generation(2)).1 & 1, 1);
    assert!(!supervisor.stopped().contains("generation 3"));
}

/// Become the leader of a session on this terminal.
fn lead(terminal: &OpenptyResult) -> impl FnMut() -> io::Result<()> + Send + Sync + Clone + use<> {
    let slave = terminal.slave.as_raw_fd();
    move || {
        setsid()?;
        // SAFETY: the request takes an integer.
        Errno::result(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) })?;
        Ok(())
    }
}

// handoff-run(1), Signals: "SIGQUIT of the keyboard: stop now".
#[test]
fn quit_of_the_keyboard_stops_at_once_and_an_interrupt_drains() {
    for (key, status) in [(b"\x1c", 137), (b"\x03", 0)] {
        let terminal = openpty(None, None).unwrap();
        let lead = lead(&terminal);
        let code = "signal.signal(signal.SIGTERM, lambda *_: (mark('told'), wait_for('go'), os._exit(0)))\nserve()";
        let mut supervisor = supervise(Server::Python(code), &[]).run(|run| run.before_exec(lead)).serving();
        write(&terminal.master, key).unwrap();
        if status == 0 {
            supervisor.folder.read("told");
            supervisor.folder.open("go");
        }
        let (code, log) = supervisor.end();
        assert_eq!(code, status, "{log}");
    }
}

// Once it was "serving", and nothing else was said of it.
#[test]
fn a_generation_that_is_stopped_is_reported_and_so_is_that_it_goes_on() {
    let supervisor = supervise(Server::Hello, &[]).serving();
    let pid = supervisor.generation(1);
    for (times, stop) in [Signal::SIGSTOP, Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU].into_iter().enumerate() {
        kill(pid, stop).unwrap();
        supervisor.wait_log(&format!("generation 1: is stopped by {stop} and serves nobody until SIGCONT\n"));
        let status = supervisor.status(&[]);
        assert!(status.contains(&format!("\ngeneration 1 is stopped by {stop}: it serves nobody\n")), "{status}");
        assert!(supervisor.status(&["--json"]).contains(&format!("\"stopped\":\"{stop}\"")));
        kill(pid, Signal::SIGCONT).unwrap();
        supervisor.wait_log_times(times + 1, "generation 1: goes on\n");
        assert!(!supervisor.status(&[]).contains("is stopped"));
    }
    assert!(!supervisor.stopped().contains("failure"));
}

#[test]
fn a_generation_that_its_terminal_stops_is_told_why_it_is_not_ready() {
    let terminal = openpty(None, None).unwrap();
    let lead = lead(&terminal);
    let read = "os.read(os.open('/dev/tty', os.O_RDONLY), 1)";
    let change = "import termios; t = os.open('/dev/tty', os.O_RDWR); termios.tcsetattr(t, 0, termios.tcgetattr(t))";
    for (code, signal, why) in [(read, "SIGTTIN", "it read from"), (change, "SIGTTOU", "it changed")] {
        let lead = lead.clone();
        let options = ["--ready-timeout", "500ms"];
        let mut supervisor = supervise(Server::Python(code), &options).run(|run| run.before_exec(lead)).start();
        let (status, log) = supervisor.end();
        assert_eq!(status, 137, "{log}");
        let text = format!("is killed: it is stopped by {signal}\nhandoff-run: {why} the terminal");
        assert!(log.contains(&text), "{log}");
    }
}

#[test]
fn what_the_terminal_sends_is_a_stop_or_nothing() {
    let terminal = openpty(None, None).unwrap();
    let lead = lead(&terminal);
    let mut supervisor = supervise(Server::Python(TELLS_SIGNALS), &[]).run(|run| run.before_exec(lead)).serving();
    let size = libc::winsize { ws_row: 50, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads a winsize.
    assert_eq!(unsafe { libc::ioctl(terminal.master.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    send(&supervisor, libc::SIGUSR1);
    let pid = supervisor.generation(1);
    supervisor.folder.read(&format!("signal-{}-{pid}", libc::SIGUSR1));
    assert_eq!(got(&supervisor).len(), 1, "a resize is none of the server's business");
    drop(terminal);
    let (status, log) = supervisor.end();
    assert_eq!(status, 0, "{log}");
    assert!(log.ends_with(&gone(1)) && !log.contains("generation 2"), "{log}");
}

/// A supervisor that a shell on this terminal started, and its pid. The shell leads the session; what it starts in the
/// background, in a group of its own, is sent no hang-up by the kernel.
fn in_the_background(terminal: &OpenptyResult) -> (Supervisor, Pid) {
    let shell = format!("set -m; trap : HUP; {PROGRAM} \"$@\" & echo $! >pid.new; mv pid.new pid; wait; wait");
    let setup = supervise(Server::Hello, &[]).by(Run::of("sh").args(&["-c", &shell, "sh"]));
    let lead = lead(terminal);
    let supervisor = setup.run(|run| run.before_exec(lead)).serving();
    let pid = Pid::from_raw(supervisor.folder.read("pid").trim().parse().unwrap());
    (supervisor, pid)
}

// Once it was a reload, and the supervisor outlived its terminal: bash passes a hang-up on by kill(2), before the kernel.
#[test]
fn a_hang_up_that_a_shell_passes_on_is_a_stop_and_any_other_a_reload() {
    for upgraded in [false, true] {
        let terminal = openpty(None, None).unwrap();
        let (supervisor, pid) = in_the_background(&terminal);
        kill(pid, Signal::SIGHUP).unwrap();
        supervisor.wait_ready(2);
        if upgraded {
            kill(pid, Signal::SIGUSR2).unwrap();
            supervisor.wait_log("becoming ");
            supervisor.table();
        }
        drop(terminal);
        kill(pid, Signal::SIGHUP).unwrap();
        supervisor.wait_gone(2);
        assert!(!supervisor.log().contains("generation 3"), "{}", supervisor.log());
    }
}

// The terminal went long ago, and the supervisor was to stay.
#[test]
fn a_hang_up_long_after_the_terminal_went_is_a_reload() {
    let terminal = openpty(None, None).unwrap();
    let (supervisor, pid) = in_the_background(&terminal);
    drop(terminal);
    wait_for("the terminal to be gone", || {
        let holds =
            descriptors(pid).iter().any(|(_, link)| link.starts_with("/dev/tty") || link.starts_with("/dev/pts"));
        (!holds).then_some(())
    });
    let gone = Instant::now();
    wait_for("more than a second", || (gone.elapsed() > Duration::from_millis(1100)).then_some(()));
    kill(pid, Signal::SIGHUP).unwrap();
    supervisor.wait_ready(2);
    kill(pid, Signal::SIGTERM).unwrap();
    supervisor.wait_gone(2);
}

#[test]
fn int_and_term_drain_and_stop() {
    for stop in [Signal::SIGINT, Signal::SIGTERM] {
        let mut supervisor = supervise(Server::Hello, &[]).serving();
        supervisor.signal(stop);
        let (status, log) = supervisor.end();
        assert_eq!(status, 0, "{log}");
    }
}

/// Do both run the same program?
fn is_exec(one: Pid, other: Pid) -> bool {
    let program = |pid| fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    program(one) == program(other)
}

/// What is blocked and what is ignored.
fn signals_of(pid: Pid) -> (u64, u64) {
    let set = |field| u64::from_str_radix(&status_field(pid, field), 16).unwrap();
    (set("SigBlk"), set("SigIgn"))
}

// handoff-run(1), TRANSPARENCY: "PROGRAM has the signal mask and dispositions … that it would have had".
#[test]
fn generations_have_the_signals_that_a_target_started_directly_has() {
    for pipe in [SigHandler::SigIgn, SigHandler::SigDfl] {
        let set = move || {
            let mut blocked = SigSet::from_iter([Signal::SIGUSR1, Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGPIPE]);
            blocked.add(Signal::SIGWINCH);
            blocked.thread_set_mask()?;
            for (number, handler) in
                [(Signal::SIGPIPE, pipe), (Signal::SIGCHLD, SigHandler::SigIgn), (Signal::SIGUSR2, SigHandler::SigIgn)]
            {
                // SAFETY: signal(2) is async-signal-safe, and no handler is installed.
                unsafe { signal(number, handler)? };
            }
            Ok(())
        };
        let direct = Run::of("sleep").args(&["1000"]).before_exec(set).start();
        wait_for("sleep", || (name(direct.pid()) == "sleep").then_some(()));
        // A server by that name comes first, until it is gone: what does not serve is started, but never ready.
        let setup = supervise(Server::Hello, &[]).target(&["sleep", "1000"]);
        symlink(setup.folder.path("server"), setup.folder.path("sleep")).unwrap();
        let path = format!("{}:{}", setup.folder.text(""), env::var("PATH").unwrap());
        let supervisor = setup.run(|run| run.env("PATH", path).before_exec(set)).serving();
        assert_eq!(supervisor.reload_and_wait().code(), 0, "{}", supervisor.log());
        fs::remove_file(supervisor.folder.path("sleep")).unwrap();
        kill(supervisor.generation(2), Signal::SIGKILL).unwrap();
        let restarted = supervisor.generation(3);
        wait_for("sleep", || (is_exec(restarted, direct.pid())).then_some(()));
        assert_eq!(signals_of(supervisor.generation(3)), signals_of(direct.pid()));
        supervisor.stopped();
    }
}
