//! At a terminal: the target is the foreground job that the user started, with no parent of ours before it.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;

use crate::harness::facts::{compare, done};
use crate::harness::process::name;
use crate::harness::{Run, Running, handoff_run_with, wait_for};

/// A terminal: what its user has, and what a process on it has.
struct Terminal {
    master: PtyMaster,
    slave: File,
}

impl Terminal {
    fn open() -> Terminal {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).clone();
        let slave = options.open(ptsname_r(&master).unwrap()).unwrap();
        Terminal { master, slave }
    }

    /// The run as the leader of a session on this terminal, as a login shell starts it.
    fn control(&self, run: Run) -> Run {
        let slave = self.slave.as_raw_fd();
        run.before_exec(move || {
            // SAFETY: setsid takes nothing, the others integers.
            done(unsafe { libc::setsid() })
                .and(done(unsafe { libc::ioctl(slave, libc::TIOCSCTTY, 0) }))
                .and((0..3).try_for_each(|fd| done(unsafe { libc::dup2(slave, fd) })))
        })
    }

    /// Wait until this is on the screen.
    fn shows(&mut self, text: &str) {
        let mut screen = Vec::new();
        wait_for(&format!("{text} on the screen"), || {
            let mut buffer = [0; 4096];
            match self.master.read(&mut buffer) {
                Ok(length) => screen.extend_from_slice(&buffer[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            String::from_utf8_lossy(&screen).contains(text).then_some(())
        });
    }

    fn types(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }
}

/// `cat` through us, when it is `cat`.
fn cat(terminal: &Terminal) -> Running {
    let running = terminal.control(handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--", "cat"])).start();
    wait_for("cat", || (name(running.pid()) == "cat").then_some(()));
    running
}

#[test]
fn the_target_is_in_the_foreground_of_its_terminal() {
    let terminals = RefCell::new(Vec::new());
    let facts = compare(|run| {
        let terminal = Terminal::open();
        let run = terminal.control(run);
        terminals.borrow_mut().push(terminal);
        run
    });
    if let Some(facts) = facts {
        facts.assert("terminal foreground");
        facts.assert("session its own");
    }
}

#[test]
fn the_target_reads_and_writes_its_terminal() {
    let mut terminal = Terminal::open();
    let line = ["-q", "-l", "127.0.0.1:0", "--", "sh", "-c", "read word </dev/tty; echo \"<$word>\" >/dev/tty"];
    let running = terminal.control(handoff_run_with(&line)).start();
    terminal.types(b"hello\n");
    terminal.shows("<hello>");
    assert!(running.status().success());
}

#[test]
fn what_the_user_types_for_an_interrupt_reaches_the_target() {
    let mut terminal = Terminal::open();
    let running = cat(&terminal);
    terminal.types(b"\x03");
    assert_eq!(running.status().signal(), Some(Signal::SIGINT as i32));
}

#[test]
fn a_hang_up_reaches_the_target() {
    let terminal = Terminal::open();
    let running = cat(&terminal);
    drop(terminal.master);
    assert_eq!(running.status().signal(), Some(Signal::SIGHUP as i32));
}
