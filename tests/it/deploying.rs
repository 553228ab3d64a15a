//! examples/deploy.sh: the first deploy, a broken release, two at once, and no supervisor yet.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::harness::server::hello;
use crate::harness::{Folder, Output, PROGRAM, Run, Server, Supervisor, supervise};

/// deploy.sh with the folder `build` of `folder`, for the supervisor there.
fn deploy(folder: &Folder, build: &str) -> Run {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/deploy.sh");
    let program = PathBuf::from(PROGRAM);
    let path = std::env::join_paths(
        std::iter::once(program.parent().unwrap().to_owned())
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let run = Run::of(script).args(&[folder.path(build)]).env("PATH", path.unwrap());
    run.env("APP", folder.path("app")).env("CONTROL", folder.path("control"))
}

/// A build whose server is this program.
fn build(folder: &Folder, name: &str, server: &str) {
    fs::create_dir(folder.path(name)).unwrap();
    symlink(server, folder.path(name).join("server")).unwrap();
}

fn current(folder: &Folder) -> PathBuf {
    fs::read_link(folder.path("app").join("current")).unwrap()
}

/// A supervisor of what was deployed.
fn supervisor_of_current() -> (Supervisor, Output) {
    let setup = supervise(Server::Script("exec ./app/current/server"), &[]);
    let folder = setup.folder.clone();
    build(&folder, "good", hello().to_str().unwrap());
    let first = deploy(&folder, "good").output();
    (setup.serving(), first)
}

#[test]
fn the_first_deploy_needs_no_supervisor_and_the_next_one_replaces_what_serves() {
    let (supervisor, first) = supervisor_of_current();
    assert_eq!((first.code(), first.stderr.as_str()), (0, ""));
    assert!(first.stdout.contains("no supervisor at "), "{}", first.stdout);
    let before = current(&supervisor.folder);
    let second = deploy(&supervisor.folder, "good").output();
    assert_eq!((second.code(), second.stderr.as_str()), (0, ""));
    assert_ne!(current(&supervisor.folder), before);
    supervisor.wait_ready(2);
}

#[test]
fn a_broken_release_is_taken_back_and_reported() {
    let (supervisor, _) = supervisor_of_current();
    build(&supervisor.folder, "broken", "/bin/false");
    let before = current(&supervisor.folder);
    let failed = deploy(&supervisor.folder, "broken").output();
    assert_eq!(failed.code(), 1);
    assert!(failed.stderr.contains("does not serve (--reload ended with 1)"), "{}", failed.stderr);
    assert_eq!(current(&supervisor.folder), before);
    assert_eq!(supervisor.states(), [(1, "serving".into())]);
}

#[test]
fn of_two_deploys_at_once_the_second_says_so_and_changes_nothing() {
    let (supervisor, _) = supervisor_of_current();
    let before = current(&supervisor.folder);
    let lock = fs::File::open(supervisor.folder.path("app").join("lock")).unwrap();
    lock.lock().unwrap();
    let second = deploy(&supervisor.folder, "good").output();
    assert_eq!(second.failure(), (1, "deploy: another deploy is under way\n"));
    assert_eq!(current(&supervisor.folder), before);
    drop(lock);
    assert_eq!(deploy(&supervisor.folder, "good").output().code(), 0);
}

#[test]
fn a_deploy_without_a_build_says_how_it_is_used() {
    let folder = Folder::new();
    let output = deploy(&folder, "nothing").output();
    assert_eq!(output.failure(), (1, "deploy: usage: deploy.sh BUILD, a folder\n"));
    assert!(!folder.path("app").exists());
}

#[test]
fn a_deploy_that_is_interrupted_takes_its_release_back() {
    let (supervisor, _) = supervisor_of_current();
    build(&supervisor.folder, "hanging", "/bin/true");
    fs::remove_file(supervisor.folder.path("hanging").join("server")).unwrap();
    fs::write(supervisor.folder.path("hanging").join("server"), "#!/bin/sh\nexec sleep 100\n").unwrap();
    fs::set_permissions(supervisor.folder.path("hanging").join("server"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = current(&supervisor.folder);
    // As the terminal does it: the script and what it waits for.
    let running = deploy(&supervisor.folder, "hanging").before_exec(|| Ok(nix::unistd::setsid().map(drop)?)).start();
    supervisor.generation(2);
    nix::sys::signal::killpg(running.pid(), Signal::SIGINT).unwrap();
    let output = running.output();
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("does not serve (it was interrupted)"), "{}", output.stderr);
    assert_eq!(current(&supervisor.folder), before);
}

// Once every failure of --status was taken for no supervisor, and the release was switched under the one that runs.
#[test]
fn a_supervisor_that_does_not_answer_is_no_missing_supervisor() {
    let (supervisor, _) = supervisor_of_current();
    let before = current(&supervisor.folder);
    supervisor.signal(Signal::SIGSTOP);
    let output = deploy(&supervisor.folder, "good").output();
    supervisor.signal(Signal::SIGCONT);
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("is stopped"), "{}", output.stderr);
    assert_eq!(current(&supervisor.folder), before);
}
