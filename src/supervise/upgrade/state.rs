//! What a supervisor leaves to the one that takes its place, as JSON in a memfd.
//!
//! A release takes over from the one before it and the other way round: what is missing has a default, what is unknown
//! is ignored, and only what `needs` names must be understood.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::failure::plain;
use crate::saved::{self, SavedPath};
use crate::socket::saved_sockets::SavedSockets;
use crate::socket::takeover::SavedClaim;
use crate::supervise::control::server::SavedClients;
use crate::supervise::generation::SavedGeneration;
use crate::supervise::plan::{Id, Plan};
use crate::supervise::signals::SavedSignals;
use crate::sys::{self, FIRST_FD, Timestamp};

/// What this version understands of `needs`.
const UNDERSTOOD: [&str; 3] = [SLOTS, NOTIFIERS, FOREIGN];
/// Sockets are steered: one for each generation.
pub(crate) const SLOTS: &str = "slots";
/// Generations wait for an answer to their bind(2)s.
pub(crate) const NOTIFIERS: &str = "notifiers";

/// A generation is somebody else's, which may not be signalled by its group.
pub(crate) const FOREIGN: &str = "foreign";

/// Everything that cannot be determined anew. What each part saves is defined in its file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// The process whose state it is.
    pub(crate) pid: i32,
    /// What a program has to understand to take over.
    #[serde(default)]
    pub(crate) needs: Vec<String>,
    /// A probe has every descriptor that is named here, too.
    #[serde(default)]
    pub(crate) probe_has_descriptors: bool,
    /// Where the program is looked for.
    #[serde(default)]
    pub(crate) program: SavedPath,
    /// The working directory by its name.
    #[serde(default)]
    pub(crate) directory: Option<SavedPath>,
    #[serde(default)]
    pub(crate) signals: SavedSignals,
    /// There is a controlling terminal.
    #[serde(default)]
    pub(crate) terminal: bool,
    pub(crate) sockets: SavedSockets,
    #[serde(default)]
    pub(crate) control: SavedClients,
    pub(crate) plan: Plan,
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) generations: Vec<SavedGeneration>,
    #[serde(default)]
    pub(crate) last_failure: Option<String>,
    #[serde(default)]
    pub(crate) last_failure_at: Option<Timestamp>,
    /// The first generation of `plan.reloads.asked`, for versions without that.
    #[serde(default)]
    pub(crate) asked: Option<Id>,
    /// The pid file was written.
    #[serde(default)]
    pub(crate) pid_file: bool,
    /// What was in it before, if that is text.
    #[serde(default)]
    pub(crate) pid_file_before: Option<String>,
    /// The descriptor of what the service manager stores beside the sockets.
    #[serde(default)]
    pub(crate) store: Option<RawFd>,
    /// What it has, each as its inode and its name.
    #[serde(default)]
    pub(crate) stored: Vec<String>,
    /// The right to take over from the predecessor.
    #[serde(default)]
    pub(crate) claim: Option<SavedClaim>,
}

impl State {
    /// Write it to a memfd, close-on-exec.
    pub(crate) fn write(&self) -> Result<OwnedFd> {
        let memory = memfd_create(c"handoff-run", MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?;
        let mut file = File::from(sys::duplicate_from(&memory, FIRST_FD)?);
        let text = serde_json::to_string(self).context("cannot write the state")?;
        file.write_all(text.as_bytes()).map_err(plain).context("cannot write the state")?;
        Ok(memory)
    }

    /// Read it; a probe before us may have read the file to its end.
    ///
    /// # Errors
    /// If it is no state, or needs something that this version does not understand.
    pub(crate) fn read(memory: OwnedFd) -> Result<State> {
        let mut file = File::from(memory);
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text).context("cannot read the predecessor's state")?;
        let state: State = saved::parse(text.as_bytes()).context("cannot parse the predecessor's state")?;
        if let Some(need) = state.needs.iter().find(|need| !UNDERSTOOD.contains(&need.as_str())) {
            bail!("the predecessor's state needs {need}, which this version does not understand");
        }
        Ok(state)
    }
}
