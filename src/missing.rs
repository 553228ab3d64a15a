//! What this process may have to do without, in a hardened unit or on a small system: each is reported once, and the
//! rest goes on.

use std::fmt::Display;
use std::sync::atomic::{AtomicU32, Ordering};

use log::warn;

/// Something that the system may not give.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Facility {
    /// A folder for notify sockets.
    NotifyFolder,
    /// Copies of other processes' descriptors.
    Descriptors,
    /// A list of the connections to our sockets.
    Connections,
    /// A socket for each generation.
    Steering,
}

/// Those that were reported, a bit each.
static REPORTED: AtomicU32 = AtomicU32::new(0);

impl Facility {
    /// Log why it is missing, unless that was done before.
    pub(crate) fn report_missing(self, reason: &dyn Display) {
        let bit = 1 << self as u32;
        if REPORTED.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            warn!("{}: {reason}", self.loss());
        }
    }

    /// Was it reported that it is missing?
    pub(crate) fn is_missing(self) -> bool {
        REPORTED.load(Ordering::Relaxed) & (1 << self as u32) != 0
    }

    /// What follows.
    fn loss(self) -> &'static str {
        match self {
            Facility::NotifyFolder => "NOTIFY_SOCKET is an abstract name, which some clients cannot use",
            Facility::Descriptors => "a server that is busy all the time may be seen ready late",
            Facility::Connections => "connections are not counted",
            Facility::Steering => "all generations share each socket",
        }
    }
}
