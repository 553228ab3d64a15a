//! {fd}, {addr} and the others, in the program's arguments and in --env.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::harness::socket::tcp;
use crate::harness::{Folder, handoff_run_with};

/// What `echo` makes of the words with a TCP socket `web` at 3 and a Unix socket `app` at 4; the port is cut out.
#[track_caller]
fn echo(words: &str) -> (String, String, Folder) {
    let folder = Folder::new();
    let (listener, address) = tcp();
    let line = ["-l", &format!("web={address}"), "-l", &format!("app={}", folder.text("s")), "--", "echo", words];
    let output = handoff_run_with(&line).inherit(&listener, 3).output();
    assert_eq!(output.failure(), (0, ""));
    let port = address.split(':').next_back().unwrap().to_owned();
    (output.stdout.trim_end().to_owned(), port, folder)
}

// handoff-run(1), --env: "{fd}, {addr}, {host}, {port} and {path} refer to the first listener, or with :NAME of
// another".
#[test]
fn placeholders_in_arguments_stand_for_the_first_listener_or_the_one_named() {
    let (said, port, folder) = echo("{fd} {addr} {host} {port} {fd:app} {path:app} {addr:app} {port:web} {gen}");
    let path = folder.text("s");
    assert_eq!(said, format!("3 127.0.0.1:{port} 127.0.0.1 {port} 4 {path} {path} {port} 1"));
}

#[test]
fn an_ipv6_address_stands_in_brackets_and_its_host_does_not() {
    let output = handoff_run_with(&["-q", "-l", ":0", "--", "echo", "{host} {addr} {port}"]).output();
    let port = output.stdout.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(output.stdout, format!(":: [::]:{port} {port}\n"));
}

#[test]
fn the_pid_is_that_of_the_program() {
    let running = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--", "echo", "{pid}"]).start();
    let pid = running.pid();
    assert_eq!(running.output().stdout, format!("{pid}\n"));
}

#[test]
fn the_programs_name_has_placeholders_too() {
    let output = handoff_run_with(&["-q", "-l", "ec=127.0.0.1:0", "--", "sh{fd}"]).output();
    assert_eq!(output.failure(), (127, "handoff-run: cannot run sh3: ENOENT: No such file or directory\n"));
}

// Braces are common in arguments: awk, jq, Go templates, find's {}.
#[test]
fn an_argument_without_a_placeholder_is_left_to_the_letter() {
    for words in ["{{.Name}}", "{\"a\": 1}", "{}", "{ print $1 }", "{fd", "{FD}", "{{", "}"] {
        assert_eq!(echo(words).0, words);
    }
}

#[test]
fn a_doubled_brace_is_a_literal_one_beside_a_placeholder() {
    assert_eq!(echo("{{fd} is {fd}").0, "{fd} is 3");
}

#[test]
fn an_argument_that_is_not_utf_8_is_passed_on_unharmed() {
    let word = OsStr::from_bytes(b"\xff\xfe{fd}\x80");
    let line: Vec<&OsStr> =
        ["-q", "-l", "127.0.0.1:0", "--", "sh", "-c", "printf %s \"$1\" | od -An -tx1", "sh"].map(OsStr::new).to_vec();
    let output = crate::harness::handoff_run().args(&line).args(&[word]).output();
    assert_eq!(output.stdout, " ff fe 33 80\n");
}

// handoff-run(1), --env: "Set a variable of PROGRAM, placeholders replaced".
#[test]
fn env_sets_variables_with_placeholders_replaced() {
    let (listener, address) = tcp();
    let line = ["--env", "AT=tcp://{addr:web}?{{x}", "--env", "EMPTY=", "--env", "TWO=a=b", "--env", "OLD=new"];
    let run = handoff_run_with(&line).args(&["-l", &format!("web={address}"), "--"]).env("OLD", "old");
    let report = run.inherit(&listener, 3).report();
    assert_eq!(&report["AT"], format!("tcp://{address}?{{x}}"));
    assert_eq!((&report["EMPTY"], &report["TWO"], &report["OLD"]), ("", "a=b", "new"));
}

#[test]
fn env_has_the_last_word_on_listen_variables() {
    let report = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--env", "LISTEN_PID=7", "--"]).report();
    assert_eq!((&report["LISTEN_PID"], &report["LISTEN_FDS"]), ("7", "1"));
}

#[test]
fn what_a_listener_does_not_have_is_an_error() {
    for (words, message) in [
        ("{path}", "handoff-run: 127.0.0.1:PORT has no path\n"),
        ("{port:app}", "handoff-run: a Unix socket has no port\n"),
        ("{fd:nobody}", "handoff-run: no listener is named nobody\n"),
    ] {
        let folder = Folder::new();
        let (listener, address) = tcp();
        let line = ["-l", &address, "-l", &format!("app={}", folder.text("s")), "--", "echo", words];
        let output = handoff_run_with(&line).inherit(&listener, 3).output();
        let port = address.split(':').next_back().unwrap();
        assert_eq!(output.failure(), (125, message.replace("PORT", port).as_str()));
        assert_eq!(folder.names(), [""; 0]);
    }
}

#[test]
fn a_name_that_two_listeners_have_says_too_little() {
    let line = ["-q", "-l", "a=127.0.0.1:0", "-l", "a=127.0.0.1:0", "--env", "X={fd:a}", "--", "true"];
    let message = "handoff-run: cannot set X: two listeners are named a\n";
    assert_eq!(handoff_run_with(&line).output().failure(), (125, message));
}

// As with env(1): execvpe(3) would have looked in the caller's PATH.
#[test]
fn a_path_set_by_env_is_where_the_program_is_looked_for() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/bin/echo", folder.path("only-here")).unwrap();
    let setting = format!("PATH={}", folder.path("").display());
    let output = handoff_run_with(&["-q", "-l", "127.0.0.1:0", "--env", &setting, "--", "only-here", "found"]).output();
    assert_eq!((output.failure(), output.stdout.as_str()), ((0, ""), "found\n"));
}
