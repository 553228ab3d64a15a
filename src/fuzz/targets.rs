//! What cargo-fuzz runs: for each kind of input that is not ours, what holds of any bytes. `cargo test` holds it against
//! the inputs in `tests/seeds`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::kernel::socket_info::States;
use crate::kernel::{caller, descriptors, fdinfo, proc_net, processes, sock_diag, syscall};
use crate::saved;
use crate::socket::endpoint::Endpoint;
use crate::socket::interception::asked::Asked;
use crate::socket::spec::{FdName, Spec};
use crate::supervise::control::protocol;
use crate::supervise::generation::notify_socket;
use crate::supervise::upgrade::state::State;
use crate::sys::{self, Transport};
use crate::target::template::{Place, Setting, Template, Values, near_misses};

/// What panics where it does not hold.
type Check = fn(&[u8]);

/// Each with the name of its program in `fuzz/Cargo.toml`, and of its folder of seeds.
const TARGETS: [(&str, Check); 8] = [
    ("spec", spec),
    ("template", template),
    ("control", control),
    ("notification", notify_socket::fuzz::check),
    ("netlink", sock_diag::fuzz::check),
    ("proc", proc),
    ("state", state),
    ("address", address),
];

/// Hold the target of this name against an input.
pub(crate) fn run(target: &str, input: &[u8]) {
    let (_, check) = TARGETS.iter().find(|(name, _)| *name == target).expect("fuzz/Cargo.toml has no other name");
    check(input);
}

fn spec(text: &[u8]) {
    let text = OsStr::from_bytes(text);
    if let Ok(spec) = Spec::parse(text) {
        assert_eq!(spec.to_string(), text.to_string_lossy());
        assert!(FdName::announced(spec.fd_name().as_str()).is_some());
    }
}

fn template(text: &[u8]) {
    let address = "[::1]:80".parse().expect("it is an address");
    let place = Place {
        name: FdName::default(),
        fd: Some(3),
        endpoint: Endpoint::Inet { kind: Transport::Tcp, address, v6only: false },
    };
    let values = Values { places: vec![place], generation: 2, pid: 77 };
    let argument = Template::argument(text);
    match argument.expand(&values) {
        Ok(expanded) if argument.is_literal() => assert_eq!(expanded, text),
        // The longest value is shorter than the shortest placeholder and its own length together.
        Ok(expanded) => assert!(expanded.len() <= 3 * text.len()),
        Err(error) => assert!(!argument.is_literal(), "{error}"),
    }
    if let Ok(Setting { key, value }) = Setting::parse(OsStr::from_bytes(text)) {
        assert!(!key.is_empty() && !key.as_bytes().contains(&b'='));
        let _ = value.expand(&values);
    }
    near_misses(text);
}

fn control(line: &[u8]) {
    protocol::fuzz::check_call(line);
    protocol::fuzz::check_reply(line);
}

/// Every parser of a file in /proc, or of two that follow each other.
fn proc(file: &[u8]) {
    let (one, other) = file.split_at(file.len() / 2);
    let text = String::from_utf8_lossy(file);
    let (former, latter) = (String::from_utf8_lossy(one), String::from_utf8_lossy(other));
    caller::fuzz::check(&text);
    descriptors::fuzz::check(file);
    fdinfo::fuzz::check(&former, &latter);
    for states in [States::ALL, States::LISTENING, States::CONNECTED] {
        proc_net::fuzz::check_inet(&former, &latter, states);
        proc_net::fuzz::check_unix(one, other, states);
    }
    processes::fuzz::check_line(file);
    processes::fuzz::check_children(&former, &latter);
    syscall::fuzz::check(file);
    sys::fuzz::check_directory(file);
    sys::fuzz::check_process(file);
}

/// What is read is written so that it is read again.
fn state(text: &[u8]) {
    if let Ok(state) = saved::parse::<State>(text) {
        let written = serde_json::to_vec(&state).expect("a state can be written");
        let read: State = saved::parse(&written).expect("a state can be read");
        assert_eq!(serde_json::to_vec(&read).expect("a state can be written"), written);
    }
}

fn address(bytes: &[u8]) {
    match Asked::parse(bytes) {
        Some(Asked::Inet(address)) => assert!(address.port() != 0 && bytes.len() >= 16),
        Some(Asked::Unix(_)) => assert!(bytes.len() > 2),
        Some(Asked::Vsock { port, .. }) => assert!(port != libc::VMADDR_PORT_ANY && bytes.len() >= 12),
        None => (),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_target_holds_against_its_seeds() {
        for (name, _) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(name);
            let seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path())).collect();
            assert!(seeds.len() >= 3, "{name} has {} seeds", seeds.len());
            seeds.into_iter().for_each(|seed| run(name, &seed.unwrap()));
        }
    }

    #[test]
    fn every_target_has_a_program() {
        // A crate of its own, which Cargo does not package with this one.
        let Ok(manifest) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml")) else {
            return;
        };
        let names: Vec<&str> =
            manifest.split("[[bin]]\nname = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(names, TARGETS.map(|(name, _)| name));
    }
}
