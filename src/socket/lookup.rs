//! Names of hosts, services, users and groups, looked up by getent(1), with the system's own libc and its
//! nsswitch.conf(5). A static program that did so itself would load the modules of another libc.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Error, Result, anyhow, ensure};

use crate::failure::plain;
use crate::sys;

/// The addresses of a host, in the order of getaddrinfo(3).
pub(crate) fn host(name: &str) -> Result<Vec<IpAddr>> {
    // Loopback needs no query (RFC 6761, 6.3).
    if name == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    // Not every getent knows ahosts; hosts may leave out what getaddrinfo(3) would find.
    let answer = getent("ahosts", name).or_else(|_| getent("hosts", name)).with_context(|| format!("host {name}"))?;
    // One line for each type of socket: `ADDRESS STREAM NAME`, `ADDRESS DGRAM` and so on; or `ADDRESS NAME ...`.
    let addresses = answer.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse().ok());
    Ok(addresses.collect())
}

/// The port of a service, for "tcp" or "udp".
pub(crate) fn service(name: &str, protocol: &str) -> Result<u16> {
    let context = || format!("service {name}");
    // `NAME PORT/PROTOCOL ALIAS...`
    let answer = getent("services", &format!("{name}/{protocol}")).with_context(context)?;
    let port = answer.split_ascii_whitespace().nth(1).and_then(|field| field.split_once('/')?.0.parse().ok());
    port.ok_or_else(unreadable).with_context(context)
}

/// A user's number; a number stands for itself.
pub(crate) fn user(name: &str) -> Result<u32> {
    id("passwd", name).with_context(|| format!("user {name}"))
}

/// A group's number; a number stands for itself.
pub(crate) fn group(name: &str) -> Result<u32> {
    id("group", name).with_context(|| format!("group {name}"))
}

/// The third field of passwd(5) and group(5).
fn id(database: &str, name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    getent(database, name)?.split(':').nth(2).and_then(|field| field.parse().ok()).ok_or_else(unreadable)
}

fn getent(database: &str, key: &str) -> Result<String> {
    // Not behind `--`, which Alpine's takes for a key.
    ensure!(!key.starts_with('-'), "not found");
    let words = ["getent", database, key].map(|word| CString::new(word).expect("the parser lets no NUL pass"));
    let answer = sys::output(&words).map_err(plain).context("getent, which would look it up")?;
    // Its status 2 is for a key that was not found; an empty answer means the same.
    let answer = String::from_utf8_lossy(&answer);
    let first = answer.trim_end();
    ensure!(!first.is_empty(), "not found");
    Ok(first.to_owned())
}

fn unreadable() -> Error {
    anyhow!("cannot parse getent's answer")
}
