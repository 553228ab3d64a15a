//! The status as metrics, for the textfile collector of Prometheus' node exporter.
//!
//! The client makes them from the JSON: the protocol knows nothing of them, and of an older supervisor there are those whose
//! fields it has. The collector rejects two files that have one sample in common, so each is labelled with the control
//! socket.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, absolute};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::failure::plain;
use crate::supervise::control::status::{Stage, VERSION};

/// A metric: what follows `handoff_run_` in its name, its help, and what its samples are made of.
struct Metric(&'static str, &'static str, Source);

/// What is in the status. Where it is not, there is no such metric.
enum Source {
    /// The sum for the generations in each state of a field, or how many those are; and one of it, in thousandths.
    States(Option<&'static str>, u64),
    /// How many of a list have a field.
    With(&'static str, &'static str),
    /// The fields of an object, by this label.
    Each(&'static str, &'static str),
    /// A number, or whether something is so.
    Field(&'static str),
    /// When something was that has this age.
    Timestamp(&'static str),
}

const METRICS: [Metric; 12] = [
    Metric("generations", "Generations by state.", Source::States(None, 1000)),
    Metric(
        "connections",
        "Open connections by the state of the generation that holds them.",
        Source::States(Some("connections"), 1000),
    ),
    Metric(
        "share_ratio",
        "Share of new connections by the state of the generation that gets them.",
        Source::States(Some("share"), 10),
    ),
    Metric(
        "stopped_generations",
        "Generations that a signal such as SIGSTOP has stopped.",
        Source::With("generations", "stopped"),
    ),
    Metric("listener_problems", "Listeners that clients cannot reach.", Source::With("listeners", "problem")),
    Metric("stopping", "Whether the supervisor stops.", Source::Field("stopping")),
    Metric("reloads_total", "Reloads by how they ended.", Source::Each("reloads", "outcome")),
    Metric(
        "last_reload_timestamp_seconds",
        "When the last reload that was not refused ended, in seconds since 1970.",
        Source::Timestamp("last_reload_age"),
    ),
    Metric(
        "last_reload_age_seconds",
        "Seconds from the end of the last reload that was not refused until this was written.",
        Source::Field("last_reload_age"),
    ),
    Metric(
        "restarts_total",
        "Generations that were started again after one had ended unasked.",
        Source::Field("restarts"),
    ),
    Metric(
        "last_restart_timestamp_seconds",
        "When a generation was last started again, in seconds since 1970.",
        Source::Timestamp("last_restart_age"),
    ),
    Metric(
        "last_restart_age_seconds",
        "Seconds from when a generation was last started again until this was written.",
        Source::Field("last_restart_age"),
    ),
];

/// The metrics of the supervisor at `path`, of which this is the status.
///
/// # Errors
/// If it is none, or of another version.
pub(super) fn render(status: &str, path: &Path) -> Result<String> {
    let status: Value = serde_json::from_slice(status.as_bytes()).context("cannot read the supervisor's status")?;
    let version = status["version"].as_u64().unwrap_or_default();
    ensure!(version == u64::from(VERSION), "the supervisor's status is of version {version}, not {VERSION}");
    let control = quoted(&text(&absolute(path).map_err(plain)?));
    let mut lines = String::new();
    for Metric(name, help, source) in METRICS {
        let Some(samples) = source.samples(&status) else { continue };
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        lines += &format!("# HELP handoff_run_{name} {help}\n# TYPE handoff_run_{name} {kind}\n");
        for (label, thousandths) in samples {
            let value = number(thousandths);
            lines += &format!("handoff_run_{name}{{control={control}{label}}} {value}\n");
        }
    }
    Ok(lines)
}

impl Source {
    /// Each with a further label, if it has one, and in thousandths.
    fn samples(&self, status: &Value) -> Option<Vec<(String, u64)>> {
        let one = |value| Some(vec![(String::new(), value)]);
        match *self {
            Source::States(field, unit) => {
                // A series that ends would be taken for one that is missing, so there is one for each state.
                let sum = |stage: Stage| Some((label("state", &stage.to_string()), sum(status, stage, field)? * unit));
                Stage::ALL.into_iter().map(sum).collect()
            }
            Source::With(list, field) => {
                one(status[list].as_array()?.iter().filter(|one| !one[field].is_null()).count() as u64 * 1000)
            }
            Source::Each(object, name) => {
                let fields = status[object].as_object()?.iter();
                fields.map(|(key, value)| Some((label(name, key), thousandths(value)?))).collect()
            }
            Source::Field(field) => one(thousandths(&status[field])?),
            Source::Timestamp(age) => {
                let at = thousandths(&status["time"])?.saturating_sub(thousandths(&status[age])?);
                // To the second, so that it stays the same: both are rounded.
                one((at + 500) / 1000 * 1000)
            }
        }
    }
}

/// Of a field of the generations in a state, or how many those are.
fn sum(status: &Value, stage: Stage, field: Option<&str>) -> Option<u64> {
    let state = stage.to_string();
    let mut sum = 0;
    for generation in status["generations"].as_array()? {
        if generation["state"] == *state {
            sum += field.map_or(Some(1), |field| generation[field].as_u64())?;
        }
    }
    Some(sum)
}

/// All numbers have at most three digits behind the point.
fn thousandths(value: &Value) -> Option<u64> {
    let value = value.as_bool().map(f64::from).or(value.as_f64())?;
    Some((value * 1000.0).round() as u64)
}

fn number(thousandths: u64) -> String {
    match (thousandths / 1000, thousandths % 1000) {
        (whole, 0) => whole.to_string(),
        (whole, rest) => format!("{whole}.{rest:03}"),
    }
}

/// Behind another.
fn label(name: &str, value: &str) -> String {
    format!(",{name}={}", quoted(value))
}

/// A path as text, also one that is not UTF-8.
fn text(path: &Path) -> String {
    let parts = path.as_os_str().as_bytes().utf8_chunks();
    parts.map(|part| format!("{}{}", part.valid(), part.invalid().escape_ascii())).collect()
}

/// The value of a label.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '\n' => quoted.push_str("\\n"),
            '\\' | '"' => quoted.extend(['\\', character]),
            _ => quoted.push(character),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn metrics(status: &str) -> String {
        render(status, Path::new("/run/app.ctl")).unwrap()
    }

    #[test]
    fn a_metric_has_a_help_a_type_and_its_samples() {
        let status =
            r#"{"version":1,"time":1700000000.2,"last_reload_age":60.7,"reloads":{"failed":2,"succeeded":10}}"#;
        let expected = "\
# HELP handoff_run_reloads_total Reloads by how they ended.
# TYPE handoff_run_reloads_total counter
handoff_run_reloads_total{control=\"/run/app.ctl\",outcome=\"failed\"} 2
handoff_run_reloads_total{control=\"/run/app.ctl\",outcome=\"succeeded\"} 10
# HELP handoff_run_last_reload_timestamp_seconds When the last reload that was not refused ended, in seconds since 1970.
# TYPE handoff_run_last_reload_timestamp_seconds gauge
handoff_run_last_reload_timestamp_seconds{control=\"/run/app.ctl\"} 1699999940
# HELP handoff_run_last_reload_age_seconds Seconds from the end of the last reload that was not refused until this was written.
# TYPE handoff_run_last_reload_age_seconds gauge
handoff_run_last_reload_age_seconds{control=\"/run/app.ctl\"} 60.700
";
        assert_eq!(metrics(status), expected);
    }

    #[test]
    fn generations_are_summed_up_by_state_and_what_is_not_known_of_one_is_left_out() {
        let generation = |state, share, connections| {
            format!(r#"{{"state":"{state}","share":{share},"connections":{connections},"stopped":null}}"#)
        };
        let generations =
            [generation("draining", "0", "3"), generation("draining", "0", "4"), generation("serving", "93", "null")];
        let text = metrics(&format!(r#"{{"version":1,"generations":[{}]}}"#, generations.join(",")));
        let sample = |name: &str, state: &str, value: &str| {
            format!("handoff_run_{name}{{control=\"/run/app.ctl\",state=\"{state}\"}} {value}\n")
        };
        for sample in [
            sample("generations", "draining", "2"),
            sample("generations", "starting", "0"),
            sample("share_ratio", "serving", "0.930"),
            "handoff_run_stopped_generations{control=\"/run/app.ctl\"} 0\n".to_owned(),
        ] {
            assert!(text.contains(&sample), "{sample} is not in {text}");
        }
        assert!(!text.contains("handoff_run_connections"), "{text}");
    }

    // The first release had neither reloads nor time.
    #[test]
    fn of_an_older_supervisor_there_is_what_it_has() {
        let text = metrics(
            r#"{"version":1,"pid":800,"stopping":true,"restarts":1,"listeners":[{"problem":"gone"}],"generations":[]}"#,
        );
        let names = |kind: &str| -> Vec<&str> { text.lines().filter(|line| line.ends_with(kind)).collect() };
        assert_eq!(names(" counter"), ["# TYPE handoff_run_restarts_total counter"]);
        assert_eq!(names(" gauge").len(), 6, "{text}");
        assert!(text.contains("handoff_run_stopping{control=\"/run/app.ctl\"} 1\n"), "{text}");
        assert!(text.contains("handoff_run_listener_problems{control=\"/run/app.ctl\"} 1\n"), "{text}");
    }

    #[test]
    fn a_status_of_another_version_is_an_error() {
        for status in [r#"{"version":2}"#, "{}", "[1]"] {
            let error = render(status, Path::new("/c")).unwrap_err().to_string();
            assert!(error.starts_with("the supervisor's status is of version "), "{error}");
        }
    }

    #[test]
    fn the_path_is_absolute_and_any_byte_of_it_is_shown() {
        let label = |path: &[u8]| quoted(&text(Path::new(OsStr::from_bytes(path))));
        assert_eq!(label(b"/a \"b\"\\c\nd\xff\xc3\xa9"), r#""/a \"b\"\\c\nd\\xffé""#);
        let status = r#"{"version":1,"restarts":0}"#;
        let here = std::env::current_dir().unwrap();
        let expected = format!("{{control=\"{}/app.ctl\"}} 0\n", here.display());
        assert!(render(status, Path::new("app.ctl")).unwrap().ends_with(&expected));
    }
}
