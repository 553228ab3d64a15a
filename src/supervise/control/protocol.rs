//! What goes over the control socket: one JSON text a line, both ways; one request a connection.

use serde::{Deserialize, Serialize};

use crate::config::Request;
use crate::saved;
use crate::socket::takeover::Loan;
use crate::supervise::control::server::SavedServer;
use crate::supervise::plan::Id;

/// What a client sends, once.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) request: Request,
    /// It shows numbers as they change.
    #[serde(default)]
    pub(crate) live: bool,
}

/// What the supervisor sends. A client ignores what it does not understand: a newer supervisor may send more.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(any(test, fuzzing), derive(PartialEq))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// What became of a generation.
    Progress { generation: Id, text: String },
    /// How far it is; only to a client that is live.
    Live { generation: Id, text: String },
    /// For stdout.
    Output(String),
    /// The sockets that are lent.
    Loan {
        loan: Loan,
        /// The control socket, if it was asked for.
        #[serde(default)]
        control: Option<SavedServer>,
    },
    /// For stderr.
    Error(String),
    /// The last one: the exit status.
    Exit(u8),
}

/// One line of the protocol.
pub(crate) fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("it has no map with other keys than strings") + "\n"
}

/// The request in a line, if it is one.
pub(crate) fn parse_call(line: &[u8]) -> Option<Call> {
    saved::parse(line).ok()
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::config::{Form, Rollout, Stage, Until};

    #[test]
    fn only_what_is_known_is_a_request() {
        let call = |request, live| Some(Call { request, live });
        let rollout = Rollout::default();
        let reload = call(Request::Reload { until: Until::OldGone, rollout }, true);
        assert_eq!(parse_call(br#"{"request":{"reload":{"until":"old-gone"}},"live":true}"#), reload);
        let stages = vec![Stage { percent: 5, duration: Duration::from_millis(1500) }];
        let rollout = Rollout { stages, sticky: true, check: Some("a \"b\"".into()) };
        let reload = Call { request: Request::Reload { until: Until::Serving, rollout }, live: false };
        assert_eq!(parse_call(line(&reload).trim_end().as_bytes()), Some(reload));
        assert_eq!(parse_call(br#"{"request":{"status":"table"}}"#), call(Request::Status(Form::Table), false));
        assert_eq!(parse_call(br#"{"request":"stop","from":"tomorrow"}"#), call(Request::Stop, false));
        for line in ["", " ", "stop", "{}", r#"{"request":"Stop"}"#, r#"{"request":{"reload":"json"}}"#, "\u{ff}"] {
            assert_eq!(parse_call(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_line_end_in_a_text_ends_no_line() {
        let reply = Reply::Progress { generation: 1, text: "cannot run a\n{\"exit\":0}".into() };
        let line = line(&reply);
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
    }
}
