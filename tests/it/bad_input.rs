//! A command line that cannot be meant, and a program that cannot be run: the status, and one line that says why.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::{Folder, handoff_run, handoff_run_with};

pub const SEE_HELP: &str = "see handoff-run --help";

/// The arguments are refused with 125 and these two lines.
#[track_caller]
pub fn assert_refused(arguments: &[&str], line: &str, remedy: &str) {
    let output = handoff_run_with(arguments).output();
    let message = format!("handoff-run: {line}\nhandoff-run: {remedy}\n");
    assert_eq!(output.failure(), (125, message.as_str()), "{arguments:?}");
    assert_eq!(output.stdout, "");
}

#[test]
fn what_the_command_line_lacks_is_named() {
    let line = "the following required arguments were not provided: <PROGRAM>...";
    assert_refused(&[], line, SEE_HELP);
    assert_refused(&["-l", ":0"], line, SEE_HELP);
    assert_refused(&["-l", ":0", "--"], line, SEE_HELP);
}

#[test]
fn an_unknown_option_is_named_with_one_that_is_like_it() {
    let remedy = "a similar argument exists: '--listen'";
    assert_refused(&["--lissten", ":0", "true"], "unexpected argument '--lissten' found", remedy);
    let remedy = "to pass '-z' as a value, use '-- -z'";
    assert_refused(&["-z", "true"], "unexpected argument '-z' found", remedy);
}

#[test]
fn an_unknown_server_is_named_with_one_that_is_like_it() {
    assert_refused(
        &["--as", "ngnix", "true"],
        "invalid value 'ngnix' for '--as <SERVER>'",
        "a similar value exists: 'nginx'",
    );
    for name in ["iis", "django"] {
        let line = format!("invalid value '{name}' for '--as <SERVER>'");
        assert_refused(&["--as", name, "true"], &line, "see handoff-run --help-servers");
    }
}

#[test]
fn a_variable_needs_a_name_and_placeholders_that_exist() {
    let line = |value: &str, why: &str| format!("invalid value '{value}' for '--env <KEY=TEMPLATE>': {why}");
    let refused = |value: &str, why: &str| assert_refused(&["--env", value, "true"], &line(value, why), SEE_HELP);
    refused("FOO", "write KEY=VALUE");
    refused("=x", "the variable's name is empty");
    refused("A={fdd}", "{fdd} is no placeholder; a literal brace is written {{");
}

#[test]
fn a_number_out_of_range_is_refused_with_the_range() {
    for (option, value, range) in [
        ("--first-fd", "2", "3..=2147483647"),
        ("--first-fd", "-7", "3..=2147483647"),
        ("--first-fd", "2147483648", "3..=2147483647"),
        ("--backlog", "-1", "0..=2147483647"),
        ("--backlog", "99999999999", "0..=2147483647"),
    ] {
        let line = format!("invalid value '{value}' for '{option} <N>': {value} is not in {range}");
        assert_refused(&[option, value, "true"], &line, SEE_HELP);
    }
}

// A bare number is refused with the two spellings it could mean.
#[test]
fn a_bare_number_is_refused_with_what_it_could_mean() {
    let line = "invalid value '8000' for '--listen <SPEC>': a bare number is ambiguous: write :8000 for every \
                interface or 127.0.0.1:8000 for this host only";
    assert_refused(&["-l", "8000", "--", "true"], line, SEE_HELP);
}

#[test]
fn options_contradict_each_other() {
    let line = "the argument '--quiet...' cannot be used with '--verbose...'";
    assert_refused(&["-q", "-v", "-l", ":0", "true"], line, SEE_HELP);
}

#[test]
fn words_that_are_no_names_must_be_utf_8() {
    let refused = |option: &str, value: &[u8], line: &str| {
        let output = handoff_run().args(&[OsStr::new(option), OsStr::from_bytes(value), OsStr::new("true")]).output();
        let message = format!("handoff-run: {line}\nhandoff-run: {SEE_HELP}\n");
        assert_eq!(output.failure(), (125, message.as_str()));
    };
    let spec = |shown: &str, why: &str| format!("invalid value '{shown}' for '--listen <SPEC>': {why}");
    let line = spec("A=\u{fffd}:80", "it is neither UTF-8 nor a path that begins with / or ./");
    refused("-l", b"A=\xff:80", &line);
    refused("-l", b"/s,user=\xff", &spec("/s,user=\u{fffd}", "its options are not UTF-8"));
    let line = spec("\u{fffd}=:80", "name \"\u{fffd}\" is not printable ASCII of at most 255 characters");
    refused("-l", b"\xff=:80", &line);
    refused("--stop-signal", b"\xff", "invalid UTF-8 was detected in one or more arguments");
}

#[test]
fn what_other_tools_take_for_an_address_is_refused_with_how_it_is_written() {
    for (text, why) in [
        ("http://127.0.0.1:8100", "a socket has an address, not a URL: write 127.0.0.1:8100"),
        ("https://[::1]:8100/", "a socket has an address, not a URL: write [::1]:8100"),
        ("http://localhost/app", "a socket has an address, not a URL: write localhost:PORT"),
        ("http://[::1]", "a socket has an address, not a URL: write [::1]:PORT"),
        ("*:8100", "every interface is written without *: :8100"),
        ("udp:*:53", "every interface is written without *: udp::53"),
    ] {
        assert_refused(
            &["-l", text, "true"],
            &format!("invalid value '{text}' for '--listen <SPEC>': {why}"),
            SEE_HELP,
        );
    }
}

#[test]
fn an_unknown_option_of_a_socket_is_refused_with_those_that_there_are() {
    for (text, why) in [
        ("/s,owner=x", "unknown option owner; here it may be backlog, mode, user, group, rcvbuf, sndbuf or nonblock"),
        ("unix-dgram:@s,mod=1", "unknown option mod; here it may be rcvbuf, sndbuf or nonblock"),
        ("fd:3,x", "unknown option x; a socket that is open already takes none"),
    ] {
        assert_refused(
            &["-l", text, "true"],
            &format!("invalid value '{text}' for '--listen <SPEC>': {why}"),
            SEE_HELP,
        );
    }
}

#[test]
fn the_path_of_a_request_follows_at_once() {
    let remedy = "the path of the supervisor's control socket follows at once, as in --reload PATH --wait";
    for words in [
        &["--reload", "--wait", "/c"][..],
        &["--reload", "--control", "/c"],
        &["--status", "--json", "/c"],
        &["--status", "--prometheus"],
        &["--stop"],
        &["--promote"],
        &["--rollback", "--canary", "5%:1s"],
    ] {
        let line = format!("a value is required for '{} <PATH>' but none was supplied", words[0]);
        assert_refused(words, &line, remedy);
    }
}

#[test]
fn a_request_is_made_without_what_a_start_has() {
    for (options, shown) in [(&["--from", "auto"][..], "--from <WHO>"), (&["--fdstore"], "--fdstore")] {
        let words = [&["--reload", "/c"], options].concat();
        assert_refused(&words, &format!("the argument '{shown}' cannot be used with: --reload <PATH>"), SEE_HELP);
    }
}

#[test]
fn a_status_is_shown_in_one_form_and_only_a_status_is() {
    let both = "the argument '--json' cannot be used with '--prometheus'";
    assert_refused(&["--status", "/c", "--json", "--prometheus"], both, SEE_HELP);
    for (words, line) in [
        (&["--prometheus"][..], "the following required arguments were not provided: --status <PATH>"),
        (&["--prometheus", "--reload", "/c"], "the argument '--prometheus' cannot be used with '--reload <PATH>'"),
        (&["--status", "/c", "--prometheus", "true"], "the argument '--prometheus' cannot be used with '[PROGRAM]...'"),
    ] {
        assert_refused(words, line, SEE_HELP);
    }
}

#[test]
fn a_request_that_lacks_its_dashes_is_told_so() {
    for word in ["reload", "promote", "rollback", "status", "stop"] {
        let remedy = format!("{word} was taken for PROGRAM: a request is written --{word} PATH");
        assert_refused(&[word, "/c"], "no listening socket was inherited, and no --listen was given", &remedy);
        let line = format!("cannot run {word}: ENOENT: No such file or directory");
        assert_cannot_run(word, 127, &[&line, &remedy]);
    }
}

// handoff-run(1), PLACEHOLDERS: "An argument without any placeholder is passed unchanged".
#[test]
fn what_is_nearly_a_placeholder_is_warned_of_in_an_argument_and_refused_in_a_variable() {
    let folder = Folder::new();
    let output = handoff_run_with(&["-l", &folder.text("s"), "--", "echo", "{prot}", "{id}"]).output();
    let warning = "handoff-run: {prot} is no placeholder and stays as it is; {port} would be one\n";
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, warning), "{prot} {id}\n"));
    let line = "invalid value 'A={prot}' for '--env <KEY=TEMPLATE>': {prot} is no placeholder, {port} is; a literal brace \
                is written {{";
    assert_refused(&["--env", "A={prot}", "true"], line, SEE_HELP);
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let output = |arguments: &[&str]| handoff_run_with(&["-q"]).args(arguments).args(&["--", "true"]).output();
    let lines = |line: &str| format!("handoff-run: {line}\nhandoff-run: there is no folder /no/such\n");
    let listen = lines("cannot listen on /no/such/s: ENOENT: No such file or directory");
    assert_eq!(output(&["-l", "/no/such/s"]).failure(), (125, listen.as_str()));
    let pid_file = lines("cannot write /no/such/pid: ENOENT: No such file or directory");
    assert_eq!(output(&["-l", "127.0.0.1:0", "--pid-file", "/no/such/pid"]).failure(), (125, pid_file.as_str()));
    let control = "handoff-run: cannot listen on --control /no/such/c: there is no folder /no/such: ENOENT: No such file \
                   or directory\n";
    assert_eq!(output(&["-l", "127.0.0.1:0", "--supervise", "--control", "/no/such/c"]).failure(), (125, control));
}

// handoff-run(1), --ready-timeout: "A number with ms, s, m or h, as in 1.5s".
#[test]
fn a_duration_that_is_none_is_refused_with_two_that_are() {
    for value in ["5mins", "1,5s", "1h30m"] {
        let line = format!(
            "invalid value '{value}' for '--drain-timeout <DURATION>': a duration is a number with ms, s, m or h, as in \
             30s or 1.5h"
        );
        assert_refused(&["--supervise", "--drain-timeout", value, "true"], &line, SEE_HELP);
    }
}

/// Running `program` fails so, and leaves no socket behind.
#[track_caller]
fn assert_cannot_run(program: &str, status: i32, messages: &[&str]) {
    let folder = Folder::new();
    let output = handoff_run_with(&["-l", &folder.text("s"), "--", program]).output();
    let message: String = messages.iter().map(|message| format!("handoff-run: {message}\n")).collect();
    assert_eq!(output.failure(), (status, message.as_str()), "{program}");
    assert_eq!(folder.names(), [""; 0]);
}

// handoff-run(1), EXIT STATUS: 127 if PROGRAM was not found.
#[test]
fn a_program_that_is_not_there_is_127() {
    assert_cannot_run("no-such-program", 127, &["cannot run no-such-program: ENOENT: No such file or directory"]);
    assert_cannot_run("./no/such", 127, &["cannot run ./no/such: ENOENT: No such file or directory"]);
    assert_cannot_run("", 127, &["cannot run : ENOENT: No such file or directory"]);
}

#[test]
fn a_word_that_belongs_before_the_program_is_told_so() {
    for word in ["8000", "--listen"] {
        let line = format!("cannot run {word}: ENOENT: No such file or directory");
        let remedy = format!("{word} was taken for PROGRAM: put -- between the options and PROGRAM");
        assert_cannot_run(word, 127, &[&line, &remedy]);
    }
}

/// A file in a fresh folder with these contents and permissions.
fn file(contents: &str, mode: u32) -> (Folder, String) {
    let folder = Folder::new();
    fs::write(folder.path("program"), contents).unwrap();
    fs::set_permissions(folder.path("program"), Permissions::from_mode(mode)).unwrap();
    let path = folder.text("program");
    (folder, path)
}

// handoff-run(1), EXIT STATUS: 126 if PROGRAM cannot be executed.
#[test]
fn a_program_that_cannot_be_executed_is_126() {
    assert_cannot_run("/", 126, &["cannot run /: EACCES: Permission denied"]);
    let (_folder, path) = file("#!/bin/sh\n", 0o644);
    assert_cannot_run(&path, 126, &[&format!("cannot run {path}: EACCES: Permission denied")]);
    let below = format!("{path}/below");
    assert_cannot_run(&below, 126, &[&format!("cannot run {below}: ENOTDIR: Not a directory")]);
}

#[test]
fn a_script_whose_interpreter_is_missing_is_126() {
    let (_folder, path) = file("#!/no/such/interpreter\n", 0o755);
    let line = format!("cannot run {path}: its interpreter was not found: ENOENT: No such file or directory");
    assert_cannot_run(&path, 126, &[&line]);
}

// As env(1) and nohup(1) have it, through execvp(3).
#[test]
fn a_script_without_an_interpreter_is_run_by_the_shell() {
    let (_folder, path) = file("echo $LISTEN_FDS $1\n", 0o755);
    let output = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--", &path, "word"]).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "1 word\n"));
}

#[test]
fn an_environment_too_large_for_exec_is_126() {
    let folder = Folder::new();
    // Each placeholder grows to many times its length: no single argument of ours is too long.
    let setting = format!("PATHS={}", "{path}".repeat(20_000));
    let output = handoff_run_with(&["-l", &folder.text("s"), "--env", &setting, "--", "true"]).output();
    assert_eq!(output.failure(), (126, "handoff-run: cannot run true: E2BIG: Argument list too long\n"));
    assert!(!Path::new(&folder.text("s")).exists());
}
