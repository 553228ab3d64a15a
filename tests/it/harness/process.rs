//! What /proc knows of a process, and of the processes that belong together.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait_for;

/// Whether there is such a process, ended or not.
pub fn exists(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

/// All processes but those that go while they are looked at.
pub fn all() -> impl Iterator<Item = Pid> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.map(Pid::from_raw)
}

/// A variable of a process.
pub fn variable(pid: Pid, key: &str) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let environment = String::from_utf8_lossy(&environment);
    environment.split('\0').find_map(|entry| Some(entry.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// All processes with this variable: every descendant of what was started with it, wherever it went.
pub fn with_variable(key: &str, value: &str) -> Vec<Pid> {
    all().filter(|pid| variable(*pid, key).as_deref() == Some(value)).collect()
}

/// A field of `/proc/PID/status`.
pub fn status_field(pid: Pid, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

/// What `/proc/PID/stat` has behind the name: state, parent, group, session and so on.
pub fn stat(pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and parentheses.
    Some(stat[stat.rfind(')')? + 1..].split_whitespace().map(str::to_owned).collect())
}

/// The children of a process with one thread; none when it has gone.
pub fn children(pid: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_ascii_whitespace().map(|child| Pid::from_raw(child.parse().unwrap())).collect()
}

/// The name of the program that it runs.
pub fn name(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end().to_owned()
}

/// Its descriptors and where they lead, in their order; none when it has gone.
pub fn descriptors(pid: Pid) -> Vec<(RawFd, String)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let mut all: Vec<(RawFd, String)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, link.to_str()?.to_owned()))
        })
        .collect();
    all.sort_unstable();
    all
}

/// A copy of the socket with this inode, if it has that open.
pub fn copy_of(pid: Pid, inode: u64) -> Option<OwnedFd> {
    let link = format!("socket:[{inode}]");
    let (number, _) = descriptors(pid).into_iter().find(|(_, found)| *found == link)?;
    // SAFETY: pidfd_open takes two integers, and what it returns is nobody else's.
    let process = unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) as RawFd) };
    // SAFETY: pidfd_getfd takes three integers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    // SAFETY: the kernel just made it for us alone.
    Errno::result(copy).ok().map(|copy| unsafe { OwnedFd::from_raw_fd(copy as RawFd) })
}

/// The inodes of the sockets that it has open.
pub fn sockets(pid: Pid) -> Vec<u64> {
    let inode = |(_, link): (_, String)| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    descriptors(pid).into_iter().filter_map(inode).collect()
}

/// The processes of a session, which is what one server is here. None outlives the value.
pub struct Session(pub Pid);

impl Session {
    /// Those that have not ended. A zombie has, whenever its parent gets round to it.
    pub fn processes(&self) -> Vec<Pid> {
        all().filter(|pid| self.has(*pid).unwrap_or(false)).collect()
    }

    /// Nothing if it has gone meanwhile.
    fn has(&self, pid: Pid) -> Option<bool> {
        let fields = stat(pid)?;
        Some(!matches!(&*fields[0], "Z" | "X") && fields[3] == self.0.to_string())
    }

    /// The inodes of the sockets that any of them has open.
    pub fn sockets(&self) -> Vec<u64> {
        self.processes().into_iter().flat_map(sockets).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        wait_for("the server's processes to be gone", || {
            let left = self.processes();
            for pid in &left {
                // Gone already is what is wanted.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
    }
}

/// A process that a test leaves without a parent: with the value it ends.
pub struct Left(pub Pid);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}
