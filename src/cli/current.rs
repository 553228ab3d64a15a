//! The manual and the completions are made from the command line's definition; a committed file that is stale fails
//! here, and `BLESS=1 cargo test current` regenerates it.

mod completions;
mod flag;

use std::path::Path;
use std::{env, fs};

use clap::{Arg, CommandFactory};

use crate::cli::Cli;
use crate::failure::ExitStatus;
use crate::socket::options::{self, Takes};
use crate::target::environ;
use crate::target::preset::{self, Preset};

const SOURCE: &str = include_str!("../../man/handoff-run.1.in");
/// The unit that a test boots.
const UNIT: &str = include_str!("../../examples/systemd/app-full.service");

/// Compare the committed file with what it should be; with BLESS=1, make it so.
fn check(file: &str, expected: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("BLESS").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let found = fs::read(&path).unwrap_or_default();
    let same = found == expected;
    assert!(same, "{file} is stale: run BLESS=1 cargo test current");
}

fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn options_section() -> String {
    let mut section = Vec::new();
    clap_mangen::Man::new(Cli::command()).render_options_section(&mut section).unwrap();
    let section = String::from_utf8(section).unwrap();
    // clap_mangen makes each group a section of its own.
    Cli::command().get_arguments().filter_map(Arg::get_help_heading).fold(section, |section, group| {
        let upper = group.to_uppercase();
        let section = section.replace(&format!(".SH {upper}\n"), &format!(".SS {group}\n"));
        section.replace(&format!(".SH \"{upper}\"\n"), &format!(".SS \"{group}\"\n"))
    })
}

fn spec_options() -> String {
    let line = |row: &options::Row| {
        let value = if row.takes == Takes::Nothing { String::new() } else { format!("=\\fI{}\\fR", row.takes) };
        format!(".TP\n\\fB{}\\fR{value}\n{}\n", roff(row.name), roff(row.meaning))
    };
    options::TABLE.iter().map(line).collect()
}

fn servers() -> String {
    let line = |preset: &Preset| {
        let remarks = [preset.note, preset.version].into_iter().filter(|remark| !remark.is_empty());
        let note: String = remarks.map(|remark| format!("; {remark}")).collect();
        let example = format!("handoff-run -l 127.0.0.1:8000 --as {} -- {}", preset.name, preset.example);
        let stop = preset.stop;
        format!(".TP\n\\fB{}\\fR (drains on {stop}{})\n{}\n", roff(preset.name), roff(&note), roff(&example))
    };
    preset::TABLE.iter().map(line).collect()
}

#[test]
fn the_manual_is_current() {
    let title = format!(".TH HANDOFF\\-RUN 1 \"\" \"handoff\\-run {}\" \"User Commands\"\n", env!("CARGO_PKG_VERSION"));
    let page = SOURCE
        .replace("@TITLE@\n", &title)
        .replace("@OPTIONS@\n", &options_section())
        .replace("@SPEC_OPTIONS@\n", &spec_options())
        .replace("@UNIT@\n", &UNIT.lines().map(|line| roff(line) + "\n").collect::<String>())
        .replace("@SERVERS@\n", &servers());
    check("man/handoff-run.1", page.as_bytes());
}

#[test]
fn every_option_is_in_a_group() {
    let without = |arg: &&Arg| !arg.is_positional() && arg.get_help_heading().is_none();
    let command = Cli::command();
    let alone: Vec<&str> = command.get_arguments().filter(without).map(|arg| arg.get_id().as_str()).collect();
    assert_eq!(alone, [""; 0]);
}

#[test]
fn the_manual_being_current_includes_every_status_and_variable() {
    for status in [ExitStatus::Ours, ExitStatus::CannotExecute, ExitStatus::NotFound] {
        assert!(SOURCE.contains(&format!("\n.B {}\n", status as u8)), "{status:?} is not in the manual");
    }
    for variable in environ::VARIABLES {
        assert!(SOURCE.contains(variable), "{variable} is not in the manual");
    }
}
