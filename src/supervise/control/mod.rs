//! The control socket: its protocol, the end that the supervisor has, and the end that --reload and its like have.

pub(crate) mod client;
mod connection;
mod server;
pub(crate) mod status;

pub(crate) use connection::{Asked, Client, Live, Wants};
pub(crate) use server::Control;
