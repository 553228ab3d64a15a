//! Which processes have a socket open, and which of those had it first: a master, not its workers.

use std::fs;
use std::io;
use std::iter;

use nix::unistd::Pid;

use crate::kernel::descriptors::{SocketInode, sockets};
use crate::kernel::processes::{Process, Processes, are_visible};

/// A process that has some of the sockets that were looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) process: Process,
    pub(crate) sockets: Vec<SocketInode>,
}

/// All processes but this one that are shown to us, and those among them that have one of `wanted` open.
///
/// # Errors
/// If /proc cannot be read, or has other numbers than ours.
pub(crate) fn holders_of(wanted: &[SocketInode]) -> io::Result<(Processes, Vec<Holder>)> {
    are_visible()?;
    let processes = Processes::scan()?;
    let held = |process: &Process| {
        let mut held: Vec<SocketInode> = sockets(process.pid).filter(|inode| wanted.contains(inode)).collect();
        held.sort_unstable();
        held.dedup();
        (!held.is_empty()).then_some(Holder { process: *process, sockets: held })
    };
    let holders = processes.iter().filter_map(held).collect();
    Ok((processes, holders))
}

/// Those of `holders` that do not descend from another of them.
pub(crate) fn topmost<'a>(holders: &[&'a Holder], processes: &Processes) -> Vec<&'a Holder> {
    let is_holder = |process: &Process| holders.iter().any(|holder| holder.process.pid == process.pid);
    let is_topmost = |holder: &&&Holder| !processes.ancestors(holder.process.pid).any(is_holder);
    holders.iter().filter(is_topmost).copied().collect()
}

/// The processes that this one descends from, as `processes` has them.
pub(crate) fn own_ancestors(processes: &Processes) -> Vec<Pid> {
    let parent = Pid::parent();
    [parent].into_iter().chain(processes.ancestors(parent).map(|process| process.pid)).collect()
}

/// Is it one that is never told to stop: does it keep sockets for those whom it starts, or did it start this process?
pub(crate) fn is_spared(pid: Pid) -> bool {
    let parent = |pid: &Pid| Process::read(*pid).map(|process| process.parent);
    is_service_manager(pid) || iter::successors(Some(Pid::parent()), parent).any(|above| above == pid)
}

/// The name of a process, by which ps(1) shows it; empty where that is not to be seen.
pub(crate) fn name_of(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// A process by its number and name.
pub(crate) fn with_name(pid: Pid) -> String {
    match name_of(pid) {
        name if name.is_empty() => format!("pid {pid}"),
        name => format!("pid {pid} ({name})"),
    }
}

/// Does it keep sockets for those whom it starts, as systemd does for .socket units and in its descriptor store?
pub(crate) fn is_service_manager(pid: Pid) -> bool {
    pid.as_raw() == 1 || name_of(pid) == "systemd"
}

/// Was it started by a supervisor of this program, as its environment shows?
pub(crate) fn is_generation(pid: Pid) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mut variables = environment.split(|byte| *byte == 0);
    variables.any(|variable| {
        let path = variable.strip_prefix(b"NOTIFY_SOCKET=").unwrap_or_default();
        path.windows(NOTIFY_FOLDER.len()).any(|part| part == NOTIFY_FOLDER.as_bytes())
    })
}

/// How the folder of the notify socket of a generation is called, but for a number.
pub(crate) const NOTIFY_FOLDER: &str = "/handoff-run-";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::processes::ProcessState;

    /// Each process as pid and parent.
    fn table(processes: &[[i32; 2]]) -> Processes {
        processes.iter().map(|[pid, parent]| process(*pid, *parent)).collect()
    }

    fn process(pid: i32, parent: i32) -> Process {
        let [pid, parent] = [pid, parent].map(Pid::from_raw);
        let (state, threads, started) = (ProcessState::Alive, 1, 0);
        Process { pid, parent, group: pid, session: pid, state, threads, started }
    }

    fn tops(processes: &[[i32; 2]], holders: &[i32]) -> Vec<i32> {
        let table = table(processes);
        let holder = |pid: &i32| Holder { process: *table.get(Pid::from_raw(*pid)).unwrap(), sockets: vec![] };
        let holders: Vec<Holder> = holders.iter().map(holder).collect();
        topmost(&holders.iter().collect::<Vec<_>>(), &table).into_iter().map(|top| top.process.pid.as_raw()).collect()
    }

    #[test]
    fn a_master_is_above_its_workers_and_theirs_whoever_is_in_between() {
        let all = [[1, 0], [10, 1], [11, 10], [12, 11], [13, 12], [20, 1]];
        assert_eq!(tops(&all, &[11, 10]), [10]);
        assert_eq!(tops(&all, &[13, 10]), [10]);
        assert_eq!(tops(&all, &[12, 13]), [12]);
        assert_eq!(tops(&all, &[13, 20, 11]), [20, 11]);
        assert_eq!(tops(&all, &[]), [0; 0]);
    }

    #[test]
    fn orphans_of_a_master_that_has_ended_are_all_on_top() {
        assert_eq!(tops(&[[1, 0], [11, 1], [12, 1]], &[11, 12]), [11, 12]);
    }

    #[test]
    fn this_process_descends_from_the_one_that_started_it() {
        let (processes, _) = holders_of(&[]).unwrap();
        let ancestors = own_ancestors(&processes);
        assert_eq!(ancestors.first(), Some(&Pid::parent()));
        assert!(!ancestors.contains(&Pid::this()));
        assert!(ancestors.into_iter().filter(|pid| pid.as_raw() > 0).all(is_spared));
        assert!(is_spared(Pid::from_raw(1)) && !is_spared(Pid::this()));
    }
}
