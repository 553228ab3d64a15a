//! Where the server is deployed, and the line that starts it.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::client::Target;
use super::{diary, server};

pub const HANDOFF_RUN: &str = env!("CARGO_BIN_EXE_handoff-run");
/// How long a generation may take for what, in whole milliseconds.
pub const SETTLE: Duration = Duration::from_millis(1500);
pub const READY_TIMEOUT: Duration = Duration::from_secs(6);
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// What fills the supervisor's folder.
const FILL: &str = "fill";

pub struct Site {
    /// What is removed in the end.
    whole: PathBuf,
    /// Of the supervisor alone, and where root runs this on a small file system of its own.
    pub folder: PathBuf,
    pub diaries: PathBuf,
    pub is_small: bool,
    pub port: u16,
}

impl Site {
    /// Lay it out; while there is only one thread, for it may take a namespace of its own.
    pub fn new() -> Result<Site> {
        // The path of a Unix socket has to fit into 107 bytes.
        let whole = env::temp_dir().join(format!("soak-{}", process::id()));
        let (folder, diaries) = (whole.join("run"), whole.join("diaries"));
        fs::create_dir(&whole)?;
        fs::create_dir(&folder)?;
        fs::create_dir(&diaries)?;
        let is_small = mount_small(&folder).is_ok();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let site = Site { whole, folder, diaries, is_small, port };
        site.set_release("good")?;
        Ok(site)
    }

    pub fn target(&self) -> Target {
        Target { port: self.port, path: self.path("app.sock") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// What the next generations are.
    pub fn set_release(&self, release: &str) -> io::Result<()> {
        fs::write(self.whole.join("release.env"), format!("RELEASE={release}\n"))
    }

    /// The line of the first start and of every other one.
    pub fn command(&self) -> Result<Command> {
        let time = |time: Duration| format!("{}ms", time.as_millis());
        let mut command = Command::new(HANDOFF_RUN);
        command.args(["--supervise", "--from", "auto", "--control", &self.text("control")]);
        command.args(["--pid-file", &self.text("pid"), "--env", "GENERATION={gen}"]);
        command.args(["--env-file", &self.whole.join("release.env").to_string_lossy()]);
        command.args(["--listen", &format!("tcp=127.0.0.1:{}", self.port)]);
        command.args(["--listen", &format!("unix={}", self.text("app.sock"))]);
        command.args(["--listen", &format!("udp=udp:127.0.0.1:{}", self.port)]);
        command.args(["--settle", &time(SETTLE), "--ready-timeout", &time(READY_TIMEOUT)]);
        command.args(["--drain-timeout", &time(DRAIN_TIMEOUT), "--"]);
        command.arg(env::current_exe()?).arg(server::MAIN);
        command.env("RUNTIME_DIRECTORY", &self.folder).env(diary::FOLDER, &self.diaries);
        command.env("HANDOFF_LOG", "debug").stdin(process::Stdio::null()).stdout(process::Stdio::null());
        Ok(command)
    }

    /// Fill the file system until nothing more can be written, nor created.
    pub fn fill(&self) -> Result<()> {
        fs::create_dir(self.path(FILL))?;
        let is_full = |error: &io::Error| error.kind() == ErrorKind::StorageFull;
        for number in 0.. {
            let made = File::create(self.path(FILL).join(number.to_string()));
            match made.and_then(|mut file| file.write_all(&[0; 4096])) {
                Err(error) if is_full(&error) && number > 0 => break,
                result => result.context("filling")?,
            }
        }
        // The last file took the last inode or the last block: take whatever of the other is left.
        let rest = (0..).map(|number| File::create(self.path(FILL).join(format!("empty-{number}"))));
        rest.take_while(Result::is_ok).for_each(drop);
        Ok(())
    }

    pub fn empty(&self) -> io::Result<()> {
        fs::remove_dir_all(self.path(FILL))
    }
}

/// Mount a file system of 64 KiB, in a mount namespace of our own.
fn mount_small(folder: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k,nr_inodes=64"))
}

impl Drop for Site {
    fn drop(&mut self) {
        // The mount is in the way, and goes with us; what cannot be removed does no harm.
        let _ = nix::mount::umount(&self.folder);
        let _ = fs::remove_dir_all(&self.whole);
    }
}
