//! The options a SPEC may carry after its commas: one table of name, value, sockets it fits and socket option.
//! Pure but for the two functions that set one.

use std::fmt;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libc::c_int;
use nix::sys::socket::{setsockopt, sockopt};

use crate::socket::address::{Address, UnixKind, UnixName};
use crate::sys::{self, Transport};

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// No value: the option's presence means on.
    Nothing,
    /// A decimal number.
    Number,
    /// Permission bits in octal.
    Octal,
    /// A word, such as a user or an interface.
    Word,
}

/// A value as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// No value.
    On,
    /// A decimal number, or bits.
    Number(u32),
    /// A word.
    Word(String),
}

/// Where an option takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// setsockopt(2) with this level and option between socket(2) and bind(2).
    Socket(c_int, c_int),
    /// SO_BINDTODEVICE, the one that takes a word.
    Device,
    /// Read where the socket is bound: the file's mode or owner, the backlog, the family, O_NONBLOCK.
    Asked,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// As the user writes it.
    pub(crate) name: &'static str,
    /// What must follow it.
    pub(crate) takes: Takes,
    /// The classes of sockets that have it, as bits.
    fits: u8,
    effect: Effect,
    /// One line for the manual.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual is written by a test"))]
    pub(crate) meaning: &'static str,
}

// Classes of sockets.
const TCP: u8 = 1;
const UDP: u8 = 1 << 1;
const PATH_LISTENING: u8 = 1 << 2;
const PATH_DATAGRAM: u8 = 1 << 3;
const ABSTRACT_LISTENING: u8 = 1 << 4;
const ABSTRACT_DATAGRAM: u8 = 1 << 5;
const VSOCK: u8 = 1 << 6;
const INET: u8 = TCP | UDP;
const PATH: u8 = PATH_LISTENING | PATH_DATAGRAM;
const LISTENING: u8 = TCP | PATH_LISTENING | ABSTRACT_LISTENING | VSOCK;
const EVERY: u8 = u8::MAX;

/// The options, in the order of the manual.
#[rustfmt::skip]
pub(crate) const TABLE: [Row; 14] = [
    Row { name: "backlog", takes: Takes::Number, fits: LISTENING, effect: Effect::Asked, meaning: "connections that may wait to be accepted, instead of --backlog" },
    Row { name: "mode", takes: Takes::Octal, fits: PATH, effect: Effect::Asked, meaning: "permissions of the socket's file, in octal; without it the umask decides" },
    Row { name: "user", takes: Takes::Word, fits: PATH, effect: Effect::Asked, meaning: "owner of the socket's file, a name or a number" },
    Row { name: "group", takes: Takes::Word, fits: PATH, effect: Effect::Asked, meaning: "group of the socket's file, a name or a number" },
    Row { name: "v6only", takes: Takes::Nothing, fits: INET, effect: Effect::Asked, meaning: "IPv6 alone, no IPv4 through mapped addresses (IPV6_V6ONLY)" },
    Row { name: "reuseport", takes: Takes::Nothing, fits: INET, effect: Effect::Socket(libc::SOL_SOCKET, libc::SO_REUSEPORT), meaning: "let others of the same user bind the address too (SO_REUSEPORT)" },
    Row { name: "freebind", takes: Takes::Nothing, fits: INET, effect: Effect::Socket(libc::IPPROTO_IP, libc::IP_FREEBIND), meaning: "bind an address that no interface has yet (IP_FREEBIND)" },
    Row { name: "device", takes: Takes::Word, fits: INET, effect: Effect::Device, meaning: "only what comes in through this interface (SO_BINDTODEVICE)" },
    Row { name: "defer-accept", takes: Takes::Number, fits: TCP, effect: Effect::Socket(libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT), meaning: "seconds that a connection may wait for its first data before it is given to the server (TCP_DEFER_ACCEPT)" },
    Row { name: "keepalive", takes: Takes::Nothing, fits: TCP, effect: Effect::Socket(libc::SOL_SOCKET, libc::SO_KEEPALIVE), meaning: "probe idle connections (SO_KEEPALIVE)" },
    Row { name: "nodelay", takes: Takes::Nothing, fits: TCP, effect: Effect::Socket(libc::IPPROTO_TCP, libc::TCP_NODELAY), meaning: "send small segments at once (TCP_NODELAY)" },
    Row { name: "rcvbuf", takes: Takes::Number, fits: EVERY, effect: Effect::Socket(libc::SOL_SOCKET, libc::SO_RCVBUF), meaning: "receive buffer in bytes (SO_RCVBUF)" },
    Row { name: "sndbuf", takes: Takes::Number, fits: EVERY, effect: Effect::Socket(libc::SOL_SOCKET, libc::SO_SNDBUF), meaning: "send buffer in bytes (SO_SNDBUF)" },
    Row { name: "nonblock", takes: Takes::Nothing, fits: EVERY, effect: Effect::Asked, meaning: "O_NONBLOCK, for servers which need it and do not set it" },
];

/// The options of one SPEC. Each is in the table, fits its address, and is there once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options(Vec<(&'static Row, Value)>);

impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.name == other.name
    }
}

impl Eq for Row {}

impl Options {
    /// Read the pieces behind the address, `KEY` or `KEY=VALUE` each.
    pub(crate) fn parse<'a>(pieces: impl Iterator<Item = &'a str>, address: &Address) -> Result<Options> {
        let mut options = Options::default();
        for piece in pieces {
            let (name, value) = piece.split_once('=').map_or((piece, None), |(name, value)| (name, Some(value)));
            let row = TABLE.iter().find(|row| row.name == name).with_context(|| unknown(name, address))?;
            ensure!(row.fits & class(address) != 0, "option {name} does not fit this kind of socket");
            ensure!(name != "v6only" || address.may_be_ipv6(), "option v6only does not fit an IPv4 address");
            ensure!(options.get(name).is_none(), "option {name} is given twice");
            options.0.push((row, parse_value(row, value)?));
        }
        Ok(options)
    }

    /// The names of those that are there.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(row, _)| row.name)
    }

    /// The same, with these permissions of a socket's file unless there are others.
    pub(super) fn or_mode(&self, bits: u32) -> Options {
        let mut options = self.clone();
        if !options.has("mode") {
            let row = TABLE.iter().find(|row| row.name == "mode").expect("the table has a mode");
            options.0.push((row, Value::Number(bits)));
        }
        options
    }

    /// Is a flag there?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The number of an option.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        match self.get(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The word of an option.
    pub(crate) fn word(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Word(word) => Some(word),
            _ => None,
        }
    }

    /// Add an option without a value, unless it is there or does not fit `address`.
    pub(crate) fn add(&mut self, name: &str, address: &Address) {
        let fitting = TABLE.iter().find(|row| row.name == name && row.fits & class(address) != 0);
        if let Some(row) = fitting.filter(|_| !self.has(name)) {
            self.0.push((row, Value::On));
        }
    }

    /// Set those that take effect between socket(2) and bind(2).
    pub(crate) fn apply(&self, socket: impl AsFd) -> Result<()> {
        for (row, value) in &self.0 {
            match (row.effect, value) {
                (Effect::Socket(level, option), Value::Number(number)) => {
                    // The parser let no number pass that an int cannot hold.
                    sys::set_option(&socket, level, option, *number as c_int)
                }
                (Effect::Socket(level, option), _) => sys::set_option(&socket, level, option, 1),
                (Effect::Device, Value::Word(device)) => setsockopt(&socket, sockopt::BindToDevice, &device.into()),
                (Effect::Device, _) | (Effect::Asked, _) => Ok(()),
            }
            .with_context(|| format!("option {}", row.name))?;
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(row, _)| row.name == name).map(|(_, value)| value)
    }
}

/// That there is no such option, and those that there are.
fn unknown(name: &str, address: &Address) -> String {
    let names: Vec<&str> = TABLE.iter().filter(|row| row.fits & class(address) != 0).map(|row| row.name).collect();
    match names.split_last() {
        Some((last, others)) => format!("unknown option {name}; here it may be {} or {last}", others.join(", ")),
        None => format!("unknown option {name}; a socket that is open already takes none"),
    }
}

fn parse_value(row: &Row, value: Option<&str>) -> Result<Value> {
    let name = row.name;
    let Some(text) = value else {
        ensure!(row.takes == Takes::Nothing, "option {name} needs a value: {name}={}", row.takes);
        return Ok(Value::On);
    };
    match row.takes {
        Takes::Nothing => bail!("option {name} takes no value"),
        Takes::Word if text.is_empty() || text.contains('\0') => bail!("option {name} needs a value: {name}=WORD"),
        Takes::Word => Ok(Value::Word(text.to_owned())),
        Takes::Number => number(text, 10, c_int::MAX as u32).map_err(|error| anyhow!("option {name}: {error}")),
        Takes::Octal => number(text, 8, 0o777).map_err(|error| anyhow!("option {name}: {error}")),
    }
}

/// Digits only: the signs that Rust's own parser takes are typing mistakes here.
fn number(text: &str, radix: u32, most: u32) -> Result<Value> {
    ensure!(text.chars().all(|c| c.is_digit(radix)), "{text:?} is not a number in base {radix}");
    match u32::from_str_radix(text, radix) {
        Ok(number) if number <= most => Ok(Value::Number(number)),
        _ if radix == 8 => bail!("{text:?} is not from 0 to {most:o}"),
        _ => bail!("{text:?} is not from 0 to {most}"),
    }
}

fn class(address: &Address) -> u8 {
    match address {
        Address::Inet(inet) if inet.kind == Transport::Tcp => TCP,
        Address::Inet(_) => UDP,
        Address::Unix { kind: UnixKind::Datagram, name: UnixName::Path(_) } => PATH_DATAGRAM,
        Address::Unix { kind: UnixKind::Datagram, name: UnixName::Abstract(_) } => ABSTRACT_DATAGRAM,
        Address::Unix { name: UnixName::Path(_), .. } => PATH_LISTENING,
        Address::Unix { name: UnixName::Abstract(_), .. } => ABSTRACT_LISTENING,
        Address::Vsock { .. } => VSOCK,
        // A socket that the caller made is left as the caller made it.
        Address::Descriptor(_) => 0,
    }
}

impl fmt::Display for Takes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Takes::Nothing => "",
            Takes::Number => "N",
            Takes::Octal => "0660",
            Takes::Word => "WORD",
        })
    }
}
