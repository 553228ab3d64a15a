//! Servers that know nothing of handoff-run and open their address themselves: each is started, replaced under load and
//! stopped. One that is not installed is passed over, unless HANDOFF_REQUIRE_SERVERS is set.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::case::{CASE, Case, Stop, is_installed, shell};
use crate::harness::trial::Trial;
use crate::harness::{Run, is_root_to, skip, wait_for};
use crate::rolling::{reload_under_load, reloads};

/// A server with no place in the table of those that take a socket.
const PLAIN: Case = Case { files: "plain", stop: Stop::Ends, ..CASE };

/// Nobody is lost, and nobody is left.
fn try_out(case: &Case, options: &str) {
    if is_installed(case) {
        let report = reload_under_load(case, &format!("--intercept --drain idle {options}"), reloads());
        assert_eq!(report.failed(), 0, "{report:?}");
        assert!(report.ok > u64::from(reloads()), "{report:?}");
    }
}

macro_rules! servers {
    ($($test:ident: $case:expr;)*) => { $(#[test] fn $test() { try_out(&$case, "") })* };
}

// handoff-run(1), INTERCEPTION: the table of servers.
servers! {
    node: Case { line: "node server.js @PORT@", needs: &["node"], ..PLAIN };
    npm_start: Case { line: "npm start --silent", needs: &["node", "npm"], ..PLAIN };
    deno: Case { line: "deno run --no-config --allow-net serve.ts", needs: &["deno"], ..PLAIN };
    bun: Case { line: "bun run serve.ts", needs: &["bun"], ..PLAIN };
    python_s_http_server: Case { line: "python3 -m http.server @PORT@", needs: &["python3"], ..PLAIN };
    flask_run: Case { line: "flask --app app run --port @PORT@", needs: &["flask"], ..PLAIN };
    django_s_runserver: Case {
        line: "python3 manage.py runserver @PORT@", needs: &["python3", "import django"], ..PLAIN
    };
    uvicorn: Case { line: "uvicorn --port @PORT@ app:asgi", needs: &["uvicorn", "flask"], ..PLAIN };
    gunicorn: Case { line: "gunicorn -b 127.0.0.1:@PORT@ -w 2 app:wsgi", needs: &["gunicorn", "flask"], ..PLAIN };
    php_s_own_server: Case { line: "php -S 127.0.0.1:@PORT@ index.php", needs: &["php"], ..PLAIN };
    php_s_own_server_with_workers: Case {
        line: "env PHP_CLI_SERVER_WORKERS=2 php -S 127.0.0.1:@PORT@ index.php", needs: &["php"], ..PLAIN
    };
    a_static_go_program: Case {
        line: "./hello @PORT@", needs: &["go"], files: "plain-go",
        compile: "CGO_ENABLED=0 GOPROXY=off GOTOOLCHAIN=local go build -o hello .", ..PLAIN
    };
    java_s_http_server: Case {
        line: "java Main @PORT@", needs: &["java", "javac"], files: "plain-java", compile: "javac Main.java", ..PLAIN
    };
    webrick: Case { line: "ruby webrick.rb @PORT@", needs: &["ruby", WEBRICK], ..PLAIN };
    rackup: Case { line: "rackup --server webrick --port @PORT@", needs: &["rackup", WEBRICK], ..PLAIN };
    puma: Case { line: "puma --quiet -b tcp://127.0.0.1:@PORT@ config.ru", needs: &["puma"], ..PLAIN };
    nginx: Case { line: "nginx -e stderr -c @DIR@/nginx.conf", needs: &["nginx"], ..PLAIN };
    haproxy: Case { line: "haproxy -db -f haproxy.cfg", needs: &["haproxy"], ..PLAIN };
    haproxy_as_a_master: Case { line: "haproxy -W -db -f haproxy.cfg", needs: &["haproxy"], ..PLAIN };
    lighttpd: Case { line: "lighttpd -D -f lighttpd.conf", needs: &["lighttpd"], ..PLAIN };
    caddy: Case { line: "caddy run --config Caddyfile", needs: &["caddy"], ..PLAIN };
    a_static_c_program: Case {
        line: "./server @PORT@", needs: &["gcc"], files: "plain-c", compile: "gcc -O -static -o server server.c", ..PLAIN
    };
    // Its socket is in an epoll before it is bound.
    an_acceptor_of_asio: Case {
        line: "./server @PORT@", needs: &["g++", "/usr/include/asio.hpp"], files: "plain-asio",
        compile: "g++ -O -pthread -o server server.cpp", ..PLAIN
    };
}

// Its crates are no dependency of ours: where they are not at hand, they have to be fetched.
#[test]
fn a_rust_program_with_tokio() {
    let case = Case {
        line: "./hello @PORT@",
        needs: &["cargo"],
        files: "plain-tokio",
        compile: "CARGO_TARGET_DIR=target cargo build --quiet --locked && mv target/debug/hello-tokio hello && rm -r target",
        ..PLAIN
    };
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/plain-tokio/Cargo.toml");
    let fetched = Run::of("cargo").args(&["fetch", "--quiet", "--locked", "--manifest-path", manifest]).output();
    if fetched.status.success() {
        try_out(&case, "");
    } else {
        skip(&format!("the crates of tokio cannot be had: {}", fetched.stderr));
    }
}

const WEBRICK: &str = "/usr/share/rubygems-integration/all/specifications/webrick-1.8.1.gemspec";

// Two of them at a time need a file each for their pid.
#[test]
fn apache() {
    let case = Case { line: "apache2 -D FOREGROUND -f @DIR@/apache.conf", needs: &["apache2"], ..PLAIN };
    try_out(&case, "--env GENERATION={gen}");
}

/// The same with a client of their own.
fn try_out_with(case: &Case, client: &str, answer: &str) {
    if !is_installed(case) {
        return;
    }
    let server = Trial::start(case, "--intercept --drain idle");
    server.process.wait_ready(1);
    let (client, stop) = (client.replace("@PORT@", &server.address().port().to_string()), AtomicBool::new(false));
    let ask = || {
        let output = shell(&client, &server.process.folder).output();
        assert!(output.status.success() && output.stdout.contains(answer), "{output:?}, {}", server.log());
    };
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                ask();
                asked += 1;
            }
            asked
        });
        for _ in 0..reloads() {
            let output = server.reload(&[]);
            stop.fetch_or(output.code() != 0, Ordering::Relaxed);
            assert_eq!(output.failure(), (0, ""), "{}", server.log());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(asked.join().unwrap() > 0);
    });
    ask();
    server.stop();
}

#[test]
fn redis() {
    // It opens the port for each IP version.
    let case = Case {
        line: "redis-server --port @PORT@ --save ''",
        needs: &["redis-server", "redis-cli"],
        instead: &[("@ADDR@", ":@PORT@")],
        ..PLAIN
    };
    try_out_with(&case, "redis-cli -p @PORT@ ping", "PONG");
}

#[test]
fn memcached() {
    let case = Case { line: "memcached -u root -l 127.0.0.1 -p @PORT@", needs: &["memcached", "memcstat"], ..PLAIN };
    try_out_with(&case, "memcstat --servers=127.0.0.1:@PORT@", "curr_connections");
}

// On a path it refuses to start where somebody listens.
#[test]
fn php_fpm_on_a_port() {
    let case = Case {
        line: "php-fpm8.2 -F -R -y @DIR@/php-fpm.conf",
        needs: &["php-fpm8.2", "cgi-fcgi"],
        files: "php",
        ..PLAIN
    };
    let client = "REQUEST_METHOD=GET SCRIPT_FILENAME=$PWD/hello.php cgi-fcgi -bind -connect 127.0.0.1:@PORT@";
    try_out_with(&case, client, "hello");
}

const POSTGRES: &str = "/usr/lib/postgresql/15/bin/postgres";

// A second one refuses its data while the first one has them: it is started once. It does not run as root.
#[test]
fn postgres() {
    let case = Case {
        line: "setpriv --reuid postgres --regid postgres --clear-groups /usr/lib/postgresql/15/bin/postgres -D @DIR@/data -p @PORT@ -k '' -F",
        needs: &[POSTGRES, "psql"],
        build: "chmod 711 . && mkdir data && chown postgres: data && setpriv --reuid postgres --regid postgres --clear-groups \
                /usr/lib/postgresql/15/bin/initdb -A trust -N -D data",
        ..PLAIN
    };
    if !is_root_to("become the user postgres") || !is_installed(&case) {
        return;
    }
    let server = Trial::start(&case, "--intercept --stop-signal INT");
    server.process.wait_ready(1);
    let client = format!("psql -h 127.0.0.1 -p {} -U postgres -Atc 'select 6 * 7'", server.address().port());
    let output = wait_for("postgres to accept", || {
        Some(shell(&client, &server.process.folder).output()).filter(|output| output.status.success())
    });
    assert_eq!(output.stdout, "42\n");
    server.stop();
}
