//! A server under `handoff-run --supervise`: started, reloaded, stopped.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::answer::Answer;
use super::session::Session;
use super::site::Site;

const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");
/// How long a server may take to give its first answer.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct Deployment<'a> {
    site: &'a Site,
    supervisor: Session,
}

impl Deployment<'_> {
    /// Start the supervisor with these options, and wait for the first answer.
    pub fn start<'a>(site: &'a Site, options: &[&str]) -> Result<Deployment<'a>> {
        let mut command = site.command(HANDOFF_RUN)?;
        // In the folder, for the path of a Unix socket has to fit into 107 bytes.
        command.args(["--supervise", "--control", "control", "--listen", &site.own.address.to_string()]);
        command.args(options).args(site.words(site.server.line));
        let mut deployment = Deployment { site, supervisor: Session::start(&mut command)? };
        deployment.wait()?;
        Ok(deployment)
    }

    fn wait(&mut self) -> Result<()> {
        let (start, address) = (Instant::now(), self.site.target().address);
        while start.elapsed() < DEADLINE {
            if let Some(status) = self.supervisor.has_ended()? {
                bail!("the supervisor ended, {status}: {}", self.site.last_words());
            }
            if ask(address).is_ok_and(|answer| matches!(Answer::of(&answer), Answer::Whole(_))) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("there was no answer: {}", self.site.last_words())
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

/// One answer.
fn ask(address: SocketAddrV4) -> io::Result<Vec<u8>> {
    let mut client = TcpStream::connect(address)?;
    client.set_read_timeout(Some(DEADLINE))?;
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    Ok(answer)
}
