//! What a test knows of a real server: whether it is installed, how it is started, and what it does.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Display;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Mutex;
use std::{env, fs, process};

use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::{DEADLINE, Folder, Run, handoff_run_with, skip};

/// What a test says of its server.
pub struct Case {
    /// What `--as` calls it; empty for what needs no preset.
    pub name: &'static str,
    /// What stands behind `--` where no preset has an example.
    pub line: &'static str,
    /// Commands, files and, as `import NAME`, Python modules without which it is not installed.
    pub needs: &'static [&'static str],
    /// Its folder in tests/servers, if it needs one. The server runs in a copy.
    pub files: &'static str,
    /// What makes a program of them, once.
    pub compile: &'static str,
    /// What is run there first.
    pub build: &'static str,
    /// What the test's line says instead of the example's words.
    pub instead: &'static [(&'static str, &'static str)],
    /// The server it is a proxy of, at @BACKEND@.
    pub backend: Option<&'static Case>,
    /// What it speaks.
    pub protocol: Protocol,
    /// What its stop signal does.
    pub stop: Stop,
    /// What its line and files say instead on IPv6 and on a path, if it can listen there.
    pub on_v6: Option<&'static [(&'static str, &'static str)]>,
    pub on_path: Option<&'static [(&'static str, &'static str)]>,
    /// The status it ends with when it is told to stop, 128+N for a signal.
    pub status: i32,
}

/// What most have in common.
pub const CASE: Case = Case {
    name: "",
    line: "",
    needs: &[],
    files: "",
    compile: "",
    build: "",
    instead: &[],
    backend: None,
    protocol: Protocol::Http,
    stop: Stop::Drains,
    on_v6: Some(&[]),
    on_path: Some(&[]),
    status: 0,
};

#[derive(Clone, Copy)]
pub enum Protocol {
    Http,
    FastCgi,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Stop {
    /// A request under way is answered first.
    Drains,
    /// It may be lost.
    Ends,
}

/// Not in Debian: tested where npm has them.
const OPTIONAL: [&str; 2] = ["deno", "bun"];

/// Says so if not, for a test that is passed over should be seen.
pub fn is_installed(case: &Case) -> bool {
    let Some(missing) = case.needs.iter().find(|need| !exists(need)) else { return true };
    let message = format!("{} is not installed", missing.trim_start_matches("import "));
    let is_required = env::var_os("HANDOFF_REQUIRE_SERVERS").is_some() && !OPTIONAL.contains(missing);
    assert!(!is_required, "{message}");
    skip(&message);
    false
}

fn exists(need: &str) -> bool {
    if need.starts_with("import ") {
        return Run::of("python3").args(&["-c", need]).output().status.success();
    }
    search_path().split(':').any(|folder| Path::new(folder).join(need).exists())
}

/// Many servers are where only root looks for them.
fn search_path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap())
}

/// The line that `--help-servers` has for it and the signal that it says makes it drain.
pub fn line(case: &Case, handoff_run: &str) -> (String, Signal) {
    let row = match case.name {
        "" => format!("handoff-run --listen 127.0.0.1:8000 -- {}", case.line),
        name => rows().into_iter().find(|row| row.contains(&format!(" --as {name} -- "))).unwrap(),
    };
    let (line, remarks) = row.split_once("   # ").unwrap_or((&row, ""));
    let signal = remarks.split("; ").find_map(|remark| remark.strip_prefix("stop with ")).unwrap_or("TERM");
    let handoff_run = format!("{handoff_run} ");
    let changes = [("handoff-run ", handoff_run.as_str()), ("127.0.0.1:8000", "@ADDR@")];
    let line = changes.iter().chain(case.instead).fold(line.to_owned(), |line, (old, new)| {
        assert!(line.contains(old), "{line} has no {old}");
        line.replacen(old, new, 1)
    });
    (line, format!("SIG{signal}").parse().unwrap())
}

/// All that `--help-servers` shows.
pub fn rows() -> Vec<String> {
    let output = handoff_run_with(&["--help-servers"]).output();
    output.stdout.lines().map(str::to_owned).collect()
}

/// A shell command in `folder`, in a session of its own and with nothing of the user's.
pub fn shell(command: &str, folder: &Folder) -> Run {
    Run::of("sh")
        .args(&["-c", command])
        .current_dir(folder)
        .env("PATH", search_path())
        .env("HOME", folder.path(""))
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/gocache"))
        .before_exec(|| Ok(setsid().map(drop)?))
}

/// Copy the server's files into `folder`, filled in.
pub fn fill(folder: &Folder, files: &str, port: u16) {
    fill_by(folder, files, |text| fill_in(text, folder, port));
}

/// The same with whatever is to be done to their text.
pub fn fill_by(folder: &Folder, files: &str, change: impl Fn(&str) -> String) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(files);
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        fs::write(folder.path(entry.file_name().to_str().unwrap()), change(&text)).unwrap();
    }
}

/// Run a shell command in `folder`, to succeed. To compile takes its time on a busy machine.
pub fn run(command: &str, folder: &Folder) {
    let output = shell(command, folder).start().output_within(DEADLINE * 10);
    assert!(output.status.success(), "{command}: {output:?}");
}

/// Bring what the server's files in `folder` are compiled to, from where it is kept for the next time. Named for its
/// sources, so that nobody replaces what another test reads.
pub fn compiled(case: &Case, folder: &Folder) {
    let mut hasher = DefaultHasher::new();
    case.compile.hash(&mut hasher);
    folder.names().iter().for_each(|name| fs::read(folder.path(name)).unwrap().hash(&mut hasher));
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{:x}", case.files, hasher.finish()));
    // Tests of the same server wait for the first of them.
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock();
    if !kept.exists() {
        run(case.compile, folder);
        let new = kept.with_extension(process::id().to_string());
        run(&format!("cp -r . {0} && mv -T {0} {1}", new.display(), kept.display()), folder);
    }
    drop(one);
    run(&format!("cp -r {}/. .", kept.display()), folder);
}

pub fn fill_in(text: &str, folder: &Folder, port: u16) -> String {
    let values: [(&str, &dyn Display); 3] =
        [("@ADDR@", &format_args!("127.0.0.1:{port}")), ("@PORT@", &port), ("@DIR@", &folder.as_ref().display())];
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, &value.to_string()))
}
