//! What each start looks up anew: the directory of --chdir and the file of --env-file.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use crate::harness::client::Client;
use crate::harness::setup::{Setup, supervise_in};
use crate::harness::{Folder, PROGRAM, Run, Server, handoff_run_with, supervise, wait_for};

/// Reports its directory and the variable A, and serves.
const SCRIPT: &str = "#!/bin/sh
echo \"$(basename \"$(pwd -P)\") ${A-unset}\" > \"$FOLDER/new-$GENERATION\"
mv \"$FOLDER/new-$GENERATION\" \"$FOLDER/was-$GENERATION\"
exec \"$FOLDER/server\"
";

/// Make a release in the folder, and `current` lead to it.
fn release(folder: &Folder, name: &str) {
    fs::create_dir(folder.path(name)).unwrap();
    fs::write(folder.path(name).join("run"), SCRIPT).unwrap();
    fs::set_permissions(folder.path(name).join("run"), Permissions::from_mode(0o755)).unwrap();
    symlink(name, folder.path("current.new")).unwrap();
    fs::rename(folder.path("current.new"), folder.path("current")).unwrap();
}

/// A supervisor of `./run` in the release that `current` leads to.
fn supervise_release(options: &[&str]) -> Setup {
    let folder = Arc::new(Folder::new());
    release(&folder, "one");
    supervise_in(&folder, Server::Hello, options).target(&["./run"])
}

// handoff-run(1), --chdir: "Looked up anew for each generation".
#[test]
fn each_generation_starts_in_the_release_that_the_link_leads_to_by_then() {
    let supervisor = supervise_release(&["-C", "current"]).serving();
    assert_eq!(supervisor.folder.read("was-1"), "one unset\n");
    release(&supervisor.folder, "two");
    fs::remove_dir_all(supervisor.folder.path("one")).unwrap();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.folder.read("was-2"), "two unset\n");
    // The supervisor that takes over looks it up too.
    supervisor.upgrade();
    release(&supervisor.folder, "three");
    fs::remove_dir_all(supervisor.folder.path("two")).unwrap();
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.folder.read("was-3"), "three unset\n");
    assert_eq!(supervisor.answer().generation, 3);
}

#[test]
fn a_release_whose_directory_is_missing_fails_and_the_old_one_serves_on() {
    let supervisor = supervise_release(&["--chdir", "current"]).serving();
    fs::remove_dir_all(supervisor.folder.path("one")).unwrap();
    let output = supervisor.reload();
    assert_eq!(output.code(), 1);
    let line = "cannot change to the directory current: ENOENT: No such file or directory";
    assert!(output.stderr.contains(line), "{output:?}");
    assert_eq!(supervisor.answer().generation, 1);
}

// handoff-run(1), --env-file: "Read anew for each generation".
#[test]
fn each_generation_has_the_variables_that_the_file_has_by_then() {
    let setup = supervise_release(&["--chdir", "current", "--env-file", "env"]);
    setup.folder.write("env", "A=first\n");
    let supervisor = setup.serving();
    assert_eq!(supervisor.folder.read("was-1"), "one first\n");
    supervisor.folder.write("env", "# as of today\nA=second # not a comment\n");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.folder.read("was-2"), "one second # not a comment\n");
    supervisor.folder.write("env", "");
    assert_eq!(supervisor.reload_and_wait().failure(), (0, ""), "{}", supervisor.log());
    assert_eq!(supervisor.folder.read("was-3"), "one unset\n");
}

#[test]
fn a_file_that_is_broken_fails_the_new_generation_alone() {
    let setup = supervise_release(&["--chdir", "current", "--env-file", "env"]);
    setup.folder.write("env", "A=first\n");
    let supervisor = setup.serving();
    type Act = fn(&Path);
    let broken: [(Act, &str); 4] = [
        (|file| fs::write(file, "A=x\nexport A=second\n").unwrap(), "line 2: write KEY=VALUE without export"),
        (|file| fs::remove_file(file).unwrap(), "ENOENT: No such file or directory"),
        (|file| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap(), "it is a pipe"),
        (
            |file| [fs::remove_file(file), fs::create_dir(file)].into_iter().for_each(Result::unwrap),
            "EISDIR: Is a directory",
        ),
    ];
    for (break_it, why) in broken {
        break_it(&supervisor.folder.path("env"));
        let output = supervisor.reload();
        assert_eq!(output.code(), 1);
        assert!(output.stderr.contains(&format!("cannot read env: {why}")), "{output:?}");
        assert!(!supervisor.log().contains("second"), "the log shows what may be a secret");
        assert_eq!(supervisor.answer().generation, 1);
    }
}

#[test]
fn a_first_generation_without_its_directory_or_file_ends_the_supervisor_with_one_line() {
    for (option, line) in [
        ("--chdir", "cannot change to the directory nowhere: ENOENT: No such file or directory"),
        ("--env-file", "cannot read nowhere: ENOENT: No such file or directory"),
    ] {
        let mut supervisor = supervise(Server::Hello, &[option, "nowhere"]).start();
        let (code, log) = supervisor.end();
        assert_eq!(code, 125, "{log}");
        assert_eq!(log.matches(line).count(), 1, "{log}");
        assert!(!supervisor.folder.names().contains(&"control".into()));
    }
}

/// What a shell in exec mode prints.
fn exec(folder: &Folder, options: &[&str], command: &str) -> (i32, String, String) {
    let run = handoff_run_with(&["-q", "-l", "unix:./s"]).args(options).args(&["--", "sh", "-c", command]);
    let output = run.current_dir(folder).output();
    (output.code(), output.stdout, output.stderr)
}

#[test]
fn without_a_supervisor_the_program_is_looked_for_in_the_directory_and_everything_else_where_we_were() {
    let folder = Folder::new();
    fs::create_dir(folder.path("in")).unwrap();
    folder.write("env", "A=1\n");
    let options = ["-C", "in", "--env-file", "env", "--pid-file", "pid"];
    let command = "basename \"$PWD\"; echo $A; ls -A . ..";
    let expected = "in\n1\n.:\n\n..:\nenv\nin\npid\ns\n";
    assert_eq!(exec(&folder, &options, command), (0, expected.into(), "".into()));
    folder.write("in/tool", "echo found\n");
    fs::set_permissions(folder.path("in/tool"), Permissions::from_mode(0o755)).unwrap();
    let run = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "-C", "in", "--", "./tool"]).current_dir(&folder);
    assert_eq!(run.output().stdout, "found\n");
}

// handoff-run(1), EXIT STATUS: "nothing was left behind".
#[test]
fn a_program_that_cannot_be_run_in_its_directory_leaves_nothing_behind_where_we_were() {
    let folder = Folder::new();
    fs::create_dir(folder.path("in")).unwrap();
    let base = ["-q", "-l", "unix:./s", "--pid-file", "pid"];
    for (options, status, line) in [
        (["-C", "in"], 127, "cannot run ./tool: ENOENT: No such file or directory"),
        (["-C", "none"], 125, "cannot change to the directory none: ENOENT: No such file or directory"),
        (["--env-file", "none"], 125, "cannot read none: ENOENT: No such file or directory"),
        (["--env-file", "in"], 125, "cannot read in: EISDIR: Is a directory"),
    ] {
        let output = handoff_run_with(&base).args(&options).args(&["./tool"]).current_dir(&folder).output();
        assert_eq!(output.failure(), (status, format!("handoff-run: {line}\n").as_str()));
        assert_eq!(folder.names(), ["in"], "{options:?}");
    }
}

#[test]
fn a_mistake_is_reported_before_the_first_client_of_lazy_and_the_file_is_read_after_it() {
    let folder = Folder::new();
    folder.write("env", "A=1\n");
    let lazy = |options: &[&str], command: &str| {
        let run = handoff_run_with(&["-l", "unix:./s", "--lazy"]).args(options).args(&["--", "sh", "-c", command]);
        run.current_dir(&folder)
    };
    let line = "handoff-run: cannot change to the directory none: ENOENT: No such file or directory\n";
    assert_eq!(lazy(&["-C", "none"], "").output().failure(), (125, line));
    let running = lazy(&["--env-file", "env"], "echo $A").start();
    wait_for("the socket", || folder.path("s").exists().then_some(()));
    folder.write("env", "A=2\n");
    let _client = wait_for("a client", || Client::connect(&folder.text("s")).ok());
    assert_eq!(running.output().stdout, "2\n");
}

// As with docker run: a pipe, such as a shell's <(…), is read once.
#[test]
fn without_a_supervisor_the_variables_may_come_from_a_pipe() {
    let line = format!("{} -q -l 127.0.0.1:0 --env-file <(echo A=b) -- sh -c 'echo $A'", PROGRAM);
    let output = Run::of("bash").args(&["-c", &line]).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "b\n"));
}

/// How often the target has a variable, and its value there.
fn values(output: &str, name: &str) -> Vec<String> {
    let prefix = format!("{name}=");
    output.split('\0').filter_map(|entry| entry.strip_prefix(&prefix)).map(str::to_owned).collect()
}

// handoff-run(1), --env-file: "--env, --as, and the variables that announce the sockets win over it".
#[test]
fn each_variable_is_there_once_with_the_value_of_who_has_the_last_word() {
    let folder = Folder::new();
    let text =
        "LISTEN_FDS=7\nLISTEN_PID=7\nUVICORN_FD=file\nFILE=file\nFILE=again\nENV=file\nINHERITED\nNOTIFY_SOCKET=/x\n";
    folder.write("env", text);
    let base = ["-l", "127.0.0.1:0", "--env-file", "env", "--as", "uvicorn", "--env", "ENV=first", "--env", "ENV=last"];
    let target = ["--", "sh", "-c", "cat /proc/$$/environ > got; exec \"$@\"", "sh"];
    for supervised in [false, true] {
        let options: &[&str] = if supervised { &["--supervise", "--ready", "after:0"] } else { &[] };
        let run = handoff_run_with(&base).args(options).args(&target).args(&["true"]).current_dir(&folder);
        let inherited = ["UVICORN_FD", "FILE", "ENV", "INHERITED", "NOTIFY_SOCKET"];
        let run = inherited.iter().fold(run, |run, name| run.env(name, "inherited"));
        // A supervisor would start it again and again.
        let running = run.start();
        let got =
            wait_for("the variables", || fs::read_to_string(folder.path("got")).ok().filter(|t| t.ends_with('\0')));
        drop(running);
        fs::remove_file(folder.path("got")).unwrap();
        for (name, value) in
            [("UVICORN_FD", "3"), ("FILE", "again"), ("ENV", "last"), ("INHERITED", "inherited"), ("LISTEN_FDS", "1")]
        {
            assert_eq!(values(&got, name), [value], "{name} {supervised}");
        }
        assert_eq!(values(&got, "LISTEN_PID").len(), 1);
        let notify = values(&got, "NOTIFY_SOCKET");
        assert_eq!(notify.len(), 1);
        assert_eq!(notify[0] == "/x", !supervised, "{notify:?}");
    }
}

#[test]
fn a_preset_gives_way_to_env_and_each_is_there_once() {
    let line =
        ["-q", "-l", "127.0.0.1:0", "--as", "uvicorn", "--env", "UVICORN_FD=9", "--", "cat", "/proc/self/environ"];
    let output = handoff_run_with(&line).output();
    assert_eq!(values(&output.stdout, "UVICORN_FD"), ["9"]);
}
