//! The servers that `--as` knows: the only place that knows a server by name. Pure data, one row a server.

use std::fmt::Write;

use anyhow::Result;

use crate::target::template::{Template, Values};

/// How one server takes a socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Preset {
    /// Its name for `--as`.
    pub(crate) name: &'static str,
    /// Environment variables that name its sockets.
    pub(crate) variables: &'static [SocketVariable],
    /// What a SPEC has for this server: what it needs, or sets on sockets of its own and not on one that it is given.
    pub(crate) options: &'static [&'static str],
    /// Whether it finds the first socket at descriptor 0.
    pub(crate) stdin: Stdin,
    /// What it takes `:PORT` to mean.
    pub(crate) every: Every,
    /// What makes it drain.
    pub(crate) stop: &'static str,
    /// One line that works, behind `handoff-run --listen ADDRESS --as NAME --`.
    pub(crate) example: &'static str,
    /// What the line does not show: the server's configuration, where it cannot listen, or what it does badly.
    pub(crate) note: &'static str,
    /// The version that the tests try, or the first one that has it.
    pub(crate) version: &'static str,
}

/// Where the first socket goes besides its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    Untouched,
    FirstSocket,
}

/// What `:PORT` is for the server: some compare the address with their own configuration, family included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Every {
    /// One dual-stack socket.
    DualStack,
    /// 0.0.0.0.
    V4,
}

/// A variable that names a server's sockets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SocketVariable {
    key: &'static str,
    /// What stands for a socket of the internet.
    inet: &'static str,
    /// What stands for a Unix socket.
    unix: &'static str,
    many: Many,
}

/// How several sockets are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Many {
    /// In one value, with this between them.
    Joined(&'static str),
    /// A variable each, the key followed by a number that counts from here.
    Numbered(usize),
    /// Only the first is written.
    First,
}

impl Preset {
    /// The row called `name`.
    pub(crate) fn find(name: &str) -> Option<&'static Preset> {
        TABLE.iter().find(|preset| preset.name == name)
    }

    /// What it sets in the target's environment, `KEY=VALUE` each.
    pub(crate) fn environment(&self, values: &mut Values) -> Result<Vec<Vec<u8>>> {
        let mut environment = Vec::new();
        for variable in self.variables {
            let mut sockets = Vec::new();
            // A template refers to the first place: bring each to the front in turn.
            for _ in 0..values.places.len() {
                let inet = values.places[0].endpoint.path().is_err();
                let template = Template::strict(if inet { variable.inet } else { variable.unix }.as_bytes())?;
                sockets.push(template.expand(values)?);
                values.places.rotate_left(1);
            }
            environment.extend(variable.assignments(&sockets));
        }
        Ok(environment)
    }
}

impl SocketVariable {
    fn assignments(&self, sockets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let entry = |key: String, value: &[u8]| [key.as_bytes(), b"=", value].concat();
        match self.many {
            Many::First => sockets.first().map(|value| entry(self.key.to_owned(), value)).into_iter().collect(),
            Many::Joined(between) => vec![entry(self.key.to_owned(), &sockets.join(between.as_bytes()))],
            Many::Numbered(first) => {
                (first..).zip(sockets).map(|(number, value)| entry(format!("{}{number}", self.key), value)).collect()
            }
        }
    }
}

/// A line for each preset: its name for `--as`, what to run, and what to know.
pub(crate) fn list() -> String {
    TABLE.iter().fold(String::new(), |mut list, preset| {
        // Writing into a String cannot fail.
        let _ = writeln!(list, "{}", line(preset));
        list
    })
}

/// An example line, with what to know about it.
fn line(preset: &Preset) -> String {
    let line = format!("handoff-run --listen 127.0.0.1:8000 --as {} -- {}", preset.name, preset.example);
    // TERM is the default.
    let stop = if preset.stop == "TERM" { String::new() } else { format!("stop with {}", preset.stop) };
    let remarks: Vec<&str> =
        [stop.as_str(), preset.note, preset.version].into_iter().filter(|remark| !remark.is_empty()).collect();
    if remarks.is_empty() { line } else { format!("{line}   # {}", remarks.join("; ")) }
}

/// What most rows have in common: LISTEN_FDS or an argument names the socket, and TERM drains.
const PLAIN: Preset = Preset {
    name: "",
    variables: &[],
    options: &[],
    stdin: Stdin::Untouched,
    every: Every::DualStack,
    stop: "TERM",
    example: "",
    note: "",
    version: "",
};

/// Server::Starter's protocol.
const SERVER_STARTER: &[SocketVariable] =
    &[SocketVariable { key: "SERVER_STARTER_PORT", inet: "{addr}={fd}", unix: "{path}={fd}", many: Many::Joined(";") }];

/// The table, sorted by name.
#[rustfmt::skip]
pub(crate) static TABLE: [Preset; 22] = [
    Preset { name: "caddy", example: "caddy run --config Caddyfile", note: "bind fd/3", version: "from 2.9 on", ..PLAIN },
    Preset { name: "fastcgi", stdin: Stdin::FirstSocket, example: "env PHP_FCGI_CHILDREN=4 php-cgi", note: "any FastCGI program", version: "tried with 8.2", ..PLAIN },
    Preset {
        name: "flask",
        variables: &[
            SocketVariable { key: "WERKZEUG_SERVER_FD", inet: "{fd}", unix: "{fd}", many: Many::First },
            SocketVariable { key: "WERKZEUG_RUN_MAIN", inet: "true", unix: "true", many: Many::First },
        ],
        example: "flask --app app run", version: "tried with Werkzeug 3.1", note: "loses the requests it holds when stopped", ..PLAIN
    },
    // With LISTEN_FDS set, -b fd://3 would be taken twice and fail.
    Preset { name: "gunicorn", example: "gunicorn app:wsgi", note: "without -b fd://", version: "tried with 27.0", ..PLAIN },
    Preset { name: "h2o", variables: SERVER_STARTER, every: Every::V4, example: "h2o -c h2o.conf", note: "listen must equal the address", version: "tried with 2.2", ..PLAIN },
    Preset { name: "haproxy", stop: "USR1", example: "haproxy -W -db -f haproxy.cfg", note: "bind fd@3", version: "tried with 2.6", ..PLAIN },
    Preset { name: "hypercorn", example: "hypercorn --bind fd://{fd} app:asgi", version: "tried with 0.18", ..PLAIN },
    Preset { name: "java", stdin: Stdin::FirstSocket, example: "java Main", note: "System.inheritedChannel(), for which a shutdown hook has to close the channel and wait", version: "tried with 17", ..PLAIN },
    Preset {
        name: "nghttpx",
        variables: &[SocketVariable { key: "NGHTTPX_ACCEPT_", inet: "tcp,{fd}", unix: "unix,{fd},{path}", many: Many::Numbered(1) }],
        options: &["nonblock"], every: Every::V4, stop: "QUIT",
        example: "nghttpx '--frontend={host},{port};no-tls' --backend=127.0.0.1,9000",
        note: "on a path --frontend=unix:{path}", version: "tried with 1.52", ..PLAIN
    },
    Preset {
        name: "nginx",
        variables: &[SocketVariable { key: "NGINX", inet: "{fd};", unix: "{fd};", many: Many::Joined("") }],
        options: &["nonblock"], every: Every::V4, stop: "QUIT",
        example: "nginx -c /etc/nginx/nginx.conf",
        // One dual-stack socket fits neither of the two, and what nginx binds itself no next generation can bind.
        note: "listen must equal the address: listen 80 is :80, with listen [::]:80 beside it add -l [::]:80,v6only",
        version: "tried with 1.22", ..PLAIN
    },
    Preset { name: "node", example: "node server.js {fd}", note: "server.listen({fd: Number(process.argv[2])}); SIGTERM has to call server.close()", version: "tried with 20", ..PLAIN },
    // It writes an IPv6 address without brackets.
    Preset {
        name: "php-fpm",
        variables: &[SocketVariable { key: "FPM_SOCKETS", inet: "{host}:{port}={fd}", unix: "{path}={fd}", many: Many::Joined(",") }],
        every: Every::V4, stop: "QUIT", example: "php-fpm8.2 -F", note: "the pool's listen must equal the address", version: "tried with 8.2", ..PLAIN
    },
    Preset { name: "puma", every: Every::V4, example: "puma -b tcp://{addr} config.ru", note: "on a path -b unix://{path}", version: "tried with 5.6", ..PLAIN },
    Preset { name: "starlet", variables: SERVER_STARTER, every: Every::V4, example: "plackup -s Starlet app.psgi", note: "not on IPv6", version: "tried with 0.31", ..PLAIN },
    Preset { name: "starman", variables: SERVER_STARTER, every: Every::V4, stop: "QUIT", example: "starman app.psgi", note: "not on IPv6; not on a path", version: "tried with 0.4016", ..PLAIN },
    Preset { name: "tornado", options: &["nonblock"], example: "python3 app.py {fd}", note: "server.add_sockets([socket.socket(fileno=int(sys.argv[1]))]); loses the requests it holds when stopped", version: "tried with 6.6", ..PLAIN },
    Preset { name: "traefik", example: "traefik --configFile=traefik.yml", note: "NAME= must be the entrypoint's; not on a path", version: "from 3.1 on", ..PLAIN },
    Preset { name: "twisted", options: &["nonblock"], example: "twistd -n --pidfile= web --listen systemd:domain=INET:index=0 --path .", note: "on IPv6 domain=INET6, on a path domain=UNIX; loses the requests it holds when stopped", version: "tried with 26.10", ..PLAIN },
    // UNICORN_FD beside LISTEN_FDS would make it take the socket twice and fail when it stops.
    Preset { name: "unicorn", every: Every::V4, stop: "QUIT", example: "unicorn -l {addr} config.ru", version: "tried with 6.0", ..PLAIN },
    // It takes what it is given for a Unix socket, so that asyncio leaves TCP_NODELAY off: 44 ms for each request.
    Preset {
        name: "uvicorn", options: &["nodelay"],
        variables: &[SocketVariable { key: "UVICORN_FD", inet: "{fd}", unix: "{fd}", many: Many::First }],
        example: "uvicorn app:asgi", version: "tried with 0.54", ..PLAIN
    },
    Preset {
        name: "uwsgi",
        // TERM would reload it, not stop it.
        variables: &[SocketVariable {
            key: "UWSGI_HOOK_MASTER_START",
            inet: "unix_signal:15 gracefully_kill_them_all", unix: "unix_signal:15 gracefully_kill_them_all",
            many: Many::First,
        }],
        example: "uwsgi --master --need-app --http-socket fd://{fd} --wsgi-file app.py", version: "tried with 2.0", ..PLAIN
    },
    Preset { name: "waitress", example: "python3 app.py {fd}", note: "serve(app, sockets=[socket.socket(fileno=int(sys.argv[1]))]); loses the requests it holds when stopped", version: "tried with 3.0", ..PLAIN },
];
