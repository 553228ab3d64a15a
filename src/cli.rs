//! The command line: its definition, from which help, manual and completions are made, and what it means.

use std::ffi::{CString, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Parser, ValueHint};
use libc::c_int;
use log::LevelFilter;

use crate::preset::{self, Blocking, Every, Preset, Stdin};
use crate::spec::{Address, Family, Host, Inet, Spec};
use crate::sys::FIRST_FD;
use crate::template::Template;

/// Give a listening socket to a program, and to its successor
///
/// Binds the sockets that --listen asks for, or adopts those that were inherited, and becomes PROGRAM, which finds them
/// from descriptor 3 on with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as systemd would set them. A server that runs
/// the same line again hands its own sockets to its successor: what is inherited is not bound again.
#[derive(Debug, Parser)]
#[command(version, override_usage = "handoff-run [OPTIONS] [--] PROGRAM [ARG]...")]
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
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
    /// Written whole or not at all, and never removed.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pid_file: Option<PathBuf>,

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
        required_unless_present = "help_servers",
        value_hint = ValueHint::CommandWithArguments
    )]
    program: Vec<OsString>,
}

/// A variable to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: Template,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Print the presets.
    ShowServers,
    /// Become a program.
    Exec(Exec),
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

impl FromStr for Setting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Setting> {
        let (key, value) = text.split_once('=').context("write KEY=VALUE")?;
        ensure!(!key.is_empty(), "the variable's name is empty");
        Ok(Setting { key: key.to_owned(), value: value.parse()? })
    }
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
        let stdin = if self.stdin { Stdin::FirstSocket } else { self.preset.map_or(Stdin::Untouched, |p| p.stdin) };
        let announce = match (self.first_fd, self.no_pid) {
            (Some(_), _) => Announce::Nothing,
            (None, true) => Announce::WithoutPid,
            (None, false) => Announce::All,
        };
        let argument = |argument: OsString| CString::new(argument.into_vec()).expect("exec gave no argument with NUL");
        Plan::Exec(Exec {
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
        })
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
