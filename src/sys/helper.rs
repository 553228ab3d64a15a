//! Run a small program beside us and go on: getent(1) for a name, sh(1) for a check.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, pipe2};

use crate::failure::ExitStatus;
use crate::sys;

/// Start `arguments[0]`, looked for in PATH, with `environment`, and with nothing to read; `prepare` is done in the
/// child before. Where it cannot be run, it ends with status 127.
pub(crate) fn start(
    arguments: &[CString],
    environment: &[impl AsRef<CStr>],
    prepare: impl FnOnce() -> nix::Result<()>,
) -> nix::Result<Pid> {
    // SAFETY: this program has one thread.
    match unsafe { sys::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let _ = prepare().and_then(|()| become_program(arguments, environment));
            sys::exit_at_once(ExitStatus::NotFound as u8)
        }
    }
}

fn become_program(arguments: &[CString], environment: &[impl AsRef<CStr>]) -> nix::Result<Infallible> {
    let nothing = open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::place_in_child(&nothing, 0)?;
    Err(sys::execvpe(arguments, environment))
}

/// Run it to its end and give what it wrote to stdout; ENOENT where it could not be run.
pub(crate) fn output(arguments: &[CString]) -> io::Result<Vec<u8>> {
    let (ours, its) = pipe2(OFlag::O_CLOEXEC)?;
    let child = start(arguments, &sys::environment(), || {
        let quiet = open(c"/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        sys::place_in_child(&its, 1)?;
        sys::place_in_child(&quiet, 2)
    })?;
    drop(its);
    let mut answer = Vec::new();
    let read = File::from(ours).read_to_end(&mut answer);
    // Where SIGCHLD was ignored when we started, the kernel keeps no status: what was written has to tell.
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, 127)) => Err(Errno::ENOENT.into()),
        _ => read.map(|_| answer),
    }
}
