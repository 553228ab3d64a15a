//! The control socket: its protocol, the end that the supervisor has, and the end that --reload and its like have.

pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod protocol;
pub(crate) mod server;
pub(crate) mod status;
