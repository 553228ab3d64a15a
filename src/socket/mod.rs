//! From a SPEC to a socket: the grammar, the address, and where the socket comes from.

pub(crate) mod acquire;
pub(crate) mod address;
pub(crate) mod announced;
pub(crate) mod bound_file;
pub(crate) mod candidate;
pub(crate) mod control_spec;
mod dead_socket;
pub(crate) mod endpoint;
pub(crate) mod group;
mod in_the_way;
pub(crate) mod interception;
mod joining;
pub(crate) mod listener;
pub(crate) mod lookup;
mod obeyed;
mod open;
pub(crate) mod options;
mod places;
pub(crate) mod remedy;
pub(crate) mod saved_sockets;
mod slot;
pub(crate) mod socket_file;
pub(crate) mod spec;
pub(crate) mod steering;
pub(crate) mod takeover;
pub(crate) mod unix_path;
pub(crate) mod upkeep;
