//! The log on stderr: one line for each message; `RUST_LOG` is the target's and not read.

use std::io::Write;

use env_logger::Builder;
use log::LevelFilter;

use crate::failure::OneLine;

/// Log what is at `level` or above, or what the environment variable HANDOFF_LOG selects instead.
pub(crate) fn start(level: LevelFilter) {
    Builder::new()
        .filter_level(level)
        .parse_env("HANDOFF_LOG")
        .format(|stderr, record| writeln!(stderr, "handoff-run: {}", OneLine(&record.args().to_string())))
        .init();
}
