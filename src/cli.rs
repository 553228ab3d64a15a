//! The command line: its definition, from which help, manual and completions are made, and what it means.

pub(crate) mod values;

use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, ValueHint};
use libc::c_int;
use log::LevelFilter;
use nix::sys::signal::Signal;

use crate::preset::{self, Blocking, Every, Preset, Stdin};
use crate::spec::{Address, Family, Host, Inet, Spec};
use crate::supervise::plan::Limits;
use crate::sys::FIRST_FD;
use values::{Ready, Setting, duration, signal};

/// Give a listening socket to a program, and to its successor
///
/// Binds the sockets that --listen asks for, or adopts those that were inherited, and becomes PROGRAM, which finds them
/// from descriptor 3 on with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as systemd would set them. A server that runs
/// the same line again hands its own sockets to its successor: what is inherited is not bound again. With --supervise it
/// stays as the parent and rolls generations.
#[derive(Debug, Parser)]
#[command(
    version,
    override_usage = "handoff-run [OPTIONS] [--] PROGRAM [ARG]...\n       handoff-run --reload|--status|--stop PATH"
)]
pub(crate) struct Cli {
    /// Listen here: [NAME=]ADDRESS[,KEY[=VALUE]]...
    ///
    /// Repeatable; the order gives the descriptor numbers. ADDRESS is :PORT, HOST:PORT, [IPV6]:PORT, /PATH,
    /// unix:@NAME, vsock:CID:PORT or fd:N, and may follow a type: tcp, tcp4, tcp6, udp, udp4, udp6, unix, unix-dgram,
    /// unix-seqpacket, as in udp::53. Without this option the inherited sockets are handed on as they are.
    #[arg(short, long, value_name = "SPEC")]
    listen: Vec<Spec>,

    /// Connections that may wait to be accepted
    ///
    /// For the sockets whose SPEC does not say. The kernel lowers it to net.core.somaxconn, which is also the default.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..))]
    backlog: Option<i32>,

    /// Set a variable of PROGRAM, placeholders replaced
    ///
    /// Repeatable. {fd}, {addr}, {host}, {port} and {path} speak of the first listener, or with :NAME of another;
    /// {gen} is the generation and {pid} the process. {{ is a literal brace. The same placeholders are replaced in
    /// PROGRAM's arguments.
    #[arg(long, value_name = "KEY=TEMPLATE")]
    env: Vec<Setting>,

    /// Do what this server needs to take a socket
    ///
    /// See --help-servers, or SERVERS in the manual.
    #[arg(long = "as", value_name = "SERVER", value_parser = preset_parser(), hide_possible_values = true)]
    preset: Option<&'static Preset>,

    /// Make the first socket descriptor 0 too
    ///
    /// For programs in the manner of inetd, FastCGI, and Java's inheritedChannel.
    #[arg(long)]
    stdin: bool,

    /// Number the sockets from N instead of 3
    ///
    /// For wrappers that close low descriptors: 100 survives npm and npx. No LISTEN_ variable is set then.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(3..))]
    first_fd: Option<RawFd>,

    /// Leave LISTEN_PID out
    ///
    /// For wrappers which fork, such as npm, cargo watch, or sh -c 'a; b'.
    #[arg(long)]
    no_pid: bool,

    /// Become PROGRAM only when the first client is waiting
    #[arg(long)]
    lazy: bool,

    /// Write the process id to this file before becoming PROGRAM
    ///
    /// Written whole or not at all, and never removed. With --supervise it is the supervisor's, written when the first
    /// generation serves and removed at the end if it is still ours.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pid_file: Option<PathBuf>,

    /// Stay as the parent of PROGRAM and start its next generation on request
    ///
    /// SIGHUP, or --reload on the control socket, starts a new generation on the same sockets. The one that serves is
    /// asked to stop only when the new one is ready; a new one that fails changes nothing. SIGTERM and SIGINT drain and
    /// stop, SIGQUIT stops now, SIGUSR2 replaces the supervisor itself by the program at its own path.
    #[arg(long, conflicts_with = "lazy")]
    supervise: bool,

    /// Take --reload, --status and --stop on this Unix socket
    #[arg(long, value_name = "PATH", requires = "supervise", value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,

    /// When a generation counts as ready [default: auto]
    ///
    /// auto: it is seen waiting on every socket, or where that cannot be seen, says READY=1 (sd_notify).
    /// notify: it says READY=1 and, where that can be seen, waits on every socket.
    /// accepting: it is seen waiting on every socket.
    /// fd:N: it writes a byte to descriptor N.
    /// check:COMMAND: the command, run by sh, ends with status 0.
    /// after:DURATION: that time is over.
    #[arg(long, value_name = "HOW", requires = "supervise")]
    ready: Option<Ready>,

    /// How long a generation may take to get ready [default: 60s]
    ///
    /// Then it is killed and the one that serves stays. A number with ms, s, m or h; without a unit, seconds.
    #[arg(long, value_name = "DURATION", requires = "supervise", value_parser = duration)]
    ready_timeout: Option<Duration>,

    /// The signal that asks a generation to drain [default: TERM, or what --as knows]
    #[arg(long, value_name = "SIGNAL", requires = "supervise", value_parser = signal)]
    stop_signal: Option<Signal>,

    /// How long a generation may take to drain [default: 30s]
    ///
    /// Then what is left of it is killed.
    #[arg(long, value_name = "DURATION", requires = "supervise", value_parser = duration)]
    drain_timeout: Option<Duration>,

    /// Ask the supervisor at this control socket for a new generation
    ///
    /// Ends when the new generation serves, with status 0, or when it failed: 1, or was not ready in time: 124; then
    /// the old one still serves.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath)]
    reload: Option<PathBuf>,

    /// Show the generations of the supervisor at this control socket
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath)]
    status: Option<PathBuf>,

    /// Drain and stop the supervisor at this control socket
    ///
    /// Ends when it has.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath)]
    stop: Option<PathBuf>,

    /// With --reload, end when the old generation is gone
    #[arg(long, requires = "reload")]
    wait: bool,

    /// With --status, print JSON
    #[arg(long, requires = "status")]
    json: bool,

    /// Show the servers that --as knows, with a line that works for each
    #[arg(long)]
    help_servers: bool,

    /// Say less; twice: errors only
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,

    /// Say more; twice: everything
    ///
    /// The environment variable HANDOFF_LOG wins over both.
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,

    /// The program to become, and its arguments
    #[arg(
        value_name = "PROGRAM",
        trailing_var_arg = true,
        required_unless_present_any = ["help_servers", "request"],
        conflicts_with = "request",
        value_hint = ValueHint::CommandWithArguments
    )]
    program: Vec<OsString>,
}

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

fn preset_parser() -> impl TypedValueParser<Value = &'static Preset> {
    PossibleValuesParser::new(preset::TABLE.iter().map(|preset| preset.name))
        .map(|name| Preset::find(&name).expect("clap lets only names of the table pass"))
}

impl Cli {
    /// How much is said when HANDOFF_LOG says nothing.
    pub(crate) fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (0, 0) => LevelFilter::Info,
            (1, _) => LevelFilter::Warn,
            (0, 1) => LevelFilter::Debug,
            (0, _) => LevelFilter::Trace,
            _ => LevelFilter::Error,
        }
    }

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
