//! A row of the table, in Markdown.

use std::fmt::{self, Display, Formatter};

use anyhow::Result;

use super::client::Kind;
use super::failure::Failure;
use super::tally::Tally;

/// The head of the table. All columns are of the time with reloads, but for the rate that the ratio refers to, and the last
/// one. `closed` counts keep-alive connections that the server closed between two requests without having announced it,
/// which harms nobody; `lost` among the failures is such a connection on which a request had been sent.
pub const HEAD: &str = "\
| server | mode | requests | reloads | one-request failed | slow failed | half-open failed | keep-alive failed | closed \
| rate | p50 ms | p99 ms | p99.9 ms | undisturbed p99.9 ms |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// What came of one server in one mode.
pub struct Row<'a> {
    pub server: &'a str,
    pub mode: &'a str,
    pub undisturbed: Tally,
    pub deployed: Tally,
    pub reloads: Vec<Result<()>>,
}

const KINDS: [(Kind, &str); 4] = [
    (Kind::OneRequest, "one-request"),
    (Kind::Slow, "slow"),
    (Kind::HalfOpen, "half-open"),
    (Kind::KeepAlive, "keep-alive"),
];

impl Row<'_> {
    /// Whether nothing was refused and all reloads succeeded.
    pub fn is_as_promised(&self) -> bool {
        let refused = self.undisturbed.failed(Failure::Refused) + self.deployed.failed(Failure::Refused);
        refused == 0 && self.reloads.iter().all(Result::is_ok)
    }

    /// What the row does not show: failures without any reload, and the first reload that failed.
    pub fn remarks(&self) -> Vec<String> {
        let name = format!("{}, {}", self.server, self.mode);
        let failures = KINDS.iter().map(|(kind, what)| (what, self.undisturbed.failures(*kind)));
        let failures = failures.filter(|(_, failures)| failures != "0");
        let undisturbed = failures.map(|(what, failures)| format!("{name}, undisturbed: {what} {failures}"));
        let reload = self.reloads.iter().find_map(|reload| reload.as_ref().err());
        undisturbed.chain(reload.map(|error| format!("{name}: {error:#}"))).collect()
    }
}

impl Display for Row<'_> {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Row { undisturbed, deployed, reloads, .. } = self;
        let failed = reloads.iter().filter(|reload| reload.is_err()).count();
        let failed = if failed == 0 { String::new() } else { format!(", {failed} failed") };
        write!(f, "| {} | {} | {} | {}{failed}", self.server, self.mode, deployed.requests(), reloads.len())?;
        for (kind, _) in KINDS {
            write!(f, " | {}", deployed.failures(kind))?;
        }
        let rate = undisturbed.rate();
        write!(f, " | {} | {:.2} of {rate:.0}/s", deployed.closed, deployed.rate() / rate)?;
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| deployed.quantile(share));
        write!(f, " | {p50:.2} | {p99:.2} | {p999:.2} | {:.2} |", undisturbed.quantile(0.999))
    }
}
