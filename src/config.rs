//! What a command line means: plain data, the same whichever part reads it.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use libc::c_int;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::socket::spec::Spec;
use crate::target::{Begin, Program};

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print the presets.
    ShowServers,
    /// Become a program.
    Exec(Exec),
    /// Stay as its parent.
    Supervise(Supervise),
    /// Send a request to the supervisor at this control socket.
    Request(PathBuf, Request),
}

/// Everything that becoming a program needs.
#[derive(Debug)]
pub(crate) struct Exec {
    /// What to listen on; empty: the inherited sockets.
    pub(crate) specs: Vec<Spec>,
    /// The backlog of sockets whose SPEC has none.
    pub(crate) backlog: c_int,
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
    pub(crate) control: Option<PathBuf>,
    /// When a generation counts as ready.
    pub(crate) ready: Ready,
    /// How long things may take.
    pub(crate) limits: Limits,
    /// What asks a generation to drain.
    pub(crate) stop_signal: Signal,
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
    /// This command, run by the shell, ends with status 0.
    Check(String),
    /// This time has passed.
    After(Duration),
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until a generation is ready.
    pub(crate) ready: Duration,
    /// From the stop signal until a generation is gone.
    pub(crate) drain: Duration,
}

/// What a supervisor can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// A new generation.
    Reload(Until),
    /// What there is.
    Status(Form),
    /// Drain and end.
    Stop,
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
