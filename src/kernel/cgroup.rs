//! One cgroup of the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst): which processes are in it, what they use,
//! and their end, by its files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::{Pid, mkdir, write};

use crate::kernel::processes::process_number;
use crate::sys;

/// Where systemd and container managers mount that hierarchy if it is the only one. In the "hybrid" layout, where it is
/// below and has no controllers, cgroups are not used.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// Lines such as `populated 1`.
const EVENTS: &str = "cgroup.events";

/// A cgroup by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// That of this process, if it can be seen, and is not the root of the machine, which has no events.
    pub(crate) fn of_this_process() -> Option<Cgroup> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let cgroup = Cgroup(Path::new(ROOT).join(path));
        // What is mounted there may begin at another cgroup than the path does.
        let is_own = cgroup.0.join(EVENTS).exists() && cgroup.own_processes().ok()?.contains(&Pid::this());
        is_own.then_some(cgroup)
    }

    /// The one with this directory.
    pub(crate) fn at(directory: PathBuf) -> Cgroup {
        Cgroup(directory)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// The one that it is in; none for that at the top of what is mounted.
    pub(crate) fn parent(&self) -> Option<Cgroup> {
        self.0.parent().filter(|parent| parent.starts_with(ROOT)).map(|parent| Cgroup(parent.to_owned()))
    }

    /// The one in it of this name, which need not be there.
    pub(crate) fn child(&self, name: &str) -> Cgroup {
        Cgroup(self.0.join(name))
    }

    pub(crate) fn make(&self) -> nix::Result<()> {
        mkdir(&self.0, Mode::from_bits_retain(0o755))
    }

    /// Move the calling process into it.
    pub(crate) fn enter(&self) -> nix::Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Have the cgroups in it account for what they use, by these controllers as far as there are such. None is
    /// enabled while a process is in the cgroup itself (EBUSY).
    pub(crate) fn enable(&self, controllers: &[&str]) -> nix::Result<()> {
        let available = self.read("cgroup.controllers").unwrap_or_default();
        let mut done = Ok(());
        for name in available.split_ascii_whitespace().filter(|name| controllers.contains(name)) {
            // One write each: of several in one, none is enabled if one cannot be.
            done = done.and(self.write("cgroup.subtree_control", &format!("+{name}")));
        }
        done
    }

    /// What shows whether anything is in it: POLLPRI when that changes, until it is read. Only one supervisor has it.
    ///
    /// # Errors
    /// EWOULDBLOCK if another has it, and ENOENT or ENODEV if it was removed.
    pub(crate) fn claim(&self) -> nix::Result<OwnedFd> {
        let events = File::from(self.open(EVENTS, OFlag::O_RDONLY)?);
        // It may have been somebody's before, and removed, and then another is there by now.
        events.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Errno::EWOULDBLOCK,
            TryLockError::Error(error) => Errno::from_raw(error.raw_os_error().unwrap_or_default()),
        })?;
        is_populated(&events)?;
        Ok(events.into())
    }

    /// The processes in it and in the cgroups below it.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        // In a threaded cgroup they cannot be read, and are in the one above it.
        let mut processes = self.own_processes().unwrap_or_default();
        processes.extend(self.children().iter().flat_map(Cgroup::processes));
        processes
    }

    fn own_processes(&self) -> io::Result<Vec<Pid>> {
        // Those of a PID namespace that this process is not in are 0.
        Ok(self.read("cgroup.procs")?.lines().filter_map(process_number).collect())
    }

    fn children(&self) -> Vec<Cgroup> {
        // Each has a link to its parent, as in other file systems: without one, the forty files need not be listed.
        if fs::metadata(&self.0).is_ok_and(|directory| directory.nlink() <= 2) {
            return vec![];
        }
        let names = sys::directories_in(&self.0).unwrap_or_default();
        names.into_iter().map(|name| Cgroup(self.0.join(name))).collect()
    }

    /// End every process in it and below it, also another user's, and what it forks meanwhile.
    ///
    /// # Errors
    /// ENOENT before Linux 5.14.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Remove it with those below it, unless something is in one.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.children().iter().try_for_each(Cgroup::remove)?;
        fs::remove_dir(&self.0)
    }

    /// The bytes of memory that they use, if the controller is enabled.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.read("memory.current").ok()?.trim_end().parse().ok()
    }

    /// The time of the processor that they have used, those included that have ended.
    pub(crate) fn processor_time(&self) -> Option<Duration> {
        value_of("usage_usec", &self.read("cpu.stat").ok()?).map(Duration::from_micros)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }

    fn write(&self, file: &str, text: &str) -> nix::Result<()> {
        write(self.open(file, OFlag::O_WRONLY)?, text.as_bytes()).map(drop)
    }

    fn open(&self, file: &str, way: OFlag) -> nix::Result<OwnedFd> {
        open(&self.0.join(file), way | OFlag::O_CLOEXEC, Mode::empty())
    }
}

/// Is a process that has not ended in the cgroup of these events, or below it?
///
/// # Errors
/// ENODEV if it was removed.
pub(crate) fn is_populated(events: impl AsFd) -> nix::Result<bool> {
    let mut text = [0; 128];
    let length = pread(events, &mut text, 0)?;
    let text = str::from_utf8(&text[..length]).map_err(|_| Errno::EILSEQ)?;
    Ok(value_of("populated", text) != Some(0))
}

/// The number behind `key` in a file of such lines.
fn value_of(key: &str, text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process;

    use super::*;

    /// A folder with such files, as the kernel writes them.
    fn files(name: &str, files: &[(&str, &str)]) -> Cgroup {
        let cgroup = Cgroup(env::temp_dir().join(format!("cgroup-{}-{name}", process::id())));
        cgroup.make().unwrap();
        files.iter().for_each(|(file, text)| fs::write(cgroup.0.join(file), text).unwrap());
        cgroup
    }

    #[test]
    fn what_is_used_is_read_from_the_files_of_the_controllers() {
        let stat = "usage_usec 1250000\nuser_usec 1000000\nsystem_usec 250000\n";
        let all = files("all", &[("memory.current", "12345678\n"), ("cpu.stat", stat)]);
        assert_eq!((all.memory(), all.processor_time()), (Some(12_345_678), Some(Duration::from_millis(1250))));
        let none = files("none", &[("memory.current", "max\n"), ("cpu.stat", "nr_periods 7\n")]);
        assert_eq!((none.memory(), none.processor_time()), (None, None));
        [all, none].iter().for_each(|made| fs::remove_dir_all(&made.0).unwrap());
    }

    #[test]
    fn only_the_word_0_means_that_nothing_is_in_it() {
        let cgroup = files("events", &[]);
        for (text, populated) in [("populated 0\nfrozen 0\n", false), ("frozen 0\npopulated 1\n", true), ("", true)] {
            fs::write(cgroup.0.join(EVENTS), text).unwrap();
            assert_eq!(is_populated(cgroup.claim().unwrap()), Ok(populated), "{text}");
        }
        fs::remove_dir_all(&cgroup.0).unwrap();
    }

    #[test]
    fn processes_are_read_from_all_below_and_one_of_another_namespace_has_no_number() {
        let cgroup = files("procs", &[("cgroup.procs", "12\n0\n7\n")]);
        let below = cgroup.child("below");
        below.make().unwrap();
        fs::write(below.0.join("cgroup.procs"), "8\n").unwrap();
        assert_eq!(cgroup.processes(), [12, 7, 8].map(Pid::from_raw));
        fs::remove_dir_all(&cgroup.0).unwrap();
    }
}
