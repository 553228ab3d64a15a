//! Which processes belong to one generation. Fed with snapshots, it remembers the processes it has seen, so that a
//! daemon that left the group and lost its parent is still known. Pure.

use nix::unistd::Pid;

use crate::kernel::processes::{Process, ProcessState, Processes};

/// The processes of the generation that began with `main`.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    main: Pid,
    /// The members in the last snapshot, zombies included.
    known: Vec<Process>,
    /// Groups and sessions that a member leads or led, and that members are still in.
    led: Vec<Pid>,
    /// `main` has ended.
    ended: bool,
    /// Groups and sessions count: it is our child, and what is in them was started by it.
    has_groups: bool,
}

impl Members {
    /// `main` is to be a child that is not reaped before its group is empty, so that its number is not reused.
    pub(crate) fn of(main: Pid) -> Members {
        Members { main, known: Vec::new(), led: vec![main], ended: false, has_groups: true }
    }

    /// Those of a process that somebody else started: itself and what descends from it. Who is in its group or session besides
    /// is not known.
    pub(crate) fn foreign(main: Pid) -> Members {
        Members { led: Vec::new(), has_groups: false, ..Members::of(main) }
    }

    /// The same with what an earlier instance knew.
    pub(crate) fn resume_foreign(main: Pid, known: Vec<Process>) -> Members {
        Members { known, ..Members::foreign(main) }
    }

    /// The members that an earlier instance of this knew, and the numbers of `led`.
    pub(crate) fn resume(main: Pid, known: Vec<Process>, led: impl IntoIterator<Item = Pid>) -> Members {
        let mut members = Members { known, ..Members::of(main) };
        members.led.extend(led.into_iter().filter(|number| *number != main));
        members
    }

    /// All that were in the last snapshot.
    pub(crate) fn known(&self) -> &[Process] {
        &self.known
    }

    /// The groups and sessions that a member leads or led, and that members are still in.
    pub(crate) fn led(&self) -> &[Pid] {
        &self.led
    }

    /// Update the known members from `table`, and add those that are new. What descends from one of `apart`, with which another
    /// generation began, belongs to that: a process may be told to succeed one that it started itself.
    pub(crate) fn learn(&mut self, table: &Processes, apart: &[Pid]) {
        let is_apart = |process: &Process| process.pid != self.main && apart.contains(&process.pid);
        let claimed = table.iter().filter(|process| self.claims(process) && !is_apart(process));
        let mut known: Vec<Process> = claimed.copied().collect();
        // Children are appended, so the loop reaches their own children later.
        let mut next = 0;
        while let Some(parent) = known.get(next).map(|process| process.pid) {
            let born = table.children(parent).filter(|child| known.iter().all(|other| other.pid != child.pid));
            let born = born.filter(|child| !is_apart(child));
            let born: Vec<Process> = born.copied().collect();
            known.extend(born);
            next += 1;
        }
        for leader in known.iter().filter(|process| self.has_groups && process.leads()) {
            if !self.led.contains(&leader.pid) {
                self.led.push(leader.pid);
            }
        }
        // Once it is empty, its number may be reused for another group.
        let main = (!self.ended).then_some(self.main);
        self.led.retain(|number| Some(*number) == main || known.iter().any(|process| process.is_in(*number)));
        self.known = known;
    }

    /// Add a stranger that was found to belong here by other means.
    pub(crate) fn adopt(&mut self, process: &Process) {
        self.known.push(*process);
    }

    /// Keep only those of which this holds.
    pub(crate) fn retain(&mut self, is_there: impl Fn(&Process) -> bool) {
        self.known.retain(is_there);
    }

    /// `main` has ended, which /proc does not show for one that it hides.
    pub(crate) fn end_main(&mut self) {
        self.ended = true;
        let main = self.main;
        self.known.retain(|process| process.pid != main);
    }

    /// Those that have not ended; `main` first, even where /proc hides it, or does so since it changed its user.
    pub(crate) fn alive(&self) -> Vec<Pid> {
        let hidden = !self.ended && self.known.iter().all(|process| process.pid != self.main);
        let hidden = hidden.then_some(self.main);
        let mut alive: Vec<Pid> = hidden.into_iter().chain(self.alive_processes().map(|process| process.pid)).collect();
        if let Some(at) = alive.iter().position(|pid| *pid == self.main) {
            alive[..=at].rotate_right(1);
        }
        alive
    }

    /// The same as processes.
    pub(crate) fn alive_processes(&self) -> impl Iterator<Item = &Process> {
        self.known.iter().filter(|process| process.state == ProcessState::Alive)
    }

    /// Whether the last snapshot attributed this process to this generation.
    pub(crate) fn contains(&self, process: &Process) -> bool {
        self.known.iter().any(|known| known.is(process))
    }

    /// A member by itself, not by its parent.
    fn claims(&self, process: &Process) -> bool {
        let main = !self.ended && process.pid == self.main;
        main || self.contains(process) || self.led.contains(&process.group) || self.led.contains(&process.session)
    }
}

/// Children of `parent` that no generation knows: daemons that left group and parent between two snapshots.
pub(crate) fn strangers<'a>(
    table: &'a Processes,
    parent: Pid,
    generations: &'a [&Members],
) -> impl Iterator<Item = &'a Process> {
    table.children(parent).filter(|child| generations.iter().all(|members| !members.contains(child)))
}

impl Process {
    /// The same process, not only the same number.
    fn is(&self, other: &Process) -> bool {
        self.pid == other.pid && self.started == other.started
    }

    fn leads(&self) -> bool {
        self.group == self.pid || self.session == self.pid
    }

    fn is_in(&self, number: Pid) -> bool {
        [self.pid, self.group, self.session].contains(&number)
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const SUPERVISOR: i32 = 10;

    /// Each process as pid, parent, group and session; it starts at the time of its pid.
    fn table(processes: &[[i32; 4]]) -> Processes {
        processes.iter().map(|numbers| process(*numbers, 0)).collect()
    }

    fn process(numbers: [i32; 4], later: u64) -> Process {
        let [pid, parent, group, session] = numbers.map(Pid::from_raw);
        Process {
            pid,
            parent,
            group,
            session,
            state: ProcessState::Alive,
            threads: 1,
            started: numbers[0] as u64 + later,
        }
    }

    /// The members of the generation of 20 after each of the snapshots.
    fn after(snapshots: &[Processes]) -> Vec<i32> {
        alive(&of(snapshots))
    }

    /// The same if it ends after the first.
    fn after_its_end(first: &Processes, later: &[Processes]) -> Vec<i32> {
        let mut members = of(std::slice::from_ref(first));
        members.end_main();
        later.iter().for_each(|table| members.learn(table, &[]));
        alive(&members)
    }

    fn of(snapshots: &[Processes]) -> Members {
        let mut members = Members::of(Pid::from_raw(20));
        snapshots.iter().for_each(|table| members.learn(table, &[]));
        members
    }

    fn alive(members: &Members) -> Vec<i32> {
        members.alive().into_iter().map(Pid::as_raw).collect()
    }

    #[test]
    fn descendants_at_any_depth_and_in_any_order_are_members_and_siblings_are_not() {
        let snapshot = table(&[[23, 22, 20, 1], [30, 10, 30, 1], [22, 21, 22, 22], [21, 20, 20, 1], [20, 10, 20, 1]]);
        assert_eq!(after(&[snapshot]), [20, 23, 21, 22]);
    }

    #[test]
    fn an_orphan_in_the_group_is_a_member_at_first_sight() {
        assert_eq!(after(&[table(&[[20, 10, 20, 1], [25, 10, 20, 1], [26, 10, 10, 1]])]), [20, 25]);
    }

    #[test]
    fn a_daemon_is_known_by_an_earlier_sight_of_it() {
        let before = table(&[[20, 10, 20, 1], [25, 20, 20, 1]]);
        let daemonized = table(&[[20, 10, 20, 1], [25, 10, 25, 25], [26, 25, 26, 26]]);
        assert_eq!(after(&[before, daemonized]), [20, 25, 26]);
    }

    #[test]
    fn a_daemon_is_known_by_the_session_that_its_parent_led() {
        let before = table(&[[20, 10, 20, 1], [25, 20, 25, 25]]);
        let forked_twice = table(&[[20, 10, 20, 1], [26, 10, 25, 25]]);
        let grouped = table(&[[20, 10, 20, 1], [26, 10, 25, 25], [27, 10, 27, 25]]);
        assert_eq!(after(&[before, forked_twice, grouped]), [20, 26, 27]);
    }

    #[test]
    fn what_was_known_before_is_known_after() {
        let before = of(&[
            table(&[[20, 10, 20, 1], [25, 20, 25, 25], [30, 20, 20, 1]]),
            table(&[[20, 10, 20, 1], [26, 10, 25, 25], [30, 20, 30, 30]]),
        ]);
        let mut after = Members::resume(before.main, before.known().to_vec(), before.led().to_vec());
        // One joins the group of a leader that has ended, the parent of another one has ended.
        after.learn(&table(&[[20, 10, 20, 1], [27, 10, 27, 25], [26, 10, 25, 25], [30, 10, 30, 30]]), &[]);
        assert_eq!(alive(&after), [20, 27, 26, 30]);
        let mut other = Members::resume(before.main, vec![process([26, 10, 25, 25], 100)], []);
        other.learn(&table(&[[20, 10, 20, 1], [26, 10, 25, 25]]), &[]);
        assert_eq!(alive(&other), [20]);
    }

    // It was once started from a shell with job control, say, whose other jobs are none of our business.
    #[test]
    fn of_a_process_that_is_no_child_of_ours_only_descendants_are_members() {
        let mut members = Members::foreign(Pid::from_raw(20));
        members.learn(&table(&[[20, 5, 20, 20], [21, 20, 20, 20], [22, 5, 20, 20], [23, 5, 23, 20]]), &[]);
        assert_eq!(alive(&members), [20, 21]);
        // The worker of a master that has ended, which has another parent now, is known.
        members.end_main();
        members.learn(&table(&[[21, 1, 20, 20], [22, 5, 20, 20], [24, 21, 24, 24]]), &[]);
        assert_eq!(alive(&members), [21, 24]);
    }

    // As `old & exec handoff-run --from $! -- new`.
    #[test]
    fn what_another_generation_began_with_is_no_member_though_it_is_a_child() {
        let snapshot = table(&[[20, 5, 20, 20], [21, 20, 20, 20], [22, 21, 20, 20], [23, 20, 20, 20]]);
        for mut members in [Members::foreign(Pid::from_raw(20)), Members::of(Pid::from_raw(20))] {
            members.learn(&snapshot, &[Pid::from_raw(20), Pid::from_raw(21)]);
            let of_its_group = members.has_groups.then_some(22);
            assert_eq!(alive(&members), [20].into_iter().chain(of_its_group).chain([23]).collect::<Vec<_>>());
        }
        let mut other = Members::foreign(Pid::from_raw(21));
        other.learn(&snapshot, &[Pid::from_raw(20), Pid::from_raw(21)]);
        assert_eq!(alive(&other), [21, 22]);
    }

    #[test]
    fn a_daemon_outlives_the_main_process() {
        let before = table(&[[20, 10, 20, 1], [25, 20, 25, 25]]);
        assert_eq!(after_its_end(&before, &[table(&[[25, 10, 25, 25]])]), [25]);
    }

    #[test]
    fn the_same_number_of_another_process_is_no_member() {
        let before = table(&[[20, 10, 20, 1], [25, 20, 25, 25]]);
        let gone = table(&[[20, 10, 20, 1]]);
        let reused = [process([20, 10, 20, 1], 0), process([25, 10, 25, 25], 100)].into_iter().collect();
        assert_eq!(after(&[before, gone, reused]), [20]);
    }

    #[test]
    fn an_ended_main_process_whose_number_is_reused_is_no_member() {
        let reused = [process([20, 10, 20, 1], 100)].into_iter().collect();
        assert_eq!(after_its_end(&table(&[[20, 10, 20, 1]]), &[table(&[]), reused]), [] as [i32; 0]);
    }

    #[test]
    fn a_main_process_that_is_hidden_or_not_yet_in_its_own_group_is_a_member() {
        assert_eq!(after(&[table(&[])]), [20]);
        assert_eq!(
            after(&[table(&[]), table(&[[20, 10, 10, 1]]), table(&[[20, 10, 20, 1], [21, 10, 20, 1]])]),
            [20, 21]
        );
    }

    // A server that changed its user under hidepid was once taken for gone, so that not even its READY=1 was believed.
    #[test]
    fn a_main_process_that_hides_later_is_a_member_until_it_has_ended() {
        let before = table(&[[20, 10, 20, 1]]);
        assert_eq!(after(&[before.clone(), table(&[])]), [20]);
        assert_eq!(after(&[before.clone(), table(&[]), table(&[[21, 10, 20, 1]])]), [20, 21]);
        assert_eq!(after(&[before.clone(), table(&[]), before.clone()]), [20]);
        assert_eq!(after_its_end(&before, &[table(&[])]), [] as [i32; 0]);
        assert_eq!(after_its_end(&table(&[]), &[table(&[])]), [] as [i32; 0]);
    }

    #[test]
    fn zombies_are_members_but_not_alive() {
        let zombie = Process { state: ProcessState::Zombie, ..process([20, 10, 20, 1], 0) };
        assert_eq!(after(&[[zombie, process([21, 10, 20, 1], 0)].into_iter().collect()]), [21]);
    }

    #[test]
    fn a_child_that_no_generation_has_seen_is_a_stranger() {
        let snapshot = table(&[[20, 10, 20, 1], [21, 20, 20, 1], [40, 10, 40, 40], [41, 40, 40, 40]]);
        let mut members = Members::of(Pid::from_raw(20));
        members.learn(&snapshot, &[]);
        let generations = [&members];
        let found = strangers(&snapshot, Pid::from_raw(SUPERVISOR), &generations).map(|process| process.pid.as_raw());
        assert_eq!(found.collect::<Vec<_>>(), [40]);
    }
}
