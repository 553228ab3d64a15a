//! The processes that descend from this one, in a snapshot of /proc: by the kernel's lists of children, or, where it
//! keeps none, by reading every process. One that ends meanwhile, or that hidepid hides, is left out.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::str;
use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

#[cfg(test)]
use crate::kernel::members::Members;
use crate::sys;

/// The fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) parent: Pid,
    pub(crate) group: Pid,
    pub(crate) session: Pid,
    pub(crate) state: ProcessState,
    pub(crate) threads: usize,
    /// Its start time in clock ticks since boot: with the pid, unique to one process.
    pub(crate) started: u64,
}

/// Whether a process still runs its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessState {
    Alive,
    /// It has ended, and its parent has not yet waited for it.
    Zombie,
}

/// A snapshot; this process itself is not in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processes(Vec<Process>);

/// How often a tree is walked that loses members meanwhile.
const ATTEMPTS: usize = 3;

/// A line of `/proc/PID/stat` is at most half as long.
const LINE: usize = 1024;

impl Processes {
    /// All descendants of this process, and possibly others.
    #[cfg(test)]
    pub(crate) fn read() -> io::Result<Processes> {
        Processes::read_with(&[])
    }

    /// The same, and `beside` them these processes and their descendants, whoever started them.
    pub(crate) fn read_with(beside: &[Pid]) -> io::Result<Processes> {
        are_visible()?;
        match Processes::walk(beside) {
            Err(error) if error.kind() == ErrorKind::NotFound => Processes::scan(),
            walked => walked,
        }
    }

    /// Go down the lists of children (CONFIG_PROC_CHILDREN), which costs time for our processes only, not for all of
    /// the machine.
    fn walk(beside: &[Pid]) -> io::Result<Processes> {
        let mut table = Processes(Vec::new());
        for _ in 0..ATTEMPTS {
            let mut vanished = false;
            table.0.clear();
            let mut waiting = children_of_this_process()?;
            // Those that ended since are no reason to walk again.
            waiting.extend(beside.iter().filter(|pid| Process::read(**pid).is_some()));
            while let Some(pid) = waiting.pop() {
                if !beside.is_empty() && (pid == Pid::this() || table.iter().any(|known| known.pid == pid)) {
                    // One of them is a descendant of another, or we are.
                    continue;
                }
                let Some(process) = Process::find(pid)? else {
                    vanished = true;
                    continue;
                };
                match children(&process, &mut waiting) {
                    Err(error) if is_shortage(&error) => return Err(error),
                    // If it ended just now, its children were reparented, and it is then missing from the next walk.
                    _ => (),
                }
                table.0.push(process);
            }
            // A process that ends while its parent's list is being read can make the kernel skip its neighbour.
            if !vanished {
                break;
            }
        }
        Ok(table)
    }

    /// Read every process.
    pub(crate) fn scan() -> io::Result<Processes> {
        let own = Pid::this();
        let pids = sys::numbers_in("/proc")?.into_iter();
        let others = pids.map(Pid::from_raw).filter(|pid| *pid != own);
        others.filter_map(|pid| Process::find(pid).transpose()).collect()
    }

    /// Everything that has not ended of what `main` started: itself, its descendants, and the group it leads.
    ///
    /// `main` is in it too where /proc hides it: it is our child, and must not be overlooked.
    #[cfg(test)]
    pub(crate) fn members(&self, main: Pid) -> Vec<Pid> {
        let mut members = Members::of(main);
        members.learn(self, &[]);
        members.alive()
    }

    /// The children of `parent`: of this process, its generations' main processes and the orphans that were reparented
    /// to it.
    pub(crate) fn children(&self, parent: Pid) -> impl Iterator<Item = &Process> {
        self.0.iter().filter(move |process| process.parent == parent)
    }

    pub(crate) fn get(&self, pid: Pid) -> Option<&Process> {
        self.0.iter().find(|process| process.pid == pid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.0.iter()
    }

    /// The parent of `pid`, its parent, and so on, as far as they are in it.
    pub(crate) fn ancestors(&self, pid: Pid) -> impl Iterator<Item = &Process> {
        let parent = |process: &&Process| self.get(process.parent);
        std::iter::successors(self.get(pid).as_ref().and_then(parent), parent)
    }
}

/// Is /proc there, and does it have our processes by the numbers that we know them by?
///
/// # Errors
/// Why not even this process can be read; an empty mount point must not pass for a system without processes.
pub(crate) fn are_visible() -> io::Result<()> {
    // By the numbers of the PID namespace that it was mounted in.
    let own = fs::read_link("/proc/self")?;
    if own.as_os_str() != Pid::this().to_string().as_str() {
        return Err(io::Error::other("it is of another PID namespace"));
    }
    Ok(())
}

impl FromIterator<Process> for Processes {
    fn from_iter<I: IntoIterator<Item = Process>>(processes: I) -> Processes {
        Processes(processes.into_iter().collect())
    }
}

impl Process {
    /// The process of this number as it is now.
    pub(crate) fn read(pid: Pid) -> Option<Process> {
        Process::find(pid).ok().flatten()
    }

    /// The same.
    ///
    /// # Errors
    /// If descriptors or memory ran out, which shows nothing of the process.
    fn find(pid: Pid) -> io::Result<Option<Process>> {
        let mut line = [0; LINE];
        match File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut line)) {
            Ok(length) => Ok(Process::parse(pid, &line[..length])),
            Err(error) if is_shortage(&error) => Err(error),
            // It has ended or is hidden.
            Err(_) => Ok(None),
        }
    }

    /// One line of proc_pid_stat(5).
    fn parse(pid: Pid, line: &[u8]) -> Option<Process> {
        // The name in parentheses is the process' own choice, spaces, newlines and parentheses included.
        let name_end = line.iter().rposition(|byte| *byte == b')')?;
        let fields: Vec<&str> = str::from_utf8(&line[name_end + 1..]).ok()?.split_ascii_whitespace().collect();
        // 0 is the parent of the first process, and a group and session of another PID namespace.
        let number = |text: &str| text.parse().ok().filter(|number| *number >= 0).map(Pid::from_raw);
        // Numbers are those of proc_pid_stat(5), of which 3, the state, is the first behind the name.
        let field = |which: usize| fields.get(which - 3).copied();
        let threads = field(20)?.parse().ok()?;
        Some(Process {
            pid,
            parent: number(field(4)?)?,
            group: number(field(5)?)?,
            session: number(field(6)?)?,
            // A main thread that has ended alone leaves a process that runs.
            state: if matches!(field(3)?, "Z" | "X") && threads <= 1 {
                ProcessState::Zombie
            } else {
                ProcessState::Alive
            },
            threads,
            started: field(22)?.parse().ok()?,
        })
    }
}

/// Did descriptors or memory run out?
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

fn children_of_this_process() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    // Every thread has its own list; only in our tests there are several.
    for thread in sys::numbers_in("/proc/self/task")? {
        pids.extend(parse_children(&fs::read_to_string(format!("/proc/self/task/{thread}/children"))?));
    }
    Ok(pids)
}

/// Add the children of each thread of `process`.
fn children(process: &Process, pids: &mut Vec<Pid>) -> io::Result<()> {
    let pid = process.pid;
    if process.threads == 1 {
        pids.extend(parse_children(&fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?));
        return Ok(());
    }
    for thread in sys::numbers_in(&format!("/proc/{pid}/task"))? {
        // When a thread ends, its children go to another one.
        match fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")) {
            Ok(list) => pids.extend(parse_children(&list)),
            Err(error) if is_shortage(&error) => return Err(error),
            Err(_) => (),
        }
    }
    Ok(())
}

/// Was it stopped by a signal, so that it does nothing until SIGCONT?
pub(crate) fn is_stopped(pid: Pid) -> bool {
    sys::state_of(pid) == Some(b'T')
}

/// How long after the boot the clock had done so many ticks: proc_pid_stat(5), `starttime`.
pub(crate) fn since_boot(ticks: u64) -> Duration {
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().map_or(100, |ticks| ticks as u64);
    Duration::from_millis(ticks.saturating_mul(1000) / a_second)
}

/// The number of a process.
pub(crate) fn process_number(text: &str) -> Option<Pid> {
    text.parse().ok().filter(|number| *number > 0).map(Pid::from_raw)
}

fn parse_children(list: &str) -> impl Iterator<Item = Pid> {
    list.split_ascii_whitespace().filter_map(process_number)
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::kernel::testing::{Spawned, until};

    const TAIL: &[u8] = b"S 1 70 60 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 12 0 987654 1000 200 18446744073709551615";

    fn parsed(name: &[u8]) -> Option<Process> {
        Process::parse(Pid::from_raw(71), &[b"71 (", name, b") ", TAIL].concat())
    }

    #[test]
    fn a_main_thread_that_ended_alone_is_no_zombie() {
        let state = |threads: &str| {
            let line = format!("71 (x) Z 1 70 60 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 987654 1000");
            Process::parse(Pid::from_raw(71), line.as_bytes()).unwrap().state
        };
        assert_eq!(
            (state("2"), state("1"), state("0")),
            (ProcessState::Alive, ProcessState::Zombie, ProcessState::Zombie)
        );
    }

    #[test]
    fn a_stat_line_is_read_by_the_numbers_of_the_manual() {
        let expected = Process {
            pid: Pid::from_raw(71),
            parent: Pid::from_raw(1),
            group: Pid::from_raw(70),
            session: Pid::from_raw(60),
            state: ProcessState::Alive,
            threads: 12,
            started: 987654,
        };
        assert_eq!(parsed(b"nginx"), Some(expected));
    }

    #[test]
    fn a_name_may_hold_anything() {
        for name in [&b"a b"[..], b"a) Z 9 9 9", b"((", b")", b"a\nb", b"\xff\xfe", b""] {
            assert_eq!(parsed(name), parsed(b"nginx"), "{name:?}");
        }
    }

    // To kill(2), numbers below zero are groups, and -1 is everything.
    #[test]
    fn a_number_that_no_process_has_is_none() {
        let parsed = |numbers: &str| {
            let line = format!("71 (x) S {numbers} 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000");
            Process::parse(Pid::from_raw(71), line.as_bytes())
        };
        assert!(parsed("0 0 0").is_some());
        for numbers in ["-1 70 60", "1 -70 60", "1 70 -1", "1 70 2147483648"] {
            assert_eq!(parsed(numbers), None, "{numbers}");
        }
        assert_eq!(parse_children("12 -1 0 -2147483648 13 ").map(Pid::as_raw).collect::<Vec<_>>(), [12, 13]);
    }

    #[test]
    fn half_a_line_is_no_process() {
        let line = [b"71 (nginx) ", TAIL].concat();
        assert!((0..line.len() - 40).all(|length| Process::parse(Pid::from_raw(71), &line[..length]).is_none()));
    }

    #[test]
    fn a_process_that_ended_and_was_not_waited_for_is_a_zombie() {
        let mut child = Spawned::new(Command::new("true").stdin(Stdio::null()));
        until("the child has ended", || {
            Process::read(child.pid()).filter(|process| process.state == ProcessState::Zombie)
        });
        assert!(!Processes::read().unwrap().members(child.pid()).contains(&child.pid()));
        child.wait();
        assert_eq!(Process::read(child.pid()), None);
    }

    #[test]
    fn descendants_are_members_and_so_is_the_group_when_the_parent_has_gone() {
        // The inner shell ends at once, and its child, in the group of the outer one, is not a descendant of the outer
        // one.
        let script = "(sleep 100 & sleep 100 & exec sleep 0); exec sleep 100";
        let main = Spawned::new(Command::new("sh").args(["-c", script]));
        until("three members, two of them orphans", || {
            let table = Processes::scan().unwrap();
            let members = table.members(main.pid());
            let orphans = members.iter().filter(|pid| table.get(**pid).unwrap().parent != main.pid()).count();
            (members.len() == 3 && orphans == 3).then_some(())
        });
    }

    #[test]
    fn walking_and_scanning_find_the_same_descendants() {
        let main = Spawned::new(Command::new("sh").args(["-c", "sleep 100 & sleep 100"]));
        until("both find three", || {
            let mut walked = Processes::walk(&[]).unwrap().members(main.pid());
            let mut scanned = Processes::scan().unwrap().members(main.pid());
            walked.sort_unstable();
            scanned.sort_unstable();
            (walked == scanned && walked.len() == 3).then_some(())
        });
    }
}
