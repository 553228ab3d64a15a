//! What a test supervises. Each of them answers a client with its generation and its pid.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Folder, directed, python};

/// A server, or what a generation does instead.
#[derive(Clone, Copy)]
pub enum Server<'a> {
    /// One without anything special: examples/hello.rs, which cargo builds with the tests.
    Hello,
    /// One that does what the test directs: see directed.rs.
    Directed,
    /// A shell script; `./server` in its folder is the first of these.
    Script(&'a str),
    /// Python code behind the preamble of python.rs.
    Python(&'a str),
}

impl Server<'_> {
    /// Put its files into the folder, and give its line.
    pub fn install(self, folder: &Folder) -> Vec<OsString> {
        match self {
            Server::Hello => {
                point(folder, &hello());
                vec![folder.path("server").into()]
            }
            Server::Directed => directed::line(),
            Server::Script(script) => {
                point(folder, &hello());
                folder.write("script", script);
                vec!["sh".into(), folder.path("script").into()]
            }
            Server::Python(code) => {
                let file = python::write(folder, code);
                vec![python::python().into(), "-IS".into(), file.into()]
            }
        }
    }
}

/// The options that give every generation its number and its folder, as all of these servers want.
pub fn settings(folder: &Folder) -> Vec<String> {
    let folder = format!("FOLDER={}", folder.as_ref().display());
    ["--env", "GENERATION={gen}", "--env", "HELLO_VERSION={gen}", "--env", &folder].map(str::to_owned).to_vec()
}

pub fn hello() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let hello = tests.ancestors().nth(2).unwrap().join("examples/hello");
    assert!(hello.exists(), "{} is built by cargo test, or cargo build --examples", hello.display());
    hello
}

/// Make `server` in the folder lead to a file.
pub fn point(folder: &Folder, target: &Path) {
    symlink(target, folder.path("server.new")).unwrap();
    fs::rename(folder.path("server.new"), folder.path("server")).unwrap();
}
