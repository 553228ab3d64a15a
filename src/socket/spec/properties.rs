//! What holds for every SPEC, and for every text that is none.

use std::net::Ipv6Addr;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::{collection, option};

use super::*;
use crate::socket::options::{Row, TABLE, Takes};

fn any_name() -> impl Strategy<Value = FdName> {
    "[ -.0-9;<>-~]{1,255}".prop_map(FdName)
}

/// What `is_word` lets pass, and is no type.
fn any_word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._+-]{0,10}[a-zA-Z][a-zA-Z0-9._+-]{0,10}"
}

fn any_host(family: Family) -> BoxedStrategy<Host> {
    let name = prop_oneof![any_word(), select(&TYPES[..]).prop_map(str::to_owned)].prop_map(Host::Name);
    let either = prop_oneof![Just(Host::Every), name];
    let v4 = any::<Ipv4Addr>().prop_map(Host::V4);
    let v6 = (any::<Ipv6Addr>(), option::of(any_word())).prop_map(|(address, zone)| Host::V6(address, zone));
    match family {
        Family::Either => prop_oneof![either, v4, v6].boxed(),
        Family::V4 => prop_oneof![either, v4].boxed(),
        Family::V6 => prop_oneof![either, v6].boxed(),
    }
}

fn any_inet() -> impl Strategy<Value = Address> {
    let kind = select(&[InetKind::Tcp, InetKind::Udp][..]);
    let host = select(&[Family::Either, Family::V4, Family::V6][..]).prop_flat_map(|f| (Just(f), any_host(f)));
    let port = prop_oneof![any::<u16>().prop_map(Port::Number), any_word().prop_map(Port::Service)];
    (kind, host, port).prop_map(|(kind, (family, host), port)| Address::Inet(Inet { kind, family, host, port }))
}

fn any_unix() -> impl Strategy<Value = Address> {
    let kind = select(&[UnixKind::Stream, UnixKind::Datagram, UnixKind::SeqPacket][..]);
    let text = prop_oneof![r"[,\\/=:@.a]{1,40}", r"[^\x00]{1,26}"];
    let path = text.clone().prop_filter("@ begins an abstract name", |text| !text.starts_with('@'));
    let name = prop_oneof![path.prop_map(UnixName::Path), text.prop_map(UnixName::Abstract)];
    (kind, name).prop_map(|(kind, name)| Address::Unix { kind, name })
}

fn any_address() -> impl Strategy<Value = Address> {
    let cid = option::of(any::<u32>().prop_filter("that is none", |cid| *cid != u32::MAX));
    prop_oneof![
        4 => any_inet(),
        4 => any_unix(),
        1 => (cid, any::<u32>()).prop_map(|(cid, port)| Address::Vsock { cid, port }),
        1 => (0..=RawFd::MAX).prop_map(Address::Descriptor),
    ]
}

/// An option as it is written, before its commas are escaped.
fn piece(row: &Row, number: u32, word: &str) -> String {
    match row.takes {
        Takes::Nothing => row.name.to_owned(),
        Takes::Number => format!("{}={}", row.name, number & 0x7fff_ffff),
        Takes::Octal => format!("{}={:o}", row.name, number & 0o777),
        Takes::Word => format!("{}={word}", row.name),
    }
}

/// Any of those that fit, in any order.
fn options_of(address: &Address, choice: Vec<(Index, u32, String)>) -> Options {
    let mut pieces: Vec<String> = Vec::new();
    for (at, number, word) in choice {
        pieces.push(piece(at.get(&TABLE), number, &word));
        if Options::parse(pieces.iter().map(String::as_str), address).is_err() {
            pieces.pop();
        }
    }
    Options::parse(pieces.iter().map(String::as_str), address).unwrap()
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let choice = collection::vec((any::<Index>(), any::<u32>(), r"[^\x00]{1,20}"), 0..20);
    (option::of(any_name()), any_address(), choice).prop_map(|(name, address, choice)| Spec {
        name,
        options: options_of(&address, choice),
        address,
    })
}

proptest! {
    #[test]
    fn every_spec_survives_printing_and_parsing(spec in any_spec()) {
        let text = spec.to_string();
        prop_assert_eq!(text.parse::<Spec>().map_err(|error| format!("{text}: {error:#}")), Ok(spec));
    }

    #[test]
    fn no_text_at_all_makes_the_parser_panic(text in any::<String>()) {
        let _ = text.parse::<Spec>();
    }

    #[test]
    fn what_parses_prints_to_what_parses_to_the_same(text in r"((unix|unix-dgram|tcp6?|udp|vsock|fd):)?(//)?[a-c0-9:/.,=\\@%\[\]+-]{0,20}(,(mode|user|backlog|nodelay|v6only)(=[0-9a\\,]{1,3})?)?") {
        if let Ok(spec) = text.parse::<Spec>() {
            prop_assert_eq!(spec.to_string().parse::<Spec>().map_err(|error| error.to_string()), Ok(spec));
        }
    }
}
