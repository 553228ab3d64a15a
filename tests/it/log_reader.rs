//! A reader of the log that reads no more: the supervisor goes on, and lines are lost.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::termios::{FlowArg, tcflow};
use nix::unistd::{Pid, pipe};

use crate::harness::setup::Setup;
use crate::harness::{PROGRAM, Run, Server, Supervisor, supervise, wait_for};
use crate::upgrade_program::{install, running};

/// The supervisor with `its` as stderr.
fn start(setup: Setup, its: &OwnedFd) -> Supervisor {
    let copy = its.try_clone().unwrap();
    let place = move || {
        // SAFETY: dup2 takes two integers.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&copy), 2) };
        Ok(())
    };
    let supervisor = setup.run(|run| run.before_exec(place)).start();
    wait_for("it to serve", || {
        let table = supervisor.command("--status", &[]).output().stdout;
        table.contains("serving").then_some(())
    });
    supervisor
}

fn set_flags(fd: impl AsFd, change: impl FnOnce(&mut OFlag)) {
    let mut flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL).unwrap());
    change(&mut flags);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags)).unwrap();
}

/// Leave no room in it, not even for one byte.
fn fill(its: &OwnedFd) {
    set_flags(its, |flags| flags.insert(OFlag::O_NONBLOCK));
    let mut file = File::from(its.try_clone().unwrap());
    for size in [4096, 1] {
        let error = loop {
            if let Err(error) = file.write(&vec![b'x'; size]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    set_flags(its, |flags| flags.remove(OFlag::O_NONBLOCK));
}

/// What the supervisor is there for goes on.
fn goes_on(supervisor: &Supervisor) {
    assert_eq!(supervisor.reload_and_wait().code(), 0);
    let serving = |supervisor: &Supervisor| -> Option<Pid> {
        let line = supervisor.table().into_iter().find(|line| line.get(2).is_some_and(|state| state == "serving"))?;
        Some(Pid::from_raw(line[1].parse().unwrap()))
    };
    let second = serving(supervisor).unwrap();
    kill(second, Signal::SIGKILL).unwrap();
    wait_for("another one", || serving(supervisor).filter(|pid| *pid != second));
    supervisor.signal(Signal::SIGHUP);
    wait_for("the reload", || supervisor.status(&[]).contains("4 ").then_some(()));
}

#[test]
fn a_pipe_that_is_not_read_stops_nothing_and_the_loss_is_told() {
    let (ours, its) = pipe().unwrap();
    let supervisor = start(supervise(Server::Directed, &[]), &its);
    fill(&its);
    goes_on(&supervisor);
    // It is read again.
    set_flags(&ours, |flags| flags.insert(OFlag::O_NONBLOCK));
    let mut log = String::new();
    let mut reader = File::from(ours);
    let mut read = move |log: &mut String| {
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            log.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    read(&mut log);
    assert!(!log.contains("lost"), "{log}");
    assert_eq!(supervisor.reload().failure(), (0, ""));
    wait_for("the loss", || {
        read(&mut log);
        log.contains("lines of this log were lost: it was not read\nhandoff-run: generation").then_some(())
    });
    // The description that it shares with the generations was not changed.
    let flags = OFlag::from_bits_retain(fcntl(&its, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK));
}

#[test]
fn a_socket_that_is_not_read_stops_nothing() {
    let (_ours, its) = UnixStream::pair().unwrap();
    setsockopt(&its, sockopt::SndBuf, &4096).unwrap();
    let its = OwnedFd::from(its);
    let supervisor = start(supervise(Server::Directed, &[]), &its);
    fill(&its);
    goes_on(&supervisor);
}

// By Ctrl-S.
#[test]
fn a_terminal_that_is_stopped_stops_nothing() {
    let terminal = openpty(None, None).unwrap();
    let supervisor = start(supervise(Server::Directed, &[]), &terminal.slave);
    tcflow(&terminal.slave, FlowArg::TCOOFF).unwrap();
    goes_on(&supervisor);
    tcflow(&terminal.slave, FlowArg::TCOON).unwrap();
}

// With each message that there is.
#[test]
fn a_pipe_that_is_not_read_stops_no_upgrade() {
    let (_ours, its) = pipe().unwrap();
    let setup = supervise(Server::Directed, &["-vv"]);
    let program = setup.folder.path("program");
    install(&program, &fs::read(PROGRAM).unwrap());
    let supervisor = start(setup.by(Run::of(&program)), &its);
    fill(&its);
    install(&program, &fs::read(PROGRAM).unwrap());
    supervisor.signal(Signal::SIGUSR2);
    let new = fs::metadata(&program).unwrap().ino();
    wait_for("the new program", || (running(supervisor.pid) == new).then_some(()));
    goes_on(&supervisor);
}

// A client waits for its own reader, and loses nothing.
#[test]
fn a_client_s_output_is_complete_however_late_it_is_read() {
    let supervisor = supervise(Server::Directed, &[]).serving();
    let (ours, its) = pipe().unwrap();
    fill(&its);
    let reload = supervisor.command("--reload", &["--wait"]).stdout(File::from(its)).start();
    supervisor.wait_ready(2);
    supervisor.wait_gone(1);
    let mut text = String::new();
    File::from(ours).read_to_string(&mut text).unwrap();
    assert_eq!(reload.status().code(), Some(0));
    let lines: Vec<&str> = text.trim_start_matches('x').lines().collect();
    assert!(lines[0].starts_with("generation 2: started"), "{lines:?}");
    assert_eq!(lines.last(), Some(&"generation 1: gone"));
}
