//! Real servers, as they are installed, each started with the line that `--help-servers` shows for it. One that is not
//! installed is passed over, unless HANDOFF_REQUIRE_SERVERS is set.

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpNoDelay;

use crate::harness::case::{CASE, Case, Protocol, Stop, is_installed, rows};
use crate::harness::process::copy_of;
use crate::harness::request::Request;
use crate::harness::socket::accepted;
use crate::harness::trial::{Trial, try_out};
use crate::harness::wait_for;

/// A test each, and the list of all.
macro_rules! servers {
    ($($test:ident: $case:expr;)*) => {
        $(#[test] fn $test() { try_out(&$case) })*
        pub const CASES: &[Case] = &[$($case),*];
    };
}

const NODE: Case = Case { name: "node", needs: &["node"], files: "node", ..CASE };

// handoff-run(1), --help-servers: "with a line that works for each".
servers! {
    nginx_serves_and_drains: Case {
        name: "nginx", needs: &["nginx"], files: "nginx", instead: &[("/etc/nginx", "@DIR@")],
        on_path: Some(&[("listen @ADDR@", "listen unix:@ADDR@")]), ..CASE
    };
    haproxy_serves_and_drains: Case { name: "haproxy", needs: &["haproxy"], files: "haproxy", ..CASE };
    gunicorn_serves_and_drains: Case { name: "gunicorn", needs: &["gunicorn"], files: "python", ..CASE };
    uvicorn_serves_and_drains: UVICORN;
    hypercorn_serves_and_drains: Case { name: "hypercorn", needs: &["hypercorn"], files: "python", ..CASE };
    node_serves_and_drains: NODE;
    puma_serves_and_drains: Case { name: "puma", needs: &["puma"], files: "ruby", status: 128 + 15,
        on_path: Some(&[("tcp://{addr}", "unix://{path}")]), ..CASE };
    unicorn_serves_and_drains: Case { name: "unicorn", needs: &["unicorn"], files: "ruby", ..CASE };
    php_fpm_serves_and_drains: Case {
        name: "php-fpm", needs: &["php-fpm8.2"], files: "php", protocol: Protocol::FastCgi,
        // It runs as root here, and says no to that.
        instead: &[("-F", "-F -R -y @DIR@/php-fpm.conf")], ..CASE
    };
    php_cgi_serves_and_drains: Case {
        name: "fastcgi", needs: &["php-cgi"], files: "php", protocol: Protocol::FastCgi, ..CASE
    };
    starman_serves_and_drains: Case { name: "starman", needs: &["starman"], files: "perl", on_v6: None, on_path: None, ..CASE };
    uwsgi_serves_and_drains: Case {
        name: "uwsgi", needs: &["uwsgi", "/usr/lib/uwsgi/plugins/python3_plugin.so"], files: "python",
        instead: &[("--master", "--plugin python3 --callable wsgi --master")], ..CASE
    };
    java_serves_and_drains: Case {
        name: "java", needs: &["java", "javac"], files: "java", compile: "javac Main.java", status: 128 + 15, ..CASE
    };
    a_static_go_program_serves_and_drains: Case {
        line: "./hello", needs: &["go"], files: "go",
        compile: "CGO_ENABLED=0 GOPROXY=off GOTOOLCHAIN=local go build -o hello .", ..CASE
    };
    h2o_serves_and_drains: Case { name: "h2o", needs: &["h2o"], files: "h2o", on_v6: Some(&[("127.0.0.1", "'::1'")]),
        on_path: Some(&[("  host: 127.0.0.1\n  port: @PORT@", "  port: @ADDR@\n  type: unix")]), ..CASE };
    nghttpx_serves_and_drains: Case {
        name: "nghttpx", needs: &["nghttpx", "node"], files: "nghttpx", backend: Some(&NODE),
        instead: &[("127.0.0.1,9000", "@BACKEND@ --conf=nghttpx.conf")],
        on_path: Some(&[("{host},{port}", "unix:{path}")]), ..CASE
    };
    starlet_serves_and_drains: Case {
        name: "starlet", needs: &["plackup", "/usr/share/perl5/Plack/Handler/Starlet.pm"], files: "perl",
        on_v6: None, ..CASE
    };
    flask_serves: Case {
        name: "flask", needs: &["flask"], files: "flask", stop: Stop::Ends, status: 128 + 15, ..CASE
    };
    tornado_serves: Case {
        name: "tornado", needs: &["python3", "import tornado"], files: "tornado",
        stop: Stop::Ends, status: 128 + 15, ..CASE
    };
    twisted_serves: Case {
        name: "twisted", needs: &["twistd"], files: "twisted", stop: Stop::Ends, status: 128 + 15,
        on_v6: Some(&[("=INET:", "=INET6:")]), on_path: Some(&[("=INET:", "=UNIX:")]), ..CASE
    };
    waitress_serves: Case {
        name: "waitress", needs: &["waitress-serve"], files: "waitress", stop: Stop::Ends, status: 128 + 15, ..CASE
    };
}

const UVICORN: Case = Case { name: "uvicorn", needs: &["uvicorn"], files: "python", status: 128 + 15, ..CASE };

// asyncio leaves Nagle's algorithm on for a socket that it does not take for TCP: each answer of two segments then waits
// 40 ms for an acknowledgement.
#[test]
fn what_uvicorn_accepts_sends_small_segments_at_once() {
    if is_installed(&UVICORN) {
        let server = Trial::start(&UVICORN, "");
        server.process.wait_ready(1);
        let client = server.ask(Request::Slow);
        let inode = wait_for("the request to be read", || accepted(&client));
        let copy = wait_for("its descriptor", || server.processes().into_iter().find_map(|pid| copy_of(pid, inode)));
        assert!(getsockopt(&copy, TcpNoDelay).unwrap());
        // As long as it is open the connection is.
        drop(copy);
        server.check_answer(client);
        server.stop();
    }
}

/// Rows whose servers are not among what the tests install.
const UNTRIED: [&str; 2] = ["caddy", "traefik"];

#[test]
fn each_row_of_the_table_is_tried_or_known_not_to_be() {
    let tried = CASES.iter().map(|case| case.name).filter(|name| !name.is_empty());
    let mut known: Vec<String> = tried.chain(UNTRIED).map(|name| format!(" --as {name} -- ")).collect();
    for row in rows() {
        let at = known.iter().position(|words| row.contains(words));
        known.swap_remove(at.unwrap_or_else(|| panic!("no test knows {row}")));
    }
    assert!(known.is_empty(), "no such rows: {known:?}");
}
