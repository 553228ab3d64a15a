//! The list of servers, as `--help-servers` prints it.

use std::fmt::Write;

use crate::preset::{Preset, TABLE};

/// A line for each preset: what `--as` calls it and what to run.
pub(crate) fn list() -> String {
    TABLE.iter().fold(String::new(), |mut list, preset| {
        // Writing into a String cannot fail.
        let _ = writeln!(list, "{}", line(preset));
        list
    })
}

fn line(preset: &Preset) -> String {
    let line = format!("handoff-run --listen 127.0.0.1:8000 --as {} -- {}", preset.name, preset.example);
    if preset.note.is_empty() { line } else { format!("{line}   # {}", preset.note) }
}
