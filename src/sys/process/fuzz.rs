//! Any `/proc/PID/status`, and any `/proc/PID/stat`.

use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps, text};

#[test]
fn capabilities_are_read_as_they_were_written() {
    let status = |set: u64| format!("CapInh:\t{:016x}\nCapPrm:\t{set:016x}\nCapEff:\t{set:016x}\nCapBnd:\t1\n", !set);
    let changed = any::<u64>().prop_map(move |set| status(set).into_bytes());
    let changed = text(prop_oneof![1 => noise(), 1 => scraps(), 3 => mutated(changed)]);
    hold((any::<u64>(), changed), |(set, changed)| {
        assert_eq!(capabilities_in(&status(set)), set);
        check_status(&changed);
    });
}

/// What holds of any `/proc/PID/status`.
fn check_status(status: &str) {
    assert!(capabilities_in(status) == 0 || status.contains("CapEff:"));
}

#[test]
fn an_ending_is_read_as_wait_would_show_it() {
    let line = |status: i32| format!("71 (a) b) Z 1 70 60 0 -1 4194560 1 2 3 4 5 {status}\n").into_bytes();
    let changed = prop_oneof![1 => noise(), 1 => scraps(), 3 => mutated(any::<i32>().prop_map(line))];
    hold((any::<u8>(), changed), |(status, changed)| {
        assert_eq!(ending_in(&line(i32::from(status) << 8)), Some(Ending::Exited(status)));
        if (1..0x7f).contains(&status) {
            assert_eq!(ending_in(&line(status.into())), Some(Ending::Signaled(status.into())));
            // With a core.
            assert_eq!(ending_in(&line(i32::from(status) | 0x80)), Some(Ending::Signaled(status.into())));
        }
        check_ending(&changed);
    });
}

/// What holds of any `/proc/PID/stat`.
fn check_ending(line: &[u8]) {
    if let Some(ending) = ending_in(line) {
        assert!(!matches!(ending, Ending::Signaled(signal) if !(1..=127).contains(&signal)), "{ending:?}");
        let _ = ending.status();
    }
}

#[test]
fn what_a_process_does_is_seen_whatever_its_name_is() {
    let line = |name: &[u8], state: u8| [b"71 (", name, b") ", &[state], b" 1 70 60 0 -1 4194560 1 2 3"].concat();
    let name = || prop_oneof![noise(), scraps()];
    let state = prop::sample::select(b"RSDZTtXI".to_vec());
    let changed = mutated(name().prop_map(move |name| line(&name, b'T')));
    hold((name(), state, changed), |(name, state, changed)| {
        assert_eq!(state_in(&line(&name, state)), Some(state));
        check_state(&changed);
    });
}

fn check_state(line: &[u8]) {
    let is_behind = |state: u8| line.starts_with(&[b' ', state]) || line.windows(3).any(|at| at == [b')', b' ', state]);
    assert!(state_in(line).is_none_or(is_behind));
}

/// What holds of any file of either kind.
pub(crate) fn check(file: &[u8]) {
    check_status(&String::from_utf8_lossy(file));
    check_ending(file);
    check_state(file);
}
