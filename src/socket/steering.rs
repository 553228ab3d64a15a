//! Which socket of an SO_REUSEPORT group a new connection goes to: a program of classic BPF, as data. Pure.
//!
//! socket(7), SO_ATTACH_REUSEPORT_CBPF: the program returns the index of a socket in its group. Its data begins behind the
//! transport header; offsets from SKF_NET_OFF on lead to the network header (linux/filter.h).

use std::net::{IpAddr, SocketAddr};

use libc::sock_filter;

/// Where new connections go, by places in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Course {
    /// The place of the one that serves.
    pub(crate) serving: u32,
    /// Another for some clients.
    pub(crate) exception: Option<(Client, u32)>,
    /// Another for a share of the rest.
    pub(crate) share: Option<(Share, u32)>,
}

/// A client that is known by where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Any port of this address.
    Address(IpAddr),
    /// One port of it.
    Port(SocketAddr),
}

/// A share of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) percent: u8,
    pub(crate) choice: Choice,
}

/// How it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// For each connection anew.
    Random,
    /// By the client's address, and this number: one that is in a share is in each larger one too.
    Address { salt: u32 },
}

// linux/filter.h: what offsets below zero lead to.
const NETWORK: u32 = -0x10_0000_i32 as u32;
const RANDOM: u32 = (-0x1000_i32 + 56) as u32;

// linux/bpf_common.h and linux/filter.h: what an instruction does.
pub(super) const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
/// From the offset in X and the instruction's own.
const LOAD_HALF_AT_X: u16 = 0x48;
/// X becomes the length of the IPv4 header at the offset.
const X_HEADER_LENGTH: u16 = 0xb1;
const X_FROM_A: u16 = 0x07;
const MULTIPLY: u16 = 0x24;
const SHIFT_RIGHT: u16 = 0x74;
const MODULO: u16 = 0x94;
const XOR: u16 = 0xa4;
const XOR_X: u16 = 0xac;
const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
const IF_NOT_BELOW: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

// Offsets in the headers: RFC 791, RFC 8200; a port of the source is at the beginning of those of TCP and UDP.
const V4_SOURCE: u32 = NETWORK + 12;
const V6_SOURCE: u32 = NETWORK + 8;
const V6_PORT: u32 = NETWORK + 40;

impl Course {
    /// Everything goes to one place.
    pub(crate) fn straight(serving: u32) -> Course {
        Course { serving, exception: None, share: None }
    }

    /// The program.
    pub(crate) fn program(&self) -> Vec<sock_filter> {
        let mut program = Vec::new();
        if let Some((client, place)) = self.exception {
            program.extend(when(&client.test(), place));
        }
        if let Some((share, place)) = self.share {
            program.extend(share.choice.number());
            program.extend([step(MODULO, 100), branch(IF_NOT_BELOW, share.percent.into(), 1, 0), step(RETURN, place)]);
        }
        program.push(step(RETURN, self.serving));
        program
    }
}

/// A value that is loaded, and what it has to be.
type Test = (Vec<sock_filter>, u32);

impl Client {
    /// What holds of its packets and of no others.
    fn test(self) -> Vec<Test> {
        let (ip, port) = match self {
            Client::Address(ip) => (ip, None),
            Client::Port(address) => (address.ip(), Some(address.port())),
        };
        let version = |number| (vec![step(LOAD_BYTE, NETWORK), step(SHIFT_RIGHT, 4)], number);
        let mut tests = Vec::new();
        match ip {
            IpAddr::V4(ip) => {
                tests.push(version(4));
                tests.push((vec![step(LOAD_WORD, V4_SOURCE)], ip.to_bits()));
                // Behind the options.
                let load = || vec![step(X_HEADER_LENGTH, NETWORK), step(LOAD_HALF_AT_X, NETWORK)];
                tests.extend(port.map(|port| (load(), port.into())));
            }
            IpAddr::V6(ip) => {
                tests.push(version(6));
                let words = ip.to_bits().to_be_bytes();
                for (at, word) in (V6_SOURCE..).step_by(4).zip(words.as_chunks::<4>().0) {
                    tests.push((vec![step(LOAD_WORD, at)], u32::from_be_bytes(*word)));
                }
                tests.extend(port.map(|port| (vec![step(LOAD_HALF, V6_PORT)], port.into())));
            }
        }
        tests
    }
}

/// Return `place` if all tests hold, else go on behind.
fn when(tests: &[Test], place: u32) -> Vec<sock_filter> {
    let mut program = vec![step(RETURN, place)];
    for (load, value) in tests.iter().rev() {
        let behind = program.len() as u8;
        let test = load.iter().copied().chain([branch(IF_EQUAL, *value, 0, behind)]);
        program = test.chain(program).collect();
    }
    program
}

impl Choice {
    /// Leave a number in A, all of them equally often.
    fn number(self) -> Vec<sock_filter> {
        let Choice::Address { salt } = self else { return vec![step(LOAD_WORD, RANDOM)] };
        let mut program = vec![step(LOAD_BYTE, NETWORK), step(SHIFT_RIGHT, 4), branch(IF_EQUAL, 6, 0, 6)];
        // Of IPv6 the first 64 bits: clients change the rest.
        program.extend([step(LOAD_WORD, V6_SOURCE), step(MULTIPLY, 0x85eb_ca6b), step(X_FROM_A, 0)]);
        program.extend([step(LOAD_WORD, V6_SOURCE + 4), step(XOR_X, 0), step(JUMP, 1)]);
        program.push(step(LOAD_WORD, V4_SOURCE));
        // The end of MurmurHash3: every bit of the address decides on every bit of the number.
        program.push(step(XOR, salt));
        for (shift, factor) in [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35)] {
            program.extend([step(X_FROM_A, 0), step(SHIFT_RIGHT, shift), step(XOR_X, 0), step(MULTIPLY, factor)]);
        }
        program.extend([step(X_FROM_A, 0), step(SHIFT_RIGHT, 16), step(XOR_X, 0)]);
        program
    }
}

pub(super) fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Skip so many instructions if it holds, or does not.
pub(super) fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
#[path = "steering/tests.rs"]
mod tests;
