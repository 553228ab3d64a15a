//! The output that the user asked for, on stdout.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, fcntl};

use crate::failure::plain;

/// Print `text`; an error if there is no stdout or it is full.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = stdout();
    // std treats a closed stdout as /dev/null.
    fcntl(&stdout, FcntlArg::F_GETFD).context("cannot write to stdout")?;
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(plain).context("cannot write to stdout")
}
