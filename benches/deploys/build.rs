//! Whether a server is installed, and what is built of its files.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;
use serde_json::Value;

use super::servers::{Build, Need, Server};

/// Where the sources of this package are.
pub const SOURCES: &str = env!("CARGO_MANIFEST_DIR");
/// For whatever is built, and for the folders that servers run in.
pub const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// What of this is not there, if anything.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| match need {
        Need::Command(name) => {
            let is_there = search_path().split(':').any(|folder| Path::new(folder).join(name).exists());
            (!is_there).then(|| format!("{name} is not installed"))
        }
        Need::Module(name) => {
            let import = format!("import {name}");
            let is_there = succeeds(Command::new("python3").args(["-c", &import]).env("PATH", search_path()));
            (!is_there).then(|| format!("{name} is not installed"))
        }
        Need::Root => (!geteuid().is_root()).then(|| "it needs root".into()),
        Need::Crates(manifest) => {
            let is_there = succeeds(cargo().args(["fetch", "--quiet", "--locked", "--manifest-path", manifest]));
            (!is_there).then(|| format!("cargo cannot fetch what {manifest} needs"))
        }
    })
}

/// Build what the server needs in its folder; its program, where cargo made one.
pub fn build(server: &Server, folder: &Path) -> Result<Option<PathBuf>> {
    match server.build {
        Build::Nothing => Ok(None),
        Build::Line(line) => {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().context("a line has words")?);
            command.args(words).current_dir(folder).env("PATH", search_path()).env("CGO_ENABLED", "0");
            command
                .env("GOPROXY", "off")
                .env("GOTOOLCHAIN", "local")
                .env("GOCACHE", Path::new(SCRATCH).join("gocache"));
            ensure!(command.status()?.success(), "{line} failed");
            Ok(None)
        }
        Build::Example(name) => {
            // As we were built ourselves.
            let directory = Path::new(env!("CARGO_BIN_EXE_handoff-run")).parent();
            let profile = if directory.is_some_and(|at| at.ends_with("release")) { "release" } else { "dev" };
            cargo_build(&["--example", name, "--profile", profile]).map(Some)
        }
        Build::Package(manifest) => {
            let target = format!("{SCRATCH}/deploys-{}", server.name);
            cargo_build(&["--release", "--locked", "--manifest-path", manifest, "--target-dir", &target]).map(Some)
        }
    }
}

/// Many servers are where only root looks for them.
pub fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default())
}

fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(SOURCES);
    cargo
}

/// `cargo build`, and where the program is that it made.
fn cargo_build(arguments: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--message-format", "json-render-diagnostics"]).args(arguments);
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo build {} failed", arguments.join(" "));
    let messages = String::from_utf8(output.stdout)?;
    let executable =
        |line: &str| Some(PathBuf::from(serde_json::from_str::<Value>(line).ok()?["executable"].as_str()?));
    messages.lines().filter_map(executable).next_back().context("cargo has built no program")
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
