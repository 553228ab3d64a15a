//! The state of a supervisor as a table for people and as JSON for programs. Pure.

use std::fmt::Write;
use std::time::Duration;

/// Everything that is shown.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) pid: u32,
    pub(crate) stopping: bool,
    pub(crate) restarts: u64,
    pub(crate) last_failure: Option<String>,
    pub(crate) listeners: Vec<ListenerStatus>,
    pub(crate) generations: Vec<GenerationStatus>,
}

/// A listener: its name in LISTEN_FDNAMES and where it is bound.
#[derive(Debug)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// A generation that has not gone.
#[derive(Debug)]
pub(crate) struct GenerationStatus {
    pub(crate) id: u64,
    pub(crate) pid: i32,
    pub(crate) state: &'static str,
    pub(crate) age: Duration,
    /// Open connections that its processes hold, if the kernel tells.
    pub(crate) connections: Option<usize>,
}

impl Status {
    /// A table with a line for each generation, and below it what else there is to know.
    pub(crate) fn table(&self) -> Vec<String> {
        let mut lines =
            vec![format!("{:<10} {:>8}  {:<9} {:>9}  {:>11}", "GENERATION", "PID", "STATE", "AGE", "CONNECTIONS")];
        for generation in &self.generations {
            let connections = generation.connections.map_or("?".to_owned(), |count| count.to_string());
            let GenerationStatus { id, pid, state, age, .. } = generation;
            lines.push(format!("{id:<10} {pid:>8}  {state:<9} {:>9}  {connections:>11}", show(*age)));
        }
        let listener = |listener: &ListenerStatus| format!("{}={}", listener.name, listener.address);
        let listeners: Vec<String> = self.listeners.iter().map(listener).collect();
        lines.push(format!("supervisor {}, listening on {}", self.pid, listeners.join(" ")));
        if self.stopping {
            lines.push("stopping".to_owned());
        }
        if self.restarts > 0 {
            lines.push(format!("restarts after a crash: {}", self.restarts));
        }
        lines.extend(self.last_failure.iter().map(|failure| format!("last failure: {failure}")));
        lines
    }

    /// One line of JSON, as the manual describes it.
    pub(crate) fn json(&self) -> String {
        let listeners = self.listeners.iter().map(|listener| {
            format!("{{\"name\":{},\"address\":{}}}", quoted(&listener.name), quoted(&listener.address))
        });
        let generations = self.generations.iter().map(|generation| {
            let connections = generation.connections.map_or("null".to_owned(), |count| count.to_string());
            let GenerationStatus { id, pid, state, age, .. } = generation;
            let age = decimal(*age, 3);
            format!(
                "{{\"generation\":{id},\"pid\":{pid},\"state\":\"{state}\",\"age\":{age},\"connections\":{connections}}}"
            )
        });
        format!(
            "{{\"version\":1,\"pid\":{},\"stopping\":{},\"restarts\":{},\"last_failure\":{},\"listeners\":[{}],\"generations\":[{}]}}",
            self.pid,
            self.stopping,
            self.restarts,
            self.last_failure.as_deref().map_or("null".to_owned(), quoted),
            listeners.collect::<Vec<_>>().join(","),
            generations.collect::<Vec<_>>().join(",")
        )
    }
}

/// A length of time in the unit that suits it.
pub(crate) fn show(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{} s", decimal(time, 2)),
        seconds @ 60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86400 => format!("{} h {} m", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Seconds with so many digits behind the point, at most 9. Formatting a float would be larger than all else here.
fn decimal(time: Duration, digits: usize) -> String {
    let nanoseconds = format!("{:09}", time.subsec_nanos());
    format!("{}.{}", time.as_secs(), &nanoseconds[..digits])
}

/// A string of JSON (RFC 8259, 7).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // Writing into a String cannot fail.
            c if c < ' ' => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let listener = ListenerStatus { name: "web".into(), address: "[::]:80".into() };
        let generation = GenerationStatus {
            id: 3,
            pid: 812,
            state: "serving",
            age: Duration::from_millis(1500),
            connections: Some(2),
        };
        Status {
            pid: 800,
            stopping: false,
            restarts: 1,
            last_failure: Some("said \"no\"\n".into()),
            listeners: vec![listener],
            generations: vec![generation],
        }
    }

    #[test]
    fn json_is_one_line_with_every_field() {
        let expected = r#"{"version":1,"pid":800,"stopping":false,"restarts":1,"last_failure":"said \"no\"\u000a","listeners":[{"name":"web","address":"[::]:80"}],"generations":[{"generation":3,"pid":812,"state":"serving","age":1.500,"connections":2}]}"#;
        assert_eq!(status().json(), expected);
    }

    #[test]
    fn the_table_has_a_line_for_each_generation() {
        let table = status().table();
        assert_eq!(table[0], "GENERATION      PID  STATE           AGE  CONNECTIONS");
        assert_eq!(table[1], "3               812  serving      1.50 s            2");
        assert_eq!(table[2], "supervisor 800, listening on web=[::]:80");
    }

    #[test]
    fn a_time_is_shown_in_the_unit_that_suits_it() {
        let shown = [0, 59, 61, 3660, 90_000].map(|seconds| show(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0.00 s", "59.00 s", "1 m 1 s", "1 h 1 m", "1 d 1 h"]);
    }
}
