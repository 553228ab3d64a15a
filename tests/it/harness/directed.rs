//! The server that does what the test directs: this test program, run again by a supervisor.
//!
//! It answers whatever a client sends, holds every connection until the client closes it, and when it is asked to stop,
//! accepts no more and ends with the last connection.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{SockFlag, accept4};

use super::{Folder, wait_for};

/// What a file in the folder is called while it holds every new generation back before it accepts.
const GATE: &str = "gate";

impl Folder {
    /// Hold back every generation that starts from now on.
    pub fn close_gate(&self) {
        self.write(GATE, "");
    }

    pub fn open_gate(&self) {
        std::fs::remove_file(self.path(GATE)).unwrap();
    }

    /// This generation ends with status 3 instead of accepting.
    pub fn let_fail(&self, generation: u64) {
        self.write(&format!("fail-{generation}"), "");
    }

    /// This generation does not end when it is asked to stop.
    pub fn let_be_stubborn(&self, generation: u64) {
        self.write(&format!("stubborn-{generation}"), "");
    }
}

/// The words that make this test program the server.
pub fn line() -> Vec<OsString> {
    let mut line = vec![env::current_exe().unwrap().into_os_string()];
    line.extend(["harness::directed::serve", "--exact", "--nocapture", "--test-threads=1"].map(OsString::from));
    line
}

/// Not a test unless it is run as a server: `FOLDER` is the folder of the test that directs it. `TELLS` names a
/// descriptor to write to when it accepts.
#[test]
fn serve() {
    let Some(folder) = env::var_os("FOLDER").map(PathBuf::from) else { return };
    let generation: u64 = env::var("GENERATION").unwrap().parse().unwrap();
    wait_for("the gate", || (!folder.join(GATE).exists()).then_some(()));
    if folder.join(format!("fail-{generation}")).exists() {
        // SAFETY: _exit takes an integer and does not return; libtest would make its own status of any other end.
        unsafe { libc::_exit(3) };
    }
    let stop = stop_pipe();
    let listeners = listeners();
    if let Ok(number) = env::var("TELLS") {
        // SAFETY: --ready gave this number to us alone.
        let tells = unsafe { OwnedFd::from_raw_fd(number.parse().unwrap()) };
        File::from(tells).write_all(b"\n").unwrap();
    }
    run(&folder, generation, stop, listeners);
}

/// The sockets that LISTEN_FDS announces.
fn listeners() -> Vec<OwnedFd> {
    let count: RawFd = env::var("LISTEN_FDS").unwrap().parse().unwrap();
    let adopt = |fd| {
        // SAFETY: LISTEN_FDS gives these numbers to us alone.
        let listener = unsafe { OwnedFd::from_raw_fd(fd) };
        // Another generation may be quicker.
        fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        listener
    };
    (3..3 + count).map(adopt).collect()
}

fn run(folder: &Path, generation: u64, mut stop: PipeReader, mut listeners: Vec<OwnedFd>) {
    let mut clients: Vec<File> = Vec::new();
    while !(listeners.is_empty() && clients.is_empty()) {
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![input(stop.as_fd())];
        fds.extend(listeners.iter().map(|fd| input(fd.as_fd())));
        fds.extend(clients.iter().map(|fd| input(fd.as_fd())));
        // Poll is not restarted after a signal.
        if poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {
            continue;
        }
        let mut stirred = fds.iter().map(|fd| fd.any() != Some(false)).collect::<Vec<_>>().into_iter();
        let is_asked_to_stop = stirred.next() == Some(true);
        let waiting: Vec<&OwnedFd> = listeners.iter().filter(|_| stirred.next() == Some(true)).collect();
        clients.retain_mut(|client| stirred.next() != Some(true) || answer(client, generation));
        for listener in waiting {
            if let Ok(fd) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                // SAFETY: the kernel just made it for us alone.
                clients.push(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let is_stubborn = || folder.join(format!("stubborn-{generation}")).exists();
        if is_asked_to_stop && stop.read(&mut [0]).is_ok() && !is_stubborn() {
            listeners.clear();
        }
    }
}

/// What can be read once for each SIGTERM: to block it would take being the only thread, which a test is not.
fn stop_pipe() -> PipeReader {
    static WRITER: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn note(_: libc::c_int) {
        // SAFETY: write is async-signal-safe, and the byte lives as long as the program.
        unsafe { libc::write(WRITER.load(Ordering::Relaxed), b"!".as_ptr().cast(), 1) };
    }
    let (reader, writer) = pipe().unwrap();
    WRITER.store(writer.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler makes one async-signal-safe call.
    unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
    reader
}

/// Answer a client; false if it has gone.
fn answer(client: &mut File, generation: u64) -> bool {
    let answer = format!("hello from {generation}, pid {}\n", process::id());
    matches!(client.read(&mut [0; 1000]), Ok(1..)) && client.write_all(answer.as_bytes()).is_ok()
}
