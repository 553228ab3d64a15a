//! Lengths of time and counts as people read them. Pure.

use std::time::Duration;

/// A length of time in the unit that suits it.
pub(crate) fn show(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{} s", centiseconds(time)),
        seconds @ 60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        seconds @ 3600..86400 => format!("{} h {} m", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// Seconds with two digits behind the point.
fn centiseconds(time: Duration) -> String {
    format!("{}.{:02}", time.as_secs(), time.subsec_millis() / 10)
}

/// How many connections, as the tail of a sentence.
pub(crate) fn connections(count: Option<usize>) -> String {
    match count {
        None => String::new(),
        Some(1) => ", 1 connection".to_owned(),
        Some(count) => format!(", {count} connections"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_the_unit_that_suits_it() {
        let shown = [0, 59, 61, 3660, 90_000].map(|seconds| show(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0.00 s", "59.00 s", "1 m 1 s", "1 h 1 m", "1 d 1 h"]);
    }
}
