//! What the orders so far made of a generation.

use super::super::super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Starting {
        deadline: Timestamp,
    },
    OnTrial {
        /// Counts the stages from 0 on.
        stage: usize,
        until: Timestamp,
        checked: bool,
    },
    Serving {
        since: Timestamp,
    },
    /// Its successor has not settled.
    Standing {
        since: Timestamp,
        relieved: Timestamp,
        until: Timestamp,
    },
    /// It has ended or is not wanted any more, and is to be retired before the event is over.
    ToRetire,
    /// It was relieved, and is to be released before the event is over.
    ToRelease {
        relieved: Timestamp,
    },
    /// It is told to stop at this time at the latest.
    Waiting {
        stop: Timestamp,
    },
    Draining {
        deadline: Option<Timestamp>,
    },
    Gone,
}

impl Life {
    pub(super) fn deadline(self) -> Option<Timestamp> {
        match self {
            Life::Starting { deadline: at }
            | Life::OnTrial { until: at, .. }
            | Life::Standing { until: at, .. }
            | Life::Waiting { stop: at } => Some(at),
            Life::Draining { deadline } => deadline,
            _ => None,
        }
    }

    pub(super) fn is_starting(self) -> bool {
        matches!(self, Life::Starting { .. })
    }

    pub(super) fn is_on_trial(self) -> bool {
        matches!(self, Life::OnTrial { .. })
    }

    pub(super) fn is_serving(self) -> bool {
        matches!(self, Life::Serving { .. })
    }

    pub(super) fn is_standing(self) -> bool {
        matches!(self, Life::Standing { .. })
    }

    /// Was it told to stop, or is it to be told?
    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Life::Waiting { .. } | Life::Draining { .. })
    }

    /// Must the event not end before it was told?
    pub(super) fn is_owed(self) -> bool {
        matches!(self, Life::ToRetire | Life::ToRelease { .. })
    }
}
