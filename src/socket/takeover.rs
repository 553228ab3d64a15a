//! Take sockets over from a process that serves with them, which need not know: by pidfd_open(2) and pidfd_getfd(2).
//!
//! Here nothing is changed and nothing signalled. What is decided by the kernel is which sockets they are; the process is
//! named by the user, and is held by a pidfd from the first look.

mod claim;
mod lent;
mod predecessor;
mod who;

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Error, anyhow};
use log::info;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::failure::{Failure, Result};
use crate::kernel::descriptors::{self, ForeignFd, Kind, SocketInode};
use crate::kernel::holders::{
    Holder, holders_of, is_generation, is_service_manager, own_ancestors, topmost, with_name,
};
use crate::kernel::processes::{Process, Processes};
use crate::kernel::socket_info::States;
use crate::kernel::sockets::unix_sockets;
use crate::socket::candidate::Candidate;
use crate::socket::endpoint::Endpoint;
use crate::socket::in_the_way::bound_to;
use crate::sys;
pub(crate) use claim::Claim;
pub(crate) use lent::{Lent, LentGroup, Loan};
pub(crate) use predecessor::{Lender, Predecessor};
pub(crate) use who::Who;

/// What was found to be taken over.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The process that is to be retired, if it is one that may be.
    pub(crate) predecessor: Option<Predecessor>,
    /// What was found for each that was asked for, where there is something.
    pub(crate) sockets: Vec<Option<Found>>,
}

/// A socket of another process.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) socket: Candidate,
    /// Further ones of it at the same address (SO_REUSEPORT).
    pub(crate) also: Vec<OwnedFd>,
}

/// The sockets that are what was asked for, and of them what was chosen for each.
type Chosen = (Vec<SocketInode>, Vec<Option<Found>>);

/// What is known of the processes that may have what is asked for.
struct Survey {
    processes: Processes,
    holders: Vec<Holder>,
    /// Those that may be copied from, and are never retired.
    spared: Vec<Pid>,
}

/// The sockets of `who` that serve at these endpoints, of which one is enough for each that is asked for; nothing if nobody
/// is there.
pub(crate) fn take(who: &Who, wanted: &[&[Endpoint]]) -> Result<Taken> {
    let named = match who {
        Who::Auto => None,
        who => match who.process()? {
            None => return Ok(Taken::nothing(wanted)),
            Some(predecessor) => Some(predecessor),
        },
    };
    let mut inodes: Vec<SocketInode> = wanted.iter().copied().flatten().flat_map(bound_to).collect();
    inodes.sort_unstable();
    inodes.dedup();
    let survey = Survey::of(&inodes).map_err(|error| Error::new(error).context(format!("cannot look for {who}")))?;
    match named {
        Some(named) => take_from(named, wanted, &survey),
        None => take_from_holder(wanted, &inodes, &survey),
    }
}

/// Where the supervisor takes requests that is to be succeeded, if `who` is one that does.
pub(crate) fn control_of(who: &Who, wanted: &[&[Endpoint]]) -> Result<Option<PathBuf>> {
    if let Who::File(path) = who
        && fs::metadata(path).is_ok_and(|file| file.file_type().is_socket())
    {
        return Ok(Some(path.clone()));
    }
    let inodes: Vec<SocketInode> = wanted.iter().copied().flatten().flat_map(bound_to).collect();
    // Where /proc cannot be read, that is reported when it is needed.
    let Ok(survey) = Survey::of(&inodes) else { return Ok(None) };
    let named = who.process()?.map(|process| process.pid);
    let mut top = survey.topmost_of(&inodes);
    top.retain(|holder| named.is_none_or(|pid| survey.is_above(holder, pid)));
    let [holder] = top.as_slice() else { return Ok(None) };
    let process = Predecessor::of(holder.process.pid, Some(holder.process.started))?;
    Ok(process.filter(Predecessor::is_supervisor).and_then(|process| survey.control_socket(&process)))
}

impl Taken {
    fn nothing(wanted: &[&[Endpoint]]) -> Taken {
        Taken { predecessor: None, sockets: wanted.iter().map(|_| None).collect() }
    }
}

/// Take them from the process that the user named, or from the one above it that had them first.
fn take_from(named: Predecessor, wanted: &[&[Endpoint]], survey: &Survey) -> Result<Taken> {
    let of_named = survey.holders.iter().find(|holder| holder.process.pid == named.pid);
    let (found, copies) = match of_named {
        Some(holder) => survey.found(holder, &named, wanted)?,
        // It may be of another network namespace, whose sockets are not listed for us.
        None => named.copy_all(wanted)?,
    };
    if found.is_empty() {
        return Err(survey.without_socket(&named));
    }
    let above = survey.topmost_of(&found).into_iter().find(|holder| survey.is_above(holder, named.pid));
    let predecessor = match above {
        Some(holder) if holder.process.pid != named.pid => {
            Predecessor::of(holder.process.pid, Some(holder.process.started))?
        }
        _ => Some(named),
    };
    let Some(predecessor) = predecessor else { return Ok(Taken::nothing(wanted)) };
    Ok(Taken { predecessor: survey.retirable(predecessor), sockets: copies })
}

/// Take them from whoever has them.
fn take_from_holder(wanted: &[&[Endpoint]], inodes: &[SocketInode], survey: &Survey) -> Result<Taken> {
    let mut all: Vec<SocketInode> = Vec::new();
    let mut first_error = None;
    for holder in &survey.holders {
        let Some(process) = Predecessor::of(holder.process.pid, Some(holder.process.started))? else { continue };
        match survey.found(holder, &process, wanted) {
            Ok((found, _)) => all.extend(found),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    if all.is_empty() {
        // What is in the way and is not what was asked for is an error of bind(2), which says so.
        return match first_error {
            Some(error) => Err(error),
            None if survey.holders.is_empty() && !inodes.is_empty() => Err(hidden()),
            None => Ok(Taken::nothing(wanted)),
        };
    }
    let top = survey.topmost_of(&all);
    let (holder, earlier) = match top.as_slice() {
        [] => return Err(survey.spared_only()),
        [holder] => (*holder, vec![]),
        several => last_generation(several).ok_or_else(|| several_hold(several))?,
    };
    let Some(mut predecessor) = Predecessor::of(holder.process.pid, Some(holder.process.started))? else {
        return Ok(Taken::nothing(wanted));
    };
    for other in earlier {
        predecessor.earlier.extend(Predecessor::of(other.process.pid, Some(other.process.started))?);
    }
    let (_, sockets) = survey.found(holder, &predecessor, wanted)?;
    Ok(Taken { predecessor: Some(predecessor), sockets })
}

impl Survey {
    fn of(inodes: &[SocketInode]) -> std::io::Result<Survey> {
        let (processes, holders) = holders_of(inodes)?;
        let mut spared = own_ancestors(&processes);
        spared.extend(holders.iter().map(|holder| holder.process.pid).filter(|pid| is_service_manager(*pid)));
        spared.push(Pid::from_raw(1));
        Ok(Survey { processes, holders, spared })
    }

    /// The sockets of a process that are what is asked for, with copies of them.
    fn found(&self, holder: &Holder, process: &Predecessor, wanted: &[&[Endpoint]]) -> Result<Chosen> {
        let is_below = |other: &&Holder| other.process.pid != process.pid && self.is_above(holder, other.process.pid);
        let below: Vec<SocketInode> =
            self.holders.iter().filter(is_below).flat_map(|other| other.sockets.iter().copied()).collect();
        Ok(choose(process.copy(&holder.sockets)?, wanted, &below))
    }

    /// Those of the processes that have one of these and that may be retired which descend from no other.
    fn topmost_of(&self, found: &[SocketInode]) -> Vec<&Holder> {
        let has_one = |holder: &&Holder| found.iter().any(|inode| holder.sockets.contains(inode));
        let may_be = |holder: &&Holder| !self.spared.contains(&holder.process.pid);
        let holders: Vec<&Holder> = self.holders.iter().filter(has_one).filter(may_be).collect();
        topmost(&holders, &self.processes)
    }

    /// Is it this process, or does that descend from it?
    fn is_above(&self, holder: &Holder, pid: Pid) -> bool {
        holder.process.pid == pid || self.processes.ancestors(pid).any(|above| above.pid == holder.process.pid)
    }

    /// It, unless it is one that is never retired.
    fn retirable(&self, process: Predecessor) -> Option<Predecessor> {
        let is_spared = self.spared.contains(&process.pid) || is_service_manager(process.pid);
        if is_spared {
            info!("{process} is not asked to stop: it keeps sockets for others, or started this");
        }
        (!is_spared).then_some(process)
    }

    /// The path of a Unix socket that a process listens on alone: a supervisor's own, which its generations do not have.
    fn control_socket(&self, process: &Predecessor) -> Option<PathBuf> {
        let is_below = |other: &&Process| self.processes.ancestors(other.pid).any(|above| above.pid == process.pid);
        let below: Vec<SocketInode> =
            self.processes.iter().filter(is_below).flat_map(|other| descriptors::sockets(other.pid)).collect();
        let own: Vec<SocketInode> = descriptors::sockets(process.pid).filter(|inode| !below.contains(inode)).collect();
        let listening = unix_sockets(States::LISTENING).unwrap_or_default();
        let name =
            listening.into_iter().find(|socket| own.contains(&socket.inode) && !socket.name.starts_with(b"\0"))?;
        let path = PathBuf::from(OsString::from_vec(name.name));
        // It may be relative to where that process is.
        Some(Path::new(&format!("/proc/{}/cwd", process.pid)).join(path))
    }

    fn without_socket(&self, named: &Predecessor) -> Failure {
        let below = self
            .holders
            .iter()
            .find(|holder| self.processes.ancestors(holder.process.pid).any(|above| above.pid == named.pid));
        let other = below.or(self.holders.first());
        let remedy = other.map(|holder| {
            let pid = holder.process.pid;
            format!("{} has one: --from {pid}", with_name(pid))
        });
        Failure::from(anyhow!("cannot take over from {named}: it has no socket at that address")).remedy(remedy)
    }

    fn spared_only(&self) -> Failure {
        let holder = self.holders.iter().find(|holder| self.spared.contains(&holder.process.pid));
        let pid = holder.map_or(Pid::from_raw(1), |holder| holder.process.pid);
        let who = with_name(pid);
        let error = anyhow!("cannot take over by --from auto: only {who} has the socket, which is not retired");
        Failure::from(error).remedy(Some(format!("--from {pid} takes a copy of its socket")))
    }
}

/// For each that is asked for, those of the copies that are what bind(2) would have made: first one that a process below
/// has, too, for a supervisor has further ones.
fn choose(mut copies: Vec<Candidate>, wanted: &[&[Endpoint]], below: &[SocketInode]) -> Chosen {
    let mut all = Vec::new();
    let mut chosen: Vec<Option<Found>> = Vec::new();
    for endpoints in wanted {
        let first = endpoints.iter().find(|endpoint| copies.iter().any(|copy| copy.is_at(endpoint)));
        let fits = |copy: &mut Candidate| first.is_some_and(|endpoint| copy.is_at(endpoint));
        let mut fitting: Vec<Candidate> = copies.extract_if(.., fits).collect();
        all.extend(fitting.iter().map(|copy| SocketInode(copy.inode)));
        fitting.sort_by_key(|copy| !below.contains(&SocketInode(copy.inode)));
        let mut fitting = fitting.into_iter();
        let found = fitting.next().map(|socket| Found { socket, also: fitting.map(|copy| copy.fd).collect() });
        chosen.push(found);
    }
    (all, chosen)
}

impl Predecessor {
    /// Copies of these of its sockets, each once.
    fn copy(&self, inodes: &[SocketInode]) -> Result<Vec<Candidate>> {
        self.copy_if(|inode| inodes.contains(&inode))
    }

    /// The same of all that it has.
    fn copy_all(&self, wanted: &[&[Endpoint]]) -> Result<Chosen> {
        let is_elsewhere = !self.is_of_our_network();
        Ok(choose(self.copy_if(|_| is_elsewhere)?, wanted, &[]))
    }

    fn copy_if(&self, is_wanted: impl Fn(SocketInode) -> bool) -> Result<Vec<Candidate>> {
        let open = descriptors::descriptors(self.pid).map_err(|error| self.refused(crate::failure::plain(error)))?;
        let mut copies: Vec<Candidate> = Vec::new();
        for (number, kind) in open {
            let Kind::Socket(inode) = kind else { continue };
            if !is_wanted(inode) || copies.iter().any(|copy| copy.inode == inode.0) {
                continue;
            }
            copies.extend(self.copy_one(number, inode).map_err(|errno| self.refused(errno.into()))?);
        }
        Ok(copies)
    }

    /// A copy, if it still has this socket there.
    fn copy_one(&self, number: ForeignFd, inode: SocketInode) -> nix::Result<Option<Candidate>> {
        let copy: OwnedFd = match sys::pidfd_getfd(&self.pidfd, number.0) {
            // It has closed it since, or ended.
            Err(Errno::EBADF | Errno::ESRCH) => return Ok(None),
            copy => copy?,
        };
        let Ok(kind) = sys::option(&copy, libc::SOL_SOCKET, libc::SO_TYPE) else {
            sys::close_in_time(copy);
            return Ok(None);
        };
        let candidate = Candidate::inspect(copy, kind)?;
        if candidate.inode != inode.0 || !candidate.serves {
            // Not the one that was listed, or a connection.
            sys::close_in_time(candidate.fd);
            return Ok(None);
        }
        Ok(Some(Candidate { number: number.0, ..candidate }))
    }

    /// Its sockets cannot be copied.
    fn refused(&self, error: Error) -> Failure {
        let remedy = match error.downcast_ref() {
            Some(Errno::EPERM | Errno::EACCES) => Some(
                "that needs the same user and, where kernel.yama.ptrace_scope is not 0, CAP_SYS_PTRACE; a supervisor's \
                 control socket as --from needs neither",
            ),
            Some(Errno::ENOSYS) => {
                Some("that needs pidfd_getfd(2): Linux 5.6, and a filter of system calls that lets it pass")
            }
            _ => None,
        };
        Failure::from(error.context(format!("cannot take over from {self}"))).remedy(remedy.map(str::to_owned))
    }
}

/// Of generations that a supervisor left which was killed, the last one, and the others, which drain.
fn last_generation<'a>(several: &[&'a Holder]) -> Option<(&'a Holder, Vec<&'a Holder>)> {
    if !several.iter().all(|holder| is_generation(holder.process.pid)) {
        return None;
    }
    let last = several.iter().copied().max_by_key(|holder| holder.process.started)?;
    let others = several.iter().copied().filter(|other| other.process.pid != last.process.pid);
    Some((last, others.collect()))
}

fn hidden() -> Failure {
    let error = anyhow!("cannot take over by --from auto: /proc does not show this user who has the address");
    Failure::from(error).remedy(Some("run it as the user of that process, or as root".to_owned()))
}

fn several_hold(several: &[&Holder]) -> Failure {
    let names: Vec<String> = several.iter().map(|holder| with_name(holder.process.pid)).collect();
    let error = anyhow!("cannot take over by --from auto: {} have the address", names.join(" and "));
    let pid = several[0].process.pid;
    Failure::from(error).remedy(Some(format!("name the one to succeed, as --from {pid}; the other is left as it is")))
}
