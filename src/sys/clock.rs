//! The clock that deadlines are read from, the one that people read, and the one that shows what we cost.

use std::time::Duration;

/// A reading of the monotonic clock, since boot.
pub(crate) type Timestamp = Duration;

/// CLOCK_MONOTONIC, which setting the time does not change.
pub(crate) fn now() -> Timestamp {
    read(libc::CLOCK_MONOTONIC)
}

/// The time since 1970, as it is set.
pub(crate) fn time() -> Duration {
    read(libc::CLOCK_REALTIME)
}

/// What this process has used of the processor so far.
pub(crate) fn processor_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec, which lives through the call; these clocks always exist.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
