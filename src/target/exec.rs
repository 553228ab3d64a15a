//! Become the target: the only place that clears close-on-exec, and the only one that says 126 and 127.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;
use std::process;

use anyhow::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::FdFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

use crate::cli::{Announce, Exec, Start};
use crate::failure::{Failure, Status};
use crate::socket::listener::Listener;
use crate::sys;
use crate::target::environ::{Announcement, Variable, announce};
use crate::target::pid_file::PidFile;
use crate::target::preset::Stdin;
use crate::target::remedy;
use crate::target::template::{Place, Template, Values};

/// PIDFS_MAGIC of linux/magic.h: where a pidfd has an inode of its own (Linux 6.9).
const PIDFS_MAGIC: FsType = FsType(0x5049_4446);

/// Everything the target is given, ready to go.
struct Target<'a> {
    arguments: Vec<CString>,
    environment: Vec<Variable<'a>>,
}

/// What is of one generation alone.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Counted by a supervisor; 1 without one.
    pub(crate) generation: u64,
    /// Variables that a supervisor sets, `KEY=VALUE` each.
    pub(crate) variables: Vec<CString>,
}

/// Wait for a client if so asked, leave a pid file if so asked, and become the program. Returns only when that failed.
pub(crate) fn exec_in_place(plan: &Exec, listeners: &[Listener]) -> Failure {
    // Before the wait, so that a mistake in a template is told at once and not to the first client.
    let target = match describe(plan, listeners, Instance { generation: 1, variables: vec![] }) {
        Ok(target) => target,
        Err(error) => return error.into(),
    };
    match prepare(plan, listeners) {
        Err(error) => error.into(),
        Ok(pid_file) => {
            let failure = launch(&target, listeners, plan.stdin);
            if let Some(pid_file) = pid_file {
                pid_file.restore();
            }
            failure
        }
    }
}

fn prepare(plan: &Exec, listeners: &[Listener]) -> Result<Option<PidFile>> {
    if plan.start == Start::FirstClient {
        wait_for_client(listeners).context("cannot wait for the first client")?;
    }
    plan.pid_file.as_deref().map(|path| PidFile::write(path, process::id())).transpose()
}

/// Become the program of `plan` with `listeners`, which are at their numbers. Returns only when that failed.
pub(crate) fn become_target(plan: &Exec, listeners: &[Listener], instance: Instance) -> Failure {
    match describe(plan, listeners, instance) {
        Err(error) => error.into(),
        Ok(target) => launch(&target, listeners, plan.stdin),
    }
}

fn launch(target: &Target, listeners: &[Listener], stdin: Stdin) -> Failure {
    if let Err(error) = hand_on(listeners, stdin).context("cannot hand the sockets on") {
        return error.into();
    }
    let errno = sys::execvpe(&target.arguments, &target.environment);
    cannot_run(&target.arguments[0], errno)
}

/// Wait until a connection or a datagram can be received; it is left where it is.
fn wait_for_client(listeners: &[Listener]) -> nix::Result<()> {
    let mut waiting: Vec<PollFd> = listeners.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut waiting, PollTimeout::NONE) {
            // Stopped and continued, as by job control.
            Err(Errno::EINTR) => (),
            Err(errno) => return Err(errno),
            Ok(_) => return Ok(()),
        }
    }
}

/// The last step before exec: from here on the sockets are inherited.
fn hand_on(listeners: &[Listener], stdin: Stdin) -> nix::Result<()> {
    for listener in listeners {
        sys::set_close_on_exec(listener, FdFlag::empty())?;
    }
    match (stdin, listeners.first()) {
        (Stdin::FirstSocket, Some(first)) => sys::copy_to_stdin(first),
        _ => Ok(()),
    }
}

/// Arguments and environment, with what stands for the placeholders.
fn describe<'a>(plan: &Exec, listeners: &[Listener], instance: Instance) -> Result<Target<'a>> {
    let arguments: Vec<Template> = plan.program.iter().map(|word| Template::argument(word.as_bytes())).collect();
    let literal = arguments.iter().chain(plan.settings.iter().map(|s| &s.value)).all(Template::is_literal);
    let tells = plan.preset.is_some_and(|preset| !preset.variables.is_empty());
    // The kernel is asked for the addresses only if something speaks of them.
    let places = if literal && !tells { vec![] } else { places(plan, listeners)? };
    let mut values = Values { places, generation: instance.generation, pid: process::id() };
    let environment = environment(plan, listeners, &mut values, instance.variables)?;
    let arguments = arguments.iter().map(|template| Ok(CString::new(template.expand(&values)?)?));
    Ok(Target { arguments: arguments.collect::<Result<_>>()?, environment })
}

fn places(plan: &Exec, listeners: &[Listener]) -> Result<Vec<Place>> {
    let place = |(fd, listener): (i32, &Listener)| {
        Ok(Place { name: listener.name.clone(), fd, endpoint: listener.endpoint()? })
    };
    (plan.first_fd..).zip(listeners).map(place).collect()
}

fn environment<'a>(
    plan: &Exec,
    listeners: &[Listener],
    values: &mut Values,
    mut set: Vec<CString>,
) -> Result<Vec<Variable<'a>>> {
    if let Some(preset) = plan.preset {
        for variable in preset.environment(values)? {
            set.push(CString::new(variable)?);
        }
    }
    for setting in &plan.settings {
        let value = setting.value.expand(values).with_context(|| format!("cannot set {}", setting.key))?;
        set.push(CString::new([setting.key.as_bytes(), b"=", &value].concat())?);
    }
    let announcement = Announcement {
        names: listeners.iter().map(|listener| &listener.name).collect(),
        pid: (plan.announce == Announce::All).then_some(values.pid),
        pidfd_id: (plan.announce == Announce::All).then(|| pidfd_id(values.pid)).flatten(),
    };
    let announcement = (plan.announce != Announce::Nothing).then_some(&announcement);
    Ok(announce(&sys::environment(), announcement, set))
}

/// The inode of this process' pidfd, which exec keeps and fork does not; none where it would say nothing.
fn pidfd_id(pid: u32) -> Option<u64> {
    let pidfd = sys::pidfd_of(Pid::from_raw(pid as i32)).ok()?;
    (fstatfs(&pidfd).ok()?.filesystem_type() == PIDFS_MAGIC).then_some(fstat(&pidfd).ok()?.st_ino)
}

/// exec failed: 127 if there is no such program, else 126, as env(1) and the shell have it.
fn cannot_run(program: &CString, errno: Errno) -> Failure {
    let name = program.to_string_lossy();
    let exists = name.contains('/') && Path::new(name.as_ref()).exists();
    let status = if errno == Errno::ENOENT && !exists { Status::NotFound } else { Status::CannotExecute };
    let error = match (errno, exists) {
        (Errno::ENOENT, true) => Error::new(errno).context("its interpreter was not found"),
        _ => Error::new(errno),
    };
    let failure = Failure::with_status(status, error.context(format!("cannot run {name}")));
    failure.remedy(remedy::for_program(&name).filter(|_| status == Status::NotFound))
}
