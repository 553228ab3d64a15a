//! How reloads end, counted. A reload is a generation that was asked for, by however many requests, or one request that is
//! refused.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Id, Transition};
use crate::sys::Timestamp;

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The new generation serves and has settled.
    Succeeded,
    /// It ended before it was ready, or could not be started.
    Failed,
    /// It was not ready in time.
    TimedOut,
    /// It was getting ready or on trial, or had not settled, and the old one serves on, or again.
    RolledBack,
    /// It serves and has settled, and clients cannot reach a listener.
    Unreachable,
    /// Everything was stopped before.
    Cancelled,
    /// No generation was started for it.
    Refused,
}

/// How many reloads ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) timed_out: u64,
    pub(crate) rolled_back: u64,
    pub(crate) unreachable: u64,
    pub(crate) cancelled: u64,
    pub(crate) refused: u64,
}

/// The reloads so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Reloads {
    /// The generations that were asked for and have neither settled nor failed: the one under way and the next.
    asked: Vec<Id>,
    pub(crate) counts: Counts,
    /// How the last one ended that was not refused. A later version may know more ways.
    #[serde(deserialize_with = "known")]
    pub(crate) last: Option<Outcome>,
    /// When that was.
    pub(crate) last_at: Option<Timestamp>,
}

impl Reloads {
    /// This generation was asked for.
    pub(super) fn ask(&mut self, id: Id) {
        if !self.asked.contains(&id) {
            self.asked.push(id);
        }
    }

    /// The one under way, for a supervisor that knows nothing else of them.
    pub(crate) fn first_asked(&self) -> Option<Id> {
        self.asked.first().copied()
    }

    /// Go on after a predecessor that left only this.
    pub(crate) fn resume(&mut self, first_asked: Option<Id>) {
        if self.asked.is_empty() {
            self.asked.extend(first_asked);
        }
    }

    /// No generation is started for a request.
    pub(crate) fn refuse(&mut self) {
        *self.counts.of(Outcome::Refused) += 1;
    }

    /// A transition of this generation is reported: count the reload that ends with it, if one does. `broken` is what keeps
    /// clients from a listener.
    pub(crate) fn end(&mut self, id: Id, transition: Transition, broken: &[String], now: Timestamp) -> Option<Outcome> {
        let outcome = Outcome::of(transition, broken)?;
        self.asked.remove(self.asked.iter().position(|asked| *asked == id)?);
        *self.counts.of(outcome) += 1;
        (self.last, self.last_at) = (Some(outcome), Some(now));
        Some(outcome)
    }
}

/// By hand, for the derived code is many times as large: what is no number is none.
impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Counts, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let count = |name: &str| value[name].as_u64().unwrap_or_default();
        Ok(Counts {
            succeeded: count("succeeded"),
            failed: count("failed"),
            timed_out: count("timed_out"),
            rolled_back: count("rolled_back"),
            unreachable: count("unreachable"),
            cancelled: count("cancelled"),
            refused: count("refused"),
        })
    }
}

/// The outcome, if this version knows it.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Outcome>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(match value.as_str().unwrap_or_default() {
        "succeeded" => Some(Outcome::Succeeded),
        "failed" => Some(Outcome::Failed),
        "timed_out" => Some(Outcome::TimedOut),
        "rolled_back" => Some(Outcome::RolledBack),
        "unreachable" => Some(Outcome::Unreachable),
        "cancelled" => Some(Outcome::Cancelled),
        _ => None,
    })
}

impl Counts {
    fn of(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Succeeded => &mut self.succeeded,
            Outcome::Failed => &mut self.failed,
            Outcome::TimedOut => &mut self.timed_out,
            Outcome::RolledBack => &mut self.rolled_back,
            Outcome::Unreachable => &mut self.unreachable,
            Outcome::Cancelled => &mut self.cancelled,
            Outcome::Refused => &mut self.refused,
        }
    }

    /// Those of which there were any, in words.
    pub(crate) fn in_words(&self) -> Vec<String> {
        let all = [
            (self.succeeded, "succeeded"),
            (self.failed, "failed"),
            (self.timed_out, "timed out"),
            (self.rolled_back, "rolled back"),
            (self.unreachable, "left a listener that cannot be reached"),
            (self.cancelled, "cancelled"),
            (self.refused, "refused"),
        ];
        all.iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!("{count} {how}")).collect()
    }
}

impl Outcome {
    /// How a reload ends with this transition of its generation, if it does.
    fn of(transition: Transition, broken: &[String]) -> Option<Outcome> {
        match transition {
            Transition::Settled if broken.is_empty() => Some(Outcome::Succeeded),
            Transition::Settled => Some(Outcome::Unreachable),
            Transition::RolledBack(_) => Some(Outcome::RolledBack),
            Transition::Failed(_) => Some(Outcome::Failed),
            Transition::TimedOut => Some(Outcome::TimedOut),
            Transition::Cancelled => Some(Outcome::Cancelled),
            _ => None,
        }
    }
}
