//! Any `/proc/PID/status`.

use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps, text};

#[test]
fn a_thread_is_of_the_process_that_its_status_names() {
    let status =
        |name: &str, pid: i32| format!("Name:\t{name}\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{pid}\nNgid:\t0\n");
    // The kernel escapes line ends.
    let name = || text(prop_oneof![noise(), scraps()]).prop_map(|name| name.replace(['\n', '\r'], "\\n"));
    let changed = (name(), 1..=i32::MAX).prop_map(move |(name, pid)| status(&name, pid).into_bytes());
    let changed = text(prop_oneof![1 => noise(), 3 => mutated(changed)]);
    hold((name(), 1..=i32::MAX, changed), |(name, pid, changed)| {
        assert_eq!(process_in(&status(&name, pid)), Some(Pid::from_raw(pid)));
        check(&changed);
    });
}

/// What holds of any text.
pub(crate) fn check(status: &str) {
    assert!(process_in(status).is_none_or(|pid| pid.as_raw() > 0));
}
