//! The value of `--from`: a process id, a path, or `auto`.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use log::warn;
use nix::unistd::Pid;

use crate::kernel::processes::since_boot;
use crate::pid_file::PidFile;
use crate::socket::takeover::Predecessor;

/// Where the sockets are to be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Whoever has the address.
    Auto,
    Process(Pid),
    /// A pid file, or the control socket of a supervisor.
    File(PathBuf),
}

impl Who {
    /// Digits are a process id, and what is neither that nor `auto` is a path.
    pub(crate) fn parse(text: &OsStr) -> Result<Who> {
        ensure!(!text.is_empty(), "it is a process id, a pid file, a control socket or auto");
        let Some(text) = text.to_str() else { return Ok(Who::File(text.into())) };
        if text == "auto" {
            return Ok(Who::Auto);
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Who::File(text.into()));
        }
        let pid = text.parse().ok().filter(|pid| *pid > 0);
        Ok(Who::Process(Pid::from_raw(pid.with_context(|| format!("there is no process {text}"))?)))
    }

    /// The process that is named, if it is there.
    ///
    /// # Errors
    /// If a pid file is none, or of somebody who may not name that process.
    pub(super) fn process(&self) -> Result<Option<Predecessor>> {
        match self {
            Who::Auto => Ok(None),
            Who::Process(pid) => Predecessor::of(*pid, None),
            Who::File(path) => named_in(path).with_context(|| format!("cannot take over by --from {}", path.display())),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Auto => f.write_str("--from auto"),
            Who::Process(pid) => write!(f, "--from {pid}"),
            Who::File(path) => write!(f, "--from {}", path.display()),
        }
    }
}

/// The process that a pid file names.
fn named_in(path: &Path) -> Result<Option<Predecessor>> {
    let Some(file) = PidFile::read(path)? else { return Ok(None) };
    let Some(process) = Predecessor::of(Pid::from_raw(file.pid), None)? else { return Ok(None) };
    // It wrote the file, or whoever started it did: it is older.
    if started_at(process.started).is_some_and(|started| started > file.written + CLOCK_STEP) {
        let (path, pid) = (path.display(), file.pid);
        warn!(
            "{path}: pid {pid} is another process' by now, which the file is older than; if only the clock was set since, name \
             it by --from {pid}"
        );
        return Ok(None);
    }
    let user = std::fs::metadata(format!("/proc/{}", file.pid)).map(|process| process.uid()).ok();
    let may_name = [0, nix::unistd::geteuid().as_raw()].contains(&file.owner) || user == Some(file.owner);
    ensure!(may_name, "it is a file of user {}, who may not name {process}", file.owner);
    Ok(Some(process))
}

/// A clock may have been set by as many seconds since; ticks are cut off, too.
const CLOCK_STEP: i64 = 2;

/// When something happened that many ticks after the boot, in seconds since 1970: proc_pid_stat(5), proc_stat(5).
fn started_at(ticks: u64) -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: i64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + since_boot(ticks).as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_process_and_the_rest_but_auto_is_a_path() {
        let who = |text: &str| Who::parse(text.as_ref());
        assert_eq!(who("auto").unwrap(), Who::Auto);
        assert_eq!(who("812").unwrap(), Who::Process(Pid::from_raw(812)));
        for path in ["./812", "/run/app.pid", "Auto", "-1", "8x"] {
            assert_eq!(who(path).unwrap(), Who::File(path.into()));
        }
        for nobody in ["", "0", "99999999999"] {
            who(nobody).expect_err(nobody);
        }
    }

    #[test]
    fn this_process_started_before_now_and_after_the_boot() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let started = crate::kernel::processes::Process::read(Pid::this()).unwrap().started;
        let at = started_at(started).unwrap();
        assert!(started_at(0).unwrap() < at && at <= now, "{at} {now}");
    }
}
