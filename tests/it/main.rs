//! handoff-run as its users meet it: real processes, real sockets, real failures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod announced;
mod bad_input;
mod exec;
mod harness;
mod lazy;
mod limits;
mod load;
mod local_sockets;
mod match_unix;
mod messages;
mod options;
mod probe;
mod sockets;
mod unix_access;
mod unix_paths;
