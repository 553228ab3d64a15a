//! Lines of `/proc/PID/stat` and lists of children as the kernel writes them, the same changed, and any text.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::{hold, mutated, noise, scraps, text};

fn process() -> impl Strategy<Value = Process> {
    let number = || (0..i32::MAX).prop_map(Pid::from_raw);
    let numbers = (1..i32::MAX, number(), number(), number());
    let state = prop_oneof![Just(ProcessState::Alive), Just(ProcessState::Zombie)];
    (numbers, state, 0..5_usize, any::<u64>()).prop_map(|((pid, parent, group, session), state, threads, started)| {
        // One that has ended has no more than the thread that is left of it.
        let threads = if state == ProcessState::Zombie { threads.min(1) } else { threads };
        Process { pid: Pid::from_raw(pid), parent, group, session, state, threads, started }
    })
}

fn line(process: &Process, name: &[u8]) -> Vec<u8> {
    let Process { pid, parent, group, session, state, threads, started } = process;
    let state = if *state == ProcessState::Alive { "S" } else { "Z" };
    let rest = format!(
        ") {state} {parent} {group} {session} 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 {threads} 0 {started} 1000 200 \
         18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 3 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    );
    [format!("{pid} (").as_bytes(), name, rest.as_bytes()].concat()
}

#[test]
fn a_process_is_read_as_it_was_written_whatever_its_name_is() {
    hold((process(), prop_oneof![noise(), scraps()]), |(process, name)| {
        assert_eq!(Process::parse(process.pid, &line(&process, &name)), Some(process));
    });
}

// To kill(2), numbers below zero are groups, and -1 is everything.
#[test]
fn no_line_shows_a_number_that_no_process_has() {
    let written = (process(), scraps()).prop_map(|(process, name)| line(&process, &name));
    hold(prop_oneof![1 => noise(), 1 => scraps(), 5 => mutated(written)], |line| {
        check_line(&line);
    });
}

/// What holds of any line.
pub(crate) fn check_line(line: &[u8]) {
    let Some(process) = Process::parse(Pid::from_raw(71), line) else { return };
    assert_eq!(process.pid, Pid::from_raw(71));
    assert!([process.parent, process.group, process.session].into_iter().all(|number| number.as_raw() >= 0));
}

#[test]
fn children_are_read_as_they_were_written() {
    hold(vec(1..=i32::MAX, 0..40), |pids| {
        let list: String = pids.iter().map(|pid| format!("{pid} ")).collect();
        assert!(parse_children(&list).eq(pids.into_iter().map(Pid::from_raw)));
    });
}

#[test]
fn no_list_has_a_child_that_is_no_process() {
    let list = vec(1..i32::MAX, 0..40).prop_map(|pids| format!("{pids:?}").replace(['[', ']', ','], "").into_bytes());
    let list = || text(prop_oneof![1 => noise(), 2 => scraps(), 4 => mutated(list.clone())]);
    hold((list(), list()), |(one, other)| check_children(&one, &other));
}

/// What holds of any two lists of children.
pub(crate) fn check_children(one: &str, other: &str) {
    let read = |list: &str| parse_children(list).collect::<Vec<_>>();
    assert!(read(one).iter().all(|pid| pid.as_raw() > 0));
    assert_eq!(read(&format!("{one} {other}")), [read(one), read(other)].concat());
}
