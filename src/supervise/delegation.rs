//! The cgroup that is delegated to the supervisor: itself in a leaf of it, each generation in another one beside that.
//!
//! Which processes belong to a generation, and that it has ended, is then known from the kernel, whatever it forks, renames
//! or forgets. Where none is delegated, nothing is created, and generations are told apart by what /proc shows.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use log::{debug, info};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, Pid, access};

use crate::kernel::cgroup::{Cgroup, ROOT};
use crate::supervise::plan::Id;
use crate::sys;

/// The supervisor's own. No process may be in the cgroup itself whose controllers are to account for those in it.
const LEAF: &str = "supervisor";
/// What a generation's begins with.
const PREFIX: &str = "generation-";
/// How many names are tried for a generation's: another supervisor may have it, or may have left it with something in it.
const MOST_NAMES: u32 = 100;

/// What a generation's cgroup accounts for. That of the processor's time needs no controller, and with it a generation that
/// drains takes no more of the processor than the one that serves.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// What systemd marks a cgroup by that it delegates (Delegate=yes); only the first can be read by everybody, since 251.
const MARKS: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// The cgroup in which others may be made.
#[derive(Debug)]
pub(crate) struct Delegation(Cgroup);

impl Delegation {
    /// Move this process into its leaf, if there is such a cgroup.
    pub(crate) fn enter() -> Option<Delegation> {
        let own = Cgroup::of_this_process()?;
        let Some(delegated) = delegated(&own) else {
            debug!("{} is not delegated", own.directory().display());
            return None;
        };
        let entered = if delegated == own { enter_leaf(&own.child(LEAF)) } else { Ok(()) };
        if let Err(error) = entered {
            info!("the cgroup is delegated, but cannot be used ({error}): processes are told apart without");
            return None;
        }
        // A shell that somebody else runs in it is in the way, which costs only the figures.
        if let Err(error) = delegated.enable(&CONTROLLERS) {
            debug!("cannot enable the controllers: {error}");
        }
        Some(Delegation(delegated))
    }

    /// A new cgroup for a generation, with its events; none where that fails.
    pub(crate) fn make(&self, id: Id) -> Option<(Cgroup, OwnedFd)> {
        let made = make(|attempt| self.0.child(&name(id, attempt)));
        let made = made.inspect_err(|error| info!("generation {id}: has no cgroup of its own: {error}")).ok()?;
        // As the program would be told of its cgroup without us. One of its own supervisors, or a container, may use it.
        let _ = sys::set_attribute(made.0.directory(), MARKS[0], b"1");
        Some(made)
    }
}

/// The cgroup that is delegated to a process in `own`: that or, with DelegateSubgroup= or for one that became another program,
/// the one that it is in.
fn delegated(own: &Cgroup) -> Option<Cgroup> {
    if is_marked(own.directory()) || is_container(own.directory()) {
        return Some(own.clone());
    }
    let name = own.directory().file_name()?.to_str()?;
    // Beside a unit's (`a.service`) are those of other units, and beside a generation's those of its supervisor.
    let is_subgroup = !name.contains('.') && !name.starts_with(PREFIX);
    let is_home = |parent: &Path| is_subgroup && is_marked(parent) || name == LEAF && is_container(parent);
    own.parent().filter(|parent| is_home(parent.directory()))
}

/// Has systemd marked it as one in which processes may make others?
fn is_marked(directory: &Path) -> bool {
    MARKS.iter().any(|mark| sys::has_attribute(directory, mark, b"1"))
}

/// Is it the root of a cgroup namespace, mounted so that it can be written to, and the container's only task that of this
/// process: is it the first one, or what that started? A systemd in the container has it for itself (sd_booted(3)), as may
/// anything else that runs several services.
fn is_container(directory: &Path) -> bool {
    directory == Path::new(ROOT)
        && [Pid::this(), Pid::parent()].contains(&Pid::from_raw(1))
        && access(directory, AccessFlags::W_OK).is_ok()
        && !Path::new("/run/systemd/system").exists()
}

/// Another supervisor may be in it: none uses a cgroup that another has.
fn enter_leaf(leaf: &Cgroup) -> nix::Result<()> {
    match leaf.make() {
        Ok(()) | Err(Errno::EEXIST) => leaf.enter().inspect_err(|_| drop(leaf.remove())),
        Err(errno) => Err(errno),
    }
}

/// The first of the candidates that is not there, or that nothing is in and no supervisor has.
fn make(candidate: impl Fn(u32) -> Cgroup) -> nix::Result<(Cgroup, OwnedFd)> {
    let mut made = Err(Errno::EEXIST);
    for cgroup in (1..=MOST_NAMES).map(candidate) {
        made = make_anew(&cgroup).map(|events| (cgroup, events));
        if !matches!(made, Err(Errno::EEXIST | Errno::EWOULDBLOCK | Errno::ENOENT | Errno::ENODEV)) {
            break;
        }
    }
    made
}

/// Make it, also in the place of one that a supervisor left.
fn make_anew(cgroup: &Cgroup) -> nix::Result<OwnedFd> {
    match cgroup.make() {
        Err(Errno::EEXIST) => {
            let _left = cgroup.claim()?;
            // Not used as it is, for it may have been given limits.
            let _ = cgroup.remove();
            cgroup.make()?;
        }
        made => made?,
    }
    cgroup.claim()
}

fn name(id: Id, attempt: u32) -> String {
    match attempt {
        1 => format!("{PREFIX}{id}"),
        _ => format!("{PREFIX}{id}-{attempt}"),
    }
}
