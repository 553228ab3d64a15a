//! The programs as this interpreter runs them; that the kernel does the same is seen where groups are tested.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

/// The place that a packet with this network header, whose transport header begins with the port, goes to.
fn place(course: &Course, packet: &[u8], random: u32) -> u32 {
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0);
    let load = |offset: u32, length: usize| -> u32 {
        if offset == RANDOM {
            return random;
        }
        let from = offset.wrapping_sub(NETWORK) as usize;
        packet[from..from + length].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
    };
    let program = course.program();
    loop {
        let instruction = program[at];
        let (k, mut skip) = (instruction.k, 0);
        let jump = |holds: bool| if holds { instruction.jt } else { instruction.jf };
        match instruction.code {
            LOAD_WORD => a = load(k, 4),
            LOAD_HALF => a = load(k, 2),
            LOAD_BYTE => a = load(k, 1),
            LOAD_HALF_AT_X => a = load(k.wrapping_add(x), 2),
            X_HEADER_LENGTH => x = (load(k, 1) & 0xf) * 4,
            X_FROM_A => x = a,
            MULTIPLY => a = a.wrapping_mul(k),
            SHIFT_RIGHT => a >>= k,
            MODULO => a %= k,
            XOR => a ^= k,
            XOR_X => a ^= x,
            JUMP => skip = k as usize,
            IF_EQUAL => skip = jump(a == k).into(),
            IF_NOT_BELOW => skip = jump(a >= k).into(),
            RETURN => return k,
            code => panic!("there is no {code:#x}"),
        }
        at += 1 + skip;
    }
}

/// Its headers, with so many words of options in an IPv4 one.
fn packet(from: SocketAddr, options: u8) -> Vec<u8> {
    let mut packet;
    match from.ip() {
        IpAddr::V4(ip) => {
            packet = vec![0; 20 + usize::from(options) * 4];
            packet[0] = 0x45 + options;
            packet[12..16].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            packet = vec![0; 40];
            packet[0] = 0x60;
            packet[8..24].copy_from_slice(&ip.octets());
        }
    }
    packet.extend(from.port().to_be_bytes());
    packet
}

fn from(address: &str) -> Vec<u8> {
    packet(address.parse().unwrap(), 0)
}

#[test]
fn a_straight_course_is_one_instruction() {
    assert_eq!(Course::straight(2).program(), [step(RETURN, 2)]);
}

#[test]
fn one_address_or_one_port_of_it_may_go_elsewhere() {
    let course = |client| Course { exception: Some((client, 7)), ..Course::straight(1) };
    let check = course(Client::Address("127.0.0.2".parse().unwrap()));
    assert_eq!(place(&check, &from("127.0.0.2:5"), 0), 7);
    assert_eq!(place(&check, &from("127.0.0.3:5"), 0), 1);
    // Its bytes are where an IPv4 header has its source.
    assert_eq!(place(&check, &from("[0:0:7f00:2::]:5"), 0), 1);
    let probe = course(Client::Port("127.0.0.1:513".parse().unwrap()));
    for options in 0..=10 {
        assert_eq!(place(&probe, &packet("127.0.0.1:513".parse().unwrap(), options), 0), 7, "{options}");
        assert_eq!(place(&probe, &packet("127.0.0.1:514".parse().unwrap(), options), 0), 1, "{options}");
    }
    assert_eq!(place(&probe, &from("127.0.0.9:513"), 0), 1);
    assert_eq!(place(&probe, &from("[::1]:513"), 0), 1);
    let probe = course(Client::Port("[fd00::2:1]:513".parse().unwrap()));
    assert_eq!(place(&probe, &from("[fd00::2:1]:513"), 0), 7);
    for other in ["[fd00::2:1]:512", "[fd00::3:1]:513", "[fd01::2:1]:513", "[fd00:0:1::2:1]:513", "1.2.3.4:513"] {
        assert_eq!(place(&probe, &from(other), 0), 1, "{other}");
    }
}

#[test]
fn a_share_of_all_connections_may_go_elsewhere() {
    for percent in [1, 5, 20, 50, 100] {
        let course = Course { share: Some((Share { percent, choice: Choice::Random }, 7)), ..Course::straight(1) };
        let went = (0..1000).filter(|random| place(&course, &from("1.2.3.4:5"), *random) == 7).count();
        assert_eq!(went, usize::from(percent) * 10);
    }
}

/// The clients of `all` that a share of so many percent has.
fn chosen(percent: u8, salt: u32, all: &[SocketAddr]) -> Vec<SocketAddr> {
    let share = Share { percent, choice: Choice::Address { salt } };
    let course = Course { share: Some((share, 7)), ..Course::straight(1) };
    all.iter().copied().filter(|client| place(&course, &packet(*client, 0), 0) == 7).collect()
}

#[test]
fn a_client_stays_in_its_share_and_in_every_larger_one() {
    // Neighbours, as the clients of one provider are.
    let v4: Vec<SocketAddr> = (0..10_000).map(|n| (Ipv4Addr::from_bits(0x0a01_0000 + n), 80).into()).collect();
    let v6: Vec<SocketAddr> =
        (0..10_000_u128).map(|n| (Ipv6Addr::from_bits(0xfd00 << 112 | n << 64 | (n * n)), 80).into()).collect();
    for all in [v4, v6] {
        let mut smaller = vec![];
        for percent in [1, 5, 20, 50, 100] {
            let larger = chosen(percent, 99, &all);
            assert!(smaller.iter().all(|client| larger.contains(client)), "{percent}");
            // Within three standard deviations.
            let share = f64::from(percent) / 100.0;
            let (expected, deviation) = (share * 10_000.0, (share * (1.0 - share) * 10_000.0).sqrt());
            assert!((larger.len() as f64 - expected).abs() <= 3.0 * deviation, "{percent}: {}", larger.len());
            smaller = larger;
        }
        // Another trial is made with other clients.
        let (one, other) = (chosen(20, 1, &all), chosen(20, 2, &all));
        let both = one.iter().filter(|client| other.contains(client)).count();
        assert!((200..600).contains(&both), "{both}");
    }
}

#[test]
fn of_an_ipv6_client_its_first_64_bits_count() {
    let of_one_network: Vec<SocketAddr> = (0..100)
        .map(|n| (Ipv6Addr::from_bits((0xfd00_0001 << 96) | (n * 0x1234_5678_9abc)), n as u16).into())
        .collect();
    let went = chosen(50, 3, &of_one_network).len();
    assert!(went == 0 || went == 100, "{went}");
}
