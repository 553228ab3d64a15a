//! What is printed at the end.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use super::causes::{CAUSES, Records};
use super::clock::{Time, now};
use super::run::WARM_UP;
use super::tally::Tally;
use super::usage::Usage;

/// Unexplained losses that are printed at most: more have the same cause.
const MOST: usize = 20;

pub struct Summary {
    time: Time,
    tally: Tally,
    deploys: BTreeMap<(&'static str, i32), u64>,
    faults: BTreeMap<String, u64>,
    causes: BTreeMap<&'static str, u64>,
    usage: Vec<(&'static str, Usage)>,
    /// Whatever should not have been, in words.
    unexplained: Vec<String>,
}

impl Summary {
    pub fn new(records: &Records, tally: Tally, before: Usage, after: Result<Usage>, start: Time) -> Summary {
        let between = |begun: Time, ended: Time| [begun, ended].map(|time| time.saturating_sub(start).as_secs_f64());
        let (mut deploys, mut faults, mut causes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut unexplained = Vec::new();
        for loss in &tally.losses {
            match records.explain(loss) {
                Some(cause) => *causes.entry(cause).or_default() += 1,
                None => unexplained.push(format!("{:.4?} {loss:?}", between(loss.begun, loss.ended))),
            }
        }
        for deploy in records.deploys {
            *deploys.entry((deploy.release, deploy.status)).or_default() += 1;
            if !records.allows(deploy) {
                unexplained.push(format!("{:.4?} {deploy:?}", between(deploy.begun, deploy.ended)));
            }
        }
        for fault in records.faults {
            *faults.entry(format!("{:?}", fault.kind)).or_default() += 1;
        }
        let mut usage = vec![("start", before)];
        match after {
            Ok(after) => {
                let more = records.most_generations().saturating_sub(WARM_UP as usize);
                let growth = after.growth(&usage[0].1, more);
                unexplained.extend(growth.into_iter().map(|what| format!("more than before: {what}")));
                usage.push(("end", after));
            }
            Err(error) => unexplained.push(format!("{error:#}")),
        }
        Summary { time: now() - start, tally, deploys, faults, causes, usage, unexplained }
    }

    pub fn is_as_promised(&self) -> bool {
        self.unexplained.is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "\n| requests in {:.0} s | answered | failed |\n| --- | --- | --- |", self.time.as_secs_f64())?;
        for (kind, (answered, failed)) in &self.tally.counts {
            writeln!(f, "| {kind} | {answered} | {failed} |")?;
        }
        let (answered, failed) =
            self.tally.counts.values().fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        writeln!(f, "| all | {answered} | {failed} |\n\n| deploys of | ended with | |\n| --- | --- | --- |")?;
        for ((release, status), count) in &self.deploys {
            writeln!(f, "| {release} | {status} | {count} |")?;
        }
        writeln!(f, "\n| faults | |\n| --- | --- |")?;
        for (kind, count) in &self.faults {
            writeln!(f, "| {kind} | {count} |")?;
        }
        writeln!(f, "\n| lost | | documented |\n| --- | --- | --- |")?;
        for cause in CAUSES {
            writeln!(f, "| {} | {} | {} |", cause.name, self.causes.get(cause.name).unwrap_or(&0), cause.source)?;
        }
        writeln!(f, "| unexplained | {} | |", self.unexplained.len())?;
        writeln!(
            f,
            "\n| | descriptors | memory | zombies | processes | files |\n| --- | --- | --- | --- | --- | --- |"
        )?;
        for (when, usage) in &self.usage {
            writeln!(f, "| {when} | {usage} |")?;
        }
        for what in self.unexplained.iter().take(MOST) {
            writeln!(f, "\nunexplained: {what}")?;
        }
        Ok(())
    }
}
