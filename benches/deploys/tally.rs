//! What came of one phase of the load. Every request that was begun is counted exactly once.

#![allow(dead_code, reason = "the benchmarks each need their part of it")]

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::{Event, Kind};
use super::failure::Failure;

#[derive(Default)]
pub struct Tally {
    /// How long requests were begun.
    time: Duration,
    counts: [Counts; 4],
    /// Connections that the server closed between two requests without having announced it.
    pub closed: u64,
    /// Of the one-request connections that were answered, in microseconds.
    latencies: Vec<u32>,
}

/// The requests of one kind.
#[derive(Default)]
struct Counts {
    answered: u64,
    failures: BTreeMap<Failure, u64>,
}

impl Tally {
    /// Nothing yet, of a load over this time.
    pub fn over(time: Duration) -> Tally {
        Tally { time, ..Tally::default() }
    }

    pub fn count(&mut self, kind: Kind, event: &Event) {
        let counts = &mut self.counts[kind as usize];
        match event {
            Event::Answered(latency) => {
                counts.answered += 1;
                if kind == Kind::OneRequest {
                    self.latencies.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
                }
            }
            Event::Failed(failure) => *counts.failures.entry(*failure).or_default() += 1,
            Event::Closed => self.closed += 1,
        }
    }

    pub fn requests(&self) -> u64 {
        self.counts.iter().map(|counts| counts.answered + counts.failures.values().sum::<u64>()).sum()
    }

    /// Failures of all kinds of clients.
    pub fn failed(&self, failure: Failure) -> u64 {
        self.counts.iter().filter_map(|counts| counts.failures.get(&failure)).sum()
    }

    /// The failures of one kind of clients: `0`, or `12 reset, 3 short`.
    pub fn failures(&self, kind: Kind) -> String {
        let failures = &self.counts[kind as usize].failures;
        let each: Vec<String> = failures.iter().map(|(failure, count)| format!("{count} {}", failure.name())).collect();
        if each.is_empty() { "0".into() } else { each.join(", ") }
    }

    /// Answered requests per second, without those that take long by themselves.
    pub fn rate(&self) -> f64 {
        let answered = |kind: Kind| self.counts[kind as usize].answered as f64;
        (answered(Kind::OneRequest) + answered(Kind::KeepAlive)) / self.time.as_secs_f64()
    }

    /// The latency in milliseconds that this share of the one-request connections did not exceed.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let rank = (share * sorted.len() as f64).ceil() as usize;
        f64::from(sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)) / 1e3
    }
}

impl Failure {
    fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Short => "short",
            Self::Other => "other",
            Self::Lost => "lost",
        }
    }
}
