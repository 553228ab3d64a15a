//! SIGUSR2: the supervisor becomes the program at its own path, with its pid, children, sockets and state.
//!
//! A new program that cannot take over is found out before: it is run once, beside us, only to read the state.

mod resume;
pub(crate) mod state;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use log::{error, info};
use nix::fcntl::FdFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id as WaitId, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{ForkResult, Pid};

use crate::failure::ExitStatus;
use crate::supervise::Supervisor;
use crate::supervise::plan::Moment;
use crate::supervise::upgrade::state::State;
use crate::sys;
use crate::target::environ::{self, Variable};

/// How long the new program may take to read the state.
const PATIENCE: Duration = Duration::from_secs(10);
/// The exit status by which a program shows that it understood; a shell or `true` would not end so.
const UNDERSTOOD: u8 = 93;

/// A new program that reads the state beside us.
///
/// However we lose interest in it, it ends.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) pid: Pid,
    pidfd: OwnedFd,
    pub(crate) deadline: Moment,
}

impl Check {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // It is our child, so this reaches it or, where it was reaped before, nobody.
        let _ = sys::send_signal(&self.pidfd, Signal::SIGKILL as i32);
        let _ = waitid(WaitId::PIDFd(self.fd()), WaitPidFlag::WEXITED);
    }
}

/// What HANDOFF_STATE asks of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Read the state at this descriptor, and say whether it makes sense.
    Check(RawFd),
    /// Read it and take over.
    TakeOver(RawFd),
}

impl Errand {
    /// What the environment says, if it says anything.
    pub(crate) fn read() -> Result<Option<Errand>> {
        let environment = sys::environment();
        let Some(value) = sys::variable(&environment, environ::STATE) else { return Ok(None) };
        let (word, number) = str::from_utf8(value).ok().and_then(|text| text.split_once(':')).context("no errand")?;
        let fd = number.parse().context("no descriptor")?;
        match word {
            "check" => Ok(Some(Errand::Check(fd))),
            "take" => Ok(Some(Errand::TakeOver(fd))),
            _ => bail!("{word} is no errand"),
        }
    }

    fn number(self) -> RawFd {
        match self {
            Errand::Check(fd) | Errand::TakeOver(fd) => fd,
        }
    }

    fn variable(self) -> CString {
        let word = match self {
            Errand::Check(_) => "check",
            Errand::TakeOver(_) => "take",
        };
        CString::new(format!("{}={word}:{}", environ::STATE, self.number())).expect("there is no NUL in it")
    }

    /// The state, which leaves `claimed`.
    pub(crate) fn state(self, claimed: &mut Vec<OwnedFd>) -> Result<State> {
        let mut file = File::from(take(claimed, self.number())?);
        let mut text = String::new();
        // A check before us may have read it to the end.
        file.rewind()?;
        file.read_to_string(&mut text).context("cannot read the predecessor's state")?;
        let state = State::read(&text)?;
        let whose = match self {
            Errand::Check(_) => Pid::parent(),
            Errand::TakeOver(_) => Pid::this(),
        };
        // The variable may have come to us by somebody's environment.
        ensure!(state.pid == whose.as_raw(), "the state is of process {}, not of {whose}", state.pid);
        Ok(state)
    }
}

/// The status to end a check with.
pub(crate) fn checked(state: Result<State>) -> Result<u8> {
    state.map(|_| UNDERSTOOD)
}

/// One of the claimed descriptors, by its number.
pub(crate) fn take(claimed: &mut Vec<OwnedFd>, number: RawFd) -> Result<OwnedFd> {
    let at = claimed.iter().position(|fd| fd.as_raw_fd() == number);
    Ok(claimed.swap_remove(at.with_context(|| format!("descriptor {number} is not open"))?))
}

/// Where this program is started from: as the caller named it, for the name may lead to another file by next time.
pub(crate) fn own_program() -> PathBuf {
    let running = fs::read_link("/proc/self/exe").unwrap_or_default();
    let named = env::args_os().next().and_then(|name| find(Path::new(&name)));
    let same = |path: &PathBuf| {
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        identity(path).is_some() && identity(path) == identity(Path::new("/proc/self/exe"))
    };
    named.filter(same).unwrap_or(running)
}

/// What execvp(3) would find.
fn find(name: &Path) -> Option<PathBuf> {
    if name.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(name).ok();
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Supervisor {
    /// Begin: let the new program read our state.
    pub(in crate::supervise) fn begin_upgrade(&mut self) {
        if self.upgrade.is_some() {
            return info!("the new supervisor is being checked already");
        }
        match self.start_check() {
            Ok(check) => self.upgrade = Some(check),
            Err(error) => self.refuse_upgrade(&format!("{error:#}")),
        }
    }

    fn refuse_upgrade(&mut self, why: &str) {
        error!("{} cannot take over, this supervisor goes on: {why}", self.program.display());
    }

    fn start_check(&self) -> Result<Check> {
        let memory = self.write_state()?;
        let (program, arguments) = self.own_line()?;
        let environment = state_environment(Errand::Check(memory.as_raw_fd()));
        // SAFETY: this program has one thread.
        match unsafe { sys::fork() }.context("cannot fork")? {
            ForkResult::Child => {
                let ready =
                    sys::set_close_on_exec(&memory, FdFlag::empty()).and_then(|()| self.signals.inherited().restore());
                if ready.is_ok() {
                    sys::execve(&program, &arguments, &environment);
                }
                sys::exit_at_once(ExitStatus::CannotExecute as u8)
            }
            ForkResult::Parent { child } => {
                let pidfd = sys::pidfd_of_child(child).context("cannot open a pidfd")?;
                Ok(Check { pid: child, pidfd, deadline: sys::now() + PATIENCE })
            }
        }
    }

    /// The new program has read the state, or failed to.
    pub(in crate::supervise) fn end_upgrade_check(&mut self) {
        let Some(check) = self.upgrade.take() else { return };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match waitid(WaitId::PIDFd(check.fd()), flags) {
            Ok(WaitStatus::StillAlive) => self.upgrade = Some(check),
            Ok(WaitStatus::Exited(_, status)) if status == i32::from(UNDERSTOOD) => {
                let error = self.become_successor();
                self.refuse_upgrade(&format!("{error:#}"));
            }
            Ok(WaitStatus::Exited(_, 126)) => self.refuse_upgrade("it cannot be executed"),
            Ok(WaitStatus::Exited(_, status)) => self.refuse_upgrade(&format!("it ended with status {status}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => self.refuse_upgrade(&format!("it was ended by {signal}")),
            Ok(_) => self.upgrade = Some(check),
            Err(errno) => self.refuse_upgrade(&errno.to_string()),
        }
    }

    /// End a check that takes too long.
    pub(in crate::supervise) fn time_upgrade(&mut self, now: Moment) {
        if self.upgrade.take_if(|check| check.deadline <= now).is_some() {
            self.refuse_upgrade("it did not read the state in time");
        }
    }

    /// Exec; returns only when that failed, with everything as it was.
    fn become_successor(&mut self) -> anyhow::Error {
        match self.try_become_successor() {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_become_successor(&mut self) -> Result<std::convert::Infallible> {
        // What happened until now is in the state, what happens from now on stays in the descriptors.
        self.handle_events();
        ensure!(self.finished.is_none(), "everything stops");
        let memory = self.write_state()?;
        let (program, arguments) = self.own_line()?;
        let environment = state_environment(Errand::TakeOver(memory.as_raw_fd()));
        info!("becoming {}", self.program.display());
        self.set_handed_on(&memory, FdFlag::empty())?;
        let errno = sys::execve(&program, &arguments, &environment);
        self.set_handed_on(&memory, FdFlag::FD_CLOEXEC)?;
        Err(errno).context("cannot execute it")
    }

    /// Let everything that the state speaks of be inherited, or not any more.
    fn set_handed_on(&self, memory: &OwnedFd, flag: FdFlag) -> Result<()> {
        let mut fds: Vec<BorrowedFd> = vec![memory.as_fd()];
        fds.extend(self.listeners.iter().map(AsFd::as_fd));
        for generation in &self.generations {
            fds.extend([
                generation.child.pidfd.as_fd(),
                generation.child.complaint_fd().as_fd(),
                generation.inbox.as_fd(),
            ]);
            fds.extend(generation.watch.as_ref().and_then(|watch| watch.pipe()));
        }
        if let Some(control) = &self.control {
            fds.push(control.fd().as_fd());
            // The others are cut off by exec, not left open for ever.
            fds.extend(control.clients.iter().filter(|client| client.save().is_some()).map(AsFd::as_fd));
        }
        fds.into_iter().try_for_each(|fd| sys::set_close_on_exec(fd, flag)).context("cannot hand the descriptors on")
    }

    /// The state in a file of memory, close-on-exec.
    fn write_state(&self) -> Result<OwnedFd> {
        let memory = memory().context("cannot make a memory file")?;
        let mut file = File::from(sys::duplicate_from(&memory, sys::FIRST_FD)?);
        file.write_all(self.state().write().as_bytes()).context("cannot write the state")?;
        Ok(memory)
    }

    /// Our own command line, with the program by its path.
    fn own_line(&self) -> Result<(CString, Vec<CString>)> {
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let arguments = env::args_os().map(|word| CString::new(word.into_vec()));
        Ok((program, arguments.collect::<Result<_, _>>()?))
    }
}

fn memory() -> nix::Result<OwnedFd> {
    memfd_create(c"handoff-run", MFdFlags::MFD_CLOEXEC)
}

/// Our environment, with the errand.
fn state_environment(errand: Errand) -> Vec<Variable<'static>> {
    environ::with(&sys::environment(), errand.variable())
}
