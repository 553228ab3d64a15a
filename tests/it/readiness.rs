//! When a generation counts as ready, and what is left of the old one then: on real servers, and on ones that lie.

use std::net::TcpStream;

use crate::harness::case::{CASE, Case, is_installed};
use crate::harness::is_root_to;
use crate::harness::trial::Trial;
use crate::servers::CASES;

/// A test for each server by the name of its preset; a static Go program needs none.
macro_rules! rolls {
    ($($test:ident: $name:expr;)*) => { $(#[test] fn $test() { rolls_with(case($name), "") })* };
}

// handoff-run(1), --ready: "auto: it is seen waiting on every socket".
rolls! {
    nginx_is_seen_ready_and_rolls: "nginx";
    haproxy_is_seen_ready_and_rolls: "haproxy";
    gunicorn_is_seen_ready_and_rolls: "gunicorn";
    uvicorn_is_seen_ready_and_rolls: "uvicorn";
    hypercorn_is_seen_ready_and_rolls: "hypercorn";
    node_is_seen_ready_and_rolls: "node";
    puma_is_seen_ready_and_rolls: "puma";
    unicorn_is_seen_ready_and_rolls: "unicorn";
    php_fpm_is_seen_ready_and_rolls: "php-fpm";
    php_cgi_is_seen_ready_and_rolls: "fastcgi";
    starman_is_seen_ready_and_rolls: "starman";
    uwsgi_is_seen_ready_and_rolls: "uwsgi";
    java_is_seen_ready_and_rolls: "java";
    a_static_go_program_is_seen_ready_and_rolls: "";
    h2o_is_seen_ready_and_rolls: "h2o";
    nghttpx_is_seen_ready_and_rolls: "nghttpx";
}

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

/// Started and rolled with these options, it answers whenever it is said to be ready.
fn rolls_with(case: &Case, options: &str) {
    if is_installed(case) {
        let server = Trial::start(case, options);
        server.process.wait_ready(1);
        server.answer();
        server.settle();
        server.roll(2);
        server.settle();
        server.stop();
    }
}

/// Without a preset's line.
const GUNICORN: Case = Case { needs: &["gunicorn"], files: "python", ..CASE };
const UVICORN: Case = Case { needs: &["uvicorn"], files: "python", ..CASE };
const NODE: Case = Case { needs: &["node"], files: "node", ..CASE };

const SLOW_GUNICORN: Case = Case { line: "gunicorn --no-control-socket slowimport:wsgi", ..GUNICORN };

/// It is ready when the import has ended, and not before.
fn is_ready_when_imported(server: Trial) {
    server.process.folder.read("importing");
    server.process.assert_keeps_starting(1);
    server.process.folder.open("go");
    server.process.wait_ready(1);
    server.answer();
    server.stop();
}

/// gunicorn says READY=1 before it has imported the application, and is not believed, however it is asked to tell.
fn gunicorn_is_not_believed(options: &str) {
    if is_installed(&SLOW_GUNICORN) {
        let server = Trial::start(&SLOW_GUNICORN, &format!("-v {options}"));
        server.process.wait_log("READY=1");
        is_ready_when_imported(server);
    }
}

// handoff-run(1), --ready: "auto: it is seen waiting on every socket, or where that cannot be seen, sends READY=1".
#[test]
fn gunicorn_is_not_ready_before_a_slow_import_has_ended_although_it_says_so() {
    gunicorn_is_not_believed("");
}

#[test]
fn gunicorn_is_not_believed_either_where_its_word_is_asked_for() {
    gunicorn_is_not_believed("--ready notify");
}

#[test]
fn uvicorn_is_ready_when_a_slow_import_has_ended() {
    let case = Case { line: "uvicorn --fd {fd} slowimport:asgi", ..UVICORN };
    if is_installed(&case) {
        is_ready_when_imported(Trial::start(&case, ""));
    }
}

/// The new generation's application cannot be imported: the reload says so, and the old one still serves.
fn a_failing_import_is_a_failed_deploy(case: &Case, status: u8) {
    if is_installed(case) {
        let server = Trial::start(case, "");
        server.process.wait_ready(1);
        let first = server.answer();
        server.process.folder.write("app.py", "raise SystemError('a broken release')\n");
        let output = server.reload(&["--wait"]);
        let told = format!(
            "handoff-run: generation 2: ended with status {status} before it was ready\n\
             handoff-run: an earlier generation took the socket, so see what this one wrote to the supervisor's stderr\n"
        );
        assert_eq!(output.failure(), (1, told.as_str()), "{}", server.log());
        assert_eq!(server.answer(), first);
        server.stop();
    }
}

// handoff-run(1), --reload: "or when it failed: 1 ...; then the old one still serves".
#[test]
fn gunicorn_that_cannot_import_its_application_is_a_failed_deploy() {
    a_failing_import_is_a_failed_deploy(&Case { line: "gunicorn --no-control-socket app:wsgi", ..GUNICORN }, 3);
}

#[test]
fn uvicorn_that_cannot_import_its_application_is_a_failed_deploy() {
    a_failing_import_is_a_failed_deploy(&Case { line: "uvicorn --fd {fd} app:asgi", ..UVICORN }, 1);
}

// handoff-run(1), --ready: "notify: it sends READY=1 and, where that can be seen, waits on every socket".
#[test]
fn php_fpm_that_says_so_is_ready() {
    rolls_with(case("php-fpm"), "--ready notify");
}

// handoff-run(1), --ready: "accepting: it is seen waiting on every socket".
#[test]
fn a_server_that_is_seen_waiting_is_accepting() {
    rolls_with(case("node"), "--ready accepting");
}

// handoff-run(1), --ready: "check:COMMAND: the command, run by sh, ends with status 0".
#[test]
fn a_check_passes_when_the_server_answers() {
    let line = "uvicorn --fd {fd} slowimport:asgi";
    let case = Case { line, needs: &["uvicorn", "curl"], ..UVICORN };
    if is_installed(&case) {
        // Each asks for a short time and is one connection that is queued.
        let server = Trial::start(&case, "--ready 'check:curl --silent --max-time 0.2 http://@ADDR@/ | grep -q hello'");
        is_ready_when_imported(server);
    }
}

// handoff-run(1), --reload: "or was not ready in time: 124; then the old one still serves".
#[test]
fn a_server_that_listens_elsewhere_is_a_failed_deploy_which_says_where() {
    let line = "sh -c 'exec puma -b tcp://$(cat bind) config.ru'";
    let case = Case { line, needs: &["puma"], files: "ruby", build: "echo @ADDR@ >bind", ..CASE };
    if is_installed(&case) {
        let server = Trial::start(&case, "--ready-timeout 6s");
        server.process.folder.write("bind", &server.address().to_string());
        server.process.wait_ready(1);
        let first = server.answer();
        server.process.folder.write("bind", "127.0.0.1:0");
        let output = server.reload(&["--wait"]);
        assert_eq!(output.code(), 124, "{output:?}");
        let (_, told) =
            output.stderr.split_once("was not ready after 6.00 s and is killed: it listens on 127.0.0.1:").unwrap();
        let (port, _) = told.split_once(", not on our socket\n").unwrap();
        assert_ne!(port.parse::<u16>().unwrap(), server.address().port());
        assert_eq!(server.answer(), first);
        server.stop();
    }
}

// Under load, gunicorn's, php's and perl's workers were hardly ever met waiting: the deploy failed when it was busiest.
#[test]
fn a_server_that_is_too_busy_to_wait_is_ready_when_it_holds_a_client() {
    let case = Case { line: "python3 busy.py", needs: &["python3"], files: "python", ..CASE };
    if is_installed(&case) {
        let server = Trial::start(&case, "");
        server.listeners();
        let client = TcpStream::connect(server.address()).unwrap();
        server.process.wait_ready(1);
        drop(client);
        server.stop();
    }
}

/// What keeps root from looking into a process that is not root's, as containers do.
const BLINKERED: &str = "setpriv --bounding-set=-sys_ptrace";
/// The same, and a process outside this group cannot even see that such a process exists.
const HIDING: &str = "unshare --mount sh -c 'mount -t proc -o hidepid=2,gid=4242 proc /proc && exec \"$@\"' sh setpriv --bounding-set=-sys_ptrace";

const HIDDEN: Case = Case { needs: &["python3", "setpriv", "unshare"], files: "python", ..CASE };

/// It cannot be seen, but says READY=1.
fn is_believed(wrapper: &str, line: &'static str) {
    let case = Case { line, ..HIDDEN };
    if is_root_to("hide a process from itself") && is_installed(&case) {
        let server = Trial::start_by(wrapper, &case, "");
        server.process.wait_ready(1);
        server.answer();
        server.roll(2);
        server.stop();
    }
}

/// What is logged of a process that cannot be looked into.
const HIDES: &str = "/proc does not let us look into process ";

/// It cannot be seen, and says nothing: so much is told long before the time is over.
fn is_warned_of(wrapper: &str, line: &'static str) {
    let case = Case { line, ..HIDDEN };
    if is_root_to("hide a process from itself") && is_installed(&case) {
        let server = Trial::start_by(wrapper, &case, "--ready-timeout 10m");
        let hidden = |log: &str| log.lines().find(|line| line.contains(HIDES)).map(str::to_owned);
        let line = server.process.wait_line(hidden, HIDES);
        let (_, advice) = line.split_once(", so ").unwrap();
        assert_eq!(advice, "whether it accepts cannot be seen; unless it sends READY=1, set --ready");
        server.stop();
    }
}

// handoff-run(1), --ready: "or where that cannot be seen, sends READY=1 (sd_notify)".
#[test]
fn a_generation_that_became_another_user_is_believed() {
    is_believed(BLINKERED, "python3 hidden.py nobody notify");
}

#[test]
fn a_generation_that_is_not_dumpable_is_believed() {
    is_believed(BLINKERED, "python3 hidden.py undumpable notify");
}

#[test]
fn a_generation_that_proc_hides_is_believed() {
    is_believed(HIDING, "python3 hidden.py nobody notify");
}

#[test]
fn a_worker_that_became_another_user_and_speaks_at_once_is_believed() {
    is_believed(BLINKERED, "python3 hidden.py worker nobody notify");
}

#[test]
fn a_generation_that_became_another_user_and_says_nothing_is_warned_of() {
    is_warned_of(BLINKERED, "python3 hidden.py nobody");
}

#[test]
fn a_generation_that_is_not_dumpable_and_says_nothing_is_warned_of() {
    is_warned_of(BLINKERED, "python3 hidden.py undumpable");
}

#[test]
fn a_generation_that_proc_hides_and_that_says_nothing_is_warned_of() {
    is_warned_of(HIDING, "python3 hidden.py nobody");
}

// handoff-run(1), --wait: "end when the old generation is gone".
#[test]
fn nothing_is_left_of_a_generation_that_npm_started() {
    let build = concat!(
        r#"printf '%s' '{"scripts": {"start": ""#,
        env!("CARGO_BIN_EXE_handoff-run"),
        r#" -- node server.js {fd}"}}' >package.json"#
    );
    let case = Case { line: "npm start --no-update-notifier", needs: &["node", "npm"], build, ..NODE };
    rolls_with(&case, "--first-fd 100");
}

#[test]
fn nothing_is_left_of_a_generation_that_a_shell_started() {
    rolls_with(&Case { line: "sh -c 'node server.js {fd}; true'", ..NODE }, "--no-pid");
}
