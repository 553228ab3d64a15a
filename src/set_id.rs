//! Set-uid and set-gid use, which is refused: arguments, environment and descriptors are the caller's, and all are obeyed.
//!
//! A file capability is not refused, though it sets AT_SECURE too. With the one for low ports, files are still opened with
//! the caller's rights, no loader reads the environment, and what is executed does not have it any more.

use anyhow::anyhow;
use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::failure::{Failure, Result};
use crate::sys;

const REMEDY: &str = "run it by sudo or su; for a low port, 'setcap cap_net_bind_service=+ep' on handoff-run is enough";

/// Refuse to run with the rights of another user or group than the caller's.
#[cfg_attr(test, expect(dead_code, reason = "the tests' main is another"))]
pub(crate) fn refuse() -> Result<()> {
    // As a rule this is all, and no system call.
    if !sys::is_secure() {
        return Ok(());
    }
    let (user, group) = ((getuid().as_raw(), geteuid().as_raw()), (getgid().as_raw(), getegid().as_raw()));
    let (what, (real, effective)) = match (user, group) {
        ((real, effective), _) if real != effective => ("user", user),
        (_, (real, effective)) if real != effective => ("group", group),
        _ => return Ok(()),
    };
    let error = anyhow!("is not to be set-uid or set-gid: {what} {real} runs it with the rights of {what} {effective}");
    Err(Failure::from(error).remedy(Some(REMEDY.to_owned())))
}
