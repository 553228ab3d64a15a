//! What the supervisor has, and what is left of anything that it or its generations were.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::site::Site;

/// How much more of memory the end may show, in KiB: the allocator's rounding, not one request's worth.
const GROWTH: u64 = 512;
/// How many more descriptors it may have at the end, for each generation that there were more of at a time than in the warm-up:
/// slots stay, with a TCP and a UDP socket.
const SLOT: usize = 2;
/// The same for generations that nobody saw, beside those of `--status` before each fault.
const UNSEEN: usize = 4;
/// How many generations the supervisor that was killed last may have left the folders of: no successor has removed them yet.
const LEFT: usize = 10;

#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    pub descriptors: usize,
    /// Of what kind these are.
    kinds: BTreeMap<String, usize>,
    /// Anonymous memory in KiB.
    pub memory: u64,
    pub zombies: usize,
    /// All processes that come from us.
    pub processes: usize,
    /// In the supervisor's folder.
    pub files: Vec<String>,
    /// There, folders of generations' notify sockets.
    notify_folders: usize,
}

impl Usage {
    pub fn of(supervisor: Pid, site: &Site) -> Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{supervisor}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let all = descendants(Pid::this());
        let mut kinds = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{supervisor}/fd"))? {
            let link = fs::read_link(entry?.path())?.to_string_lossy().into_owned();
            *kinds.entry(link.split(":[").next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        let mut files: Vec<String> = fs::read_dir(&site.folder)?
            .map(|entry| Ok(named(&entry?.file_name().to_string_lossy())))
            .collect::<Result<_>>()?;
        files.sort();
        let all_files = files.len();
        files.retain(|file| !file.starts_with("handoff-run-"));
        let notify_folders = all_files - files.len();
        Ok(Usage {
            descriptors: kinds.values().sum(),
            kinds,
            memory: memory.context("no RssAnon")?.trim().parse()?,
            zombies: all.iter().filter(|pid| is_zombie(**pid)).count(),
            processes: all.len(),
            files,
            notify_folders,
        })
    }

    /// What there is more of than there was, if anything; there were up to `generations` more at a time than before.
    pub fn growth(&self, before: &Usage, generations: usize) -> Vec<String> {
        let grown = [
            (
                format!("descriptors, of {:?} {:?}", before.kinds, self.kinds),
                self.descriptors > before.descriptors + SLOT * (generations + UNSEEN),
            ),
            ("memory".into(), self.memory > before.memory + GROWTH),
            ("zombies".into(), self.zombies > 0),
            ("processes".into(), self.processes != before.processes),
            ("files".into(), self.files != before.files),
            ("folders".into(), self.notify_folders > before.notify_folders + LEFT),
        ];
        grown.into_iter().filter(|(_, is_grown)| *is_grown).map(|(what, _)| what).collect()
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Usage { descriptors, memory, zombies, processes, files, notify_folders, .. } = self;
        write!(
            f,
            "{descriptors} | {memory} KiB | {zombies} | {processes} | {} and {notify_folders} folders",
            files.join(" ")
        )
    }
}

/// The name of a file, without what differs from one supervisor's second name to another's.
fn named(file: &str) -> String {
    if [".app.sock.kept", ".app.sock.taken"].contains(&file) { ".app.sock.*".into() } else { file.into() }
}

/// A process' children; none if it is gone.
pub fn children(pid: Pid) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .map(Pid::from_raw)
        .collect()
}

fn descendants(pid: Pid) -> Vec<Pid> {
    children(pid).into_iter().flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z"))
}

/// Reap what a killed supervisor left to us: servers, which nothing here waits for.
pub fn reap() {
    for child in children(Pid::this()) {
        let is_server = fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| stat.contains("(soak"));
        if is_server && is_zombie(child) {
            // It is ours, and has ended.
            let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
        }
    }
}
