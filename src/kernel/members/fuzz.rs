//! Any snapshots: contradictory ones, too, for /proc is read while it changes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::fuzz::hold;

fn process() -> impl Strategy<Value = Process> {
    let number = || (0..9_i32).prop_map(Pid::from_raw);
    let state = prop_oneof![3 => Just(ProcessState::Alive), 1 => Just(ProcessState::Zombie)];
    ((1..9_i32).prop_map(Pid::from_raw), number(), number(), number(), state, 0..3_u64).prop_map(
        |(pid, parent, group, session, state, started)| Process {
            pid,
            parent,
            group,
            session,
            state,
            threads: 1,
            started,
        },
    )
}

/// What holds of the members after any snapshot.
fn check(members: &Members, table: &[Process]) {
    assert!(members.known().iter().all(|known| table.contains(known)));
    assert!(members.known().iter().all(|known| members.contains(known)));
    let alive = members.alive();
    let is_hidden = |pid: &Pid| *pid == members.main && !members.ended && members.known.iter().all(|p| p.pid != *pid);
    let is_alive = |pid: &Pid| members.alive_processes().any(|process| process.pid == *pid);
    assert!(alive.iter().all(|pid| is_alive(pid) || is_hidden(pid)));
    assert!(members.alive_processes().all(|process| alive.contains(&process.pid)));
    assert!(!alive.contains(&members.main) || alive[0] == members.main);
    // A number of which nothing is left may be another group's by now.
    let is_in_use = |number: &Pid| members.known.iter().any(|process| process.is_in(*number));
    assert!(members.led().iter().all(|number| *number == members.main && !members.ended || is_in_use(number)));
}

#[test]
fn members_are_in_the_snapshot_and_stay_while_it_shows_them() {
    let snapshot = (vec(process(), 0..12), any::<bool>());
    hold((1..9_i32, vec(snapshot, 1..5)), |(main, snapshots)| {
        let mut members = Members::of(Pid::from_raw(main));
        for (processes, ends) in snapshots {
            if ends {
                members.end_main();
            }
            let table: Processes = processes.iter().copied().collect();
            members.learn(&table, &[]);
            check(&members, &processes);
            let before = members.clone();
            members.learn(&table, &[]);
            check(&members, &processes);
            assert!(before.known().iter().all(|known| members.contains(known)));
            let generations = [&members];
            let strangers = strangers(&table, Pid::from_raw(2), &generations);
            strangers.for_each(|process| assert!(process.parent.as_raw() == 2 && !members.contains(process)));
        }
    });
}
