//! From the words of a command line to what they mean: presets and defaults applied.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use libc::c_int;
use log::warn;
use nix::sys::signal::Signal;

use super::Cli;
use super::values::signal;
use crate::config::{Command, Drain, Exec, Form, Limits, Ready, Request, Restart, Rollout, Shown, Supervise, Until};
use crate::socket::address::{Address, Family, Host, Inet};
use crate::socket::listener::{Manner, Sharing};
use crate::socket::socket_file::Naming;
use crate::socket::spec::Spec;
use crate::socket::stored::Keeper;
use crate::sys::FIRST_FD;
use crate::target::preset::{Every, Preset, Stdin};
use crate::target::{Announce, Begin, Handing, Program, template};

impl Cli {
    /// What these arguments mean.
    ///
    /// # Errors
    /// If they are no command line of ours; what clap cannot express is refused as it would do it.
    pub(crate) fn read(arguments: &[OsString]) -> clap::error::Result<Cli> {
        let cli = Cli::try_parse_from(arguments)?;
        if cli.fdstore && cli.from.is_some() && !cli.supervise {
            let text = "--fdstore needs --supervise where --from is given";
            return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, text));
        }
        Ok(cli)
    }

    /// The command that these arguments ask for.
    pub(crate) fn into_command(self) -> Command {
        if self.help_servers {
            return Command::ShowServers;
        }
        if let Some((path, request)) = self.request() {
            let shown = if self.prometheus { Shown::AsMetrics } else { Shown::AsSent };
            return Command::Request(path, request, shown);
        }
        let by_preset = self.preset.and_then(|preset| signal(preset.stop).ok());
        let is_supervised = self.supervise;
        let supervise = (is_supervised || self.from.is_some()).then(|| {
            let limits = Limits {
                ready: self.ready_timeout.unwrap_or(Duration::from_secs(60)),
                drain: self.drain_timeout.unwrap_or(Duration::from_secs(30)),
                drain_how: self.drain.unwrap_or(Drain::Signal),
                settle: self.settle.unwrap_or(Duration::from_secs(1)),
                restart: self.restart.unwrap_or(Restart::Always),
            };
            let stop_signal = self.stop_signal.or(by_preset).unwrap_or(Signal::SIGTERM);
            let from_signal = self.from_signal.unwrap_or(stop_signal);
            (self.control.clone(), self.ready.clone().unwrap_or(Ready::Auto), limits, (stop_signal, from_signal))
        });
        let exec = self.into_exec();
        match supervise {
            None => Command::Exec(exec),
            Some((control, ready, limits, (stop_signal, from_signal))) => {
                let supervise = Supervise { exec, control, ready, limits, stop_signal, from_signal };
                if is_supervised { Command::Supervise(supervise) } else { Command::Succeed(supervise) }
            }
        }
    }

    /// What a supervisor is asked, if it is.
    fn request(&self) -> Option<(PathBuf, Request)> {
        let until = if self.wait { Until::OldGone } else { Until::Serving };
        let form = if self.json || self.prometheus { Form::Json } else { Form::Table };
        let rollout = || Rollout {
            stages: self.canary.iter().map(|canary| canary.stage).collect(),
            sticky: self.canary.iter().any(|canary| canary.sticky),
            check: self.check.clone(),
        };
        let reload = self.reload.clone().map(|path| (path, Request::Reload { until, rollout: rollout() }));
        let promote = || self.promote.clone().map(|path| (path, Request::Promote));
        let rollback = || self.rollback.clone().map(|path| (path, Request::Rollback));
        let status = || self.status.clone().map(|path| (path, Request::Status(form)));
        let stop = || self.stop.clone().map(|path| (path, Request::Stop));
        reload.or_else(status).or_else(stop).or_else(promote).or_else(rollback)
    }

    fn into_exec(self) -> Exec {
        let stdin = if self.stdin { Stdin::FirstSocket } else { self.preset.map_or(Stdin::Untouched, |p| p.stdin) };
        let handing = if self.intercept { Handing::Interception } else { Handing::Descriptors };
        let announce = match (handing, self.first_fd, self.no_pid) {
            (Handing::Interception, ..) | (_, Some(_), _) => Announce::Nothing,
            (_, None, true) => Announce::WithoutPid,
            (_, None, false) => Announce::All,
        };
        for (found, meant) in self.program.iter().flat_map(|word| template::near_misses(word.as_bytes())) {
            warn!("{{{found}}} is no placeholder and stays as it is; {{{meant}}} would be one");
        }
        let argument = |argument: OsString| CString::new(argument.into_vec()).expect("exec gave no argument with NUL");
        let program = Program {
            words: self.program.into_iter().map(argument).collect(),
            handing,
            first_fd: self.first_fd.unwrap_or(FIRST_FD),
            announce,
            stdin,
            preset: self.preset,
            settings: self.env,
            env_file: self.env_file,
            directory: self.chdir,
        };
        let sharing = |is_meant: bool| if is_meant && !self.shared { Sharing::Steered } else { Sharing::Shared };
        let (bound, taken) = (sharing(self.supervise), sharing(self.from.is_some()));
        Exec {
            specs: self.listen.into_iter().map(|spec| fit_preset(spec, self.preset)).collect(),
            manner: Manner {
                // listen(2) lowers any larger number to what the kernel allows.
                backlog: self.backlog.unwrap_or(c_int::MAX),
                naming: if self.supervise { Naming::Kept } else { Naming::Once },
                sharing: bound,
                taking: taken,
            },
            from: self.from,
            keeper: if self.fdstore { Keeper::Manager } else { Keeper::Nobody },
            begin: if self.lazy { Begin::FirstClient } else { Begin::Now },
            pid_file: self.pid_file,
            program,
        }
    }
}

/// Apply the preset's meaning of `:PORT` and its options, unless the user chose.
fn fit_preset(mut spec: Spec, preset: Option<&Preset>) -> Spec {
    let Some(preset) = preset else { return spec };
    if let Address::Inet(Inet { host: Host::Every, family, .. }) = &mut spec.address
        && (*family, preset.every) == (Family::Either, Every::V4)
        && !spec.options.has("v6only")
    {
        *family = Family::V4;
    }
    preset.options.iter().for_each(|name| spec.options.add(name, &spec.address));
    spec
}
