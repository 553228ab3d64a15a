//! The tools that are compared, and for which servers they are left out.

use anyhow::Result;

use super::deployment::{Deployment, SHARED, STEERED};
use super::handover;
use super::peers;
use super::servers::Need;
use super::service;
use super::site::Site;
use super::subjects::{Handover, Subject};

pub struct Tool {
    pub name: &'static str,
    /// What it is called in the picture, and what there is to add.
    pub title: &'static str,
    pub detail: &'static str,
    pub needs: &'static [Need],
    /// Start the server, and return when it has answered.
    pub start: for<'a> fn(&'a Site, &'a Subject) -> Result<Box<dyn Running + 'a>>,
    /// Why it is not for this server, if it is not.
    excludes: fn(&Subject) -> Option<&'static str>,
}

/// A server that runs under a tool. All of it ends when this is dropped.
pub trait Running {
    /// Deploy, and return when a further deploy would be possible.
    fn replace(&mut self) -> Result<()>;
}

const SYSTEMD: &[Need] = &[
    Need::Root,
    Need::Command("/lib/systemd/systemd"),
    Need::Command("unshare"),
    Need::Command("setpriv"),
    Need::Command("nsenter"),
    Need::Command("systemctl"),
];

/// Ours first, then the others, what everybody has at the end.
pub const TOOLS: &[Tool] = &[
    Tool {
        name: "steered",
        title: "handoff-run",
        detail: "--supervise --drain idle",
        needs: &[],
        start: |site, _| Ok(Box::new(Deployment::start(site, STEERED, site.server.line)?)),
        excludes: |_| None,
    },
    Tool {
        name: "shared",
        title: "handoff-run",
        detail: "--supervise --shared",
        needs: &[],
        start: |site, _| Ok(Box::new(Deployment::start(site, SHARED, site.server.line)?)),
        excludes: |_| None,
    },
    Tool {
        name: "intercepted",
        title: "handoff-run",
        detail: "--supervise --intercept",
        needs: &[],
        start: |site, subject| {
            let line = format!("--intercept --stop-signal {} -- sh bind", subject.stop_name());
            Ok(Box::new(Deployment::start(site, STEERED, &line)?))
        },
        excludes: |_| None,
    },
    Tool {
        name: "exec",
        title: "handoff-run, no parent",
        detail: "the server's own SIGUSR2",
        needs: &[],
        start: handover::exec,
        excludes: |subject| match subject.handover {
            Handover::None => Some("it has no handover of its own"),
            // It tells its successor of descriptor 3, which it has closed for a copy at another number.
            _ if subject.name == "gunicorn" => Some("its own handover fails where its socket came by LISTEN_FDS"),
            _ => None,
        },
    },
    Tool {
        name: "from",
        title: "handoff-run, no parent",
        detail: "--from auto",
        needs: &[],
        start: handover::from,
        excludes: |_| None,
    },
    Tool {
        name: "start_server",
        title: "start_server",
        detail: "Server::Starter, SIGHUP",
        needs: &[Need::Command("start_server")],
        start: peers::start_server,
        excludes: |_| None,
    },
    Tool {
        name: "circus",
        title: "circus",
        detail: "circusctl reload",
        needs: &[Need::Command("circusd"), Need::Command("circusctl"), Need::Command("bash")],
        start: peers::circus,
        excludes: |_| None,
    },
    Tool {
        name: "systemfd",
        title: "systemfd",
        detail: "a loop that restarts",
        needs: &[Need::Command("systemfd")],
        start: peers::systemfd,
        excludes: |_| None,
    },
    Tool {
        name: "own",
        title: "the server's own upgrade",
        detail: "SIGUSR2, then stop the old",
        needs: &[],
        start: handover::own,
        excludes: |subject| match subject.handover {
            Handover::None => Some("it has no handover of its own"),
            Handover::Whole => Some("its own handover is that of exec: it opens no port itself"),
            Handover::Workers(_) => None,
        },
    },
    Tool {
        name: "systemd-socket",
        title: "systemd, with a socket unit",
        detail: "systemctl restart",
        needs: SYSTEMD,
        start: service::with_socket,
        excludes: |_| None,
    },
    Tool {
        name: "systemd-service",
        title: "systemd, service alone",
        detail: "systemctl restart",
        needs: SYSTEMD,
        start: service::alone,
        excludes: |_| None,
    },
    Tool {
        name: "restart",
        title: "stop and start",
        detail: "kill, wait, run again",
        needs: &[],
        start: peers::restart,
        excludes: |_| None,
    },
];

impl Tool {
    pub fn left_out(&self, subject: &Subject) -> Option<&'static str> {
        (self.excludes)(subject)
    }

    pub fn is_ours(&self) -> bool {
        self.title.starts_with("handoff-run")
    }
}

impl Running for Deployment<'_> {
    fn replace(&mut self) -> Result<()> {
        self.reload()
    }
}
