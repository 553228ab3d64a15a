//! The grammar by examples and by refusals.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::socket::address::{Family, Host, Inet, Port, UnixKind, UnixName};
use crate::sys::Transport;

fn parsed(text: &str) -> Spec {
    Spec::parse(text.as_ref()).unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

fn tcp(family: Family, host: Host, port: u16) -> Address {
    Address::Inet(Inet { kind: Transport::Tcp, family, host, port: Port::Number(port) })
}

fn udp(family: Family, host: Host, port: u16) -> Address {
    Address::Inet(Inet { kind: Transport::Udp, family, host, port: Port::Number(port) })
}

fn host(name: &str) -> Host {
    Host::Name(name.to_owned())
}

fn v6(address: Ipv6Addr) -> Host {
    Host::V6(address, None)
}

fn path(kind: UnixKind, path: &str) -> Address {
    Address::Unix { kind, name: UnixName::Path(path.into()) }
}

fn abstract_name(kind: UnixKind, name: &str) -> Address {
    Address::Unix { kind, name: UnixName::Abstract(name.into()) }
}

#[test]
fn every_kind_of_internet_address_means_what_the_manual_says() {
    use Family::{Either, V4, V6};
    let here = Ipv4Addr::LOCALHOST;
    let http =
        |kind| Address::Inet(Inet { kind, family: Either, host: Host::Every, port: Port::Service("http".into()) });
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let table = [
        (":8000", tcp(Either, Host::Every, 8000)),
        (":0", tcp(Either, Host::Every, 0)),
        (":65535", tcp(Either, Host::Every, 65535)),
        (":08000", tcp(Either, Host::Every, 8000)),
        ("127.0.0.1:8000", tcp(Either, Host::V4(here), 8000)),
        ("0.0.0.0:8000", tcp(Either, Host::V4(Ipv4Addr::UNSPECIFIED), 8000)),
        ("[::1]:8000", tcp(Either, v6(Ipv6Addr::LOCALHOST), 8000)),
        ("[::]:8000", tcp(Either, v6(Ipv6Addr::UNSPECIFIED), 8000)),
        ("[fe80::1%eth0]:8000", tcp(Either, Host::V6(link_local, Some("eth0".into())), 8000)),
        ("[::ffff:127.0.0.1]:8000", tcp(Either, v6(here.to_ipv6_mapped()), 8000)),
        ("example.com:8000", tcp(Either, host("example.com"), 8000)),
        ("localhost:8000", tcp(Either, host("localhost"), 8000)),
        // No number of four parts, so a name: getaddrinfo(3) decides.
        ("127.1:8000", tcp(Either, host("127.1"), 8000)),
        (":http", http(Transport::Tcp)),
        ("udp::http", http(Transport::Udp)),
        ("tcp::8000", tcp(Either, Host::Every, 8000)),
        ("tcp4::8000", tcp(V4, Host::Every, 8000)),
        ("tcp6::8000", tcp(V6, Host::Every, 8000)),
        ("tcp4:localhost:8000", tcp(V4, host("localhost"), 8000)),
        ("tcp6:[::1]:8000", tcp(V6, v6(Ipv6Addr::LOCALHOST), 8000)),
        ("udp::53", udp(Either, Host::Every, 53)),
        ("udp4:127.0.0.1:53", udp(V4, Host::V4(here), 53)),
        ("udp6::53", udp(V6, Host::Every, 53)),
        ("tcp://127.0.0.1:8000", tcp(Either, Host::V4(here), 8000)),
        ("udp://:53", udp(Either, Host::Every, 53)),
        // A host that is named like a type stands behind one.
        ("tcp:tcp:80", tcp(Either, host("tcp"), 80)),
        ("udp:vsock:80", udp(Either, host("vsock"), 80)),
        ("TCP:80", tcp(Either, host("TCP"), 80)),
    ];
    for (text, address) in table {
        assert_eq!(parsed(text).address, address, "{text}");
    }
}

#[test]
fn every_other_kind_of_address_means_what_the_manual_says() {
    use UnixKind::{Datagram, SeqPacket, Stream};
    let longest = "x".repeat(107);
    let table = [
        ("/run/app.sock", path(Stream, "/run/app.sock")),
        ("unix:/run/app.sock", path(Stream, "/run/app.sock")),
        ("unix:///run/app.sock", path(Stream, "/run/app.sock")),
        ("./app.sock", path(Stream, "./app.sock")),
        ("../app.sock", path(Stream, "../app.sock")),
        ("unix:app.sock", path(Stream, "app.sock")),
        ("//run/app.sock", path(Stream, "//run/app.sock")),
        ("unix:////run/app.sock", path(Stream, "//run/app.sock")),
        ("./@name", path(Stream, "./@name")),
        ("/run/a=b:c", path(Stream, "/run/a=b:c")),
        (r"/run/a\,b", path(Stream, "/run/a,b")),
        (r"/run/a\\b", path(Stream, r"/run/a\b")),
        (r"/run/a\b", path(Stream, r"/run/a\b")),
        (r"/run/a\\\,b", path(Stream, r"/run/a\,b")),
        (r"/run/a\", path(Stream, r"/run/a\")),
        ("/run/ünïx \u{1f600}", path(Stream, "/run/ünïx \u{1f600}")),
        ("unix:@name", abstract_name(Stream, "name")),
        ("unix:@/a:b=c", abstract_name(Stream, "/a:b=c")),
        ("unix-dgram:/dev/log", path(Datagram, "/dev/log")),
        ("unix-dgram:@log", abstract_name(Datagram, "log")),
        ("unix-seqpacket:/run/s", path(SeqPacket, "/run/s")),
        (&format!("unix:{longest}"), path(Stream, &longest)),
        (&format!("unix:@{longest}"), abstract_name(Stream, &longest)),
        ("vsock:3:80", Address::Vsock { cid: Some(3), port: 80 }),
        ("vsock::80", Address::Vsock { cid: None, port: 80 }),
        ("vsock:4294967295:4294967295", Address::Vsock { cid: None, port: u32::MAX }),
        ("fd:5", Address::Descriptor(5)),
    ];
    for (text, address) in table {
        assert_eq!(parsed(text).address, address, "{text}");
    }
}

#[test]
fn a_name_stands_before_the_first_equals_sign_of_what_is_no_path_and_has_no_type() {
    let table = [
        ("web=:80", Some("web"), ":80"),
        ("a b!~=:80", Some("a b!~"), ":80"),
        (r"a\,b=:80", Some("a,b"), ":80"),
        ("tcp=:80", Some("tcp"), ":80"),
        ("web=/run/a=b", Some("web"), "/run/a=b"),
        ("unix:a=b", None, "unix:a=b"),
        ("/run/a=b", None, "/run/a=b"),
        ("./a=b", None, "unix:./a=b"),
    ];
    for (text, name, address) in table {
        let spec = parsed(text);
        assert_eq!(spec.name.as_ref().map(FdName::as_str), name, "{text}");
        assert_eq!(spec.address, parsed(address).address, "{text}");
        assert_eq!(spec.to_string(), text, "the user's text is kept");
    }
    assert_eq!(parsed(":80").fd_name().as_str(), "unknown");
    assert_eq!(parsed(&format!("{}=:80", "n".repeat(255))).fd_name().as_str(), "n".repeat(255));
}

#[test]
fn options_follow_in_any_order() {
    let options = parsed("/run/s,mode=660,user=www,group=33,backlog=5,rcvbuf=1,sndbuf=2147483647,nonblock").options;
    assert_eq!(
        ["mode", "backlog", "rcvbuf", "sndbuf"].map(|name| options.number(name)),
        [Some(0o660), Some(5), Some(1), Some(i32::MAX as u32)]
    );
    assert_eq!(["user", "group"].map(|name| options.word(name)), [Some("www"), Some("33")]);
    assert!(options.has("nonblock"));
    let options = parsed(r":80,device=a\,b,defer-accept=3,keepalive,nodelay,reuseport,freebind,v6only").options;
    assert_eq!((options.word("device"), options.number("defer-accept")), (Some("a,b"), Some(3)));
    assert!(["keepalive", "nodelay", "reuseport", "freebind", "v6only"].iter().all(|name| options.has(name)));
}

const BARE_80: &str = "a bare number is ambiguous: write :80 for every interface or 127.0.0.1:80 for this host only";
const NO_PORT: &str = "write HOST:PORT, or a path beginning with / or ./ for a Unix socket";
const BRACKETS: &str = "an IPv6 address stands in brackets, as in [::1]:8000";
const TOO_LONG: &str = "a Unix socket's name has at most 107 bytes";

#[test]
fn an_address_that_is_none_is_refused_with_what_to_write() {
    let long_path = format!("/{}", "x".repeat(107));
    let long_name = format!("unix:@{}", "ü".repeat(54));
    let table = [
        ("", "the address is empty"),
        ("web=", "the address is empty"),
        ("80", BARE_80),
        ("web=80", BARE_80),
        ("tcp:80", BARE_80),
        (
            "udp:53",
            "a bare number is ambiguous: write udp::53 for every interface or udp:127.0.0.1:53 for this host only",
        ),
        (
            "tcp6:80",
            "a bare number is ambiguous: write tcp6::80 for every interface or tcp6:[::1]:80 for this host only",
        ),
        ("65536", "port 65536 is not from 0 to 65535"),
        ("+80", NO_PORT),
        ("localhost", NO_PORT),
        ("app.sock", NO_PORT),
        ("@name", "write unix:@name for an abstract socket"),
        (":", r#""" is neither a port nor a service name"#),
        (":+80", r#""+80" is neither a port nor a service name"#),
        (":-1", r#""-1" is neither a port nor a service name"#),
        (":ht tp", r#""ht tp" is neither a port nor a service name"#),
        (":65536", "port 65536 is not from 0 to 65535"),
        (":99999999999999999999", "port 99999999999999999999 is not from 0 to 65535"),
        ("[::1", BRACKETS),
        ("[::1:80", BRACKETS),
        ("[::1]", BRACKETS),
        ("::1:80", BRACKETS),
        ("a:b:80", BRACKETS),
        ("[localhost]:80", r#""localhost" is not an IPv6 address"#),
        ("[127.0.0.1]:80", r#""127.0.0.1" is not an IPv6 address"#),
        ("[::1%]:80", r#""::1%" does not name an interface behind %"#),
        ("[::1%a b]:80", r#""::1%a b" does not name an interface behind %"#),
        ("ho st:80", r#""ho st" is not a host name"#),
        ("höst:80", r#""höst" is not a host name"#),
        ("a/b:80", r#""a/b" is not a host name"#),
        ("tcp4:[::1]:80", r#""[::1]:80" is not an IPv4 address"#),
        ("udp6:127.0.0.1:80", r#""127.0.0.1:80" is not an IPv6 address"#),
        ("unix:", "the name of the Unix socket is empty"),
        ("unix://", "the name of the Unix socket is empty"),
        ("unix-dgram:@", "the name of the Unix socket is empty"),
        (&long_path, TOO_LONG),
        (&long_name, TOO_LONG),
        ("/run/a\0b", "a NUL byte cannot be part of it"),
        ("vsock:1", "write vsock:CID:PORT, or vsock::PORT for any context"),
        ("vsock:1:", r#""" is not a number"#),
        ("vsock:-1:80", r#""-1" is not a number"#),
        ("vsock::4294967296", "4294967296 is not from 0 to 4294967295"),
        ("fd:x", r#""x" is not the number of a descriptor"#),
        ("fd:", r#""" is not the number of a descriptor"#),
        ("fd:-1", r#""-1" is not the number of a descriptor"#),
        ("fd:2147483648", r#""2147483648" is not the number of a descriptor"#),
    ];
    for (text, message) in table {
        assert_eq!(refusal(text), message, "{text}");
    }
}

#[test]
fn a_name_or_an_option_that_cannot_be_is_refused() {
    let long = "n".repeat(256);
    let long_message = format!("name {long:?} is not printable ASCII of at most 255 characters");
    let here = "; here it may be backlog, v6only, reuseport, freebind, device, defer-accept, keepalive, nodelay, rcvbuf, \
                sndbuf or nonblock";
    let table = [
        ("=:80", "the name before = is empty"),
        ("wéb=:80", r#"name "wéb" is not printable ASCII of at most 255 characters"#),
        ("we\tb=:80", r#"name "we\tb" is not printable ASCII of at most 255 characters"#),
        (&format!("{long}=:80"), &long_message),
        ("we:b=:80", BRACKETS),
        ("we/b=:80", r#""we/b=" is not a host name"#),
        (":80,", &format!("unknown option {here}")),
        (":80,none", &format!("unknown option none{here}")),
        (":80,Backlog=1", &format!("unknown option Backlog{here}")),
        (":80,backlog", "option backlog needs a value: backlog=N"),
        (":80,backlog=", r#"option backlog: "" is not from 0 to 2147483647"#),
        (":80,backlog=-1", r#"option backlog: "-1" is not a number in base 10"#),
        (":80,backlog=+1", r#"option backlog: "+1" is not a number in base 10"#),
        (":80,backlog=2147483648", r#"option backlog: "2147483648" is not from 0 to 2147483647"#),
        (":80,backlog=1,backlog=1", "option backlog is given twice"),
        (":80,reuseport,nodelay,reuseport", "option reuseport is given twice"),
        (":80,reuseport=1", "option reuseport takes no value"),
        (":80,device=", "option device needs a value: device=WORD"),
        ("/run/s,mode", "option mode needs a value: mode=0660"),
        ("/run/s,mode=888", r#"option mode: "888" is not a number in base 8"#),
        ("/run/s,mode=1777", r#"option mode: "1777" is not from 0 to 777"#),
        ("/run/s,user=", "option user needs a value: user=WORD"),
        ("127.0.0.1:80,v6only", "option v6only does not fit an IPv4 address"),
        ("tcp4::80,v6only", "option v6only does not fit an IPv4 address"),
        ("/run/s,v6only", "option v6only does not fit this kind of socket"),
        (":80,mode=660", "option mode does not fit this kind of socket"),
        ("unix:@s,user=root", "option user does not fit this kind of socket"),
        ("udp::80,backlog=1", "option backlog does not fit this kind of socket"),
        ("udp::80,nodelay", "option nodelay does not fit this kind of socket"),
        ("unix-dgram:/s,backlog=1", "option backlog does not fit this kind of socket"),
        ("vsock::80,reuseport", "option reuseport does not fit this kind of socket"),
        ("fd:5,nonblock", "option nonblock does not fit this kind of socket"),
    ];
    for (text, message) in table {
        assert_eq!(refusal(text), message, "{text}");
    }
}

fn refusal(text: &str) -> String {
    match Spec::parse(text.as_ref()) {
        Ok(spec) => panic!("{text:?} is {spec:?}"),
        Err(error) => format!("{error:#}"),
    }
}

proptest! {
    #[test]
    fn no_text_at_all_makes_the_parser_panic(text in any::<String>()) {
        let _ = Spec::parse(text.as_ref());
    }

    #[test]
    fn no_text_that_looks_like_a_spec_makes_the_parser_panic(text in r"((unix|unix-dgram|tcp6?|udp|vsock|fd):)?(//)?[a-c0-9:/.,=\\@%\[\]+-]{0,20}(,(mode|user|backlog|nodelay|v6only)(=[0-9a\\,]{1,3})?)?") {
        if let Ok(spec) = Spec::parse(text.as_ref()) {
            prop_assert_eq!(spec.to_string(), text);
        }
    }
}
