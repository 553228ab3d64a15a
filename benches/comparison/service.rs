//! A systemd service with and without a socket unit, replaced by `systemctl restart`.
//!
//! The systemd is a real one, pid 1 of namespaces of its own as in the tests, but in the network of all other tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::build::search_path;
use super::session::Session;
use super::site::Site;
use super::subjects::Subject;
use super::tools::Running;
use super::waiting::wait_for;

const BOOT: &str = include_str!("../../tests/it/harness/boot-systemd.sh");
const CLEAR: &str = include_str!("../../tests/it/harness/clear-cgroup.sh");

struct Systemd<'a> {
    site: &'a Site,
    /// The program unshare, whose child it is.
    session: Session,
    cgroup: String,
}

pub fn alone<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    start(site, &service(site, subject, "bind"), None)
}

pub fn with_socket<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    // All else is as it is by default: its backlog is what the kernel allows, and one socket is for all starts.
    let socket = format!("[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream={}\n", site.own.address);
    start(site, &service(site, subject, "inherit"), Some(&socket))
}

/// A unit as the servers' documentation has it: KillMode=mixed signals the main process alone, as for gunicorn and nginx.
/// Only the limit of five starts in ten seconds is lifted.
fn service(site: &Site, subject: &Subject, script: &str) -> String {
    let (folder, path, stop) = (site.folder().display(), search_path(), subject.stop.as_str());
    format!(
        "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh {script}\n\
         WorkingDirectory={folder}\nEnvironment=\"PATH={path}\"\nKillMode=mixed\nKillSignal={stop}\n\
         StandardOutput=append:{folder}/log\nStandardError=inherit\n"
    )
}

fn start<'a>(site: &'a Site, service: &str, socket: Option<&str>) -> Result<Box<dyn Running + 'a>> {
    for name in ["cgroup", "units"] {
        fs::create_dir(site.folder().join(name))?;
    }
    let units = site.folder().join("units");
    fs::write(units.join("test.target"), "[Unit]\nDefaultDependencies=no\n")?;
    fs::write(units.join("web.service"), service)?;
    if let Some(socket) = socket {
        fs::write(units.join("web.socket"), socket)?;
    }
    let mut systemd = Systemd::boot(site)?;
    if socket.is_some() {
        systemd.systemctl(&["start", "web.socket"])?;
    }
    systemd.systemctl(&["start", "web.service"])?;
    site.wait_for_answer(&mut systemd.session)?;
    Ok(Box::new(systemd))
}

impl Systemd<'_> {
    fn boot(site: &Site) -> Result<Systemd<'_>> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own =
            own.lines().find_map(|line| line.strip_prefix("0::")).context("there is no unified tree of cgroups")?;
        let name = site.folder().file_name().context("the folder has a name")?.to_string_lossy();
        let cgroup = format!("{}/{name}", own.trim_end_matches('/'));
        // Should this program be interrupted, SIGTERM would not end unshare, and systemd ends with it.
        let mut command = site.command("setpriv")?;
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]);
        command.args(["sh", "-ec", BOOT, "sh"]).arg(site.folder()).args([&cgroup, "/lib/systemd/systemd"]);
        let systemd = Systemd { site, session: Session::start(&mut command)?, cgroup };
        let answers =
            || Ok(systemd.pid().filter(|pid| Path::new(&format!("/proc/{pid}/root/run/systemd/private")).exists()));
        wait_for("systemd", answers).with_context(|| systemd.log())?;
        Ok(systemd)
    }

    /// It leads a session of its own, so the parent is all that it can be known by.
    fn pid(&self) -> Option<Pid> {
        let unshare = self.session.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }

    fn systemctl(&self, words: &[&str]) -> Result<()> {
        let Some(pid) = self.pid() else { bail!("systemd has ended: {}", self.log()) };
        let mut command = self.site.command("nsenter")?;
        command.args(["-t", &pid.to_string(), "-a", "systemctl"]).args(words);
        ensure!(Session::start(&mut command)?.end()?.success(), "systemctl failed: {}", self.log());
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.site.folder().join("systemd.log")).unwrap_or_default()
    }
}

impl Running for Systemd<'_> {
    fn replace(&mut self) -> Result<()> {
        self.systemctl(&["restart", "web.service"])
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        // Everything in its namespace goes with it, and unshare when all is gone.
        self.pid().map(|pid| kill(pid, Signal::SIGKILL));
        let ended = self.session.end();
        let mut command = Command::new("timeout");
        command.args(["30", "unshare", "--mount", "sh", "-ec", CLEAR, "sh"]).arg(self.site.folder()).arg(&self.cgroup);
        // What cannot be removed is an empty cgroup, and does no harm there.
        let _ = ended.is_ok().then(|| command.status());
    }
}
