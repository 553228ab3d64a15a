//! What a process is given and becomes: its descriptors, its arguments and its environment, up to exec.

pub(crate) mod env_file;
pub(crate) mod environ;
pub(crate) mod exec;
pub(crate) mod handout;
pub(crate) mod inspect;
pub(crate) mod preset;
pub(crate) mod template;

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use preset::{Preset, Stdin};
use template::Setting;

/// What to become, and how its sockets are announced to it: the same for each generation.
#[derive(Debug)]
pub(crate) struct Program {
    /// PROGRAM and its arguments; never empty, and without a NUL, since they were arguments before.
    pub(crate) words: Vec<CString>,
    /// How it gets its sockets.
    pub(crate) handing: Handing,
    /// Where the sockets are numbered from.
    pub(crate) first_fd: RawFd,
    /// Which variables announce them.
    pub(crate) announce: Announce,
    /// Whether the first socket is descriptor 0 too.
    pub(crate) stdin: Stdin,
    /// What this server needs beyond that.
    pub(crate) preset: Option<&'static Preset>,
    /// Variables that the user sets.
    pub(crate) settings: Vec<Setting>,
    /// A file of further variables, read when the program is started.
    pub(crate) env_file: Option<PathBuf>,
    /// Its working directory, if another than ours, looked up when it is started.
    pub(crate) directory: Option<PathBuf>,
}

/// How a program gets its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handing {
    /// It has them open from the start.
    Descriptors,
    /// Its own bind(2) is answered with them.
    Interception,
}

/// Which of the LISTEN_ variables are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Announce {
    All,
    WithoutPid,
    Nothing,
}

/// When to become the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// As soon as the sockets are there.
    Now,
    /// When the first connection or datagram waits.
    FirstClient,
}
