//! handoff-run as its users meet it: real processes, real sockets, real failures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod adopt;
mod announced;
mod bad_input;
mod cannot_listen;
mod control;
mod exec;
mod facts;
mod generations;
mod harness;
mod lazy;
mod limits;
mod load;
mod local_sockets;
mod match_inet;
mod match_unix;
mod messages;
mod numbers;
mod options;
mod pid_file;
mod placeholders;
mod presets;
mod probe;
mod readiness;
mod rolling;
mod self_upgrade;
mod servers;
mod sockets;
mod stage;
mod stamp;
mod straits;
mod terminal;
mod transparency;
mod unix_access;
mod unix_paths;
