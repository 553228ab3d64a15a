//! The events that the plan handles, and its orders.

use std::time::Duration;

use super::Id;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A new generation was asked for.
    Reload,
    /// The generation serves.
    Ready(Id),
    /// Its main process ended, or could not be started, with this exit status.
    Ended(Id, u8),
    /// Nothing is left of it.
    Gone(Id),
    /// Everything is to stop.
    Stop(StopMode),
    /// The deadline may have passed.
    Tick,
}

/// How to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopMode {
    /// Let what is under way end.
    Drain,
    /// By a signal: let what is under way end, or when this comes again a second or more later, stop at once.
    Signal,
    /// At once.
    Now,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start this generation.
    Start(Id),
    /// Send the stop signal to the main process while it runs, then to every remaining process.
    Retire(Id),
    /// Kill every remaining process.
    Kill(Id),
    /// Report this transition.
    Report(Id, Transition),
    /// Nothing is left to do: end with this status.
    Finish(u8),
}

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    Serves,
    /// It ended before it was ready, with this exit status.
    Failed(u8),
    /// It was not ready in time.
    TimedOut,
    /// It was stopped before it was ready, or never started, because everything stops.
    Cancelled,
    /// It ended unasked, with this exit status.
    Crashed(u8),
    /// None serves, and it is started again after this backoff.
    Restarts(Duration),
    /// None serves, and it is not started again: everything stops.
    GivenUp,
    /// It had to be killed at its deadline.
    Killed,
    Gone,
}

/// The answer to a reload request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This one is, or will be, the new one.
    Generation(Id),
    /// Everything stops.
    Refused,
}
