//! What a command line means: the plan that everything else is given.

use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use libc::c_int;
use nix::sys::signal::Signal;

use super::Cli;
use super::values::{Ready, Setting, signal};
use crate::socket::spec::{Address, Family, Host, Inet, Spec};
use crate::supervise::plan::Limits;
use crate::sys::FIRST_FD;
use crate::target::preset::{Blocking, Every, Preset, Stdin};

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Print the presets.
    ShowServers,
    /// Become a program.
    Exec(Exec),
    /// Stay as its parent.
    Supervise(Supervise),
    /// Ask a supervisor.
    Ask(PathBuf, Request),
}

/// What a supervisor can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Reload(Until),
    Status(Form),
    Stop,
}

/// When a reload is over for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The new generation serves.
    Serving,
    /// The old one is gone, too.
    OldGone,
}

/// What a status looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Json,
}

/// Everything that staying as the parent needs.
#[derive(Debug)]
pub(crate) struct Supervise {
    /// How each generation is started.
    pub(crate) exec: Exec,
    pub(crate) control: Option<PathBuf>,
    pub(crate) ready: Ready,
    pub(crate) limits: Limits,
    /// What asks a generation to drain.
    pub(crate) stop_signal: Signal,
}

/// Everything that becoming a program needs.
#[derive(Debug)]
pub(crate) struct Exec {
    /// What to listen on; nothing means what was inherited.
    pub(crate) specs: Vec<Spec>,
    /// For sockets whose SPEC has none.
    pub(crate) backlog: c_int,
    /// Where the sockets are numbered from.
    pub(crate) first_fd: RawFd,
    /// Which variables announce them.
    pub(crate) announce: Announce,
    /// Whether the first socket is descriptor 0 too.
    pub(crate) stdin: Stdin,
    /// When to begin.
    pub(crate) start: Start,
    /// How the server is told beyond that.
    pub(crate) preset: Option<&'static Preset>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) pid_file: Option<PathBuf>,
    /// PROGRAM and its arguments; never empty, and without a NUL, since they were arguments before.
    pub(crate) program: Vec<CString>,
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
pub(crate) enum Start {
    Now,
    FirstClient,
}

impl Cli {
    /// What it all means.
    pub(crate) fn into_plan(self) -> Plan {
        if self.help_servers {
            return Plan::ShowServers;
        }
        if let Some((path, request)) = self.request() {
            return Plan::Ask(path, request);
        }
        let by_preset = self.preset.and_then(|preset| signal(preset.stop).ok());
        let supervise = self.supervise.then(|| {
            let limits = Limits {
                ready: self.ready_timeout.unwrap_or(Duration::from_secs(60)),
                drain: self.drain_timeout.unwrap_or(Duration::from_secs(30)),
            };
            let stop_signal = self.stop_signal.or(by_preset).unwrap_or(Signal::SIGTERM);
            (self.control.clone(), self.ready.clone().unwrap_or(Ready::Auto), limits, stop_signal)
        });
        let exec = self.into_exec();
        match supervise {
            None => Plan::Exec(exec),
            Some((control, ready, limits, stop_signal)) => {
                Plan::Supervise(Supervise { exec, control, ready, limits, stop_signal })
            }
        }
    }

    /// What a supervisor is asked, if it is.
    fn request(&self) -> Option<(PathBuf, Request)> {
        let until = if self.wait { Until::OldGone } else { Until::Serving };
        let form = if self.json { Form::Json } else { Form::Table };
        let reload = self.reload.clone().map(|path| (path, Request::Reload(until)));
        let status = || self.status.clone().map(|path| (path, Request::Status(form)));
        let stop = || self.stop.clone().map(|path| (path, Request::Stop));
        reload.or_else(status).or_else(stop)
    }

    fn into_exec(self) -> Exec {
        let stdin = if self.stdin { Stdin::FirstSocket } else { self.preset.map_or(Stdin::Untouched, |p| p.stdin) };
        let announce = match (self.first_fd, self.no_pid) {
            (Some(_), _) => Announce::Nothing,
            (None, true) => Announce::WithoutPid,
            (None, false) => Announce::All,
        };
        let argument = |argument: OsString| CString::new(argument.into_vec()).expect("exec gave no argument with NUL");
        Exec {
            specs: self.listen.into_iter().map(|spec| fit_preset(spec, self.preset)).collect(),
            // listen(2) lowers any larger number to what the kernel allows.
            backlog: self.backlog.unwrap_or(c_int::MAX),
            first_fd: self.first_fd.unwrap_or(FIRST_FD),
            announce,
            stdin,
            start: if self.lazy { Start::FirstClient } else { Start::Now },
            preset: self.preset,
            settings: self.env,
            pid_file: self.pid_file,
            program: self.program.into_iter().map(argument).collect(),
        }
    }
}

/// A preset says what `:PORT` means and whether the socket must not block, unless the user did.
fn fit_preset(mut spec: Spec, preset: Option<&Preset>) -> Spec {
    let Some(preset) = preset else { return spec };
    if let Address::Inet(Inet { host: Host::Every, family, .. }) = &mut spec.address
        && (*family, preset.every) == (Family::Either, Every::V4)
        && !spec.options.has("v6only")
    {
        *family = Family::V4;
    }
    if preset.blocking == Blocking::NonBlocking && spec.options.allows_nonblock(&spec.address) {
        spec.options.set_nonblock();
    }
    spec
}
