//! Become the target: the only place that clears close-on-exec, and the only one that returns 126 and 127.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process;

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Pid, chdir, fchdir};

use crate::failure::{ExitStatus, Failure};
use crate::pid_file::PidFile;
use crate::socket::remedy::missing_folder;
use crate::sys;
use crate::target::env_file;
use crate::target::environ::{Announcement, Variable, announce};
use crate::target::handout::Handout;
use crate::target::inspect::check_interceptable;
use crate::target::template::{Template, Values};
use crate::target::{Announce, Begin, Handing, Program};

/// PIDFS_MAGIC of linux/magic.h: where a pidfd has an inode of its own (Linux 6.9).
const PIDFS_MAGIC: FsType = FsType(0x5049_4446);

/// The command line and the environment of the target, ready to go.
struct Target<'a> {
    arguments: Vec<CString>,
    environment: Vec<Variable<'a>>,
    directory: Option<&'a Path>,
}

/// What differs from one generation to the next.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Counted by a supervisor; 1 without one.
    pub(crate) generation: u64,
    /// Variables that a supervisor sets, `KEY=VALUE` each.
    pub(crate) variables: Vec<CString>,
}

/// Wait for a client and write a pid file, each if asked for, and become the program, which gets these variables
/// (`KEY=VALUE`) besides. Returns only when that failed.
pub(crate) fn exec_in_place(
    program: &Program,
    handout: &Handout,
    begin: Begin,
    pid_file: Option<&Path>,
    variables: Vec<CString>,
) -> Failure {
    match prepare(program, handout, begin, pid_file, variables) {
        Err(error) => {
            let remedy = pid_file.and_then(|path| missing_folder(path, &error));
            Failure::from(error).remedy(remedy)
        }
        Ok((target, pid_file)) => {
            let failure = launch(&target, handout, || Ok(()));
            if let Some(pid_file) = pid_file {
                pid_file.restore();
            }
            failure
        }
    }
}

/// Everything up to the pid file, which is the last thing that may have to be undone.
fn prepare<'a>(
    program: &'a Program,
    handout: &Handout,
    begin: Begin,
    pid_file: Option<&Path>,
    variables: Vec<CString>,
) -> Result<(Target<'a>, Option<PidFile>)> {
    let describe = || describe(program, handout, Instance { generation: 1, variables: variables.clone() });
    if begin == Begin::FirstClient {
        check_env_file(program)?;
    }
    let mut target = describe()?;
    if begin == Begin::FirstClient {
        // Before the wait, so that a mistake is reported at once and not to the first client.
        target.directory.map_or(Ok(()), check_directory)?;
        handout.wait_for_client().context("cannot wait for the first client")?;
        // The file of variables may be another by now.
        target = describe()?;
    }
    let pid_file = pid_file.map(|path| PidFile::write(path, process::id())).transpose()?;
    Ok((target, pid_file))
}

/// Become a generation of `program` with what `handout` gives it, or what `intercept` will, which is called last. Returns
/// only when that failed.
pub(crate) fn become_generation(
    program: &Program,
    handout: &Handout,
    instance: Instance,
    intercept: impl FnOnce() -> Result<()>,
) -> Failure {
    match check_env_file(program).and_then(|()| describe(program, handout, instance)) {
        Err(error) => error.into(),
        Ok(target) => launch(&target, handout, intercept),
    }
}

/// The file of variables has to be there the next time too.
fn check_env_file(program: &Program) -> Result<()> {
    program.env_file.as_deref().map_or(Ok(()), env_file::check_rereadable)
}

fn launch(target: &Target, handout: &Handout, intercept: impl FnOnce() -> Result<()>) -> Failure {
    let before = match target.directory.map(enter).transpose() {
        Ok(before) => before,
        Err(error) => return error.into(),
    };
    let handed = match handout.handing {
        Handing::Descriptors => handout.hand_on().context("cannot hand the sockets on"),
        Handing::Interception => {
            check_interceptable(&target.arguments[0], &target.environment).and_then(|()| intercept())
        }
    };
    let failure = match handed {
        Err(error) => error.into(),
        Ok(()) => cannot_run(&target.arguments[0], sys::execute(&target.arguments, &target.environment)),
    };
    // The files that are removed or restored now were named from there. One that is gone has no files.
    let _ = before.map(fchdir);
    failure
}

/// Change to `directory`; where we were.
fn enter(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let before = open(".", flags, Mode::empty()).context("cannot open the working directory")?;
    chdir(directory).with_context(|| format!("cannot change to the directory {}", directory.display()))?;
    Ok(before)
}

/// Fail as `enter` would.
fn check_directory(directory: &Path) -> Result<()> {
    fchdir(enter(directory)?).context("cannot change back to the working directory")
}

/// Arguments and environment, placeholders replaced.
fn describe<'a>(program: &'a Program, handout: &Handout, instance: Instance) -> Result<Target<'a>> {
    let arguments: Vec<Template> = program.words.iter().map(|word| Template::argument(word.as_bytes())).collect();
    let literal = arguments.iter().chain(program.settings.iter().map(|s| &s.value)).all(Template::is_literal);
    let preset_asks = program.preset.is_some_and(|preset| !preset.variables.is_empty());
    // The kernel is asked for the addresses only if a placeholder needs them.
    let places = if literal && !preset_asks { vec![] } else { handout.places()? };
    let mut values = Values { places, generation: instance.generation, pid: process::id() };
    let environment = environment(program, handout, &mut values, instance.variables)?;
    let arguments = arguments.iter().map(|template| Ok(CString::new(template.expand(&values)?)?));
    Ok(Target { arguments: arguments.collect::<Result<_>>()?, environment, directory: program.directory.as_deref() })
}

fn environment<'a>(
    program: &Program,
    handout: &Handout,
    values: &mut Values,
    mut set: Vec<CString>,
) -> Result<Vec<Variable<'a>>> {
    let from_file = program.env_file.as_deref().map(env_file::read).transpose()?.unwrap_or_default();
    if let Some(preset) = program.preset {
        for variable in preset.environment(values)? {
            set.push(CString::new(variable)?);
        }
    }
    for setting in &program.settings {
        let value = setting.value.expand(values).with_context(|| format!("cannot set {}", setting.key.display()))?;
        set.push(CString::new([setting.key.as_bytes(), b"=", &value].concat())?);
    }
    let announcement = Announcement {
        names: handout.names().collect(),
        pid: (program.announce == Announce::All).then_some(values.pid),
        pidfd_id: (program.announce == Announce::All).then(|| pidfd_id(values.pid)).flatten(),
    };
    let announcement = (program.announce != Announce::Nothing).then_some(&announcement);
    Ok(announce(&sys::environment(), from_file, announcement, set))
}

/// The inode of this process' pidfd, which exec keeps and fork does not; none where it is not unique.
fn pidfd_id(pid: u32) -> Option<u64> {
    let pidfd = sys::pidfd_of(Pid::from_raw(pid as i32)).ok()?;
    (fstatfs(&pidfd).ok()?.filesystem_type() == PIDFS_MAGIC).then_some(fstat(&pidfd).ok()?.st_ino)
}

/// exec failed: 127 if there is no such program, else 126, as env(1) and the shell have it.
fn cannot_run(program: &CString, errno: Errno) -> Failure {
    let name = program.to_string_lossy();
    let exists = name.contains('/') && Path::new(OsStr::from_bytes(program.to_bytes())).exists();
    let status = if errno == Errno::ENOENT && !exists { ExitStatus::NotFound } else { ExitStatus::CannotExecute };
    let error = match (errno, exists) {
        (Errno::ENOENT, true) => Error::new(errno).context("its interpreter was not found"),
        _ => Error::new(errno),
    };
    let failure = Failure::with_status(status, error.context(format!("cannot run {name}")));
    failure.remedy(remedy_for(&name).filter(|_| status == ExitStatus::NotFound))
}

/// What helps when PROGRAM looks like something that belongs before `--`.
pub(crate) fn remedy_for(program: &str) -> Option<String> {
    if ["reload", "promote", "rollback", "status", "stop"].contains(&program) {
        return Some(format!("{program} was taken for PROGRAM: a request is written --{program} PATH"));
    }
    let number = !program.is_empty() && program.bytes().all(|byte| byte.is_ascii_digit());
    (number || program.starts_with('-'))
        .then(|| format!("{program} was taken for PROGRAM: put -- between the options and PROGRAM"))
}
