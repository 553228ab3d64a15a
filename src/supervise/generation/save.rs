//! A generation in a state that is handed on, and one that a predecessor of this supervisor started.

use std::net::SocketAddr;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::Ready;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::descriptors::SocketInode;
use crate::kernel::members::Members;
use crate::kernel::processes::Process;
use crate::saved::{self, SavedPath};
use crate::supervise::generation::Generation;
use crate::supervise::generation::descriptors::{Descriptors, Role, SavedDescriptor};
use crate::supervise::generation::notify_socket::NotifyFile;
use crate::supervise::generation::ready::{SavedWatch, Watch};
use crate::supervise::plan;
use crate::supervise::signals::Dispositions;
use crate::supervise::sockets::{Reach, Share};
use crate::sys::{Claimed, Ending, Timestamp};

/// A generation in a state that is handed on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavedGeneration {
    id: plan::Id,
    #[serde(deserialize_with = "saved::pid")]
    pid: i32,
    started: Timestamp,
    /// It is no child of the supervisor's.
    #[serde(default)]
    is_foreign: bool,
    #[serde(default)]
    is_supervisor: bool,
    descriptors: Vec<SavedDescriptor>,
    #[serde(default, deserialize_with = "saved::or_default")]
    share: Share,
    #[serde(default, deserialize_with = "saved::or_default")]
    ended: Option<Ending>,
    #[serde(default)]
    killed: bool,
    #[serde(default)]
    watch: Option<SavedWatch>,
    /// A daemon that left its group and overwrote its environment cannot be found again.
    #[serde(default, deserialize_with = "saved::lenient")]
    members: Vec<SavedProcess>,
    /// The groups and sessions that members are in, but for the main process' own.
    #[serde(default)]
    groups: Vec<i32>,
    /// The directory of its cgroup, whose events are among the descriptors.
    #[serde(default)]
    cgroup: Option<SavedPath>,
    /// The inodes of the sockets that it was given.
    #[serde(default)]
    given: Vec<u64>,
    /// The clients whose connections to it were being made when it was relieved.
    #[serde(default)]
    handshakes: Vec<SocketAddr>,
    /// Those of all connections that there were then, if they are waited for.
    #[serde(default)]
    present: Option<Vec<SocketAddr>>,
}

/// A process, and not only its number.
#[derive(Debug, Serialize, Deserialize)]
struct SavedProcess {
    #[serde(deserialize_with = "saved::pid")]
    pid: i32,
    started: u64,
}

impl SavedProcess {
    /// It, if it is still there.
    fn find(&self) -> Option<Process> {
        Process::read(Pid::from_raw(self.pid)).filter(|process| process.started == self.started)
    }
}

impl From<&Process> for SavedProcess {
    fn from(process: &Process) -> SavedProcess {
        SavedProcess { pid: process.pid.as_raw(), started: process.started }
    }
}

impl Generation {
    /// For the supervisor that takes the place of this one.
    pub(crate) fn save(&self) -> SavedGeneration {
        SavedGeneration {
            id: self.id,
            pid: self.pid.as_raw(),
            started: self.started,
            is_foreign: self.is_foreign,
            is_supervisor: self.is_supervisor,
            descriptors: self.descriptors.save(),
            share: self.share,
            ended: self.ended,
            killed: self.killed,
            given: self.given.iter().map(|inode| inode.0).collect(),
            watch: self.watch.as_ref().map(Watch::save),
            members: self.members.known().iter().map(SavedProcess::from).collect(),
            groups: self.members.led().iter().map(|number| number.as_raw()).collect(),
            cgroup: self.cgroup.as_ref().map(|cgroup| SavedPath(cgroup.directory().to_owned())),
            handshakes: self.handshakes.clone(),
            present: self.present.clone(),
        }
    }

    /// One that a predecessor of this supervisor started.
    ///
    /// # Errors
    /// EBADF if one of its descriptors is not there.
    pub(crate) fn resume(
        saved: SavedGeneration,
        how: &Ready,
        dispositions: Dispositions,
        reach: Reach,
        claimed: &mut Claimed,
    ) -> nix::Result<Generation> {
        let pid = Pid::from_raw(saved.pid);
        let known = saved.members.iter().filter_map(SavedProcess::find).collect();
        let mut members = match saved.is_foreign {
            true => Members::resume_foreign(pid, known),
            false => Members::resume(pid, known, saved.groups.into_iter().map(Pid::from_raw)),
        };
        if saved.ended.is_some() {
            members.end_main();
        }
        let descriptors = Descriptors::resume(saved.descriptors, claimed)?;
        Ok(Generation {
            is_foreign: saved.is_foreign,
            is_supervisor: saved.is_supervisor,
            _notify_file: descriptors.get(Role::Notify).and_then(NotifyFile::of),
            watch: saved.watch.map(|watch| Watch::resume(how, pid, dispositions, reach, watch)),
            killed: saved.killed,
            ended: saved.ended,
            given: saved.given.into_iter().map(SocketInode).collect(),
            cgroup: saved.cgroup.map(|SavedPath(directory)| Cgroup::at(directory)),
            handshakes: saved.handshakes,
            present: saved.present,
            ..Generation::new(saved.id, pid, saved.share, descriptors, members, saved.started)
        })
    }
}
