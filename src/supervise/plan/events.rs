//! The events that the plan handles, and its orders.

use std::time::Duration;

use super::Id;
use crate::config::Rollout;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A new generation was asked for, which is to take over like this.
    Reload(Rollout),
    /// The generation can serve.
    Ready(Id),
    /// It runs, but accepts no more: it shut its socket down, or closed it.
    Left(Id),
    /// Nothing waits for it any more, or with `idle` it has no connection: it may be told to stop.
    Released(Id),
    /// The check at the end of a stage of its trial passed, or did not.
    Checked(Id, bool),
    /// The trial, or the standing by, is to end in favour of the new generation.
    Promote,
    /// The same in favour of the old one; the new one may also be getting ready.
    Rollback,
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
    /// All new connections go to this generation, also those that come while it starts.
    Steer(Id),
    /// This percentage of new connections goes to this generation, on trial, the rest to the one that serves.
    Share(Id, u8),
    /// Run the check of its trial.
    Check(Id),
    /// Watch until nothing waits for it, or with `idle` until it has no connection.
    Release(Id),
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
    /// It gets this percentage of new connections.
    OnTrial(u8),
    /// It gets all of them; its predecessor stands by.
    Serves,
    /// It serves, and its predecessor is no longer needed.
    Settled,
    /// It was getting ready or on trial, or served and had not settled; its predecessor serves on, or again.
    RolledBack(Reason),
    /// It ended before it was ready, with this exit status.
    Failed(u8),
    /// It was not ready in time.
    TimedOut,
    /// It was stopped before it was ready or had settled, or never started, because everything stops.
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

/// Why a generation was rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Its main process ended with this exit status.
    Ended(u8),
    /// It accepts no more.
    Left,
    /// A check failed.
    Check,
    /// A check did not end in time.
    CheckTimedOut,
    /// Somebody asked for it.
    Asked,
}

/// The answer to a reload request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This one is, or will be, the new one.
    Generation(Id),
    /// Everything stops.
    Refused,
}
