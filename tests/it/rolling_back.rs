//! examples/deploy.sh --rollback: from release to release, what is in its way, and what KEEP leaves for it.

use std::fs;
use std::path::PathBuf;

use crate::harness::deploy::{build, current, script, supervisor_of_current};
use crate::harness::{Folder, Run, Supervisor};

fn rollback(folder: &Folder) -> Run {
    script(folder, "deploy.sh", &["--rollback"])
}

/// Deploy once more, which succeeds, and give the release.
#[track_caller]
fn deploy(folder: &Folder, keep: &str) -> PathBuf {
    assert_eq!(script(folder, "deploy.sh", &["good"]).env("KEEP", keep).output().failure(), (0, ""));
    current(folder)
}

/// A rollback that is refused, and changes nothing.
#[track_caller]
fn assert_refused(supervisor: &Supervisor, why: &str) {
    let before = (current(&supervisor.folder), supervisor.states());
    assert_eq!(rollback(&supervisor.folder).output().failure(), (1, format!("deploy: {why}\n").as_str()));
    assert_eq!((current(&supervisor.folder), supervisor.states()), before);
}

#[test]
fn each_rollback_leads_to_what_was_current_before_and_a_deploy_goes_on_from_there() {
    let supervisor = supervisor_of_current(&[]);
    let folder = &supervisor.folder;
    let (first, second) = (current(folder), deploy(folder, ""));
    deploy(folder, "");
    for release in [&second, &first] {
        assert_eq!(rollback(folder).output().failure(), (0, ""));
        assert_eq!(current(folder), *release);
    }
    supervisor.wait_ready(5);
    assert_refused(&supervisor, &format!("no release is known that was before {}", first.display()));
    // Not to those that were rolled back.
    deploy(folder, "");
    assert_eq!(rollback(folder).output().failure(), (0, ""));
    assert_eq!(current(folder), first);
}

#[test]
fn a_rollback_to_what_does_not_serve_any_more_leaves_the_current_release_and_removes_nothing() {
    let supervisor = supervisor_of_current(&[]);
    let folder = &supervisor.folder;
    let first = current(folder);
    fs::write(first.join("server"), "#!/bin/sh\nexit 3\n").unwrap();
    let second = deploy(folder, "");
    let failed = rollback(folder).output();
    let end = format!("{} does not serve (--reload ended with 1), {} does\n", first.display(), second.display());
    assert_eq!(failed.code(), 1);
    assert!(failed.stderr.ends_with(&end), "{}", failed.stderr);
    assert_eq!(current(folder), second);
    assert!(first.exists());
}

#[test]
fn a_rollback_to_what_was_removed_says_so() {
    let supervisor = supervisor_of_current(&[]);
    let first = current(&supervisor.folder);
    let second = deploy(&supervisor.folder, "");
    fs::remove_dir_all(&first).unwrap();
    assert_refused(&supervisor, &format!("{}, which was before {}, is gone", first.display(), second.display()));
}

#[test]
fn a_rollback_without_a_supervisor_is_what_that_will_start() {
    let folder = Folder::new();
    build(&folder, "good", "exit");
    assert_eq!(rollback(&folder).output().failure(), (1, "deploy: no release is known that was before any\n"));
    let first = deploy(&folder, "");
    deploy(&folder, "");
    let output = rollback(&folder).output();
    assert_eq!(output.failure(), (0, ""));
    assert!(output.stdout.ends_with(&format!("{} is what it will start\n", first.display())), "{}", output.stdout);
    assert_eq!(current(&folder), first);
}

#[test]
fn a_deploy_that_is_to_keep_some_releases_removes_what_no_rollback_leads_to() {
    let supervisor = supervisor_of_current(&[]);
    let folder = &supervisor.folder;
    let first = current(folder);
    let second = deploy(folder, "");
    let bad = deploy(folder, "3");
    assert!(first.exists());
    assert_eq!(rollback(folder).env("KEEP", "2").output().failure(), (0, ""));
    assert!(bad.exists() && first.exists(), "a rollback removes nothing");
    let left = folder.path("app/releases/20260101-000000-1-left");
    let foreign = folder.path("app/releases/by-hand");
    [&left, &foreign].iter().for_each(|release| fs::create_dir(release).unwrap());
    let last = deploy(folder, "2");
    assert!([&last, &second, &foreign].map(|release| release.exists()).iter().all(|exists| *exists));
    assert!([&first, &bad, &left].map(|release| release.exists()).iter().all(|exists| !*exists));
    let count = |name: &str| fs::read_dir(folder.path(name)).unwrap().count();
    assert_eq!((count("app/releases"), count("app/before")), (3, 2));
    assert_eq!(rollback(folder).output().failure(), (0, ""));
    assert_eq!(current(folder), second);
}
