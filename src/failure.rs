//! What went wrong: the exit status, the line that says so, and where one is known, the line with the remedy.

use std::fmt;
use std::io::{Write, stderr};

use anyhow::Error;

/// The exit statuses of our own; every other one is the target's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
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
    status: Status,
    error: Error,
    remedy: Option<String>,
}

/// A result whose `?` means status 125.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with a status other than 125.
    pub(crate) fn with_status(status: Status, error: Error) -> Failure {
        Failure { status, error, remedy: None }
    }

    /// Add the second line.
    pub(crate) fn remedy(self, remedy: Option<String>) -> Failure {
        Failure { remedy, ..self }
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
        say(&self.message());
        if let Some(remedy) = &self.remedy {
            say(remedy);
        }
        self.status()
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::with_status(Status::Ours, error.into())
    }
}

/// Print clap's error in our form: its first line, and its first tip as the remedy.
pub(crate) fn usage(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    say(&joined(first.strip_prefix("error: ").unwrap_or(first), &mut lines));
    match lines.find_map(|line| line.strip_prefix("tip: ")) {
        Some(tip) => say(tip),
        None => say("see handoff-run --help"),
    }
    Status::Ours as u8
}

/// A first line that ends with a colon goes on in those below it, as for a missing PROGRAM.
fn joined<'a>(first: &str, lines: &mut impl Iterator<Item = &'a str>) -> String {
    match first.strip_suffix(':') {
        Some(_) => format!("{first} {}", lines.next().unwrap_or_default()),
        None => first.to_owned(),
    }
}

/// One line on stderr, whatever characters the user's words hold.
fn say(line: &str) {
    // Nobody is left to tell that stderr is closed.
    let _ = writeln!(stderr(), "handoff-run: {}", OneLine(line));
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
