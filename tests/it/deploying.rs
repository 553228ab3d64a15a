//! examples/deploy.sh: the first deploy, a broken release, two at once, no supervisor yet, and what ends it halfway.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};

use crate::harness::client::Client;
use crate::harness::deploy::{build, current, script, supervisor_of_current};
use crate::harness::{Folder, Output, Run, Running, Supervisor, wait_for};

/// deploy.sh with the folder `build` of `folder`, for the supervisor there.
fn deploy(folder: &Folder, build: &str) -> Run {
    script(folder, "deploy.sh", &[build])
}

/// What is in the folder of the releases.
fn releases(folder: &Folder) -> usize {
    fs::read_dir(folder.path("app/releases")).unwrap().count()
}

/// Deploy what fails with this status and for this reason, after which everything is as it was.
#[track_caller]
fn assert_taken_back(supervisor: &Supervisor, deploy: impl FnOnce(&Folder) -> Output, status: i32, reason: &str) {
    let before = (current(&supervisor.folder), releases(&supervisor.folder));
    let failed = deploy(&supervisor.folder);
    assert_eq!(failed.code(), status, "{}", failed.stderr);
    assert!(failed.stderr.contains(&format!("does not serve ({reason})")), "{}", failed.stderr);
    assert_eq!((current(&supervisor.folder), releases(&supervisor.folder)), before);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn the_first_deploy_needs_no_supervisor_and_the_next_one_replaces_what_serves() {
    let supervisor = supervisor_of_current(&[]);
    let before = current(&supervisor.folder);
    let second = deploy(&supervisor.folder, "good").output();
    assert_eq!((second.code(), second.stderr.as_str()), (0, ""));
    assert_ne!(current(&supervisor.folder), before);
    supervisor.wait_ready(2);
}

#[test]
fn a_broken_release_is_taken_back_and_reported_with_the_status_of_the_reload() {
    let supervisor = supervisor_of_current(&["--ready-timeout", "300ms"]);
    build(&supervisor.folder, "broken", "exit 3");
    assert_taken_back(&supervisor, |folder| deploy(folder, "broken").output(), 1, "--reload ended with 1");
    build(&supervisor.folder, "hanging", "exec sleep 100");
    assert_taken_back(&supervisor, |folder| deploy(folder, "hanging").output(), 124, "--reload ended with 124");
}

#[test]
fn of_two_deploys_at_once_the_second_says_so_and_changes_nothing() {
    let supervisor = supervisor_of_current(&[]);
    let before = current(&supervisor.folder);
    let lock = fs::File::open(supervisor.folder.path("app/lock")).unwrap();
    lock.lock().unwrap();
    let second = deploy(&supervisor.folder, "good").output();
    assert_eq!(second.failure(), (1, "deploy: another deploy is under way\n"));
    assert_eq!(current(&supervisor.folder), before);
    drop(lock);
    assert_eq!(deploy(&supervisor.folder, "good").output().code(), 0);
}

#[test]
fn words_that_a_deploy_cannot_mean_are_refused_and_nothing_is_made() {
    let folder = Folder::new();
    build(&folder, "good", "exit");
    let usage = "usage: deploy.sh BUILD|--rollback [OPTION]...";
    let wait = "without --wait: a release serves also where the one before does not end in time";
    let refused = |words: &[&str], keep: &str, why: &str| {
        let output = script(&folder, "deploy.sh", words).env("KEEP", keep).output();
        assert_eq!(output.failure(), (1, format!("deploy: {why}\n").as_str()));
        assert!(!folder.path("app").exists());
    };
    refused(&[], "", usage);
    refused(&["nothing"], "", usage);
    // What a status of 1 means would be in doubt.
    refused(&["good", "--wait"], "", wait);
    for keep in ["0", "1", "02", "-2", "x"] {
        refused(&["good"], keep, &format!("KEEP={keep} is no number from 2 on"));
    }
}

/// A deploy of what never gets ready, ended so when it has been started.
fn interrupted(supervisor: &Supervisor, end: impl FnOnce(&Running)) -> Output {
    // In a group of its own, as a terminal has it: the script and what it waits for.
    let deploy = deploy(&supervisor.folder, "hanging").before_exec(|| Ok(nix::unistd::setsid().map(drop)?)).start();
    supervisor.generation(2);
    end(&deploy);
    deploy.output()
}

// Once the reload went on, and its generation could serve from a release that had been removed.
#[test]
fn a_deploy_that_is_interrupted_ends_the_reload_and_takes_its_release_back() {
    let by_terminal = |deploy: &Running| killpg(deploy.pid(), Signal::SIGINT).unwrap();
    let hung_up = |deploy: &Running| killpg(deploy.pid(), Signal::SIGHUP).unwrap();
    // The script alone, as by a program that runs it.
    let by_runner = |deploy: &Running| deploy.signal(Signal::SIGTERM);
    for end in [by_terminal, hung_up, by_runner] {
        let supervisor = supervisor_of_current(&[]);
        build(&supervisor.folder, "hanging", "exec sleep 100");
        assert_taken_back(&supervisor, |_| interrupted(&supervisor, end), 1, "it was interrupted");
    }
}

// The time to settle is the last in which it can be interrupted. Its files were once removed under its clients.
#[test]
fn a_deploy_that_is_interrupted_before_it_has_settled_is_rolled_back_and_answers_whom_it_has() {
    let supervisor = supervisor_of_current(&["--settle", "1h"]);
    let before = current(&supervisor.folder);
    let deploy = deploy(&supervisor.folder, "good").start();
    supervisor.wait_ready(2);
    let mut client = Client::connect(&supervisor.address()).unwrap();
    client.send_part();
    let is_held = |line: &Vec<String>| line[0] == "2" && line.last().is_some_and(|connections| connections == "1");
    wait_for("the connection to be accepted", || supervisor.table().iter().any(is_held).then_some(()));
    let release = current(&supervisor.folder);
    deploy.signal(Signal::SIGTERM);
    let output = deploy.output();
    assert_eq!(output.code(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("does not serve (it was interrupted)"), "{}", output.stderr);
    assert_eq!(current(&supervisor.folder), before);
    assert!(release.exists());
    assert_eq!(client.finish().unwrap().generation, 2);
    supervisor.wait_gone(2);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_release_for_which_there_is_no_room_leaves_nothing_behind() {
    let supervisor = supervisor_of_current(&[]);
    build(&supervisor.folder, "big", &"#".repeat(100_000));
    let before = (current(&supervisor.folder), releases(&supervisor.folder));
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: setrlimit reads a structure that is there, and is async-signal-safe.
    let limited = move || Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }).map(drop);
    let output = deploy(&supervisor.folder, "big").before_exec(move || limited().map_err(io::Error::from)).output();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("deploy: cannot copy big to "), "{}", output.stderr);
    assert_eq!((current(&supervisor.folder), releases(&supervisor.folder)), before);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn a_build_may_be_an_archive_and_a_broken_one_leaves_nothing_behind() {
    let supervisor = supervisor_of_current(&[]);
    let folder = &supervisor.folder;
    let tar = Run::of("tar").args(&["-czf", "good.tar.gz", "-C", "good", "."]).current_dir(&**folder);
    assert_eq!(tar.output().failure(), (0, ""));
    assert_eq!(deploy(folder, "good.tar.gz").output().failure(), (0, ""));
    supervisor.wait_ready(2);
    let before = (current(folder), releases(folder));
    assert!(before.0.to_str().unwrap().ends_with("-good.tar.gz"), "{before:?}");
    folder.write("broken.tar.gz", "no archive");
    let output = deploy(folder, "broken.tar.gz").output();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("deploy: cannot copy broken.tar.gz to "), "{}", output.stderr);
    assert_eq!((current(folder), releases(folder)), before);
}

// Once every failure of --status was taken for no supervisor, and the release was switched under the one that runs.
#[test]
fn a_supervisor_that_does_not_answer_is_no_missing_supervisor() {
    let supervisor = supervisor_of_current(&[]);
    let before = current(&supervisor.folder);
    supervisor.signal(Signal::SIGSTOP);
    let output = deploy(&supervisor.folder, "good").output();
    supervisor.signal(Signal::SIGCONT);
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("is stopped"), "{}", output.stderr);
    assert_eq!(current(&supervisor.folder), before);
}

#[test]
fn what_is_no_control_socket_is_no_missing_supervisor_either() {
    let supervisor = supervisor_of_current(&[]);
    let before = current(&supervisor.folder);
    let folder = supervisor.folder.text("app");
    let output = deploy(&supervisor.folder, "good").env("CONTROL", &folder).output();
    assert_eq!(output.failure(), (1, format!("deploy: {folder} is no control socket\n").as_str()));
    assert_eq!(current(&supervisor.folder), before);
}
