//! What is written is what is read.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::*;
use crate::config::Until;
use crate::supervise::control::Live;
use crate::supervise::plan::{Cause, Draining, Serving, Starting};

fn file(path: &str) -> SavedFile {
    SavedFile { path: path.into(), identity: (1, u64::MAX) }
}

fn full() -> State {
    let at = Duration::from_nanos;
    State {
        pid: 7,
        program: OsString::from_vec(b"/usr/bin/handoff \xff run".to_vec()).into(),
        directory: Some(PathBuf::new()),
        blocked: vec![1, 64],
        child_ignored: true,
        pipe_ignored: false,
        listeners: vec![SavedListener { fd: 3, name: "a b".into(), backlog: Some(5), file: Some(file("/é")) }],
        control: Some(SavedControl { fd: 4, file: None }),
        clients: vec![
            SavedClient {
                fd: 5,
                wants: Wants::Generation { id: 3, until: Until::OldGone, live: Live::No },
                heard: vec![],
                to_send: "at 3 x\n".into(),
                closing: false,
            },
            SavedClient {
                fd: 6,
                wants: Wants::Predecessors { id: 2, live: Live::Yes },
                heard: "r".into(),
                to_send: vec![],
                closing: true,
            },
            SavedClient { fd: 7, wants: Wants::End, heard: vec![], to_send: vec![], closing: false },
            SavedClient { fd: 8, wants: Wants::Nothing, heard: "rel".into(), to_send: vec![], closing: false },
        ],
        plan: Plan {
            next: 4,
            starting: Some(Starting { id: 3, cause: Cause::Reload, deadline: at(9) }),
            serving: Some(Serving { id: 2, since: at(7) }),
            draining: vec![Draining { id: 1, deadline: Some(at(8)) }, Draining { id: 0, deadline: None }],
            queued: true,
            restart: Some(at(11)),
            pause: at(12),
            restarts: 2,
            stopping: Some(0),
        },
        generations: vec![
            SavedGeneration {
                id: 2,
                pid: 70,
                pidfd: 9,
                complaint: 10,
                inbox: 11,
                started: at(1),
                ended: Some(Ending::Signaled(64)),
                watch: None,
            },
            SavedGeneration {
                id: 3,
                pid: 71,
                pidfd: 12,
                complaint: 13,
                inbox: 14,
                started: at(2),
                ended: None,
                watch: Some(SavedWatch { begun: at(2), told: true, pipe: Some(15) }),
            },
        ],
        last_failure: Some("said \"no\"\nand left".into()),
        pid_file: true,
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    assert_eq!(State::read(&full().write()).unwrap(), full());
    assert_eq!(State::read(&State::empty().write()).unwrap(), State::empty());
}

#[test]
fn another_version_and_a_damaged_state_are_errors() {
    let text = full().write();
    for damaged in [text.replace("state 1", "state 2"), text.replace("serving", "sleeping"), text.replace("=61", "=6x")]
    {
        assert_ne!(damaged, text);
        State::read(&damaged).unwrap_err();
    }
    let cut = &text[..text.len() - 3];
    assert_ne!(State::read(cut).ok(), Some(full()));
}
