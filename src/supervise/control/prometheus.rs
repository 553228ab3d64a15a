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
use crate::saved;
use crate::supervise::control::status::{Stage, VERSION};

/// A metric, by what follows `handoff_run_` in its name.
struct Metric {
    name: &'static str,
    help: &'static str,
    /// Its samples, if the status has what they are made of.
    samples: fn(&Value) -> Option<Vec<Sample>>,
}

/// A further label, if it has one, and the value.
type Sample = (Option<(&'static str, String)>, f64);

#[rustfmt::skip]
const METRICS: [Metric; 12] = [
    Metric {
        name: "generations",
        help: "Generations by state.",
        samples: |status| by_state(status, 1.0, |_| Some(1)),
    },
    Metric {
        name: "connections",
        help: "Open connections by the state of the generation that holds them.",
        samples: |status| by_state(status, 1.0, |generation| generation["connections"].as_u64()),
    },
    Metric {
        name: "share_ratio",
        help: "Share of new connections by the state of the generation that gets them.",
        samples: |status| by_state(status, 100.0, |generation| generation["share"].as_u64()),
    },
    Metric {
        name: "stopped_generations",
        help: "Generations that a signal such as SIGSTOP has stopped.",
        samples: |status| with(status, "generations", "stopped"),
    },
    Metric {
        name: "listener_problems",
        help: "Listeners that clients cannot reach.",
        samples: |status| with(status, "listeners", "problem"),
    },
    Metric {
        name: "stopping",
        help: "Whether the supervisor stops.",
        samples: |status| one(status["stopping"].as_bool()?.into()),
    },
    Metric {
        name: "reloads_total",
        help: "Reloads by how they ended.",
        samples: |status| {
            let reloads = status["reloads"].as_object()?.iter();
            reloads.map(|(outcome, count)| Some((Some(("outcome", outcome.clone())), count.as_f64()?))).collect()
        },
    },
    Metric {
        name: "last_reload_timestamp_seconds",
        help: "When the last reload that was not refused ended, in seconds since 1970.",
        samples: |status| timestamp(status, "last_reload_age"),
    },
    Metric {
        name: "last_reload_age_seconds",
        help: "How long before this was written the last reload that was not refused ended.",
        samples: |status| one(status["last_reload_age"].as_f64()?),
    },
    Metric {
        name: "restarts_total",
        help: "Generations that were started again after one had ended unasked.",
        samples: |status| one(status["restarts"].as_f64()?),
    },
    Metric {
        name: "last_restart_timestamp_seconds",
        help: "When a generation was last started again, in seconds since 1970.",
        samples: |status| timestamp(status, "last_restart_age"),
    },
    Metric {
        name: "last_restart_age_seconds",
        help: "How long before this was written a generation was last started again.",
        samples: |status| one(status["last_restart_age"].as_f64()?),
    },
];

/// The metrics of the supervisor at `path`, of which this is the status.
///
/// # Errors
/// If it is none, or of another version.
pub(super) fn render(status: &str, path: &Path) -> Result<String> {
    let status: Value = saved::parse(status.as_bytes()).context("cannot read the supervisor's status")?;
    let version = &status["version"];
    ensure!(*version == VERSION, "the supervisor's status is of version {version}, not {VERSION}");
    let control = quoted(&text(&absolute(path).map_err(plain)?));
    let metrics = METRICS.iter().map(|metric| metric.lines(&status, &control).unwrap_or_default());
    Ok(metrics.collect())
}

impl Metric {
    fn lines(&self, status: &Value, control: &str) -> Option<String> {
        let Metric { name, help, samples } = self;
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let mut lines = format!("# HELP handoff_run_{name} {help}\n# TYPE handoff_run_{name} {kind}\n");
        for (label, value) in samples(status)? {
            let label = label.map(|(name, value)| format!(",{name}={}", quoted(&value))).unwrap_or_default();
            lines += &format!("handoff_run_{name}{{control={control}{label}}} {value}\n");
        }
        Some(lines)
    }
}

fn one(value: f64) -> Option<Vec<Sample>> {
    Some(vec![(None, value)])
}

/// A sum for each state, also for those that no generation is in: a series that ends would be taken for one that is missing.
fn by_state(status: &Value, unit: f64, value: fn(&Value) -> Option<u64>) -> Option<Vec<Sample>> {
    let generations = status["generations"].as_array()?;
    let sum = |stage: Stage| {
        let state = stage.to_string();
        let those = generations.iter().filter(|generation| generation["state"] == *state);
        let sum: u64 = those.map(value).sum::<Option<u64>>()?;
        Some((Some(("state", state)), sum as f64 / unit))
    };
    Stage::ALL.into_iter().map(sum).collect()
}

/// How many of a list have this field.
fn with(status: &Value, list: &str, field: &str) -> Option<Vec<Sample>> {
    one(status[list].as_array()?.iter().filter(|one| !one[field].is_null()).count() as f64)
}

/// When that was. To the second, so that it stays the same: both are rounded.
fn timestamp(status: &Value, age: &str) -> Option<Vec<Sample>> {
    one((status["time"].as_f64()? - status[age].as_f64()?).round())
}

/// A path as text, also one that is not UTF-8.
fn text(path: &Path) -> String {
    let parts = path.as_os_str().as_bytes().utf8_chunks();
    parts.map(|part| format!("{}{}", part.valid(), part.invalid().escape_ascii())).collect()
}

/// The value of a label.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n"))
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
# HELP handoff_run_last_reload_age_seconds How long before this was written the last reload that was not refused ended.
# TYPE handoff_run_last_reload_age_seconds gauge
handoff_run_last_reload_age_seconds{control=\"/run/app.ctl\"} 60.7
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
            sample("share_ratio", "serving", "0.93"),
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
