//! Supervisors of servers that open their address themselves.

use std::sync::Arc;

use super::setup::{Setup, supervise_in};
use super::{Folder, Server};

/// A supervisor of this Python server, which may call `opened()`, on a free port.
pub fn intercept(code: &str, options: &[&str]) -> Setup {
    intercept_in(&Arc::new(Folder::new()), code, options)
}

/// The same in a folder that is there already.
pub fn intercept_in(folder: &Arc<Folder>, code: &str, options: &[&str]) -> Setup {
    let settings = ["--intercept", "--env", "SOCKET=", "--env", "ADDRESS={addr}"];
    supervise_in(folder, Server::Python(code), options).options(&settings)
}
