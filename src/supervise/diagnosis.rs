//! What is known of a generation that did not get ready, in words: only what was seen, and what helps against it. Pure.

use std::fmt;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::kernel::elsewhere::ForeignListener;
use crate::sys::{Ending, FIRST_FD};

/// Where a server finds its sockets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whereabouts {
    pub(crate) first_fd: RawFd,
    pub(crate) count: usize,
    /// In LISTEN_FDS.
    pub(crate) announced: bool,
}

impl Default for Whereabouts {
    fn default() -> Whereabouts {
        Whereabouts { first_fd: FIRST_FD, count: 1, announced: true }
    }
}

/// What helps when a server did not take the socket.
impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.first_fd;
        match self.count {
            1 => write!(f, "its socket is open at descriptor {first}"),
            _ => write!(f, "its sockets are open from descriptor {first} on"),
        }?;
        let announced = if self.announced { " and announced in LISTEN_FDS" } else { "" };
        write!(f, "{announced}; see 'handoff-run --help-servers' for how servers take it")
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// It listens there, on a socket that is not ours.
    pub(crate) elsewhere: Option<ForeignListener>,
    /// What it is stopped by.
    pub(crate) stopped: Option<Signal>,
    /// What readiness waits for, where that is not that it accepts, and what came of it.
    pub(crate) awaited: Option<String>,
    /// The addresses of the sockets that none of its processes waits on.
    pub(crate) unattended: Vec<String>,
    /// Whether it accepts cannot be seen.
    pub(crate) unobservable: bool,
    /// How many of its processes live.
    pub(crate) processes: usize,
    /// An earlier generation was seen to take the sockets.
    pub(crate) taken_before: bool,
    pub(crate) whereabouts: Whereabouts,
}

/// What went wrong, and what helps.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) text: String,
    pub(crate) remedy: Option<String>,
}

impl Diagnosis {
    /// It was not ready in time, of which `text` is the report.
    pub(crate) fn of_lateness(&self, text: &str) -> Findings {
        let elsewhere =
            self.elsewhere.as_ref().map(|other| format!("it listens on {}, not on our socket", other.address));
        let stopped = self.stopped.map(|signal| format!("it is stopped by {signal}"));
        let cause = stopped.or(elsewhere);
        let unattended = Some(format!("no process waits on {}", self.unattended.join(" or on ")));
        // Where it cannot be seen, or the cause is known, it proves nothing.
        let unattended = unattended.filter(|_| cause.is_none() && !self.unobservable && !self.unattended.is_empty());
        let facts: Vec<String> = cause.into_iter().chain(self.awaited.clone()).chain(unattended.clone()).collect();
        let text = if facts.is_empty() { text.to_owned() } else { format!("{text}: {}", facts.join(", and ")) };
        let remedy = match self.stopped {
            Some(signal) => why_stopped(signal).map(str::to_owned),
            None if self.elsewhere.is_some() => Some(self.whereabouts.to_string()),
            None if self.unobservable && self.awaited.is_none() => {
                Some("what it waits on cannot be seen: choose with --ready how it shows that it is ready".to_owned())
            }
            None => (unattended.is_some() && !self.taken_before).then(|| self.whereabouts.to_string()),
        };
        Findings { text, remedy }
    }

    /// Its main process ended before it was ready. `addresses` are those of its sockets.
    pub(crate) fn of_end(&self, ending: Ending, addresses: &[String]) -> Findings {
        if let Some(daemon) = gone_to_background(ending, self.processes) {
            return Findings { text: format!("{} before it was ready", daemon.text), ..daemon };
        }
        let left = if self.processes > 0 { format!(" and left {}", processes(self.processes)) } else { String::new() };
        let remedy = if self.taken_before {
            "an earlier generation took the socket, so see what this one wrote to the supervisor's stderr".to_owned()
        } else {
            format!("if it tried to bind {} itself, it need not: {}", addresses.join(" or "), self.whereabouts)
        };
        Findings { text: format!("{ending} before it was ready{left}"), remedy: Some(remedy) }
    }
}

/// The findings if it did what a daemon does: its main process succeeded and left others behind.
pub(crate) fn gone_to_background(ending: Ending, left: usize) -> Option<Findings> {
    (ending == Ending::Exited(0) && left > 0).then(|| Findings {
        text: format!("{ending} and left {} in the background", processes(left)),
        remedy: Some(
            "it must stay in the foreground: servers have an option for that, such as --nodaemonize".to_owned(),
        ),
    })
}

/// What a terminal stops a process for.
pub(crate) fn why_stopped(signal: Signal) -> Option<&'static str> {
    match signal {
        Signal::SIGTTIN => Some("it read from the terminal, whose foreground job it is not: start it with </dev/null"),
        Signal::SIGTTOU => Some("it changed the terminal, or wrote to it, whose foreground job it is not"),
        _ => None,
    }
}

/// That `wrapper` in front of the server ends a drain before its time. Those of util-linux wait for what they run, and
/// kill it two seconds after they got SIGTERM themselves.
pub(crate) fn cut_short(wrapper: &str, drain: Duration) -> Option<String> {
    let warning = || {
        format!(
            "{wrapper} kills the server 2 s after the stop signal, before --drain-timeout; setpriv in its place does not"
        )
    };
    (["su", "runuser"].contains(&wrapper) && drain > Duration::from_secs(2)).then(warning)
}

fn processes(count: usize) -> String {
    if count == 1 { "1 process".to_owned() } else { format!("{count} processes") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late(diagnosis: &Diagnosis) -> (String, Option<String>) {
        let findings = diagnosis.of_lateness("late");
        (findings.text, findings.remedy)
    }

    fn take_it() -> Option<String> {
        Some(Whereabouts::default().to_string())
    }

    #[test]
    fn of_one_that_is_late_only_what_was_seen_is_said() {
        let unattended = || vec!["ADDRESS".to_owned(), "/path".to_owned()];
        assert_eq!(late(&Diagnosis::default()), ("late".into(), None));
        let nobody = "late: no process waits on ADDRESS or on /path".to_owned();
        let first = Diagnosis { unattended: unattended(), ..Diagnosis::default() };
        assert_eq!(late(&first), (nobody.clone(), take_it()));
        let later = Diagnosis { taken_before: true, ..first };
        assert_eq!(late(&later), (nobody, None), "a server that took the socket knows how");
        let closed = Diagnosis { unattended: unattended(), unobservable: true, ..Diagnosis::default() };
        let choose = "what it waits on cannot be seen: choose with --ready how it shows that it is ready";
        assert_eq!(late(&closed), ("late".into(), Some(choose.into())));
        let check = Diagnosis { awaited: Some("its check failed".into()), ..Diagnosis::default() };
        assert_eq!(late(&check), ("late: its check failed".into(), None));
        let both = Diagnosis { unattended: vec!["ADDRESS".into()], ..check };
        assert_eq!(late(&both), ("late: its check failed, and no process waits on ADDRESS".into(), take_it()));
        let stopped = Diagnosis { stopped: Some(Signal::SIGSTOP), unattended: unattended(), ..Diagnosis::default() };
        assert_eq!(late(&stopped), ("late: it is stopped by SIGSTOP".into(), None));
    }

    #[test]
    fn of_one_that_ended_it_is_said_what_it_left() {
        let end = |status, processes, taken_before| {
            let diagnosis = Diagnosis { processes, taken_before, ..Diagnosis::default() };
            diagnosis.of_end(Ending::Exited(status), &["ADDRESS".to_owned()])
        };
        assert_eq!(end(3, 0, false).text, "ended with status 3 before it was ready");
        assert!(end(3, 0, false).remedy.unwrap().contains("bind ADDRESS itself"));
        assert!(end(3, 0, true).remedy.unwrap().contains("took the socket"));
        assert_eq!(end(3, 2, false).text, "ended with status 3 before it was ready and left 2 processes");
        let daemon = end(0, 1, false);
        assert_eq!(daemon.text, "ended with status 0 and left 1 process in the background before it was ready");
        assert!(daemon.remedy.unwrap().contains("foreground"));
    }
}
