//! Whether bind(2) can be intercepted here, tried before anything is opened or started.

use std::fmt::Display;
use std::io::IoSliceMut;

use anyhow::anyhow;
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::failure::{self, Failure};
use crate::kernel::processes::are_visible;
use crate::socket::interception::filter::{Lengths, bind_filter};
use crate::sys::{self, Ending};
use crate::target::{Handing, Program};

/// The status of a child that has a notifier, and cannot put descriptors with it: no errno.
const CANNOT_PUT: u8 = 255;

/// What helps a server all the same.
const OTHERWISE: &str = "leave --intercept out, and hand the socket over: see 'handoff-run --help-servers'";

/// What helps where Yama is strict.
const PTRACE: &str =
    "set it to 1, or where it is 2, run the supervisor with CAP_SYS_PTRACE (in a container: --cap-add SYS_PTRACE)";

/// What helps where something is forbidden.
const PERMIT: &str = "in a unit: SystemCallFilter=@system-service seccomp pidfd_getfd; in a container: --cap-add SYS_PTRACE, \
                      and a seccomp profile that has them";

/// Will it work, as far as can be said before?
///
/// # Errors
/// What is missing, and what to do.
pub(crate) fn check_facilities(program: &Program) -> failure::Result<()> {
    if program.handing != Handing::Interception {
        return Ok(());
    }
    let unknown = || missing(&"the system calls of this processor are not known", OTHERWISE);
    let filter = bind_filter(Lengths::All).ok_or_else(unknown)?;
    let tried = sys::in_child(|| match sys::filter_calls(&filter) {
        Err(errno) => errno as u8,
        Ok(notifier) if sys::try_put(&notifier).is_err() => CANNOT_PUT,
        Ok(_) => 0,
    });
    judge_filter(tried)?;
    let tried = sys::in_child(|| {
        let byte = 0u8;
        let there = [RemoteIoVec { base: (&raw const byte).addr(), len: 1 }];
        process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut [0])], &there).err().map_or(0, |errno| errno as u8)
    });
    judge("process_vm_readv", tried)?;
    judge("pidfd_getfd", sys::try_to_get_descriptors())?;
    if sys::is_ptrace_restricted() {
        return Err(missing(&"kernel.yama.ptrace_scope forbids to look at other processes", PTRACE));
    }
    are_visible()
        .map_err(|error| missing(&format_args!("/proc does not show processes: {error}"), "mount a proc there"))
}

fn judge_filter(tried: nix::Result<Ending>) -> failure::Result<()> {
    match tried {
        Ok(Ending::Exited(CANNOT_PUT)) => Err(old_kernel()),
        Ok(Ending::Exited(status)) if status == Errno::EINVAL as u8 => Err(old_kernel()),
        Ok(Ending::Exited(status)) if status == Errno::EBUSY as u8 => {
            let why = "a seccomp filter with a notifier is in force already, as within another --intercept, or of a \
                       container manager";
            Err(missing(&why, OTHERWISE))
        }
        _ => judge("seccomp", tried),
    }
}

fn judge(call: &str, tried: nix::Result<Ending>) -> failure::Result<()> {
    match tried {
        Ok(Ending::Exited(0)) => Ok(()),
        Ok(Ending::Exited(status)) => {
            Err(missing(&format_args!("{call} fails: {}", Errno::from_raw(status.into())), PERMIT))
        }
        Ok(ending) => Err(missing(&format_args!("{call}: a try {ending}"), PERMIT)),
        Err(errno) => Err(missing(&format_args!("{call} cannot be tried: {errno}"), "try again")),
    }
}

fn old_kernel() -> Failure {
    missing(&"this kernel cannot put a descriptor into another process, as Linux 5.9 can", OTHERWISE)
}

fn missing(why: &dyn Display, remedy: &str) -> Failure {
    Failure::from(anyhow!("--intercept does not work here: {why}")).remedy(Some(remedy.to_owned()))
}
