//! The state of a supervisor as a table for people and as JSON for programs.

use std::fmt;
use std::process;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Serialize;

use crate::kernel::connections::{held_by, open_connections};
use crate::kernel::processes::are_visible;
use crate::socket::spec::FdName;
use crate::supervise::generation::Generation;
use crate::supervise::generations::Generations;
use crate::supervise::plan::{Counts, EARLIER, Id, Outcome, PREDECESSOR, Plan, Trial};
use crate::supervise::report::LastFailure;
use crate::supervise::sockets::Sockets;
use crate::supervise::wording::show;
use crate::sys::{self, Timestamp};

/// Another one when a field is removed or changes its meaning.
pub(super) const VERSION: u32 = 1;

/// Everything that is shown, as the manual and man/status.schema.json describe it.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: u32,
    /// Seconds since 1970, to the millisecond: when this was.
    time: f64,
    pid: u32,
    stopping: bool,
    restarts: u64,
    /// Seconds, to the millisecond, as all of these.
    last_restart_age: Option<f64>,
    reloads: Counts,
    last_reload: Option<Outcome>,
    last_reload_age: Option<f64>,
    last_failure: Option<String>,
    last_failure_age: Option<f64>,
    listeners: Vec<ListenerStatus>,
    generations: Vec<GenerationStatus>,
}

/// A listener: its name in LISTEN_FDNAMES and where it is bound.
#[derive(Debug, Serialize)]
struct ListenerStatus {
    name: String,
    address: String,
    /// What keeps clients from it and cannot be repaired.
    problem: Option<String>,
}

/// A generation that has not gone.
#[derive(Debug, Serialize)]
struct GenerationStatus {
    generation: Id,
    pid: i32,
    state: Stage,
    /// Seconds, to the millisecond.
    age: f64,
    /// The percentage of new connections that it gets; none where generations share a socket.
    share: Option<u8>,
    /// Open connections that its processes hold, if the kernel can be asked.
    connections: Option<usize>,
    /// The bytes of memory that its processes use, and the seconds of the processor that they have used, if it has a cgroup of
    /// its own.
    memory: Option<u64>,
    cpu_time: Option<f64>,
    /// What its main process is stopped by.
    stopped: Option<&'static str>,
}

/// How far a generation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    Starting,
    OnTrial,
    Serving,
    StandingBy,
    Draining,
}

impl Status {
    /// The present state. The generations are to be surveyed before.
    pub(crate) fn of(
        plan: &Plan,
        generations: &Generations,
        sockets: &Sockets,
        last_failure: Option<&LastFailure>,
        now: Timestamp,
    ) -> Status {
        let time = sys::time();
        let age = |at: Timestamp| seconds(now.saturating_sub(at));
        // One list for all, for it takes the kernel a while.
        let open = are_visible().ok().and_then(|()| open_connections(&sockets.listeners().collect::<Vec<_>>()).ok());
        let generation = |generation: &Generation| GenerationStatus {
            generation: if generation.id < EARLIER { generation.id } else { PREDECESSOR },
            pid: generation.pid.as_raw(),
            state: Stage::of(generation.id, plan),
            age: seconds(generation.age(now)),
            share: sockets.is_all_steered().then(|| share(generation.id, plan)),
            connections: open.as_ref().map(|open| match generations.iter().count() {
                // Without a look at each of its descriptors.
                1 => open.len(),
                _ => held_by(&generation.members.alive(), open),
            }),
            memory: generation.usage().0,
            cpu_time: generation.usage().1.map(seconds),
            stopped: generation.stopped_by().map(Signal::as_str),
        };
        let listeners = sockets.listeners().zip(sockets.problems()).map(|(listener, problem)| ListenerStatus {
            name: listener.name.to_string(),
            address: listener.endpoint().map(|endpoint| endpoint.to_string()).unwrap_or_default(),
            problem: problem.map(str::to_owned),
        });
        Status {
            version: VERSION,
            time: seconds(time),
            pid: process::id(),
            stopping: plan.stopping.is_some(),
            restarts: plan.restarts,
            last_restart_age: plan.restarted.map(age),
            reloads: plan.reloads.counts,
            last_reload: plan.reloads.last,
            last_reload_age: plan.reloads.last.and(plan.reloads.last_at).map(age),
            last_failure: last_failure.map(|failure| failure.text.clone()),
            last_failure_age: last_failure.map(|failure| age(failure.at)),
            listeners: listeners.collect(),
            generations: generations.iter().map(generation).collect(),
        }
    }

    /// A table with a line for each generation, and the rest below it.
    pub(crate) fn table(&self) -> Vec<String> {
        let is_used_known = self.generations.iter().any(|generation| generation.cpu_time.is_some());
        let used = |memory: &str, cpu: &str| match is_used_known {
            true => format!("  {memory:>8}  {cpu:>9}"),
            false => String::new(),
        };
        let mut lines = vec![format!(
            "{:<10} {:>8}  {:<11} {:>9}  {:>5}  {:>11}{}",
            "GENERATION",
            "PID",
            "STATE",
            "AGE",
            "SHARE",
            "CONNECTIONS",
            used("MEMORY", "CPU")
        )];
        for GenerationStatus { generation, pid, state, age, share, connections, memory, cpu_time, .. } in
            &self.generations
        {
            let memory = memory.map_or("?".to_owned(), show_memory);
            let cpu_time = cpu_time.map_or("?".to_owned(), show_seconds);
            let used = used(&memory, &cpu_time);
            let share = share.map_or("-".to_owned(), |percent| format!("{percent}%"));
            let connections = connections.map_or("?".to_owned(), |count| count.to_string());
            let age = show_seconds(*age);
            let state = state.to_string();
            lines.push(format!("{generation:<10} {pid:>8}  {state:<11} {age:>9}  {share:>5}  {connections:>11}{used}"));
        }
        for GenerationStatus { generation, stopped, .. } in &self.generations {
            let stopped =
                stopped.map(|signal| format!("generation {generation} is stopped by {signal}: it serves nobody"));
            lines.extend(stopped);
        }
        let unnamed = FdName::default().to_string();
        let listener = |listener: &ListenerStatus| match &listener.name {
            name if *name == unnamed => listener.address.clone(),
            name => format!("{name}={}", listener.address),
        };
        let listeners: Vec<String> = self.listeners.iter().map(listener).collect();
        lines.push(format!("supervisor {}, listening on {}", self.pid, listeners.join(" ")));
        lines.extend(self.listeners.iter().filter_map(|listener| listener.problem.clone()));
        if self.stopping {
            lines.push("stopping".to_owned());
        }
        if self.restarts > 0 {
            lines.push(format!("restarts after a crash: {}", self.restarts));
        }
        let reloads = self.reloads.in_words();
        if !reloads.is_empty() {
            let last = self.last_reload_age.map(|age| format!("; the last one {} ago", show_seconds(age)));
            lines.push(format!("reloads: {}{}", reloads.join(", "), last.unwrap_or_default()));
        }
        let failure = self.last_failure.iter().zip(self.last_failure_age);
        lines.extend(failure.map(|(failure, age)| format!("last failure: {failure}, {} ago", show_seconds(age))));
        lines
    }

    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("it has no map, and no number that is none")
    }
}

impl Stage {
    pub(super) const ALL: [Stage; 5] =
        [Stage::Starting, Stage::OnTrial, Stage::Serving, Stage::StandingBy, Stage::Draining];

    fn of(id: Id, plan: &Plan) -> Stage {
        match () {
            () if plan.is_starting(id) => Stage::Starting,
            () if plan.is_on_trial(id) => Stage::OnTrial,
            () if plan.is_serving(id) => Stage::Serving,
            () if plan.is_standing_by(id) => Stage::StandingBy,
            () => Stage::Draining,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Starting => "starting",
            Stage::OnTrial => "on-trial",
            Stage::Serving => "serving",
            Stage::StandingBy => "standing-by",
            Stage::Draining => "draining",
        })
    }
}

/// The percentage of new connections that a generation gets.
fn share(id: Id, plan: &Plan) -> u8 {
    let tried = plan.trial.as_ref().map_or(0, Trial::percent);
    match () {
        () if plan.is_on_trial(id) => tried,
        () if plan.is_serving(id) => 100 - tried,
        // Whatever comes waits for it.
        () if plan.is_starting(id) && plan.serving.is_none() => 100,
        () => 0,
    }
}

/// Seconds, to the millisecond.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

/// Mebibytes, as systemctl(1) shows them.
fn show_memory(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{}M", tenths / 10, tenths % 10)
}

fn show_seconds(seconds: f64) -> String {
    show(Duration::from_millis((seconds * 1000.0) as u64))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;

    const SCHEMA: &str = include_str!("../../../man/status.schema.json");
    const MANUAL: &str = include_str!("../../../man/handoff-run.1.in");

    fn status() -> Status {
        let listener = ListenerStatus { name: "web".into(), address: "[::]:80".into(), problem: None };
        let generation = GenerationStatus {
            generation: 3,
            pid: 812,
            state: Stage::Serving,
            age: 1.5,
            share: Some(95),
            connections: Some(2),
            memory: Some(12_345_678),
            cpu_time: Some(1.25),
            stopped: Some("SIGTTIN"),
        };
        Status {
            version: VERSION,
            time: 1_700_000_000.25,
            pid: 800,
            stopping: false,
            restarts: 1,
            last_restart_age: Some(0.5),
            reloads: Counts { failed: 1, timed_out: 2, ..Counts::default() },
            last_reload: Some(Outcome::TimedOut),
            last_reload_age: Some(0.75),
            last_failure: Some("said \"no\"\n".into()),
            last_failure_age: Some(61.25),
            listeners: vec![listener],
            generations: vec![generation],
        }
    }

    #[test]
    fn json_is_one_line_with_every_field() {
        let expected = r#"{"version":1,"time":1700000000.25,"pid":800,"stopping":false,"restarts":1,"last_restart_age":0.5,"reloads":{"succeeded":0,"failed":1,"timed_out":2,"rolled_back":0,"unreachable":0,"cancelled":0,"refused":0},"last_reload":"timed_out","last_reload_age":0.75,"last_failure":"said \"no\"\n","last_failure_age":61.25,"listeners":[{"name":"web","address":"[::]:80","problem":null}],"generations":[{"generation":3,"pid":812,"state":"serving","age":1.5,"share":95,"connections":2,"memory":12345678,"cpu_time":1.25,"stopped":"SIGTTIN"}]}"#;
        assert_eq!(status().json(), expected);
    }

    /// Every field is a property of the schema that it requires, it has no other, and the manual names it.
    fn assert_described(value: &Value, schema: &Value) {
        if let Value::Array(items) = value {
            return items.iter().for_each(|item| assert_described(item, &schema["items"]));
        }
        let Value::Object(fields) = value else { return };
        let keys = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(schema["properties"].as_object().unwrap()), keys(fields));
        let mut required: Vec<&str> = schema["required"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
        required.sort_unstable();
        assert_eq!(required, keys(fields));
        for (key, value) in fields {
            assert!(MANUAL.contains(key), "{key} is not in the manual");
            assert_described(value, &schema["properties"][key]);
        }
    }

    #[test]
    fn the_schema_has_the_fields_that_the_json_has() {
        let schema = serde_json::from_str(SCHEMA).unwrap();
        let status = serde_json::to_value(status()).unwrap();
        assert_described(&status, &schema);
        let of = |values: &[Value]| Value::Array(values.to_vec());
        let state = &schema["properties"]["generations"]["items"]["properties"]["state"];
        assert_eq!(state["enum"], of(&Stage::ALL.map(|stage| stage.to_string().into())));
        // A reload ends in one of the ways that are counted; a refused one is never the last.
        let mut ends = schema["properties"]["reloads"]["required"].as_array().unwrap().clone();
        assert_eq!(ends.pop(), Some("refused".into()));
        ends.push(Value::Null);
        assert_eq!(schema["properties"]["last_reload"]["enum"], of(&ends));
        assert_eq!(schema["properties"]["version"]["const"], VERSION);
    }

    #[test]
    fn the_table_has_a_line_for_each_generation() {
        let mut status = status();
        let table = status.table();
        assert_eq!(table[0], "GENERATION      PID  STATE             AGE  SHARE  CONNECTIONS    MEMORY        CPU");
        assert_eq!(table[1], "3               812  serving        1.50 s    95%            2     11.7M     1.25 s");
        status.generations[0].memory = None;
        assert!(status.table()[1].ends_with("2         ?     1.25 s"));
        status.generations[0].cpu_time = None;
        let table = status.table();
        assert_eq!(table[0], "GENERATION      PID  STATE             AGE  SHARE  CONNECTIONS");
        assert_eq!(table[1], "3               812  serving        1.50 s    95%            2");
        assert_eq!(table[2], "generation 3 is stopped by SIGTTIN: it serves nobody");
        assert_eq!(table[3], "supervisor 800, listening on web=[::]:80");
        assert_eq!(table[5], "reloads: 1 failed, 2 timed out; the last one 0.75 s ago");
        assert_eq!(table[6], "last failure: said \"no\"\n, 1 m 1 s ago");
    }
}
