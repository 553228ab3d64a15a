//! Take sockets over from a process that serves with them, which need not know: by pidfd_open(2) and pidfd_getfd(2).
//!
//! Here nothing is changed and nothing signalled. What is decided by the kernel is which sockets they are; the process is
//! named by the user, and is held by a pidfd from the first look.

mod claim;
mod copy;
mod lent;
mod predecessor;
mod survey;
mod who;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::Error;
use log::info;

use crate::failure::Result;
use crate::kernel::descriptors::SocketInode;
use crate::socket::candidate::Candidate;
use crate::socket::endpoint::Endpoint;
pub(crate) use claim::{Claim, SavedClaim};
pub(crate) use lent::{Lent, LentGroup, Loan};
pub(crate) use predecessor::{Lender, Predecessor, is_supervisor_name};
use survey::{Survey, hidden, several_hold};
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

/// The processes that may have what is asked for.
#[derive(Debug)]
pub(crate) struct Search {
    named: Named,
    survey: Survey,
}

/// The process that the user named.
#[derive(Debug)]
enum Named {
    /// Whoever has the sockets.
    Nobody,
    Process(Predecessor),
    /// It is not there.
    Gone,
    /// A supervisor, by where it takes requests.
    Supervisor(PathBuf),
}

/// Where a supervisor takes requests, and which it is, if it was found by its process.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) path: PathBuf,
    pub(crate) process: Option<Predecessor>,
}

impl Search {
    /// Look for `who`, and for whoever has sockets that may be these.
    ///
    /// # Errors
    /// If a pid file is none, or of somebody who may not name that process; if /proc cannot be read.
    pub(crate) fn begin(who: &Who, wanted: &[&[Endpoint]]) -> Result<Search> {
        let named = match who {
            Who::Auto => Named::Nobody,
            Who::File(path) if fs::metadata(path).is_ok_and(|file| file.file_type().is_socket()) => {
                Named::Supervisor(path.clone())
            }
            who => who.process()?.map_or(Named::Gone, Named::Process),
        };
        if matches!(named, Named::Gone) {
            report_nobody(who);
        }
        let survey = match named {
            // Nobody is looked for.
            Named::Gone | Named::Supervisor(_) => Survey::default(),
            _ => Survey::of(wanted).map_err(|error| Error::new(error).context(format!("cannot look for {who}")))?,
        };
        Ok(Search { named, survey })
    }

    /// Where the supervisor takes requests that is to be succeeded, if it is one that does.
    ///
    /// # Errors
    /// If its process cannot be opened.
    pub(crate) fn control(&self) -> Result<Option<Control>> {
        let below = match &self.named {
            Named::Supervisor(path) => return Ok(Some(Control { path: path.clone(), process: None })),
            Named::Gone => return Ok(None),
            Named::Nobody => None,
            Named::Process(process) => Some(process.pid),
        };
        let Some(process) = self.survey.supervisor(below)? else { return Ok(None) };
        let path = self.survey.control_socket(&process);
        Ok(path.map(|path| Control { path, process: Some(process) }))
    }

    /// The sockets that serve at these endpoints, of which one is enough for each that is asked for; nothing if nobody is
    /// there.
    pub(crate) fn take(self, wanted: &[&[Endpoint]]) -> Result<Taken> {
        match self.named {
            Named::Nobody => take_from_holder(wanted, &self.survey),
            Named::Process(named) => take_from(named, wanted, &self.survey),
            Named::Gone | Named::Supervisor(_) => Ok(Taken::nothing(wanted)),
        }
    }
}

/// Whoever is named is not there.
pub(crate) fn report_nobody(who: &Who) {
    info!("{who}: nobody is there, the sockets are bound");
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
        return Err(survey.without_socket(&named, wanted));
    }
    let above = survey.topmost_of(&found).into_iter().find(|holder| survey.is_above(holder, named.pid));
    let predecessor = match above {
        Some(holder) if holder.process.pid != named.pid => {
            Predecessor::of(holder.process.pid, Some(holder.process.started))?
        }
        _ => Some(named),
    };
    let Some(predecessor) = predecessor else { return Ok(Taken::nothing(wanted)) };
    survey.ensure_unsupervised(&predecessor)?;
    Ok(Taken { predecessor: survey.retirable(predecessor), sockets: copies })
}

/// Take them from whoever has them.
fn take_from_holder(wanted: &[&[Endpoint]], survey: &Survey) -> Result<Taken> {
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
            None if survey.holders.is_empty() && survey.is_held => Err(hidden()),
            None => Ok(Taken::nothing(wanted)),
        };
    }
    let top = survey.topmost_of(&all);
    let (holder, earlier) = match top.as_slice() {
        [] => return Err(survey.spared_only()),
        [holder] => (*holder, vec![]),
        several => survey.last_generation(several).ok_or_else(|| several_hold(several))?,
    };
    let Some(mut predecessor) = Predecessor::of(holder.process.pid, Some(holder.process.started))? else {
        return Ok(Taken::nothing(wanted));
    };
    survey.ensure_unsupervised(&predecessor)?;
    for other in earlier {
        predecessor.earlier.extend(Predecessor::of(other.process.pid, Some(other.process.started))?);
    }
    let (_, sockets) = survey.found(holder, &predecessor, wanted)?;
    Ok(Taken { predecessor: Some(predecessor), sockets })
}
