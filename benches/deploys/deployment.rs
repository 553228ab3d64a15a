//! A server under `handoff-run --supervise`: started, reloaded, stopped.

#![allow(dead_code, reason = "the benchmarks each need their part of it")]

use std::process::Command;

use anyhow::{Result, ensure};

use super::session::Session;
use super::site::Site;

pub const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");
/// The options of the two ways to share an address between generations. The drain timeout is longer than any connection of
/// the load is meant to live.
pub const SHARED: &[&str] = &["--shared", "--settle", "200ms", "--ready-timeout", "20s", "--drain-timeout", "10s"];
pub const STEERED: &[&str] =
    &["--drain", "idle", "--settle", "200ms", "--ready-timeout", "20s", "--drain-timeout", "10s"];

pub struct Deployment<'a> {
    site: &'a Site,
    supervisor: Session,
}

impl Deployment<'_> {
    /// Start the supervisor with these options, and more of them and the program in `line`; wait for the first answer.
    pub fn start<'a>(site: &'a Site, options: &[&str], line: &str) -> Result<Deployment<'a>> {
        let mut command = site.command(HANDOFF_RUN)?;
        // In the folder, for the path of a Unix socket has to fit into 107 bytes.
        command.args(["--supervise", "--control", "control", "--listen", &site.own.address.to_string()]);
        command.args(options).args(site.words(line));
        let mut deployment = Deployment { site, supervisor: Session::start(&mut command)? };
        site.wait_for_answer(&mut deployment.supervisor)?;
        Ok(deployment)
    }

    /// Start the next generation, and wait until it serves.
    pub fn reload(&self) -> Result<()> {
        self.request("--reload")
    }

    /// Drain, stop, and wait for the end.
    pub fn stop(mut self) -> Result<()> {
        self.request("--stop")?;
        let status = self.supervisor.end()?;
        ensure!(status.success(), "the supervisor ended, {status}: {}", self.site.last_words());
        Ok(())
    }

    fn request(&self, request: &str) -> Result<()> {
        let output = Command::new(HANDOFF_RUN).args([request, "control"]).current_dir(self.site.folder()).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{request} ended, {}: {}", output.status, words.trim_end());
        Ok(())
    }
}
