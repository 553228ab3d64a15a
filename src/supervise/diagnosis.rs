//! What is known of a generation that did not get ready, in words: only what was seen, and what helps against it. Pure.

use std::fmt;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::kernel::elsewhere::{ForeignAddress, ForeignListener};
use crate::sys::{Ending, FIRST_FD};

/// Where a server finds its sockets.
#[derive(Clone, Debug)]
pub(crate) enum Whereabouts {
    Descriptors {
        first_fd: RawFd,
        count: usize,
        /// In LISTEN_FDS.
        announced: bool,
    },
    /// Where it binds one of these addresses.
    Intercepted(Vec<String>),
}

impl Default for Whereabouts {
    fn default() -> Whereabouts {
        Whereabouts::Descriptors { first_fd: FIRST_FD, count: 1, announced: true }
    }
}

impl Whereabouts {
    /// What helps where it listens on another address.
    fn remedy_for(&self, other: &ForeignAddress) -> String {
        match self {
            Whereabouts::Descriptors { .. } => self.to_string(),
            Whereabouts::Intercepted(addresses) => {
                format!("let it listen on {}, or use --listen {}", addresses.join(" and "), self.spec_beside(other))
            }
        }
    }

    /// How it is written for `--listen` beside those that there are: `:PORT` would be in the way of another of that port.
    pub(crate) fn spec_beside(&self, other: &ForeignAddress) -> String {
        let port = |port: u16| format!(":{port}");
        match (self, other) {
            (Whereabouts::Intercepted(ours), ForeignAddress::Tcp(address))
                if address.ip().is_unspecified() && ours.iter().any(|ours| ours.ends_with(&port(address.port()))) =>
            {
                if address.is_ipv6() {
                    format!("{address},v6only")
                } else {
                    address.to_string()
                }
            }
            _ => other.spec(),
        }
    }
}

/// What helps when a server did not take the socket.
impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, count, announced) = match self {
            Whereabouts::Descriptors { first_fd, count, announced } => (first_fd, count, announced),
            Whereabouts::Intercepted(addresses) => {
                return write!(f, "it gets its socket when it binds {} itself", addresses.join(" or "));
            }
        };
        match count {
            1 => write!(f, "its socket is open at descriptor {first}"),
            _ => write!(f, "its sockets are open from descriptor {first} on"),
        }?;
        let announced = if *announced { " and announced in LISTEN_FDS" } else { "" };
        write!(f, "{announced}; see 'handoff-run --help-servers' for how servers take it, or use --intercept")
    }
}

/// What helps where it would have become ready later.
const LONGER: &str = "where a start takes longer, as with a build, use --ready-timeout";

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// It listens there, on a socket that is not ours.
    pub(crate) elsewhere: Option<ForeignListener>,
    /// With interception, an address that the serving generation has opened itself.
    pub(crate) opened_by_serving: Option<ForeignAddress>,
    /// Its bind(2) was answered with a socket of ours.
    pub(crate) was_given: bool,
    /// Why its last bind(2) was refused.
    pub(crate) refusal: Option<Findings>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let refused = self.refusal.as_ref().filter(|_| stopped.is_none());
        let cause = refused.map(|refusal| refusal.text.clone()).or(stopped).or(elsewhere);
        let unattended = Some(format!("no process waits on {}", self.unattended.join(" or on ")));
        // Where it cannot be seen, or the cause is known, it proves nothing.
        let unattended = unattended.filter(|_| cause.is_none() && !self.unobservable && !self.unattended.is_empty());
        let facts: Vec<String> = cause.into_iter().chain(self.awaited.clone()).chain(unattended.clone()).collect();
        let text = if facts.is_empty() { text.to_owned() } else { format!("{text}: {}", facts.join(", and ")) };
        let remedy = match self.stopped {
            Some(signal) => why_stopped(signal).map(str::to_owned),
            None if self.refusal.is_some() => self.refusal.as_ref().and_then(|refusal| refusal.remedy.clone()),
            None if let Some(other) = &self.elsewhere => Some(self.whereabouts.remedy_for(&other.address)),
            None if self.unobservable && self.awaited.is_none() => {
                Some("what it waits on cannot be seen: choose with --ready how it shows that it is ready".to_owned())
            }
            None if unattended.is_none() => None,
            // A server that took the socket knows how.
            None if self.taken_before => Some(LONGER.to_owned()),
            None => Some(format!("{}; {LONGER}", self.whereabouts)),
        };
        Findings { text, remedy }
    }

    /// Its main process ended before it was ready. `addresses` are those of its sockets.
    pub(crate) fn of_end(&self, ending: Ending, addresses: &[String]) -> Findings {
        if let Some(daemon) = gone_to_background(ending, self.processes) {
            return Findings { text: format!("{} before it was ready", daemon.text), ..daemon };
        }
        if let Some(refusal) = &self.refusal {
            return Findings { text: format!("{ending} before it was ready: {}", refusal.text), ..refusal.clone() };
        }
        let left = if self.processes > 0 { format!(" and left {}", processes(self.processes)) } else { String::new() };
        let remedy = if let Some(opened_by_serving) = &self.opened_by_serving {
            let spec = self.whereabouts.spec_beside(opened_by_serving);
            format!(
                "the one that serves has opened {opened_by_serving} itself; if this one failed because of that, add --listen {spec}"
            )
        } else if self.taken_before {
            "an earlier generation took the socket, so see what this one wrote to the supervisor's stderr".to_owned()
        } else if self.was_given {
            "it had got its socket, so see what it wrote to the supervisor's stderr, or to its own log".to_owned()
        } else if let Whereabouts::Intercepted(_) = self.whereabouts {
            // php-fpm and others connect to a path before they bind it.
            let is_path = addresses.iter().any(|address| address.starts_with('/'));
            let or_if =
                if is_path { ", not when it first connects there: then hand it over, without --intercept" } else { "" };
            format!("{}{or_if}; see what it wrote to the supervisor's stderr", self.whereabouts)
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
            "it must stay in the foreground: servers have an option for that, as nginx 'daemon off;', apache2 -D FOREGROUND, \
             lighttpd -D, others --nodaemonize"
                .to_owned(),
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
        Some(format!("{}; {LONGER}", Whereabouts::default()))
    }

    #[test]
    fn of_one_that_is_late_only_what_was_seen_is_said() {
        let unattended = || vec!["ADDRESS".to_owned(), "/path".to_owned()];
        assert_eq!(late(&Diagnosis::default()), ("late".into(), None));
        let nobody = "late: no process waits on ADDRESS or on /path".to_owned();
        let first = Diagnosis { unattended: unattended(), ..Diagnosis::default() };
        assert_eq!(late(&first), (nobody.clone(), take_it()));
        let later = Diagnosis { taken_before: true, ..first };
        let longer = Some(LONGER.to_owned());
        assert_eq!(late(&later), (nobody, longer), "a server that took the socket knows how");
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
        let opened_by_serving = Some(ForeignAddress::Tcp("[::]:9090".parse().unwrap()));
        let remedy = Diagnosis { opened_by_serving, ..Diagnosis::default() }.of_end(Ending::Exited(3), &[]).remedy;
        let expected = "the one that serves has opened [::]:9090 itself; if this one failed because of that, add \
                        --listen :9090";
        assert_eq!(remedy.as_deref(), Some(expected));
        let beside = |ours: &str, other: &str| {
            let whereabouts = Whereabouts::Intercepted(vec![ours.to_owned()]);
            whereabouts.spec_beside(&ForeignAddress::Tcp(other.parse().unwrap()))
        };
        assert_eq!(beside("127.0.0.1:80", "[::]:80"), "[::]:80,v6only");
        assert_eq!(beside("[::1]:80", "0.0.0.0:80"), "0.0.0.0:80");
        assert_eq!(beside("127.0.0.1:8080", "[::]:80"), ":80");
        assert_eq!(end(3, 2, false).text, "ended with status 3 before it was ready and left 2 processes");
        let daemon = end(0, 1, false);
        assert_eq!(daemon.text, "ended with status 0 and left 1 process in the background before it was ready");
        assert!(daemon.remedy.unwrap().contains("foreground"));
    }
}
