//! The clock that all processes of the soak share.

use std::time::{Duration, SystemTime};

/// A reading of that clock.
pub type Time = Duration;

pub fn now() -> Time {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
