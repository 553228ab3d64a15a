//! How far a generation is: it starts, serves or drains.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Id;
use crate::sys::Timestamp;

/// A generation has settled when it was ready for this long: what it does on becoming ready is done.
const SETTLING: Duration = Duration::from_secs(1);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Starting {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) cause: Cause,
    #[serde(default = "never")]
    pub(crate) deadline: Timestamp,
}

/// The generation that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serving {
    pub(crate) id: Id,
    #[serde(default)]
    pub(crate) since: Timestamp,
}

impl Serving {
    pub(super) fn settled(&self) -> Timestamp {
        self.since + SETTLING
    }
}

/// A generation that was asked to stop, or of which something is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Draining {
    pub(crate) id: Id,
    /// When it is killed; none once it was.
    #[serde(default = "some_never")]
    pub(crate) deadline: Option<Timestamp>,
    /// When it has settled: never, if it was not ready before it was asked to stop.
    #[serde(default)]
    pub(crate) settled: Timestamp,
}

/// The deadline of a state that has none.
pub(super) fn never() -> Timestamp {
    Timestamp::MAX
}

pub(super) fn some_never() -> Option<Timestamp> {
    Some(never())
}
