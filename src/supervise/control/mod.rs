//! The control socket: its protocol, the server in the supervisor, and the client for --reload, --status and --stop.

pub(crate) mod borrow;
pub(crate) mod client;
pub(crate) mod connection;
mod prometheus;
pub(crate) mod protocol;
pub(crate) mod replies;
pub(crate) mod server;
pub(crate) mod status;
