//! All sockets of a supervisor in a state that it leaves: to the program that takes its place, or in the service manager's
//! store to the next start.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::saved;
use crate::socket::group::SavedGroup;
use crate::socket::interception::Versions;
use crate::socket::listener::SavedListener;

/// The sockets in a state that is handed on.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SavedSockets {
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) listeners: Vec<SavedListener>,
    /// What belongs to some of those listeners.
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) steered: Vec<SavedGroup>,
    #[serde(deserialize_with = "saved::lenient")]
    pub(crate) beside: Vec<SavedListener>,
    /// Whether the IP versions of each listener are still to be chosen.
    pub(crate) versions: Vec<Versions>,
    /// The SPEC of each listener.
    pub(crate) spec_of: Vec<usize>,
    /// Slots that generations of a supervisor have which is succeeded.
    pub(crate) reserved: Vec<usize>,
    /// None: everything that is not taken.
    pub(crate) others: Option<Vec<RawFd>>,
    /// In the service manager's store the sockets are known by their inodes, since their numbers change.
    pub(crate) inodes: Vec<(usize, RawFd)>,
}
