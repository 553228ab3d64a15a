//! The other tools that start a server, each as its own documentation has it.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::session::Session;
use super::site::Site;
use super::subjects::Subject;
use super::tools::Running;
use super::waiting::wait_for;

/// What a loop around the server does: the socket stays open in its parent.
const LOOP: &str =
    "trap 'kill $!; exit' TERM; while :; do sh inherit & echo $! >pid.new; mv pid.new pid; wait $!; done\n";

/// Server::Starter, replaced by SIGHUP (`start_server --help`).
struct StartServer<'a> {
    site: &'a Site,
    session: Session,
}

/// circusd, and circusctl to command it.
struct Circus<'a> {
    site: &'a Site,
    session: Session,
}

/// A shell under systemfd that starts the server again whenever it ends.
struct Systemfd<'a> {
    site: &'a Site,
    subject: &'a Subject,
    _session: Session,
}

/// A server that is stopped, and then started again.
struct Restart<'a> {
    site: &'a Site,
    subject: &'a Subject,
    session: Session,
}

/// With the socket at 3 (`--port host:port=fd`). The other options are its defaults: a new worker that lives for a second
/// is taken for good (`--interval`), and the old one is told then (no `--kill-old-delay`).
pub fn start_server<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    let mut command = site.command("start_server")?;
    command.arg(format!("--port={}=3", site.own.address)).arg("--status-file=status");
    // "If you use this option, be sure to also use --signal-on-term".
    command.args(["hup", "term"].map(|on| format!("--signal-on-{on}={}", subject.stop_name())));
    let mut session = Session::start(command.args(["--", "sh", "inherit"]))?;
    site.wait_for_answer(&mut session)?;
    Ok(Box::new(StartServer { site, session }))
}

impl StartServer<'_> {
    /// The generations, as `NUMBER:PID`.
    fn generations(&self) -> Result<Vec<String>> {
        let status = fs::read_to_string(self.site.folder().join("status"))?;
        Ok(status.lines().map(str::to_owned).collect())
    }
}

impl Running for StartServer<'_> {
    /// What `start_server --restart` does, but that looks once a second.
    fn replace(&mut self) -> Result<()> {
        let old = self.generations()?;
        kill(self.session.id(), Signal::SIGHUP)?;
        let replaced = || {
            let now = self.generations()?;
            Ok((now.len() == 1 && now != old).then_some(()))
        };
        wait_for("the new generation alone", replaced)
    }
}

/// With a socket of circusd's own, whose number is in the arguments (`$(circus.sockets.NAME)`), and the graceful reload
/// that is its default: a new process is started, then the old one stopped. It waits in between for `warmup_delay`, which
/// is 0 unless told, for a second process only.
pub fn circus<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    let port = site.own.address.port();
    let stop = subject.stop_name();
    // sh has descriptors of one digit only.
    fs::write(site.folder().join("at-three"), "exec 3<&$1; exec sh inherit\n")?;
    let configuration = format!(
        "[circus]\nendpoint = ipc://control\npubsub_endpoint = ipc://events\n\
         [socket:web]\nhost = 127.0.0.1\nport = {port}\n\
         [watcher:web]\ncmd = bash at-three $(circus.sockets.web)\nuse_sockets = True\ncopy_env = True\n\
         stop_signal = {stop}\ngraceful_timeout = 10\n"
    );
    fs::write(site.folder().join("circus.ini"), configuration)?;
    let mut session = Session::start(site.command("circusd")?.arg("circus.ini"))?;
    site.wait_for_answer(&mut session)?;
    Ok(Box::new(Circus { site, session }))
}

impl Running for Circus<'_> {
    fn replace(&mut self) -> Result<()> {
        let mut command = self.site.command("circusctl")?;
        command.args(["--endpoint", "ipc://control", "--timeout", "20", "reload", "web", "--waiting"]);
        ensure!(Session::start(&mut command)?.end()?.success(), "circusctl failed: {}", self.site.last_words());
        Ok(())
    }
}

impl Drop for Circus<'_> {
    fn drop(&mut self) {
        // What it starts gets sessions of their own, so it has to end that itself; at worst the session is killed.
        let _ = kill(self.session.id(), Signal::SIGTERM);
        let _ = self.session.end();
    }
}

/// `systemfd --no-pid -s tcp::ADDRESS -- LOOP`: "a bash script for instance that spawns your executable in a loop [...]. Then
/// you just kill your executable" is what its author has for deploys (mitsuhiko/systemfd, issue 15).
/// Its backlog of 1 would make clients of the gap wait for whole seconds, so it has what the others have.
pub fn systemfd<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    fs::write(site.folder().join("loop"), LOOP)?;
    let mut command = site.command("systemfd")?;
    command.args(["--no-pid", "--backlog", "4096", "-s", &format!("tcp::{}", site.own.address), "--", "sh", "loop"]);
    let mut session = Session::start(&mut command)?;
    site.wait_for_answer(&mut session)?;
    Ok(Box::new(Systemfd { site, subject, _session: session }))
}

impl Systemfd<'_> {
    fn serving(&self) -> Result<Pid> {
        let pid = fs::read_to_string(self.site.folder().join("pid"))?;
        Ok(Pid::from_raw(pid.trim_end().parse().with_context(|| format!("no process id: {pid:?}"))?))
    }
}

impl Running for Systemfd<'_> {
    fn replace(&mut self) -> Result<()> {
        let old = self.serving()?;
        kill(old, self.subject.stop)?;
        wait_for("the loop to go on", || Ok((self.serving()? != old).then_some(())))
    }
}

/// What everybody has.
pub fn restart<'a>(site: &'a Site, subject: &'a Subject) -> Result<Box<dyn Running + 'a>> {
    let mut session = start_alone(site)?;
    site.wait_for_answer(&mut session)?;
    Ok(Box::new(Restart { site, subject, session }))
}

fn start_alone(site: &Site) -> Result<Session> {
    Session::start(site.command("sh")?.arg("bind"))
}

impl Running for Restart<'_> {
    fn replace(&mut self) -> Result<()> {
        kill(self.session.id(), self.subject.stop)?;
        self.session.end()?;
        self.session = start_alone(self.site)?;
        Ok(())
    }
}
