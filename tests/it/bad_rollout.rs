//! Words about how a generation is replaced that cannot be meant: one line that says why, and nothing is started.

use crate::bad_input::{SEE_HELP, assert_refused};

// handoff-run(1), --canary: "SHARE%:DURATION[,sticky]".
#[test]
fn a_stage_of_a_trial_that_is_none_is_refused_with_the_form() {
    let form = "it is SHARE%:DURATION[,sticky], as in 5%:10m";
    let duration = "a duration is a number with ms, s, m or h, as in 30s or 1.5h";
    for (value, why) in [
        ("0%:1s", "0% is not a share from 1% to 100%"),
        ("101%:1s", "101% is not a share from 1% to 100%"),
        ("5", form),
        ("5%", form),
        ("5:1s", form),
        ("5%:", duration),
        ("5%:x", duration),
    ] {
        let line = format!("invalid value '{value}' for '--canary <SHARE:DURATION>': {why}");
        assert_refused(&["--reload", "/c", "--canary", value], &line, SEE_HELP);
    }
}

// --canary: "With --reload, ...", and --check: "With --canary, ...". They were ignored with --promote, and with PROGRAM.
#[test]
fn what_belongs_to_a_trial_is_refused_without_one() {
    let lacks = |arguments: &[&str], option: &str| {
        assert_refused(arguments, &format!("the following required arguments were not provided: {option}"), SEE_HELP);
    };
    lacks(&["--reload", "/c", "--check", "true"], "--canary <SHARE:DURATION>");
    lacks(&["--canary", "5%:1s"], "--reload <PATH>");
    let excludes = |arguments: &[&str], one: &str, other: &str| {
        assert_refused(arguments, &format!("the argument '{one}' cannot be used with {other}"), SEE_HELP);
    };
    excludes(&["-l", "127.0.0.1:0", "--canary", "5%:1s", "true"], "--canary <SHARE:DURATION>", "'[PROGRAM]...'");
    excludes(&["-l", "127.0.0.1:0", "--check", "true", "true"], "--check <COMMAND>", "'[PROGRAM]...'");
    for request in ["promote", "rollback", "status", "stop"] {
        let (option, other) = (format!("--{request}"), format!("'--{request} <PATH>'"));
        excludes(&["--canary", "5%:1s", &option, "/c"], "--canary <SHARE:DURATION>", &other);
        excludes(&["--check", "true", &option, "/c"], "--check <COMMAND>", &other);
        // The path is not what is wrong.
        excludes(&[&option, "/c", "--canary", "5%:1s"], other.trim_matches('\''), "'--canary <SHARE:DURATION>'");
    }
    excludes(&["--promote", "/c", "--reload", "/c"], "--promote <PATH>", "'--reload <PATH>'");
    excludes(&["--promote", "/c", "--rollback", "/c"], "--promote <PATH>", "'--rollback <PATH>'");
}

#[test]
fn how_a_generation_is_replaced_is_one_of_what_there_is() {
    let refused = |option: &str, name: &str, value: &str, why: &str| {
        let line = format!("invalid value '{value}' for '{option} <{name}>': {why}");
        assert_refused(&["-l", "127.0.0.1:0", "--supervise", option, value, "true"], &line, SEE_HELP);
    };
    refused("--settle", "DURATION", "x", "a duration is a number with ms, s, m or h, as in 30s or 1.5h");
    refused("--drain", "HOW", "x", "it is one of signal, idle");
    for value in ["http:health", "http:"] {
        refused("--ready", "HOW", value, "http:PATH is a path that begins with /, as in http:/health");
    }
    refused("--ready", "HOW", "http:/a b", "\"/a b\" has what a request may have only as %XX");
}

#[test]
fn what_only_a_supervisor_does_is_refused_without_supervise() {
    let line = "the following required arguments were not provided: <--from <WHO>|--supervise>";
    let all = [&["--shared"][..], &["--settle", "1s"], &["--drain", "idle"], &["--ready", "http:/health"]];
    for options in all {
        assert_refused(&[&["-l", "127.0.0.1:0"], options, &["true"]].concat(), line, SEE_HELP);
        assert_refused(&[&["--reload", "/c"], options].concat(), line, SEE_HELP);
    }
}
