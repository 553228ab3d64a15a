//! What a command line means: plain data, the same whichever part reads it.

use std::fmt;
use std::num::NonZero;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::socket::control_spec::ControlSpec;
use crate::socket::listener::Manner;
use crate::socket::spec::Spec;
use crate::socket::stored::Keeper;
use crate::socket::takeover::Who;
use crate::target::{Begin, Program};

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print the presets.
    ShowServers,
    /// Become a program.
    Exec(Exec),
    /// Become a program that succeeds another process, which is watched until that is over.
    Succeed(Supervise),
    /// Stay as its parent.
    Supervise(Supervise),
    /// Send a request to the supervisor at this control socket.
    Request(PathBuf, Request, Shown),
}

/// Everything that becoming a program needs.
#[derive(Debug)]
pub(crate) struct Exec {
    /// What to listen on; empty: the inherited sockets.
    pub(crate) specs: Vec<Spec>,
    /// How sockets are bound, as far as a SPEC does not say it.
    pub(crate) manner: Manner,
    /// Where those are taken from that were not inherited.
    pub(crate) from: Option<Who>,
    /// Who has the sockets, too.
    pub(crate) keeper: Keeper,
    /// When to become it.
    pub(crate) begin: Begin,
    /// Where to leave the process id.
    pub(crate) pid_file: Option<PathBuf>,
    /// What to become, and how its sockets are announced to it.
    pub(crate) program: Program,
}

/// Everything that staying as the parent needs.
#[derive(Debug)]
pub(crate) struct Supervise {
    /// How each generation is started.
    pub(crate) exec: Exec,
    /// Where to take requests.
    pub(crate) control: Option<ControlSpec>,
    /// When a generation counts as ready.
    pub(crate) ready: Ready,
    /// What is allowed.
    pub(crate) limits: Limits,
    /// What asks a generation to drain.
    pub(crate) stop_signal: Signal,
    /// What asks the process that is succeeded to drain.
    pub(crate) from_signal: Signal,
}

/// When a generation counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// It is seen accepting, or where that cannot be seen, sends READY=1.
    Auto,
    /// It sends READY=1 and, where that can be seen, accepts.
    Notify,
    /// It is seen accepting.
    Accepting,
    /// It writes to this descriptor.
    Descriptor(RawFd),
    /// It is seen accepting, where that can be seen, and this command, run by the shell, ends with status 0.
    Check(String),
    /// This time has passed, and it is seen accepting, where that can be seen.
    After(Duration),
    /// It is seen accepting, where that can be seen, and answers a GET of this path with 2xx or 3xx.
    Http(String),
}

impl Ready {
    /// Is a generation that is ready one that was seen to accept, as a rule?
    pub(crate) fn is_observed(&self) -> bool {
        matches!(self, Ready::Auto | Ready::Notify | Ready::Accepting)
    }
}

/// What follows when none serves any more, though nothing was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    /// It is started again.
    Always,
    /// It is started again if it did not end with 0; at most this often in a row.
    OnFailure(Option<NonZero<u32>>),
    /// Everything stops, with its status.
    No,
}

/// What is allowed: how long things may take, and whether a generation is started again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until a generation is ready.
    pub(crate) ready: Duration,
    /// From the stop signal until a generation is gone, and before that until it is told to stop.
    pub(crate) drain: Duration,
    /// When a generation that has a successor is told to stop.
    pub(crate) drain_how: Drain,
    /// How long the old generation stands by when the new one serves.
    pub(crate) settle: Duration,
    /// What follows when the serving one ends unasked.
    pub(crate) restart: Restart,
}

/// When a generation that has a successor is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// As soon as no connection waits for it.
    Signal,
    /// When it has no connection.
    Idle,
}

/// How a new generation takes over: at once, or in stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Rollout {
    /// What it gets before it serves; none: it serves as soon as it is ready.
    pub(crate) stages: Vec<Stage>,
    /// A client stays on one side.
    pub(crate) sticky: bool,
    /// A command for the shell that has to succeed at the end of each stage.
    pub(crate) check: Option<String>,
}

/// No duration is longer: sums with the monotonic clock cannot overflow.
pub(crate) const LONGEST_DURATION: Duration = Duration::from_hours(1000 * 24);

/// One stage of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Of the new connections, from 1 to 100.
    #[serde(deserialize_with = "percent")]
    pub(crate) percent: u8,
    /// More than none.
    #[serde(deserialize_with = "duration")]
    pub(crate) duration: Duration,
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let percent = u8::deserialize(deserializer)?;
    if (1..=100).contains(&percent) { Ok(percent) } else { Err(D::Error::custom("it is not from 1 to 100")) }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration = Duration::deserialize(deserializer)?;
    let is_one = !duration.is_zero() && duration <= LONGEST_DURATION;
    if is_one { Ok(duration) } else { Err(D::Error::custom("it is none, or longer than 1000 days")) }
}

/// As it is written on the command line.
impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Restart::Always => f.write_str("always"),
            Restart::OnFailure(None) => f.write_str("on-failure"),
            Restart::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Restart::No => f.write_str("no"),
        }
    }
}

/// What a supervisor can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// A new generation, which takes over like this.
    Reload {
        until: Until,
        #[serde(default)]
        rollout: Rollout,
    },
    /// End the trial, or the standing by, in favour of the new generation.
    Promote,
    /// The same in favour of the old one.
    Rollback,
    /// What there is.
    Status(Form),
    /// Drain and end.
    Stop,
    /// Lend the sockets, and perhaps this one, to a successor, until this connection is closed.
    Lend { control: bool },
    /// After that: send the descriptors.
    Descriptors,
    /// After that: the successor serves; drain and end, without what it has now.
    Succeeded,
}

/// How the client shows what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    AsSent,
    /// The status as metrics of Prometheus.
    AsMetrics,
}

/// When a reload is over for the client that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Until {
    /// The new generation serves.
    Serving,
    /// The old one is gone, too.
    OldGone,
}

/// What a status looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    Table,
    Json,
}
