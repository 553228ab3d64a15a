//! The clock that deadlines are read from.

use std::time::Duration;

/// A reading of the monotonic clock, since boot.
pub(crate) type Timestamp = Duration;

/// CLOCK_MONOTONIC, which setting the time does not change.
pub(crate) fn now() -> Timestamp {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec, which lives through the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
