//! The servers that are measured: how each is started, and what has to be there for it.
//!
//! The lines are those of `--help-servers`, with workers or threads enough to hold all the clients of the load where a
//! request or a connection takes one.

#![allow(dead_code, reason = "the benchmarks each need their part of it")]

/// What the benchmark knows of a server.
pub struct Server {
    pub name: &'static str,
    /// What stands behind handoff-run and its own options.
    pub line: &'static str,
    pub needs: &'static [Need],
    /// Its folder in benches/deploys, if it needs one. The server runs in a copy.
    pub files: &'static str,
    pub build: Build,
    /// What takes two seconds.
    pub slow: &'static str,
    /// What stands in front of it, at @FRONT@, and stays while it is deployed.
    pub front: Option<&'static str>,
}

/// What a server, or a tool, does not run without.
pub enum Need {
    /// A command in the search path, or the path of a file.
    Command(&'static str),
    Root,
    /// A module of Python's.
    Module(&'static str),
    /// What the package with this manifest depends on.
    Crates(&'static str),
}

/// What makes a program of its files.
pub enum Build {
    Nothing,
    /// A command in the copy of its folder.
    Line(&'static str),
    /// An example of this package.
    Example(&'static str),
    /// The package with this manifest, which is none of this one's dependencies.
    Package(&'static str),
}

/// What most have in common.
const PLAIN: Server =
    Server { name: "", line: "", needs: &[], files: "", build: Build::Nothing, slow: "/slow", front: None };

const GO: Server =
    Server { needs: &[Need::Command("go")], files: "go", build: Build::Line("go build -o hello ."), ..PLAIN };
const NODE: Server = Server { needs: &[Need::Command("node")], files: "node", ..PLAIN };
const UVICORN: Server = Server { needs: &[Need::Command("uvicorn")], files: "python", ..PLAIN };
const AXUM: &str = "benches/deploys/axum/Cargo.toml";

pub const SERVERS: &[Server] = &[
    Server { name: "hello", line: "-- @PROGRAM@", build: Build::Example("hello"), slow: "/slow?2000", ..PLAIN },
    Server {
        name: "nginx",
        line: "--as nginx -- nginx -e stderr -c @DIR@/nginx.conf",
        needs: &[Need::Command("nginx")],
        files: "nginx",
        ..PLAIN
    },
    // Of its usual kind, a worker has one connection at a time and a slow request would be all that it does.
    Server {
        name: "gunicorn",
        line: "--as gunicorn -- gunicorn --worker-class gthread --workers 2 --threads 16 app:wsgi",
        needs: &[Need::Command("gunicorn")],
        files: "python",
        ..PLAIN
    },
    Server { name: "uvicorn", line: "--as uvicorn -- uvicorn --log-level warning app:asgi", ..UVICORN },
    Server { name: "uvicorn-2", line: "--as uvicorn -- uvicorn --log-level warning --workers 2 app:asgi", ..UVICORN },
    Server {
        name: "hypercorn",
        line: "--as hypercorn -- hypercorn --bind fd://{fd} app:asgi",
        needs: &[Need::Command("hypercorn")],
        files: "python",
        ..PLAIN
    },
    // Without a handler SIGTERM ends it at once.
    Server { name: "node", line: "--as node -- node server.js {fd}", ..NODE },
    Server { name: "node-close", line: "--as node -- node server.js {fd} close", ..NODE },
    // Without Shutdown SIGTERM ends it at once.
    Server { name: "go", line: "-- ./hello", ..GO },
    Server { name: "go-shutdown", line: "-- ./hello shutdown", ..GO },
    Server { name: "axum", line: "-- @PROGRAM@", needs: &[Need::Crates(AXUM)], build: Build::Package(AXUM), ..PLAIN },
    // A thread for each request.
    Server {
        name: "puma",
        line: "--as puma -- puma --quiet --environment production --threads 16:16 -b tcp://{addr} config.ru",
        needs: &[Need::Command("puma")],
        files: "ruby",
        ..PLAIN
    },
    // A worker, of sixteen, for each request; as root it needs -R.
    Server {
        name: "php-fpm",
        line: "--as php-fpm -- php-fpm8.2 -F -R -y @DIR@/php-fpm.conf",
        needs: &[Need::Command("php-fpm8.2"), Need::Command("nginx")],
        files: "php",
        front: Some("nginx -e stderr -c @DIR@/front.conf"),
        ..PLAIN
    },
    Server {
        name: "java",
        line: "--as java -- java Main",
        needs: &[Need::Command("java"), Need::Command("javac")],
        files: "java",
        build: Build::Line("javac Main.java"),
        ..PLAIN
    },
    // A thread for each connection, as many as come.
    Server {
        name: "flask",
        line: "--as flask -- flask --app app run",
        needs: &[Need::Command("flask")],
        files: "flask",
        ..PLAIN
    },
    Server {
        name: "tornado",
        line: "--as tornado -- python3 app.py {fd}",
        needs: &[Need::Command("python3"), Need::Module("tornado")],
        files: "tornado",
        ..PLAIN
    },
    // A thread for each connection, as many as come; what it is asked to stop with it cannot even notice.
    Server {
        name: "python-kill",
        line: "--stop-signal KILL -- python3 plain.py",
        needs: &[Need::Command("python3")],
        files: "python",
        ..PLAIN
    },
];
