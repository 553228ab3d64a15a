//! How far a generation is: it starts, is on trial, serves, stands by or drains.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Id;
use crate::config::Rollout;
use crate::sys::Timestamp;

/// A generation is new until it was ready for this long: what it does on becoming ready is done then.
const NEW: Duration = Duration::from_secs(1);

/// Why a generation was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    /// It is the first: if it fails, all fails.
    First,
    /// The one that served has ended: if this one fails, it is tried again.
    Restart,
    /// A new one was asked for: if it fails, the one that serves stays.
    #[default]
    #[serde(other)]
    Reload,
}

/// A generation that gets ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Starting {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) cause: Cause,
    #[serde(default = "never")]
    pub(crate) deadline: Timestamp,
    /// How it is to take over when it is ready.
    #[serde(default)]
    pub(crate) rollout: Rollout,
}

/// A generation that gets a share of the new connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) id: Id,
    /// The stages that are left, the present one first.
    #[serde(default)]
    pub(crate) rollout: Rollout,
    /// Since when it is ready.
    #[serde(default)]
    pub(super) since: Timestamp,
    /// When the stage ends, or, while it is checked, when the check has to have ended.
    #[serde(default = "never")]
    pub(crate) until: Timestamp,
    /// The check at the end of the stage runs.
    #[serde(default)]
    pub(crate) is_checked: bool,
}

impl Trial {
    /// The percentage that it gets now.
    pub(crate) fn percent(&self) -> u8 {
        self.rollout.stages.first().map_or(0, |stage| stage.percent)
    }

    pub(super) fn new_until(&self) -> Timestamp {
        self.since + NEW
    }
}

/// The generation that served before, and serves again if its successor fails before it has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) id: Id,
    /// Since when it served.
    #[serde(default)]
    pub(crate) since: Timestamp,
    /// Since when it gets no new connections.
    #[serde(default)]
    pub(super) relieved: Timestamp,
    /// When its successor has settled.
    #[serde(default)]
    pub(super) until: Timestamp,
}

impl Standing {
    /// Is there a time in which its successor is to settle?
    pub(crate) fn has_time(&self) -> bool {
        self.until > self.relieved
    }

    pub(super) fn new_until(&self) -> Timestamp {
        self.since + NEW
    }
}

/// The generation that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) since: Timestamp,
}

impl Serving {
    pub(super) fn new_until(&self) -> Timestamp {
        self.since + NEW
    }
}

/// A generation that was asked to stop, or of which something is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draining {
    pub(crate) id: Id,
    /// When it is told to stop at the latest; none once it was.
    #[serde(default)]
    pub(crate) stop: Option<Timestamp>,
    /// When it is killed, if it was told to stop; none once it was killed.
    #[serde(default = "some_never")]
    pub(crate) deadline: Option<Timestamp>,
    /// When it is no longer new: never, if it was not ready before it was asked to stop.
    #[serde(default, rename = "settled")]
    pub(crate) new_until: Timestamp,
}

/// The deadline of a state that has none.
pub(super) fn never() -> Timestamp {
    Timestamp::MAX
}

fn some_never() -> Option<Timestamp> {
    Some(never())
}
