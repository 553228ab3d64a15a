//! Values of options that are more than a word: durations, signals, readiness.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::config::{Drain, LONGEST_DURATION, Ready, Restart, Stage};

/// A way to be ready, as `--ready` names it.
pub(crate) fn ready(text: &str) -> Result<Ready> {
    Ok(match text.split_once(':').unwrap_or((text, "")) {
        ("auto", "") => Ready::Auto,
        ("notify", "") => Ready::Notify,
        ("accepting", "") => Ready::Accepting,
        ("fd", number) => match number.parse() {
            Ok(fd) if fd >= 0 => Ready::Descriptor(fd),
            _ => bail!("{number:?} is not the number of a descriptor"),
        },
        ("check", command) if !command.is_empty() => Ready::Check(command.to_owned()),
        ("after", time) => Ready::After(duration(time)?),
        ("http", path) => Ready::Http(http_path(path)?),
        _ => bail!("it is one of auto, notify, accepting, fd:N, http:PATH, check:COMMAND, after:DURATION"),
    })
}

/// One `--canary`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Canary {
    pub(crate) stage: Stage,
    pub(crate) sticky: bool,
}

/// A stage of a trial, as `--canary` names it.
pub(crate) fn canary(text: &str) -> Result<Canary> {
    let form = "it is SHARE%:DURATION[,sticky], as in 5%:10m";
    let (text, sticky) = match text.split_once(',') {
        Some((text, "sticky")) => (text, true),
        Some(_) => bail!(form),
        None => (text, false),
    };
    let (share, time) = text.split_once(':').context(form)?;
    let percent = share.strip_suffix('%').context(form)?;
    let digits = percent.bytes().all(|byte| byte.is_ascii_digit());
    let percent = percent.parse().ok().filter(|percent| digits && (1..=100).contains(percent));
    let percent = percent.with_context(|| format!("{share} is not a share from 1% to 100%"))?;
    let duration = duration(time)?;
    ensure!(!duration.is_zero(), "a stage takes some time, as in 5%:10m");
    Ok(Canary { stage: Stage { percent, duration }, sticky })
}

/// What a GET asks for: RFC 9112, origin-form.
fn http_path(path: &str) -> Result<String> {
    ensure!(
        path.starts_with('/') && !path.starts_with("//"),
        "http:PATH is a path that begins with /, as in http:/health"
    );
    ensure!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?} has what a request may have only as %XX");
    Ok(path.to_owned())
}

/// When a generation is told to stop, as `--drain` names it.
pub(crate) fn drain(text: &str) -> Result<Drain> {
    match text {
        "signal" => Ok(Drain::Signal),
        "idle" => Ok(Drain::Idle),
        _ => bail!("it is one of signal, idle"),
    }
}

/// What follows an unasked end, as `--restart` names it.
pub(crate) fn restart(text: &str) -> Result<Restart> {
    Ok(match text.split_once(':') {
        None if text == "always" => Restart::Always,
        None if text == "on-failure" => Restart::OnFailure(None),
        None if text == "no" => Restart::No,
        Some(("on-failure", most)) => {
            let most = most.parse().ok().with_context(|| format!("{most:?} is not a number of restarts, 1 or more"))?;
            Restart::OnFailure(Some(most))
        }
        _ => bail!("it is one of always, on-failure, on-failure:N, no"),
    })
}

/// A length of time: a number with `ms`, `s`, `m` or `h`, or without a unit, in seconds. It may have a fraction, of
/// which what is below a microsecond is cut off.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let wrong = || "a duration is a number with ms, s, m or h, as in 30s or 1.5h";
    let end = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit {
        "ms" => 1000,
        "" | "s" | "sec" => SECOND,
        "m" | "min" => 60 * SECOND,
        "h" => 3600 * SECOND,
        _ => bail!(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = &fraction[..fraction.len().min(9)];
    // A second point, or no digits on one side of it, is no number.
    let part: u64 = digits.parse().with_context(wrong)?;
    ensure!(!whole.is_empty() && !fraction.contains('.'), wrong());
    // The largest product is that of an hour and nine digits.
    let part = part * unit / 10u64.pow(digits.len() as u32);
    let whole = whole.parse().ok().and_then(|whole: u64| whole.checked_mul(unit));
    let total = whole.and_then(|whole| whole.checked_add(part)).map(Duration::from_micros);
    total.filter(|total| *total <= LONGEST_DURATION).context("a duration is at most 1000 days")
}

/// In microseconds.
const SECOND: u64 = 1_000_000;

/// A signal by its name, with or without SIG, or by its number.
pub(crate) fn signal(text: &str) -> Result<Signal> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let by_number = || Signal::try_from(text.parse::<i32>().ok()?).ok();
    name.parse().ok().or_else(by_number).with_context(|| format!("there is no signal {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_a_share_and_a_time() {
        let stage = |percent, seconds| Stage { percent, duration: Duration::from_secs(seconds) };
        assert_eq!(canary("5%:10m").unwrap(), Canary { stage: stage(5, 600), sticky: false });
        assert_eq!(canary("100%:1,sticky").unwrap(), Canary { stage: stage(100, 1), sticky: true });
        for text in [
            "",
            "5%",
            "5:10m",
            "0%:1s",
            "101%:1s",
            "+5%:1s",
            "-1%:1s",
            "5.5%:1s",
            "%:1s",
            "5%:",
            "5%:1s,x",
            "5%:1x",
            "5%:0",
            "5%:1s,sticky,sticky",
        ] {
            canary(text).expect_err(text);
        }
    }

    #[test]
    fn the_path_of_a_request_begins_with_a_slash_and_has_no_blank() {
        assert_eq!(ready("http:/a?b=%20").unwrap(), Ready::Http("/a?b=%20".into()));
        for text in ["http:", "http:health", "http://host/health", "http:/a b", "http:/\u{e9}", "http:/a\r\nHost: x"] {
            ready(text).expect_err(text);
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_means_seconds() {
        for (text, expected) in
            [("0", 0), ("7", 7000), ("250ms", 250), ("3s", 3000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(expected), "{text}");
        }
        for (text, expected) in [("1.5s", 1500), ("0.25", 250), ("5min", 300_000), ("1.5h", 5_400_000), ("2sec", 2000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(expected), "{text}");
        }
        assert_eq!(duration("0.0015ms").unwrap(), Duration::from_micros(1));
        assert_eq!(duration("0.99999999999999999999h").unwrap(), Duration::from_micros(3_599_999_996));
        for text in ["", "s", "-1", "1d", ".", "1.s", ".5s", "1.2.3s", "1,5s", "5mins", "1h30m", "1.5.", "1e3", "+1"] {
            duration(text).expect_err(text);
        }
        for text in ["99999999999999999999", "999999999h", "24001h", "24000.1h"] {
            assert_eq!(duration(text).unwrap_err().to_string(), "a duration is at most 1000 days");
        }
    }

    #[test]
    fn a_signal_is_a_name_or_a_number() {
        for text in ["QUIT", "quit", "SIGQUIT", "3"] {
            assert_eq!(signal(text).unwrap(), Signal::SIGQUIT, "{text}");
        }
        for text in ["", "0", "99", "SIG", "NOPE"] {
            signal(text).expect_err(text);
        }
    }

    #[test]
    fn a_restart_is_one_of_four() {
        for text in ["always", "on-failure", "on-failure:3", "no"] {
            assert_eq!(restart(text).unwrap().to_string(), text);
        }
        for text in ["", "yes", "no:1", "always:2", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x"] {
            restart(text).expect_err(text);
        }
    }

    #[test]
    fn readiness_is_one_of_six() {
        assert_eq!(ready("check:test -e x:y").unwrap(), Ready::Check("test -e x:y".into()));
        assert_eq!(ready("after:2s").unwrap(), Ready::After(Duration::from_secs(2)));
        assert_eq!(ready("fd:9").unwrap(), Ready::Descriptor(9));
        for text in ["", "autos", "auto:1", "fd:", "fd:-1", "check:", "after:", "after:x"] {
            ready(text).expect_err(text);
        }
    }
}
