//! The list of servers, as `--help-servers` prints it.

use std::fmt::Write;

use crate::target::preset::{Preset, TABLE};

/// A line for each preset: what `--as` calls it, what to run, and what to know.
pub(crate) fn list() -> String {
    TABLE.iter().fold(String::new(), |mut list, preset| {
        // Writing into a String cannot fail.
        let _ = writeln!(list, "{}", line(preset));
        list
    })
}

fn line(preset: &Preset) -> String {
    let line = format!("handoff-run --listen 127.0.0.1:8000 --as {} -- {}", preset.name, preset.example);
    // TERM goes without saying.
    let stop = if preset.stop == "TERM" { String::new() } else { format!("stop with {}", preset.stop) };
    let remarks: Vec<&str> = [stop.as_str(), preset.note].into_iter().filter(|remark| !remark.is_empty()).collect();
    if remarks.is_empty() { line } else { format!("{line}   # {}", remarks.join("; ")) }
}
