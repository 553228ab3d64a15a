//! The servers that are compared, and the two shell scripts by which every other tool starts them.
//!
//! handoff-run with a supervisor starts them by the lines in `deploys/servers.rs`. The scripts have the same programs with
//! the same options: `inherit` gives them the listening socket at descriptor 3, `bind` lets them open the port.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::deployment::HANDOFF_RUN;
use super::servers::{SERVERS, Server};
use super::site::Site;

pub struct Subject {
    /// As in `deploys/servers.rs`.
    pub name: &'static str,
    /// Whether it is measured when no server is named.
    pub is_usual: bool,
    inherits: &'static str,
    binds: &'static str,
    /// What stops it gracefully.
    pub stop: Signal,
    pub handover: Handover,
}

/// What a server does of itself when it gets SIGUSR2.
#[derive(Clone, Copy, PartialEq)]
pub enum Handover {
    None,
    /// Run the line in UPGRADE, and end when that serves.
    Whole,
    /// Start a second master, which serves when it has so many workers; the first one goes on until it is stopped, and then
    /// the second one is in the pid file, which is called after the server.
    Workers(usize),
}

/// What most have in common.
const PLAIN: Subject =
    Subject { name: "", is_usual: true, inherits: "", binds: "", stop: Signal::SIGTERM, handover: Handover::None };

pub const SUBJECTS: &[Subject] = &[
    // It opens no port itself, so handoff-run does and becomes it.
    Subject {
        name: "hello",
        inherits: "LISTEN_FDS=1 LISTEN_PID=$$ exec @PROGRAM@",
        binds: "exec @HANDOFF@ --listen 127.0.0.1:@PORT@ -- @PROGRAM@",
        handover: Handover::Whole,
        ..PLAIN
    },
    Subject {
        name: "node-close",
        inherits: "exec node server.js 3 close",
        binds: "PORT=@PORT@ exec node server.js 3 close",
        ..PLAIN
    },
    Subject {
        name: "uvicorn",
        inherits: "exec uvicorn --log-level warning --fd 3 app:asgi",
        binds: "exec uvicorn --log-level warning --host 127.0.0.1 --port @PORT@ app:asgi",
        ..PLAIN
    },
    Subject {
        name: "gunicorn",
        inherits: "LISTEN_FDS=1 LISTEN_PID=$$ exec gunicorn --worker-class gthread --workers 2 --threads 16 app:wsgi",
        binds: "exec gunicorn --bind 127.0.0.1:@PORT@ --worker-class gthread --workers 2 --threads 16 app:wsgi",
        handover: Handover::Workers(2),
        ..PLAIN
    },
    // Debian's unit and nginx's manual stop it by SIGQUIT: SIGTERM is its fast shutdown. It runs a successor by the path that
    // it was itself run by.
    Subject {
        name: "nginx",
        inherits: "NGINX='3;' exec $(command -v nginx) -e stderr -c @DIR@/nginx.conf",
        binds: "exec $(command -v nginx) -e stderr -c @DIR@/nginx.conf",
        stop: Signal::SIGQUIT,
        handover: Handover::Workers(1),
        ..PLAIN
    },
    Subject {
        name: "go-shutdown",
        inherits: "exec ./hello shutdown",
        binds: "PORT=@PORT@ exec ./hello shutdown",
        ..PLAIN
    },
    // The same two without a graceful stop.
    Subject {
        name: "node",
        is_usual: false,
        inherits: "exec node server.js 3",
        binds: "PORT=@PORT@ exec node server.js 3",
        ..PLAIN
    },
    Subject { name: "go", is_usual: false, inherits: "exec ./hello", binds: "PORT=@PORT@ exec ./hello", ..PLAIN },
];

impl Subject {
    pub fn server(&self) -> Result<&'static Server> {
        SERVERS.iter().find(|server| server.name == self.name).context("every subject is one of the servers")
    }

    /// Write the scripts into the site's folder.
    pub fn write(&self, site: &Site) -> Result<()> {
        for (name, line) in [("inherit", self.inherits), ("bind", self.binds)] {
            fs::write(site.folder().join(name), site.fill_in(line).replace("@HANDOFF@", HANDOFF_RUN) + "\n")?;
        }
        Ok(())
    }

    /// The name of its stop signal without SIG.
    pub fn stop_name(&self) -> &'static str {
        self.stop.as_str().trim_start_matches("SIG")
    }
}
