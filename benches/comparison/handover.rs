//! Deploys without a supervisor: the server's own handover, and handoff-run's `--from auto`.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::deployment::HANDOFF_RUN;
use super::session::Session;
use super::site::Site;
use super::subjects::{Handover, Subject};
use super::tools::Running;
use super::waiting::wait_for;

/// A server that is replaced by a signal.
struct Signalled<'a> {
    site: &'a Site,
    subject: &'a Subject,
    session: Session,
    serving: Pid,
}

/// A server that is replaced by running its line once more.
struct RunAgain<'a> {
    site: &'a Site,
    session: Session,
}

/// handoff-run, which becomes the server. The hello server runs the same line again, others have their own way.
pub fn exec<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    let address = site.own.address.to_string();
    signalled(site, subject, &[HANDOFF_RUN, "--listen", &address, "--", "sh", "inherit"])
}

/// The server alone, as its own manual has it.
pub fn own<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    signalled(site, subject, &["sh", "bind"])
}

/// Keeps the session, and ends all of it should this program be interrupted.
const GUARD: &str = r#"trap 'trap - TERM; kill 0' TERM; sh -c '"$0" "$@" & wait' "$0" "$@" & wait; sleep 3600 & wait"#;

/// Started by a shell that ends then: nginx ignores SIGUSR2 as long as its parent lives that is none of its own processes.
fn signalled<'a>(site: &'a Site, subject: &'a Subject, words: &[&str]) -> Result<Box<dyn Running + 'a>> {
    let mut command = site.command("sh")?;
    command.args(["-c", GUARD]).args(words).env("UPGRADE", format!("exec {}", words.join(" ")));
    // nginx has its pid file by its configuration.
    command.env("GUNICORN_CMD_ARGS", "--pid gunicorn.pid");
    let mut session = Session::start(&mut command)?;
    site.wait_for_answer(&mut session)?;
    let shell = session.children(session.id()).pop().context("the shell has ended")?;
    kill(shell, Signal::SIGKILL)?;
    let serving = wait_for("the shell to end", || Ok(top(&session).ok()))?;
    Ok(Box::new(Signalled { site, subject, session, serving }))
}

/// The process of the server that has started the others.
fn top(session: &Session) -> Result<Pid> {
    let is_top = |pid: &Pid| *pid != session.id() && session.parent(*pid).is_none();
    session.processes().into_iter().find(is_top).context("nothing is left")
}

impl Running for Signalled<'_> {
    fn replace(&mut self) -> Result<()> {
        let old = self.serving;
        kill(old, Signal::SIGUSR2)?;
        if let Handover::Workers(workers) = self.subject.handover {
            // As the manuals of nginx and gunicorn have it: the old master is stopped when the new one has workers.
            let is_new =
                |pid: &Pid| ![old, self.session.id()].contains(pid) && self.session.children(*pid).len() >= workers;
            wait_for("the new master", || Ok(self.session.processes().into_iter().find(is_new)))?;
            kill(old, self.subject.stop)?;
        }
        wait_for("the old server to end", || Ok((!self.session.has(old)).then_some(())))?;
        self.serving = top(&self.session)?;
        if let Handover::Workers(_) = self.subject.handover {
            // gunicorn ignores SIGUSR2 until it has noticed that its predecessor is gone.
            let file = self.site.folder().join(format!("{}.pid", self.subject.name));
            let is_there = || fs::read_to_string(&file).is_ok_and(|pid| pid.trim_end() == self.serving.to_string());
            wait_for("the pid file", || Ok(is_there().then_some(())))?;
        }
        Ok(())
    }
}

pub fn from<'a>(site: &'a Site, _: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    let mut session = start_from(site)?;
    site.wait_for_answer(&mut session)?;
    Ok(Box::new(RunAgain { site, session }))
}

/// The line that is a whole deploy script, with the time to settle that the supervisor is given.
fn start_from(site: &Site) -> Result<Session> {
    let mut command = site.command(HANDOFF_RUN)?;
    command.args(["--listen", &site.own.address.to_string(), "--from", "auto", "--settle", "200ms"]);
    Session::start(command.args(site.words(site.server.line)))
}

impl Running for RunAgain<'_> {
    fn replace(&mut self) -> Result<()> {
        let successor = start_from(self.site)?;
        self.session.end().with_context(|| self.site.last_words())?;
        self.session = successor;
        Ok(())
    }
}
