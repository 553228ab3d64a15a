//! Who has the sockets that are asked for, and which of them is to be succeeded.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use log::info;
use nix::poll::{PollTimeout, poll};
use nix::unistd::Pid;

use crate::failure::{Failure, Result};
use crate::kernel::accepting::observe;
use crate::kernel::descriptors::{self, SocketInode};
use crate::kernel::holders::{
    Holder, holders_of, is_generation, is_service_manager, name_of, own_ancestors, topmost, with_name,
};
use crate::kernel::processes::{Process, Processes};
use crate::kernel::socket_info::{States, UnixSocket};
use crate::kernel::sockets::unix_sockets;
use crate::socket::candidate::Candidate;
use crate::socket::endpoint::Endpoint;
use crate::socket::in_the_way::{bound_otherwise, bound_to};
use crate::socket::spec::split;
use crate::socket::takeover::predecessor::is_supervisor_name;
use crate::socket::takeover::{Found, Predecessor};

/// How often it is looked whether a generation accepts, and the time between in milliseconds.
const MOST_LOOKS: usize = 20;
const PAUSE: u8 = 50;

/// What is known of the processes that may have what is asked for.
#[derive(Debug, Default)]
pub(super) struct Survey {
    processes: Processes,
    pub(super) holders: Vec<Holder>,
    /// Those that may be copied from, and are never retired.
    spared: Vec<Pid>,
    /// Supervisors among them that have such a socket: they would start again what is retired below them.
    supervisors: Vec<Pid>,
    /// Some process has a socket there, shown to us or not.
    pub(super) is_held: bool,
}

/// The sockets that are what was asked for, and of them what was chosen for each.
pub(super) type Chosen = (Vec<SocketInode>, Vec<Option<Found>>);

impl Survey {
    /// Those of sockets that are in the way of these.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub(super) fn of(wanted: &[&[Endpoint]]) -> io::Result<Survey> {
        let mut inodes: Vec<SocketInode> = wanted.iter().copied().flatten().flat_map(bound_to).collect();
        inodes.sort_unstable();
        inodes.dedup();
        let (processes, holders) = holders_of(&inodes)?;
        let mut spared = own_ancestors(&processes);
        spared.extend(holders.iter().map(|holder| holder.process.pid).filter(|pid| is_service_manager(*pid)));
        spared.push(Pid::from_raw(1));
        let supervisors = holders.iter().map(|holder| holder.process.pid);
        let supervisors =
            supervisors.filter(|pid| spared.contains(pid) && is_supervisor_name(&name_of(*pid))).collect();
        Ok(Survey { processes, holders, spared, supervisors, is_held: !inodes.is_empty() })
    }

    /// The supervisor that has the sockets, or from which this process descends, if just one does.
    pub(super) fn supervisor(&self, below: Option<Pid>) -> Result<Option<Predecessor>> {
        let all: Vec<SocketInode> = self.holders.iter().flat_map(|holder| holder.sockets.iter().copied()).collect();
        let mut top = self.topmost_of(&all);
        top.retain(|holder| below.is_none_or(|pid| self.is_above(holder, pid)));
        let [holder] = top.as_slice() else { return Ok(None) };
        let process = Predecessor::of(holder.process.pid, Some(holder.process.started))?;
        Ok(process.filter(Predecessor::is_supervisor))
    }

    /// The sockets of a process that are what is asked for, with copies of them.
    pub(super) fn found(&self, holder: &Holder, process: &Predecessor, wanted: &[&[Endpoint]]) -> Result<Chosen> {
        let is_below = |other: &&Holder| other.process.pid != process.pid && self.is_above(holder, other.process.pid);
        let below: Vec<SocketInode> =
            self.holders.iter().filter(is_below).flat_map(|other| other.sockets.iter().copied()).collect();
        Ok(choose(process.copy(&holder.sockets)?, wanted, &below))
    }

    /// Those of the processes that have one of these and that may be retired which descend from no other.
    pub(super) fn topmost_of(&self, found: &[SocketInode]) -> Vec<&Holder> {
        let has_one = |holder: &&Holder| found.iter().any(|inode| holder.sockets.contains(inode));
        let may_be = |holder: &&Holder| {
            !self.spared.contains(&holder.process.pid) && self.spared_supervisor_of(holder.process.pid).is_none()
        };
        let holders: Vec<&Holder> = self.holders.iter().filter(has_one).filter(may_be).collect();
        topmost(&holders, &self.processes)
    }

    /// Is it this process, or does that descend from it?
    pub(super) fn is_above(&self, holder: &Holder, pid: Pid) -> bool {
        holder.process.pid == pid || self.processes.ancestors(pid).any(|above| above.pid == holder.process.pid)
    }

    /// The supervisor that is never retired, and started this process or what that descends from.
    fn spared_supervisor_of(&self, pid: Pid) -> Option<Pid> {
        let mut above = self.processes.ancestors(pid).map(|process| process.pid);
        above.find(|pid| self.supervisors.contains(pid))
    }

    /// It, unless it is one that is never retired, or that such a one would start again.
    pub(super) fn retirable(&self, process: Predecessor) -> Option<Predecessor> {
        if let Some(supervisor) = self.spared_supervisor_of(process.pid) {
            info!("{process} is not asked to stop: {} would start it again", with_name(supervisor));
            return None;
        }
        let is_spared = self.spared.contains(&process.pid) || is_service_manager(process.pid);
        if is_spared {
            info!("{process} is not asked to stop: it keeps sockets for others, or started this");
        }
        (!is_spared).then_some(process)
    }

    /// The path of a Unix socket that a process listens on alone: a supervisor's own, which its generations do not have.
    pub(super) fn control_socket(&self, process: &Predecessor) -> Option<PathBuf> {
        let is_below = |other: &&Process| self.processes.ancestors(other.pid).any(|above| above.pid == process.pid);
        let below: Vec<SocketInode> =
            self.processes.iter().filter(is_below).flat_map(|other| descriptors::sockets(other.pid)).collect();
        let own: Vec<SocketInode> = descriptors::sockets(process.pid).filter(|inode| !below.contains(inode)).collect();
        let mut listening = unix_sockets(States::LISTENING).unwrap_or_default();
        listening.retain(|socket| own.contains(&socket.inode) && !socket.name.starts_with(b"\0"));
        // A generation may have closed one that it was given.
        let wanted = control_option(process.pid);
        // A path that is too long for the kernel is bound by another one.
        let file_name = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let is_it =
            |socket: &UnixSocket| wanted.as_ref().is_none_or(|wanted| file_name(wanted) == file_name(&socket.name));
        let name = listening.into_iter().find(is_it)?;
        let path = PathBuf::from(OsString::from_vec(name.name));
        // It may be relative to where that process is, and the process may see other files than we do.
        Some(match path.strip_prefix("/") {
            Err(_) => Path::new(&format!("/proc/{}/cwd", process.pid)).join(path),
            Ok(_) if has_our_files(process.pid) => path,
            Ok(below) => Path::new(&format!("/proc/{}/root", process.pid)).join(below),
        })
    }

    /// Of generations that a supervisor left which was killed, the last one that accepts, and the others, which drain or never
    /// got ready.
    pub(super) fn last_generation<'a>(&self, several: &[&'a Holder]) -> Option<(&'a Holder, Vec<&'a Holder>)> {
        if !several.iter().all(|holder| is_generation(holder.process.pid)) {
            return None;
        }
        let mut in_order = several.to_vec();
        in_order.sort_by_key(|holder| Reverse(holder.process.started));
        let (youngest, older) = in_order.split_first()?;
        // It may be busy at a moment.
        let is_sound = older.is_empty()
            || (0..MOST_LOOKS).any(|_| {
                self.accepts(youngest) || {
                    let _ = poll(&mut [], PollTimeout::from(PAUSE));
                    false
                }
            });
        let last =
            if is_sound { youngest } else { older.iter().find(|holder| self.accepts(holder)).unwrap_or(youngest) };
        let others = several.iter().copied().filter(|other| other.process.pid != last.process.pid);
        Some((last, others.collect()))
    }

    /// Is it, or what descends from it, seen to wait for clients?
    fn accepts(&self, holder: &Holder) -> bool {
        let members = self.holders.iter().map(|other| other.process.pid).filter(|pid| self.is_above(holder, *pid));
        let seen = observe(&members.collect::<Vec<_>>(), &holder.sockets);
        // What cannot be seen is taken to.
        !seen.evidence.is_empty() || seen.obstacle.is_some()
    }

    /// A supervisor of another user that has it, which /proc does not show: it would start it again.
    ///
    /// # Errors
    /// That, with what to do.
    pub(super) fn ensure_unsupervised(&self, process: &Predecessor) -> Result<()> {
        let is_hidden = |pid: Pid| fs::read_dir(format!("/proc/{pid}/fd")).is_err();
        let supervisor = |above: &&Process| is_supervisor_name(&name_of(above.pid)) && is_hidden(above.pid);
        let Some(above) = self.processes.ancestors(process.pid).find(supervisor) else { return Ok(()) };
        let error =
            anyhow!("cannot take over from {process}: {} supervises it, which is another user's", with_name(above.pid));
        Err(Failure::from(error).remedy(Some("run it as that user, or as root".to_owned())))
    }

    /// That the process that was named has none of what is asked for, and which has one.
    pub(super) fn without_socket(&self, named: &Predecessor, wanted: &[&[Endpoint]]) -> Failure {
        let itself = self.holders.iter().find(|holder| holder.process.pid == named.pid);
        let below = self
            .holders
            .iter()
            .find(|holder| self.processes.ancestors(holder.process.pid).any(|above| above.pid == named.pid));
        let remedy = itself.or(below).or(self.holders.first()).and_then(|holder| {
            let pid = holder.process.pid;
            let elsewhere = wanted.iter().flat_map(|endpoints| bound_otherwise(endpoints, &holder.sockets)).next();
            match elsewhere {
                Some(spec) if pid == named.pid => Some(format!("it listens on {spec}: --listen {spec}")),
                Some(spec) => Some(format!("{} listens on {spec}: --listen {spec} --from {pid}", with_name(pid))),
                // What it has there is no listener, or takes IPv4 otherwise than is asked for.
                None if pid == named.pid => None,
                None => Some(format!("{} has one: --from {pid}", with_name(pid))),
            }
        });
        Failure::from(anyhow!("cannot take over from {named}: it has no socket at that address")).remedy(remedy)
    }

    pub(super) fn spared_only(&self) -> Failure {
        if let [supervisor, ..] = self.supervisors.as_slice() {
            return self.spared_supervisor(*supervisor);
        }
        let holder = self.holders.iter().find(|holder| self.spared.contains(&holder.process.pid));
        let pid = holder.map_or(Pid::from_raw(1), |holder| holder.process.pid);
        let who = with_name(pid);
        let error = anyhow!("cannot take over by --from auto: only {who} has the socket, which is not retired");
        Failure::from(error).remedy(Some(format!("--from {pid} takes a copy of its socket")))
    }

    fn spared_supervisor(&self, supervisor: Pid) -> Failure {
        let control =
            Predecessor::of(supervisor, None).ok().flatten().and_then(|process| self.control_socket(&process));
        let request = control.map_or("SIGHUP".to_owned(), |path| format!("--reload {}", path.display()));
        let who = with_name(supervisor);
        let error =
            anyhow!("cannot take over by --from auto: {who} supervises what has the socket, and is never retired");
        Failure::from(error).remedy(Some(format!("its next generation is started by {request}")))
    }
}

/// For each that is asked for, those of the copies that are what bind(2) would have made: first one that a process below
/// has, too, for a supervisor has further ones.
pub(super) fn choose(mut copies: Vec<Candidate>, wanted: &[&[Endpoint]], below: &[SocketInode]) -> Chosen {
    let mut all = Vec::new();
    let mut chosen: Vec<Option<Found>> = Vec::new();
    for (at, endpoints) in wanted.iter().enumerate() {
        let first = endpoints.iter().find(|endpoint| copies.iter().any(|copy| copy.is_at(endpoint)));
        let fits = |copy: &mut Candidate| first.is_some_and(|endpoint| copy.is_at(endpoint));
        let mut fitting: Vec<Candidate> = copies.extract_if(.., fits).collect();
        fitting.sort_by_key(|copy| !below.contains(&SocketInode(copy.inode)));
        if wanted[at + 1..].contains(endpoints) {
            // One for each.
            copies.splice(0..0, fitting.drain(fitting.len().min(1)..));
        }
        all.extend(fitting.iter().map(|copy| SocketInode(copy.inode)));
        let mut fitting = fitting.into_iter();
        let found = fitting.next().map(|socket| Found { socket, also: fitting.map(|copy| copy.fd).collect() });
        chosen.push(found);
    }
    (all, chosen)
}

/// That nobody who has the address is shown.
pub(super) fn hidden() -> Failure {
    let error = anyhow!("cannot take over by --from auto: /proc does not show this user who has the address");
    Failure::from(error).remedy(Some("run it as the user of that process, or as root".to_owned()))
}

/// That it is not clear who is meant.
pub(super) fn several_hold(several: &[&Holder]) -> Failure {
    if let Some(other) = several.iter().find(|holder| is_supervisor_name(&name_of(holder.process.pid))) {
        let who = with_name(other.process.pid);
        let error =
            anyhow!("cannot take over by --from auto: {who} has the address, too, as while it leads another takeover");
        return Failure::from(error).remedy(Some("try again when that is over, or name the one to succeed".to_owned()));
    }
    let names: Vec<String> = several.iter().map(|holder| with_name(holder.process.pid)).collect();
    let error = anyhow!("cannot take over by --from auto: {} have the address", names.join(" and "));
    let pid = several[0].process.pid;
    Failure::from(error).remedy(Some(format!("name the one to succeed, as --from {pid}; the other is left as it is")))
}

/// The path behind `--control` on its line, where that can be read.
fn control_option(supervisor: Pid) -> Option<Vec<u8>> {
    control_in(&fs::read(format!("/proc/{supervisor}/cmdline")).ok()?)
}

/// The same of the arguments, each with a NUL behind it: proc_pid_cmdline(5).
fn control_in(line: &[u8]) -> Option<Vec<u8>> {
    let mut words = line.split(|byte| *byte == 0).take_while(|word| word != b"--");
    let value = words.find_map(|word| match word.strip_prefix(b"--control") {
        Some(b"") => Some(None),
        Some([b'=', value @ ..]) => Some(Some(value)),
        _ => None,
    })?;
    split(value.or_else(|| words.next())?).into_iter().next()
}

/// Does it see the files that we see?
fn has_our_files(process: Pid) -> bool {
    let seen = |process: &str| {
        let link = |name: &str| fs::read_link(format!("/proc/{process}/{name}")).ok();
        (link("ns/mnt"), link("root"))
    };
    seen(&process.to_string()) == seen("self")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_socket_is_what_is_behind_the_option_of_the_supervisor_s_line() {
        let found =
            |line: &str| control_in(line.replace(' ', "\0").as_bytes()).map(|path| String::from_utf8(path).unwrap());
        assert_eq!(found("handoff-run --supervise --control c.sock,mode=0660 -l :80 -- x "), Some("c.sock".into()));
        assert_eq!(found(r"handoff-run --control /run/a\,b,mode=0600 -- x "), Some("/run/a,b".into()));
        assert_eq!(found("handoff-run --control=/run/c -- x --control other "), Some("/run/c".into()));
        for none in ["handoff-run -l :80 -- x --control other ", "handoff-run --control-x c ", "", "x --control"] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
