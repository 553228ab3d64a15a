//! The README and the manual: every command in them runs as it is printed, taken from the text itself.

use std::path::Path;
use std::{env, fs};

use crate::harness::server::hello;
use crate::harness::{Folder, PROGRAM, Run, is_root_to};

/// The commands of the README: in its indented blocks, without the remark behind them, and in its tables. `…` stands for a
/// server.
fn readme() -> Vec<String> {
    let page = include_str!("../../README.md");
    let block = |line: &'static str| Some(line.strip_prefix("    ")?.split(" #").next()?.trim_end());
    let of_blocks = page.lines().filter_map(block);
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let of_tables = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let commands = of_blocks.chain(of_tables).filter(|command| command.starts_with("handoff-run "));
    commands.map(|command| command.replace('…', "./server")).collect()
}

/// The commands of the manual: lines in bold that are no synopsis, and those of its unit.
fn manual() -> Vec<String> {
    let page = include_str!("../../man/handoff-run.1.in").replace("\\-", "-").replace("\\(dq", "\"");
    let (_, page) = page.split_once(".SH DESCRIPTION").unwrap();
    let command = |line: &str| {
        let line = line.strip_prefix(".B ").or_else(|| line.split_once("=/usr/bin/").map(|(_, command)| command))?;
        let whole = line.starts_with("handoff-run ") && !line.contains("PATH") && !line.ends_with("handoff-run");
        whole.then(|| line.to_owned())
    };
    page.lines().filter_map(command).collect()
}

/// This one needs a wrapper before it.
const WRAPPED: &str = "handoff-run -- node server.js";

/// A machine of its own for each command: no network but a loopback, empty /run and /srv, a group `www`, and for every
/// server a program of its name that reports what it was given. Under `--supervise` the server is a real one, with
/// `--intercept` one that opens its port itself, and what is asked of the supervisor is asked of that.
const STAGE: &str = r#"
set -eu
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /srv
mkdir -p /run/app /srv/app/current bin
ip link set lo up
{ cat /etc/group; echo www:x:990:; } >group && mount --bind group /etc/group
ln -s "$PROGRAM" bin/handoff-run
for name in node npm nginx uvicorn gunicorn php-fpm8.2 java; do
    printf '#!/bin/sh\necho "$0 $*: LISTEN_FDS=${LISTEN_FDS-none}, 3 $(readlink /proc/$$/fd/3 | cut -c1-8), 100 $(readlink /proc/$$/fd/100 | cut -c1-8)" >ran\n' >bin/$name
    chmod +x bin/$name
done
cp bin/node server && cp bin/node /srv/app/current/server && cp bin/node /srv/app/server
export PATH=$PWD/bin:$PATH
serve() {
    case $1 in *--intercept*) printf '#!/bin/sh\nexec python3 -m http.server 3000\n' >bin/npm ;; esac
    cp "$HELLO" server
    case $1 in *.sock*) printf '#!/usr/bin/python3\nimport socket\ns = socket.socket(fileno=3)\nwhile True: s.accept()\n' >server ;; esac
    cp server /srv/app/current/server && cp server /srv/app/server
    sh -c "exec $1" 2>log &
    supervisor=$!
    for _ in $(seq 1000); do handoff-run --status "$2" >status 2>/dev/null && grep -q serving status && return; sleep 0.02; done
    cat log >&2
    return 1
}
"#;

/// Run `script` on such a machine.
fn on_stage(script: &str) -> Result<String, String> {
    let folder = Folder::new();
    let words = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c"];
    let run = Run::of("unshare").args(&words).args(&[&format!("{STAGE}{script}")]).current_dir(&folder);
    let output = run.env("PROGRAM", PROGRAM).env("HELLO", hello()).output();
    match output.code() {
        0 => Ok(fs::read_to_string(folder.path("ran")).unwrap_or_default()),
        code => Err(format!("{code}: {}{}", output.stdout, output.stderr)),
    }
}

#[track_caller]
fn every_command_runs(commands: Vec<String>) {
    if !is_root_to("make a machine of its own for each command") {
        return;
    }
    let control = |command: &str| {
        let words: Vec<&str> = command.split(' ').collect();
        let at = words.iter().position(|word| ["--control", "--reload"].contains(word));
        at.map(|at| words[at + 1].to_owned())
    };
    for command in &commands {
        let asked = match control(command) {
            None => on_stage(&format!("{command}\n")),
            Some(path) if command.contains("--supervise") => {
                on_stage(&format!("serve '{command}' {path}\nhandoff-run --stop {path}\nwait $supervisor\n"))
            }
            // It would take its time; a promotion ends it once it is on trial.
            Some(path) if command.contains("--canary") => on_stage(&format!(
                "serve 'handoff-run -q -l :8000 --supervise --control {path} -- ./server' {path}
                {command} & trial=$!
                until handoff-run --status {path} | grep -q on-trial; do sleep 0.02; done
                handoff-run --promote {path}
                wait $trial\n"
            )),
            Some(path) => on_stage(&format!(
                "serve 'handoff-run -q -l :8000 --supervise --control {path} -- ./server' {path}\n{command}\n"
            )),
        };
        let ran = asked.unwrap_or_else(|error| panic!("{command}\n{error}"));
        let at = if command.contains("--first-fd 100") { "100 socket:[" } else { "3 socket:[" };
        // What is started by a handoff-run without --listen has to be given its sockets by another.
        let given = control(command).is_some() || ran.contains(&at[..at.len() - 1]);
        assert!(given, "{command}\n{ran}");
    }
}

#[test]
fn every_command_of_the_readme_runs_as_it_is_printed() {
    let commands = readme();
    assert!(commands.len() >= 8, "{commands:?}");
    every_command_runs(commands);
}

#[test]
fn every_command_of_the_manual_runs_as_it_is_printed() {
    let commands = manual();
    assert!(commands.len() >= 7, "{commands:?}");
    every_command_runs(commands.into_iter().filter(|command| command != WRAPPED).collect());
}

// handoff-run(1): "handoff-run -- node server.js at the end of a chain of wrappers".
#[test]
fn the_command_at_the_end_of_a_chain_of_wrappers_runs_as_it_is_printed() {
    assert!(manual().contains(&WRAPPED.to_owned()));
    if is_root_to("make a machine of its own for each command") {
        let ran = on_stage(&format!("handoff-run -l :8000 --no-pid -- sh -c 'true; {WRAPPED}'\n")).unwrap();
        assert!(ran.contains("node server.js: LISTEN_FDS=1, 3 socket:["), "{ran}");
    }
}

#[test]
fn every_file_that_the_readme_links_to_is_there() {
    let page = include_str!("../../README.md");
    let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|link| !link.contains(':'));
    let missing: Vec<&str> = links.filter(|link| !Path::new(env!("CARGO_MANIFEST_DIR")).join(link).exists()).collect();
    assert_eq!(missing, [""; 0]);
}

// README: each promise, "with the command that shows it".
#[test]
fn every_test_that_the_readme_names_is_there() {
    let page = include_str!("../../README.md");
    let named = page.split("`cargo test --test it ").skip(1).filter_map(|rest| rest.split('`').next());
    let named: Vec<&str> = named.flat_map(|names| names.split(' ').filter(|name| *name != "--")).collect();
    assert!(named.len() >= 4, "{named:?}");
    for name in named {
        let listed = Run::of(env::current_exe().unwrap()).args(&[name, "--list"]).output();
        assert!(listed.stdout.contains(": test\n"), "{name} is the name of no test");
    }
}
