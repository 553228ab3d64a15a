//! What came of the load on one pair of server and tool, as a row of the table in Markdown and as it went over time.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::client::{Event, Kind};
use super::failure::Failure;
use super::tally::Tally;
use super::tools::Tool;

/// The head of the table. All columns are of the time with deploys, but for the rate that the ratio refers to. The
/// latencies are those of a new connection, from before connecting to the end of the answer. `lost` is a request that was
/// sent on a keep-alive connection which then ended without a byte; which HTTP allows to repeat, if it is one that may be.
pub const HEAD: &str = "\
| server | tool | deploys | requests/s | ratio | failed | refused | reset | timeout | short | other | lost \
| p50 ms | p99 ms | p99.9 ms | max ms |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// How much time is in one moment of the picture.
pub const MOMENT: Duration = Duration::from_millis(100);

const FAILURES: [Failure; 6] =
    [Failure::Refused, Failure::Reset, Failure::Timeout, Failure::Short, Failure::Other, Failure::Lost];

/// One phase of the load.
pub struct Record {
    pub tally: Tally,
    start: Instant,
    /// What ended in each.
    pub moments: Vec<Moment>,
}

#[derive(Clone, Copy, Default)]
pub struct Moment {
    pub answered: u32,
    pub failed: u32,
}

pub struct Row {
    pub server: &'static str,
    pub tool: &'static Tool,
    pub undisturbed: Record,
    pub deployed: Record,
    pub deploys: Vec<Deploy>,
}

pub struct Deploy {
    /// When it began, from the start of the load on.
    pub begun: Duration,
    pub end: Result<()>,
}

impl Record {
    pub fn over(time: Duration) -> Record {
        Record { tally: Tally::over(time), start: Instant::now(), moments: Vec::new() }
    }

    pub fn count(&mut self, kind: Kind, event: &Event) {
        self.tally.count(kind, event);
        let number = self.start.elapsed().div_duration_f64(MOMENT) as usize;
        if self.moments.len() <= number {
            self.moments.resize(number + 1, Moment::default());
        }
        match event {
            Event::Answered(_) => self.moments[number].answered += 1,
            Event::Failed(_) => self.moments[number].failed += 1,
            Event::Closed => {}
        }
    }

    pub fn failed(&self) -> u64 {
        FAILURES.iter().map(|failure| self.tally.failed(*failure)).sum()
    }
}

impl Row {
    pub fn failed_deploys(&self) -> usize {
        self.deploys.iter().filter(|deploy| deploy.end.is_err()).count()
    }

    /// The rate with deploys as a share of the undisturbed one.
    pub fn ratio(&self) -> f64 {
        self.deployed.tally.rate() / self.undisturbed.tally.rate()
    }

    /// Whether with handoff-run nothing was refused and all deploys succeeded; the others promise nothing here.
    pub fn is_as_promised(&self) -> bool {
        !self.tool.is_ours() || (self.deployed.tally.failed(Failure::Refused) == 0 && self.failed_deploys() == 0)
    }

    /// What the row does not show: failures without any deploy, and the first deploy that failed.
    pub fn remarks(&self) -> Vec<String> {
        let undisturbed = self.undisturbed.failed();
        let undisturbed = (undisturbed > 0).then(|| format!("{undisturbed} requests failed undisturbed"));
        let deploy = self.deploys.iter().find_map(|deploy| deploy.end.as_ref().err());
        undisturbed.into_iter().chain(deploy.map(|error| format!("a deploy failed: {error:#}"))).collect()
    }
}

impl Display for Row {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Row { server, tool, deployed, deploys, .. } = self;
        write!(f, "| {server} | {} | {}", tool.name, deploys.len())?;
        if self.failed_deploys() > 0 {
            write!(f, ", {} failed", self.failed_deploys())?;
        }
        write!(f, " | {:.0} | {:.2} | {}", deployed.tally.rate(), self.ratio(), deployed.failed())?;
        for failure in FAILURES {
            write!(f, " | {}", deployed.tally.failed(failure))?;
        }
        for share in [0.5, 0.99, 0.999, 1.0] {
            write!(f, " | {:.2}", deployed.tally.quantile(share))?;
        }
        write!(f, " |")
    }
}
