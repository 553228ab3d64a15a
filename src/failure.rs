//! What went wrong: the exit status, the error line and, where one is known, a second line with the remedy.

use std::error::Error as _;
use std::fmt;
use std::io::{self, Write, stderr};

use anyhow::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use nix::errno::Errno;

/// The exit statuses of our own; every other one is the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// handoff-run itself failed, usage included.
    Ours = 125,
    /// PROGRAM was found and cannot be executed.
    CannotExecute = 126,
    /// PROGRAM was not found.
    NotFound = 127,
}

/// A failure on its way to the one place that prints it.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    error: Error,
    remedy: Option<String>,
}

/// A result whose `?` means status 125.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with a status other than 125.
    pub(crate) fn with_status(status: ExitStatus, error: Error) -> Failure {
        Failure { status, error, remedy: None }
    }

    /// Add the second line.
    pub(crate) fn remedy(self, remedy: Option<String>) -> Failure {
        Failure { remedy, ..self }
    }

    /// What a system call reported, if it is that.
    pub(crate) fn errno(&self) -> Option<Errno> {
        self.error.downcast_ref().copied()
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        self.status as u8
    }

    /// The first line.
    pub(crate) fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// Print one line, or two, and give the exit status.
    pub(crate) fn report(&self) -> u8 {
        print_line(&self.message());
        if let Some(remedy) = &self.remedy {
            print_line(remedy);
        }
        self.status()
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::with_status(ExitStatus::Ours, error.into())
    }
}

/// An error of the system as std reports it, in the form that all others have: `ENOENT: No such file or directory`.
pub(crate) fn plain(error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).into(),
        None => error.into(),
    }
}

/// Print clap's error in our form: its first line, and its first tip as the remedy.
pub(crate) fn usage(error: clap::Error) -> u8 {
    let otherwise = where_to_look(&error);
    let text = with_words_escaped(error);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    print_line(&joined(first.strip_prefix("error: ").unwrap_or(first), &mut lines));
    match lines.find_map(|line| line.strip_prefix("tip: ")) {
        Some(tip) => print_line(tip),
        None => print_line(otherwise),
    }
    ExitStatus::Ours as u8
}

/// What to read where clap itself has no tip.
fn where_to_look(error: &clap::Error) -> &'static str {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    match (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) {
        ("--as <SERVER>", _) => "see handoff-run --help-servers",
        // As in --reload --wait PATH.
        ("--reload <PATH>" | "--promote <PATH>" | "--rollback <PATH>" | "--status <PATH>" | "--stop <PATH>", "")
            if error.kind() == ErrorKind::InvalidValue =>
        {
            "the path of the supervisor's control socket follows at once, as in --reload PATH --wait"
        }
        _ => "see handoff-run --help",
    }
}

/// The text of `error`, in which only clap's own line ends are left, none of the user's.
fn with_words_escaped(mut error: clap::Error) -> String {
    let words: Vec<(ContextKind, ContextValue)> =
        error.context().filter_map(|(kind, value)| Some((kind, escaped(value)?))).collect();
    for (kind, value) in words {
        error.insert(kind, value);
    }
    let text = error.render().to_string();
    let reason = error.source().map(ToString::to_string).unwrap_or_default();
    if reason.is_empty() { text } else { text.replace(&reason, &OneLine(&reason).to_string()) }
}

fn escaped(value: &ContextValue) -> Option<ContextValue> {
    match value {
        ContextValue::String(text) => Some(ContextValue::String(OneLine(text).to_string())),
        ContextValue::StyledStrs(texts) => Some(ContextValue::StyledStrs(
            texts.iter().map(|text| OneLine(&text.to_string()).to_string().into()).collect(),
        )),
        _ => None,
    }
}

/// A first line that ends with a colon goes on in those below it, as for a missing PROGRAM.
fn joined<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    match first.strip_suffix(':') {
        Some(_) => format!("{first} {}", lines.next().unwrap_or_default()),
        None => first.to_owned(),
    }
}

/// One line on stderr, with control characters escaped.
fn print_line(line: &str) {
    let line = format!("handoff-run: {}\n", OneLine(line));
    // In one write(2), so that no other process' line gets in between. A closed stderr cannot be reported anywhere.
    let _ = stderr().write_all(line.as_bytes());
}

/// Text with its control characters escaped, so that a file name cannot forge a second line.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => write!(f, "{c}"),
        })
    }
}
