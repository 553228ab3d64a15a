//! What is said on stderr beside errors: one line each, the target's own `RUST_LOG` left alone.

use std::io::Write;

use env_logger::Builder;
use log::LevelFilter;

use crate::failure::OneLine;

/// Say what is at `level` or above, or what the environment variable HANDOFF_LOG wants instead.
pub(crate) fn start(level: LevelFilter) {
    Builder::new()
        .filter_level(level)
        .parse_env("HANDOFF_LOG")
        .format(|stderr, record| writeln!(stderr, "handoff-run: {}", OneLine(&record.args().to_string())))
        .init();
}
