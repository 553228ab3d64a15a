//! The command line's definition, from which help, manual and completions are made.

mod command;
#[cfg(test)]
mod current;
mod values;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, ArgGroup, Parser, ValueHint};
use log::LevelFilter;
use nix::sys::signal::Signal;

use crate::config::{Drain, Ready, Restart};
use crate::socket::control_spec::ControlSpec;
use crate::socket::spec::Spec;
use crate::socket::takeover::Who;
use crate::target::preset::{self, Preset};
use crate::target::template::Setting;
use values::{Canary, canary, drain, duration, ready, restart, signal};

// The groups of options, in the order of help and manual.
const SOCKETS: &str = "Sockets";
const PROGRAM: &str = "Program";
const SUPERVISING: &str = "Supervising";
const REQUESTS: &str = "Requests to a supervisor";
const HELP: &str = "Help and messages";

/// Give a listening socket to a program, and to its successor
///
/// Binds the sockets that --listen asks for, or adopts those that were inherited, and becomes PROGRAM, which finds them
/// from descriptor 3 on with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as systemd would set them. A server that runs
/// the same line again hands its own sockets to its successor: what is inherited is not bound again. With --supervise
/// it stays as the parent and rolls generations.
#[derive(Debug, Parser)]
#[command(
    version,
    disable_help_flag = true,
    disable_version_flag = true,
    group = ArgGroup::new("successor").multiple(true),
    override_usage = "handoff-run [OPTIONS] [--] PROGRAM [ARG]...\n       handoff-run --reload|--promote|--rollback|--status|--stop PATH"
)]
pub(crate) struct Cli {
    /// Listen here: [NAME=]ADDRESS[,KEY[=VALUE]]...
    ///
    /// Repeatable; the order gives the descriptor numbers. ADDRESS is :PORT, HOST:PORT, [IPV6]:PORT, /PATH,
    /// unix:@NAME, vsock:CID:PORT or fd:N, and may follow a type: tcp, tcp4, tcp6, udp, udp4, udp6, unix, unix-dgram,
    /// unix-seqpacket, as in udp::53. Without this option the inherited sockets are handed on as they are.
    #[arg(short, long, value_name = "SPEC", value_parser = OsStringValueParser::new().try_map(|text| Spec::parse(&text)), help_heading = SOCKETS)]
    listen: Vec<Spec>,

    /// Connections that may wait to be accepted
    ///
    /// For the sockets whose SPEC has no backlog. The kernel lowers it to net.core.somaxconn, which is also the
    /// default.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..), help_heading = SOCKETS)]
    backlog: Option<i32>,

    /// Take the sockets over from a running process, and retire it: a pid, a pid file, a control socket, or auto
    ///
    /// A control socket is that of a supervisor, and auto is the process that has the address. The process need not know,
    /// and goes on as it was if PROGRAM does not get ready. When PROGRAM has settled, it is sent --from-signal, and killed if
    /// it has not ended by --drain-timeout. If nobody is there, the sockets are bound. See TAKEOVER in the manual.
    #[arg(long, value_name = "WHO", value_parser = OsStringValueParser::new().try_map(|text| Who::parse(&text)), value_hint = ValueHint::AnyPath, group = "successor", requires = "listen", conflicts_with_all = ["lazy", "request"], help_heading = SOCKETS)]
    from: Option<Who>,

    /// The signal that asks the process of --from to drain [default: --stop-signal, or TERM]
    ///
    /// A supervisor gets TERM whatever is given: others mean something else to it, or are passed on to its generation.
    #[arg(long, value_name = "SIGNAL", requires = "from", value_parser = signal, help_heading = SOCKETS)]
    from_signal: Option<Signal>,

    /// Also keep the sockets in the service manager's descriptor store
    ///
    /// They outlive a restart of the unit, and with Restart= a crash, with what waits in them. The unit needs
    /// FileDescriptorStoreMax=; see DESCRIPTOR STORE in the manual.
    #[arg(long, requires = "listen", conflicts_with = "request", help_heading = SOCKETS)]
    fdstore: bool,

    /// Make the first socket descriptor 0 too
    ///
    /// For programs of the inetd kind, FastCGI, and Java's inheritedChannel.
    #[arg(long, help_heading = SOCKETS)]
    stdin: bool,

    /// Number the sockets from N instead of 3
    ///
    /// For wrappers that close low descriptors: 100 survives npm and npx. No LISTEN_ variable is set then.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(3..), help_heading = SOCKETS)]
    first_fd: Option<RawFd>,

    /// Leave LISTEN_PID out
    ///
    /// For wrappers which fork, such as npm, cargo watch, or sh -c 'a; b'.
    #[arg(long, help_heading = SOCKETS)]
    no_pid: bool,

    /// Start PROGRAM in this directory
    ///
    /// Looked up anew for each generation: a symbolic link such as current leads to the newest release. The paths of
    /// all other options are found from the directory that handoff-run was started in.
    #[arg(short = 'C', long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = PROGRAM)]
    chdir: Option<PathBuf>,

    /// Set the variables of PROGRAM that this file has
    ///
    /// Read anew for each generation. Lines KEY=VALUE as docker run has them: all behind = is the value, quotes
    /// included, and # begins a comment where it begins the line. --env, --as, and the variables that announce the
    /// sockets win over it.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = PROGRAM)]
    env_file: Option<PathBuf>,

    /// Set a variable of PROGRAM, placeholders replaced
    ///
    /// Repeatable. {fd}, {addr}, {host}, {port} and {path} refer to the first listener, or with :NAME of another;
    /// {gen} is the generation and {pid} the process. {{ is a literal brace. The same placeholders are replaced in
    /// PROGRAM's arguments.
    #[arg(long, value_name = "KEY=TEMPLATE", value_parser = OsStringValueParser::new().try_map(|text| Setting::parse(&text)), help_heading = PROGRAM)]
    env: Vec<Setting>,

    /// Do what this server needs to take a socket
    ///
    /// See --help-servers, or SERVERS in the manual.
    #[arg(long = "as", value_name = "SERVER", value_parser = preset_parser(), hide_possible_values = true, help_heading = PROGRAM)]
    preset: Option<&'static Preset>,

    /// Become PROGRAM only when the first client is waiting
    #[arg(long, help_heading = PROGRAM)]
    lazy: bool,

    /// Write the process id to this file before becoming PROGRAM
    ///
    /// Written whole or not at all, and left when PROGRAM ends; put back as it was if PROGRAM cannot be run or, with --from,
    /// the predecessor is not retired. A file that is there keeps its mode and owner, and a symbolic link is followed; in a
    /// folder that is not ours the file is written in place. With --supervise it is the supervisor's, written when the first
    /// generation serves and removed at the end if it is still ours.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = PROGRAM)]
    pid_file: Option<PathBuf>,

    /// Stay as the parent of PROGRAM and start its next generation on request
    ///
    /// SIGHUP, or --reload on the control socket, starts a new generation on the same sockets. The one that serves is
    /// asked to stop only when the new one is ready; a new one that fails changes nothing. SIGTERM, SIGINT and SIGQUIT
    /// drain and stop, or once more, a second later, stop now, as SIGQUIT of the keyboard does. SIGUSR2 replaces the
    /// supervisor itself by the program at its own path.
    #[arg(long, group = "successor", conflicts_with = "lazy", help_heading = SUPERVISING)]
    supervise: bool,

    /// Answer PROGRAM's own bind(2) to an address of --listen with our socket
    ///
    /// For a server that cannot take a socket: it is not told of any, and opens its address itself, as without us. See
    /// INTERCEPTION in the manual, also for what it needs.
    #[arg(long, requires = "supervise", conflicts_with_all = ["preset", "stdin", "first_fd", "no_pid"], help_heading = SUPERVISING)]
    intercept: bool,

    /// Let all generations accept on one socket
    ///
    /// Without it, each generation has a TCP or UDP socket of its own at the same address, and the kernel moves new
    /// connections to the one that serves; see STEERING in the manual. Inherited sockets, Unix sockets, and those with
    /// reuseport are shared in any case.
    #[arg(long, requires = "successor", help_heading = SUPERVISING)]
    shared: bool,

    /// Take requests, such as --reload and --status, on this Unix socket: PATH[,OPTION]...
    ///
    /// Only this user and root may use it, or with mode=, user= and group=, as in a SPEC, those whom they let in; a group
    /// without a mode may use it too. A comma in PATH is written \, here, but not with --reload and its like.
    #[arg(long, value_name = "PATH", requires = "supervise", value_parser = OsStringValueParser::new().try_map(|text| ControlSpec::parse(&text)), value_hint = ValueHint::FilePath, help_heading = SUPERVISING)]
    control: Option<ControlSpec>,

    /// When a generation counts as ready [default: auto]
    ///
    /// auto: it is seen waiting on every socket, or where that cannot be seen, sends READY=1 (sd_notify).
    /// notify: it sends READY=1 and, where that can be seen, waits on every socket.
    /// accepting: it is seen waiting on every socket.
    /// fd:N: it writes a byte to descriptor N.
    /// http:PATH: it answers a GET of PATH on its first socket, which has to be steered, with 2xx or 3xx.
    /// check:COMMAND: the command, run by sh, ends with status 0 and, where that can be seen, it waits on every socket.
    /// What comes from the address in HANDOFF_SOURCE, 127.0.0.2, reaches the new generation alone.
    /// after:DURATION: that time has passed and, where that can be seen, it waits on every socket.
    #[arg(long, value_name = "HOW", requires = "successor", value_parser = ready, help_heading = SUPERVISING)]
    ready: Option<Ready>,

    /// How long a generation may take to get ready [default: 60s]
    ///
    /// Then it is killed and the one that serves stays. A number with ms, s, m or h, as in 1.5s; without a unit, seconds.
    #[arg(long, value_name = "DURATION", requires = "successor", value_parser = duration, help_heading = SUPERVISING)]
    ready_timeout: Option<Duration>,

    /// The signal that asks a generation to drain [default: TERM, or what --as knows]
    #[arg(long, value_name = "SIGNAL", requires = "supervise", value_parser = signal, help_heading = SUPERVISING)]
    stop_signal: Option<Signal>,

    /// How long a generation may take to drain [default: 30s]
    ///
    /// Then what is left of it is killed.
    #[arg(long, value_name = "DURATION", requires = "successor", value_parser = duration, help_heading = SUPERVISING)]
    drain_timeout: Option<Duration>,

    /// When a generation that has a successor is asked to drain [default: signal]
    ///
    /// signal: as soon as no connection waits for it.
    /// idle: when its connections have ended, or at --drain-timeout; for servers that drop what they hold when they are
    /// asked to stop. After one more --drain-timeout it is killed. Every socket has to be steered.
    #[arg(long, value_name = "HOW", requires = "successor", value_parser = drain, help_heading = SUPERVISING)]
    drain: Option<Drain>,

    /// How long the old generation stands by when the new one serves [default: 1s]
    ///
    /// If the new one ends in that time, or accepts no more, the old one serves again and the reload has failed. 0 for
    /// none.
    #[arg(long, value_name = "DURATION", requires = "successor", value_parser = duration, help_heading = SUPERVISING)]
    settle: Option<Duration>,

    /// What follows when the generation that serves ends unasked [default: always]
    ///
    /// always: it is started again.
    /// on-failure: it is started again if its status is not 0, else the supervisor ends with 0.
    /// on-failure:N: the same, at most N times in a row; a row ends when one has served for 10 seconds.
    /// no: the supervisor ends with its status.
    #[arg(long, value_name = "HOW", requires = "supervise", value_parser = restart, help_heading = SUPERVISING)]
    restart: Option<Restart>,

    /// Ask the supervisor at this control socket for a new generation
    ///
    /// Ends when the new generation serves and has settled, with status 0, or when it failed: 1, or was not ready in time:
    /// 124; then the old one serves.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    reload: Option<PathBuf>,

    /// Show the generations of the supervisor at this control socket
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    status: Option<PathBuf>,

    /// Drain and stop the supervisor at this control socket
    ///
    /// Ends when it has stopped.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    stop: Option<PathBuf>,

    /// Let the new generation of the supervisor at this control socket take over now
    ///
    /// It is on trial, or has not settled. Ends with 125 if there is none.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    promote: Option<PathBuf>,

    /// Give up the new generation of the supervisor at this control socket, if it has not settled
    ///
    /// The new one, which is getting ready, on trial or has not settled, is told to stop. Ends with 125 if there is none.
    #[arg(long, value_name = "PATH", group = "request", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    rollback: Option<PathBuf>,

    /// With --reload, try the new generation first: SHARE%:DURATION[,sticky]
    ///
    /// It gets that share of new connections for that long, and then serves. Repeatable, in growing shares, which follow one
    /// another. With sticky a client stays on one side, by its address: with IPv6 by the first 64 bits. The old one serves
    /// meanwhile, and again if the new one ends, accepts no more, fails its check or is rolled back.
    #[arg(long, value_name = "SHARE:DURATION", requires = "reload", conflicts_with_all = ["status", "stop", "promote", "rollback", "program"], value_parser = canary, help_heading = REQUESTS)]
    canary: Vec<Canary>,

    /// With --canary, a command that has to succeed at the end of each stage
    ///
    /// It is run by sh, beside the supervisor, with HANDOFF_GENERATION and HANDOFF_SHARE.
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString, requires = "canary", value_parser = NonEmptyStringValueParser::new(), conflicts_with_all = ["status", "stop", "promote", "rollback", "program"], help_heading = REQUESTS)]
    check: Option<String>,

    /// With --reload, end when the old generation is gone
    ///
    /// With status 1 if it did not drain and was killed, or if the new one has ended by then and nothing serves.
    #[arg(long, requires = "reload", conflicts_with_all = ["status", "stop", "promote", "rollback", "program"], help_heading = REQUESTS)]
    wait: bool,

    /// With --status, print JSON
    #[arg(long, requires = "status", conflicts_with_all = ["reload", "stop", "promote", "rollback", "program"], help_heading = REQUESTS)]
    json: bool,

    /// With --status, print metrics for the textfile collector of Prometheus' node exporter
    #[arg(long, requires = "status", conflicts_with_all = ["json", "reload", "stop", "promote", "rollback", "program"], help_heading = REQUESTS)]
    prometheus: bool,

    /// Show the servers that --as knows, with a line that works for each
    #[arg(long, help_heading = HELP)]
    help_servers: bool,

    /// Log less; twice: errors only
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "verbose", help_heading = HELP)]
    quiet: u8,

    /// Log more; twice: everything
    ///
    /// The environment variable HANDOFF_LOG overrides both.
    #[arg(short, long, action = ArgAction::Count, help_heading = HELP)]
    verbose: u8,

    /// Print help: -h these lines, --help all of it
    #[arg(short, long, action = ArgAction::Help, help_heading = HELP)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = HELP)]
    version: Option<bool>,

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

fn preset_parser() -> impl TypedValueParser<Value = &'static Preset> {
    PossibleValuesParser::new(preset::TABLE.iter().map(|preset| preset.name))
        .map(|name| Preset::find(&name).expect("clap lets only names of the table pass"))
}

impl Cli {
    /// The log level when HANDOFF_LOG is not set.
    pub(crate) fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (0, 0) => LevelFilter::Info,
            (1, _) => LevelFilter::Warn,
            (0, 1) => LevelFilter::Debug,
            (0, _) => LevelFilter::Trace,
            _ => LevelFilter::Error,
        }
    }
}
