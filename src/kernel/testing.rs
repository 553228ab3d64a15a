//! What the tests beside this file share: children that do not outlive a test, and waiting for facts.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A child process, killed at the end of the test.
pub(crate) struct Spawned(Child);

impl Spawned {
    /// In a group of its own, as a generation is.
    pub(crate) fn new(command: &mut Command) -> Spawned {
        Spawned(command.process_group(0).spawn().unwrap())
    }

    /// Python with `listener` as its descriptor 0 and as `s`.
    pub(crate) fn python(listener: impl Into<OwnedFd>, script: &str) -> Spawned {
        let script = format!("import os, socket, select, threading, time; s = socket.socket(fileno=0)\n{script}");
        Spawned::new(Command::new("python3").args(["-c", &script]).stdin(listener.into()))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    pub(crate) fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            // What it started goes with it.
            killpg(self.pid(), Signal::SIGKILL).unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// A listener on a free port, and a copy of it to give away.
pub(crate) fn listener() -> (TcpListener, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let copy = listener.try_clone().unwrap();
    (listener, copy)
}

/// What `attempt` finds, once it finds something.
pub(crate) fn until<T>(fact: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long until {fact}");
        thread::sleep(Duration::from_millis(2));
    }
}
