//! Builds and releases, and the scripts of examples/ that deploy them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::server::hello;
use super::{Folder, PROGRAM, Run, Server, Supervisor, supervise};

/// A file of examples/.
pub fn example(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A PATH where handoff-run is found.
pub fn search_path() -> OsString {
    let mut path = Path::new(PROGRAM).parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap());
    path
}

/// A script of examples/, for the releases in `app` of this folder and the supervisor there.
pub fn script(folder: &Folder, name: &str, arguments: &[impl AsRef<OsStr>]) -> Run {
    let run = Run::of(example(name)).args(arguments).env("PATH", search_path()).current_dir(folder);
    run.env("APP", folder.path("app")).env("CONTROL", folder.path("control"))
}

/// A build in this folder whose server is a shell script.
pub fn build(folder: &Folder, name: &str, script: &str) {
    fs::create_dir(folder.path(name)).unwrap();
    let server = folder.path(name).join("server");
    fs::write(&server, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(server, Permissions::from_mode(0o755)).unwrap();
}

/// The script of a server that works.
pub fn works() -> String {
    format!("exec {}", hello().display())
}

/// The release that `current` leads to.
pub fn current(folder: &Folder) -> PathBuf {
    fs::read_link(folder.path("app/current")).unwrap()
}

/// A supervisor of what was deployed, which is the build `good`.
pub fn supervisor_of_current(options: &[&str]) -> Supervisor {
    let setup = supervise(Server::Script("exec ./app/current/server"), options);
    build(&setup.folder, "good", &works());
    let first = script(&setup.folder, "deploy.sh", &["good"]).output();
    assert_eq!(first.failure(), (0, ""));
    assert!(first.stdout.contains("no supervisor at "), "{}", first.stdout);
    setup.serving()
}
