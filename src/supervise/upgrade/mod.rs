//! SIGUSR2: the supervisor becomes the program at its own path, with its pid, children, sockets and state.
//!
//! A new program that cannot take over is detected first, by a probe: it is run once, beside us,
//! only to read the state.

pub(crate) mod state;

use std::convert::Infallible;
use std::env;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use log::{error, info};
use nix::errno::Errno;
use nix::fcntl::{FdFlag, OFlag, open};
use nix::sys::stat::{FileStat, Mode as FileMode, fstat, stat};
use nix::unistd::Pid;

use crate::supervise::poll::{Source, Table};
use crate::supervise::signals::{Dispositions, Survived};
use crate::sys::{self, Claimed, Ending, Helper, Timestamp};
use crate::target::environ::{self, Variable};
use state::State;

/// How long the new program may take to read the state.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The exit status of a probe that passed; a shell or `true` does not end with it.
pub(crate) const PASSED: u8 = 93;

/// How this program is replaced by a newer one.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// Where it is started from.
    pub(crate) program: PathBuf,
    pub(crate) probe: Option<Probe>,
}

/// A new program that reads the state beside us. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    helper: Helper,
    /// What was probed, and is what is then executed.
    file: ProgramFile,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    deadline: Timestamp,
}

/// The upgrade mode, from HANDOFF_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Read the state at this descriptor, and end with `PASSED` if it can be taken over.
    Probe(RawFd),
    /// Read it and take over.
    TakeOver(RawFd),
}

impl Mode {
    /// The upgrade mode in the environment, if there is one.
    pub(crate) fn read() -> Result<Option<Mode>> {
        let environment = sys::environment();
        let Some(value) = sys::variable(&environment, environ::STATE) else { return Ok(None) };
        let (word, number) = str::from_utf8(value).ok().and_then(|text| text.split_once(':')).context("no mode")?;
        let fd = number.parse().context("no descriptor")?;
        match word {
            "probe" => Ok(Some(Mode::Probe(fd))),
            "take" => Ok(Some(Mode::TakeOver(fd))),
            _ => bail!("{word} is no mode"),
        }
    }

    /// The state, which leaves `claimed`.
    pub(crate) fn state(self, claimed: &mut Claimed) -> Result<State> {
        let (number, whose) = match self {
            Mode::Probe(fd) => (fd, Pid::parent()),
            Mode::TakeOver(fd) => (fd, Pid::this()),
        };
        let memory = claimed.take(number).ok().with_context(|| format!("descriptor {number} is not open"))?;
        let state = State::read(memory)?;
        // The variable may have been inherited from an unrelated environment.
        ensure!(state.pid == whose.as_raw(), "the state is of process {}, not of {whose}", state.pid);
        Ok(state)
    }

    /// Our own environment with this mode in it.
    fn environment(self) -> Vec<Variable<'static>> {
        let (word, number) = match self {
            Mode::Probe(fd) => ("probe", fd),
            Mode::TakeOver(fd) => ("take", fd),
        };
        let variable = CString::new(format!("{}={word}:{number}", environ::STATE)).expect("there is no NUL in it");
        environ::with(&sys::environment(), vec![variable])
    }
}

impl Upgrade {
    pub(crate) fn new(program: PathBuf) -> Upgrade {
        Upgrade { program, probe: None }
    }

    /// Add what is waited for to the round's table.
    pub(crate) fn poll<'a>(&'a self, table: &mut Table<'a>) {
        if let Some(probe) = &self.probe {
            table.input(Source::Probe, probe.pidfd.as_fd());
            table.until(Some(probe.deadline));
        }
    }

    /// Is a new program being probed already?
    pub(crate) fn is_under_way(&self) -> bool {
        self.probe.is_some()
    }

    /// The probe's process, which only the probe may wait for.
    pub(crate) fn probe_pid(&self) -> Option<Pid> {
        self.probe.as_ref().map(|probe| probe.helper.pid())
    }

    /// Let the new program take over beside us, as far as that changes nothing.
    pub(crate) fn begin(&self, state: &State, dispositions: Dispositions, handed_on: &[BorrowedFd]) -> Result<Probe> {
        let memory = state.write()?;
        let file = ProgramFile::open(&self.program)?;
        let arguments = own_arguments()?;
        let environment = Mode::Probe(memory.as_raw_fd()).environment();
        let helper = Helper::fork(|| {
            sys::set_close_on_exec(&memory, FdFlag::empty())?;
            for fd in handed_on {
                sys::set_close_on_exec(fd, FdFlag::empty())?;
            }
            dispositions.restore()?;
            // Any exec error means 126, even one that a shell would report as 127.
            file.execute(&arguments, &environment);
            Err(Errno::EACCES)
        });
        let helper = helper.context("cannot fork")?;
        let pidfd = sys::pidfd_of(helper.pid()).context("cannot open a pidfd")?;
        Ok(Probe { helper, file, pidfd, deadline: sys::now() + TIMEOUT })
    }

    /// How the probe ended, if it has: the program that we may become.
    pub(crate) fn outcome(&mut self, now: Timestamp) -> Option<Result<ProgramFile>> {
        let probe = self.probe.as_mut()?;
        let outcome = match probe.helper.ending() {
            None if probe.deadline > now => return None,
            None => Err(Error::msg("it did not read the state in time")),
            Some(Ending::Exited(PASSED)) => return self.probe.take().map(|probe| Ok(probe.file)),
            Some(Ending::Exited(126)) => Err(Error::msg("it cannot be executed")),
            Some(ending) => Err(Error::msg(format!("it {ending}"))),
        };
        self.probe = None;
        Some(outcome)
    }

    /// Report that the upgrade failed and this supervisor goes on.
    pub(crate) fn refuse(&self, why: &Error) {
        error!("{} cannot take over, this supervisor goes on: {why:#}", self.program.display());
    }

    /// Become the new program, with `state` and with `handed_on` open; returns only when that failed, with everything
    /// as it was.
    pub(crate) fn become_successor(
        &self,
        file: &ProgramFile,
        state: &State,
        dispositions: Dispositions,
        handed_on: &[BorrowedFd],
    ) -> Result<Infallible> {
        let memory = state.write()?;
        let arguments = own_arguments()?;
        let environment = Mode::TakeOver(memory.as_raw_fd()).environment();
        info!("becoming {}", self.program.display());
        sys::set_close_on_exec(&memory, FdFlag::empty())?;
        set_close_on_exec(handed_on, FdFlag::empty())?;
        dispositions.set_survived(Survived::AsBefore)?;
        let errno = file.execute(&arguments, &environment);
        dispositions.set_survived(Survived::Ignored)?;
        set_close_on_exec(handed_on, FdFlag::FD_CLOEXEC)?;
        Err(errno).context("cannot execute it")
    }
}

/// The program, opened once: what is probed is what is executed, also if another one is installed in between.
#[derive(Debug)]
pub(crate) struct ProgramFile {
    path: CString,
    fd: OwnedFd,
}

impl ProgramFile {
    fn open(path: &Path) -> Result<ProgramFile> {
        ensure!(!path.as_os_str().is_empty(), "where it is started from is not known");
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let fd = open(path, flags, FileMode::empty()).context("cannot open it")?;
        Ok(ProgramFile { path: CString::new(path.as_os_str().as_bytes())?, fd })
    }

    /// Become this program. Returns only when that failed.
    fn execute(&self, arguments: &[CString], environment: &[Variable]) -> Errno {
        match sys::execute_opened(&self.fd, arguments, environment) {
            // A script is opened by its interpreter, and that by its name.
            Errno::ENOENT if self.is_still_there() => sys::execve(&self.path, arguments, environment),
            // Another one is there, which was not probed.
            Errno::ENOENT => Errno::ESTALE,
            errno => errno,
        }
    }

    /// Does the name still lead to it?
    fn is_still_there(&self) -> bool {
        let identity = |file: FileStat| (file.st_dev, file.st_ino);
        let named = stat(self.path.as_c_str()).map(identity);
        named.is_ok() && named == fstat(&self.fd).map(identity)
    }
}

/// The arguments that the next program has too.
fn own_arguments() -> Result<Vec<CString>> {
    Ok(sys::arguments().iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?)
}

fn set_close_on_exec(fds: &[BorrowedFd], flag: FdFlag) -> Result<()> {
    fds.iter().try_for_each(|fd| sys::set_close_on_exec(fd, flag)).context("cannot hand the descriptors on")
}

/// Where this program is started from: as the caller named it, for the name may lead to another file by next time.
pub(crate) fn own_program() -> PathBuf {
    let itself = Path::new("/proc/self/exe");
    // Without /proc, the path that exec was called with.
    let (running, itself) = match fs::read_link(itself) {
        Ok(running) => (running, itself.to_owned()),
        Err(_) => sys::executed_path()
            .map(|path| std::path::absolute(&path).unwrap_or(path))
            .map(|path| (path.clone(), path))
            .unwrap_or_default(),
    };
    let named = sys::arguments().first().and_then(|name| find(Path::new(name)));
    let same = |path: &PathBuf| {
        let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        identity(path).is_some() && identity(path) == identity(&itself)
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
