//! What the tests run, and how they look at what it did. Every wait is for a fact and under one deadline.

pub mod by_hand;
pub mod canary;
pub mod case;
pub mod cgroup;
pub mod client;
pub mod control;
pub mod deploy;
pub mod directed;
pub mod facts;
pub mod filter;
pub mod folder;
pub mod forms;
pub mod intercept;
pub mod json;
pub mod log;
pub mod manager;
pub mod namespace;
pub mod probe;
pub mod process;
pub mod python;
pub mod report;
pub mod request;
pub mod run;
pub mod server;
pub mod setup;
pub mod shell;
pub mod socket;
pub mod store;
pub mod supervisor;
pub mod systemd;
pub mod trial;

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

pub use folder::Folder;
pub use report::Report;
pub use run::{Output, Run, Running, handoff_run, handoff_run_with};
pub use server::Server;
pub use setup::supervise;
pub use supervisor::Supervisor;

/// How long any fact may take to come true, on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_handoff-run");

/// Wait until `fact` gives a value.
#[track_caller]
pub fn wait_for<T>(what: &str, fact: impl FnMut() -> Option<T>) -> T {
    try_for(fact).unwrap_or_else(|| panic!("waited {DEADLINE:?} for {what}"))
}

/// The same; none when the deadline has come.
pub fn try_for<T>(mut fact: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match fact() {
            // Many facts are to be found in /proc, where to look takes the time of those who are to make them true.
            None if start.elapsed() < DEADLINE => thread::sleep(pause),
            found => return found,
        }
        pause = (pause * 5 / 4).min(Duration::from_millis(20));
    }
}

/// Report on the real stderr, which the test runner shows although the test passes: a macro's words it would not.
pub fn remark(text: &str) {
    io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Report that something cannot be tested here.
pub fn skip(reason: &str) {
    remark(&format!("skipped: {reason}"));
}

/// Whether this is root; if not, `act` is skipped.
pub fn is_root_to(act: &str) -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        skip(&format!("only root can {act}"));
    }
    is_root
}
