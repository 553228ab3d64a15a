//! What the tab key offers, in shells on a terminal.

use std::sync::Arc;

use crate::harness::by_hand::by_hand;
use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::process::name;
use crate::harness::shell::{Kind, Shell};
use crate::harness::supervisor::Role;
use crate::harness::{Folder, PROGRAM, Run, Server, Supervisor, supervise};

/// What the tab key makes of a line where there is but one way to go on, the same in each shell, and nothing else is shown.
const COMPLETED: &[(&str, &str)] = &[
    ("--sup", "--supervise"),
    ("--as gun", "--as gunicorn"),
    ("--ready=f", "--ready=fd:"),
    ("--drain i", "--drain idle"),
    ("--restart al", "--restart always"),
    ("--from-signal QU", "--from-signal QUIT"),
    ("-l unix-d", "-l unix-dgram:"),
    ("-l unix:./ser", "-l unix:./server"),
    ("-ql:80,def", "-ql:80,defer-accept="),
    ("--listen=web=:80,mode=0600,us", "--listen=web=:80,mode=0600,user="),
    ("--env-file ./set", "--env-file ./settings.env"),
    ("--pid-file=./set", "--pid-file=./settings.env"),
    ("-qC s", "-qC sub/"),
    ("--reload ./set", "--reload ./settings.env"),
    ("--from ./set", "--from ./settings.env"),
    ("--status x --js", "--status x --json"),
    ("-l :80 -- git checko", "-l :80 -- git checkout"),
    ("--env A=b -l tcp::80 git checko", "--env A=b -l tcp::80 git checkout"),
    ("-l :80 ./ser", "-l :80 ./server"),
];

/// A line, and what is then on the screen in bash, in zsh and in fish.
const LISTED: &[(&str, [&[&str]; 3])] = &[
    ("--as h", [&["h2o haproxy hypercorn"], &["haproxy -- bind fd@3"], &["haproxy (bind fd@3)"]]),
    (
        "--ready ",
        [
            &["accepting after: auto check: fd: http: notify"],
            &["fd: -- it writes a byte to descriptor N"],
            &["fd: (it writes a byte to descriptor N)"],
        ],
    ),
    ("--stop-signal U", [&["USR1", "USR2"]; 3]),
    ("-l web=tcp", [&["tcp4:", "tcp6:"], &["tcp4:", "tcp6:"], &["web=tcp4:", "web=tcp6:"]]),
    ("--promote ", CONTROL),
    ("--wait --reload ", CONTROL),
    (
        "--from ",
        [
            &["auto", "@PID@", "@CONTROL@"],
            &["auto -- the process that has the address", "@PID@", CONTROL[1][0]],
            &["auto (the process that has the address)", "@PID@ (python3)", CONTROL[2][0]],
        ],
    ),
];

const CONTROL: [&[&str]; 3] = [
    &["@CONTROL@"],
    &["@CONTROL@ -- supervisor @SUPERVISOR@ of @NAME@"],
    &["@CONTROL@ (supervisor @SUPERVISOR@ of @NAME@)"],
];

/// What must not be there beside what is: a line, and both.
const ABSENT: &[(&str, &str, &str)] = &[
    // The target's options are its own.
    ("-l :80 -- ls --", "--author", "--listen"),
    ("-l :80 ls --", "--author", "--listen"),
    // A request has no program and few options.
    ("--reload x -", "--wait", "--listen"),
    ("--reload x -", "--wait", "--json"),
];

fn shell(kind: Kind) -> Option<Shell> {
    is_installed(&Case { needs: kind.needs(), ..CASE })
        .then(|| Shell::start(kind, &["server", "settings.env", "sub/x"]))
}

#[track_caller]
fn assert_completes(shell: &Shell, line: &str, expected: &str) {
    let screen = shell.complete(&format!("handoff-run {line}"), &[expected.to_owned()]);
    assert_eq!(screen, format!(" > handoff-run {expected} "));
}

/// Every line, for the shell which is at this place in the table.
fn try_lines(kind: Kind, place: usize) {
    let Some(shell) = shell(kind) else { return };
    let old = by_hand("serve()");
    let supervisor = supervise(Server::Hello, &[]).serving();
    let name = name(supervisor.generation(1));
    let fill = |words: &&str| {
        let words = words.replace("@CONTROL@", &supervisor.folder.text("control")).replace("@NAME@", &name);
        words.replace("@SUPERVISOR@", &supervisor.pid.to_string()).replace("@PID@", &old.pid().to_string())
    };
    for (line, expected) in COMPLETED {
        assert_completes(&shell, line, expected);
    }
    for (line, expected) in LISTED {
        let expected: Vec<String> = expected[place].iter().map(fill).collect();
        shell.complete(&format!("handoff-run {line}"), &expected);
    }
    for (line, present, absent) in ABSENT {
        let screen = shell.complete(&format!("handoff-run {line}"), &[present.to_string()]);
        assert!(!screen.contains(absent), "{line}: {screen}");
    }
}

#[test]
fn bash_offers_what_there_is() {
    try_lines(Kind::Bash, 0);
}

#[test]
fn zsh_offers_what_there_is() {
    try_lines(Kind::Zsh, 1);
}

#[test]
fn fish_offers_what_there_is() {
    try_lines(Kind::Fish, 2);
}

#[test]
fn without_bash_completion_bash_offers_commands_and_files_behind_the_options() {
    let Some(shell) = shell(Kind::BareBash) else { return };
    for (line, expected) in [
        ("--as gun", "--as gunicorn"),
        ("-l web=:80,def", "-l web=:80,defer-accept="),
        ("-l :80 -- handoff-r", "-l :80 -- handoff-run"),
        ("-l :80 ./ser", "-l :80 ./server"),
        ("-l :80 cat ./set", "-l :80 cat ./settings.env"),
    ] {
        assert_completes(&shell, line, expected);
    }
}

#[test]
fn a_control_socket_is_found_from_the_directory_of_its_supervisor() {
    let folder = Arc::new(Folder::new());
    let target = Server::Hello.install(&folder);
    let run = Run::of(PROGRAM).current_dir(&*folder).args(&["--supervise", "--control=./control,mode=0600"]);
    let run = run.args(&["-l", "127.0.0.1:0", "--"]).args(&target);
    let supervisor = Supervisor::start(folder, run, Role::Supervisor);
    supervisor.wait_ready(1);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/completions/predecessors.sh");
    let found = Run::of("sh").args(&[script, "supervisors"]).output().stdout;
    let (pid, name) = (supervisor.pid, name(supervisor.generation(1)));
    let line = format!("{}\tsupervisor {pid} of {name}", supervisor.folder.text("control"));
    assert!(found.lines().any(|found| found == line), "{line}: {found}");
}
