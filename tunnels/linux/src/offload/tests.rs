//! What is cut can be joined again, and neither changes a byte that an application sends.

use super::join::Joiner;
use super::split::{Unsplit, split};
use super::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Header, LENGTH, NEEDS_CSUM};
use super::{checksum, packet};
use proptest::prelude::*;

const MTU: usize = 1420;

/// A TCP packet as the kernel hands it over: the transport's checksum left to the device.
fn superpacket(v6: bool, flags: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut tcp =
        vec![0x1f, 0x90, 0xc0, 0x01, 0xff, 0xff, 0xf0, 0x00, 0, 0, 0, 9, 0, flags, 1, 0, 0, 0, 0, 0];
    tcp[12] = ((20 + options) as u8 / 4) << 4;
    tcp.extend(std::iter::repeat_n(1, options));
    tcp.extend(payload);
    transport(v6, 6, 16, tcp)
}

fn udp_superpacket(v6: bool, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x1f, 0x90, 0xc0, 0x01, 0, 0, 0, 0];
    let length = (8 + payload.len()) as u16;
    udp[4..6].copy_from_slice(&length.to_be_bytes());
    udp.extend(payload);
    transport(v6, 17, 6, udp)
}

fn transport(v6: bool, protocol: u8, field: usize, body: Vec<u8>) -> Vec<u8> {
    let mut packet = if v6 {
        let mut ip = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        ip.extend([0xfd; 32]);
        ip
    } else {
        vec![0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 2, 0, 2]
    };
    let ip = packet.len();
    packet.extend(body);
    let total = packet.len();
    match v6 {
        true => packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes()),
        false => packet[2..4].copy_from_slice(&(total as u16).to_be_bytes()),
    }
    if !v6 {
        checksum::set_ipv4(&mut packet[..20]);
    }
    let layout = packet::layout(&packet).unwrap();
    let pseudo = checksum::fold(checksum::pseudo(&layout, &packet, total - ip));
    packet[ip + field..ip + field + 2].copy_from_slice(&pseudo);
    packet
}

fn header(v6: bool, gso_type: u8, gso_size: usize, field: u16) -> Header {
    let csum_start = if v6 { 40 } else { 20 };
    Header {
        flags: NEEDS_CSUM,
        gso_type,
        gso_size: gso_size as u16,
        csum_start,
        csum_offset: field,
        headers: 0,
    }
}

fn segments(header: &Header, mut packet: Vec<u8>, mtu: usize) -> Result<Vec<Vec<u8>>, Unsplit> {
    let mut split = split(header, &mut packet, mtu)?;
    let mut into = vec![0; 65536];
    Ok(std::iter::from_fn(|| split.next(&mut into).map(|length| into[..length].to_vec())).collect())
}

fn joined(segments: &[Vec<u8>]) -> Vec<(Header, Vec<u8>)> {
    let (mut joiner, mut buffer, mut end) = (Joiner::default(), segments.concat(), 0);
    for segment in segments {
        joiner.push(&buffer, end..end + segment.len());
        end += segment.len();
    }
    let mut out = Vec::new();
    joiner.drain(&mut buffer, |slices| {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let header: [u8; LENGTH] = bytes[..LENGTH].try_into().unwrap();
        out.push((Header::parse(&header), bytes[LENGTH..].to_vec()));
    });
    out
}

/// As the receiving kernel does: the sum over pseudo header and segment is all ones.
fn is_intact(segment: &[u8]) -> bool {
    let layout = packet::layout(segment).expect("a whole packet");
    let body = &segment[layout.ip..];
    let sum = checksum::add(checksum::pseudo(&layout, segment, body.len()), body);
    let ip = layout.v6 || checksum::fold(checksum::add(0, &segment[..layout.ip])) == [0xff, 0xff];
    ip && checksum::fold(sum) == [0xff, 0xff]
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 31 + at / 256) as u8).collect()
}

proptest! {
    #[test]
    fn a_stream_that_is_cut_and_joined_is_the_stream(
        v6: bool, length in 1..62_000usize, size in 600..9000usize, options in 0..=10usize, push: bool
    ) {
        let flags = if push { 0x18 } else { 0x10 };
        let kernel = superpacket(v6, flags, options * 4, &bytes(length));
        let gso = if v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        let cut = segments(&header(v6, gso, size, 16), kernel.clone(), MTU).unwrap();
        for segment in &cut {
            prop_assert!(segment.len() <= MTU && is_intact(segment));
        }
        let again = joined(&cut);
        prop_assert_eq!(again.len(), 1, "one write");
        let (header, packet) = &again[0];
        if cut.len() == 1 {
            prop_assert_eq!(*header, Header::default());
        } else {
            prop_assert_eq!(packet, &kernel);
            prop_assert_eq!(header.gso_type, gso);
            prop_assert_eq!(usize::from(header.gso_size), cut[0].len() - packet::layout(&cut[0]).unwrap().headers);
        }
    }

    #[test]
    fn whatever_the_tun_says_nothing_panics_and_nothing_is_longer_than_the_mtu(
        flags: u8, gso_type in 0..7u8, gso_size: u16, csum_start: u16, csum_offset: u16,
        packet in proptest::collection::vec(any::<u8>(), 0..3000), shape in 0..4u8
    ) {
        let mut packet = packet;
        // Half of the time something that looks like IP.
        if shape > 0 && packet.len() > 60 {
            let length = packet.len();
            if shape < 3 {
                packet[..10].copy_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 0, 0, 0, 64, if shape == 1 { 6 } else { 17 }]);
            } else {
                packet[..7].copy_from_slice(&[0x60, 0, 0, 0, ((length - 40) >> 8) as u8, (length - 40) as u8, 6]);
            }
        }
        let header = Header { flags, gso_type, headers: 0, gso_size, csum_start, csum_offset };
        if let Ok(cut) = segments(&header, packet, MTU) {
            prop_assert!(cut.iter().all(|segment| segment.len() <= MTU));
        }
    }

    #[test]
    fn whatever_comes_out_of_a_tunnel_no_byte_is_lost(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..200), 0..20)) {
        let joined: Vec<u8> = joined(&packets).into_iter().flat_map(|(_, packet)| packet).collect();
        prop_assert_eq!(joined, packets.concat());
    }
}

#[test]
fn only_the_last_segment_pushes_and_finishes_and_only_the_first_says_that_the_window_was_reduced() {
    let kernel = superpacket(false, 0x99, 12, &bytes(4000));
    let cut = segments(&header(false, GSO_TCPV4, 1368, 16), kernel, MTU).unwrap();
    let flags: Vec<u8> = cut.iter().map(|segment| segment[20 + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
    let ids: Vec<u16> = cut.iter().map(|segment| u16::from_be_bytes([segment[4], segment[5]])).collect();
    assert_eq!(ids, [0xfffe, 0xffff, 0], "identification counts on, and around");
}

#[test]
fn tcp_that_missed_the_mtu_check_is_cut_to_the_tunnel() {
    let mut kernel = superpacket(false, 0x10, 12, &bytes(1448));
    let none = Header { flags: NEEDS_CSUM, csum_start: 20, csum_offset: 16, ..Header::default() };
    let cut = segments(&none, kernel.clone(), MTU).unwrap();
    assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [MTU, 52 + 1448 - 1368]);
    kernel[9] = 47;
    assert_eq!(segments(&Header::default(), kernel, MTU).unwrap_err(), Unsplit::TooBig);
}

#[test]
fn udp_is_cut_where_its_sender_said_and_never_elsewhere() {
    for v6 in [false, true] {
        let kernel = udp_superpacket(v6, &bytes(3000));
        let cut = segments(&header(v6, GSO_UDP_L4, 1200, 6), kernel.clone(), MTU).unwrap();
        let head = if v6 { 48 } else { 28 };
        assert_eq!(cut.iter().map(|cut| cut.len() - head).collect::<Vec<_>>(), [1200, 1200, 600]);
        assert!(cut.iter().all(|cut| is_intact(cut)));
        assert_eq!(segments(&header(v6, GSO_UDP_L4, 1400, 6), kernel, MTU).unwrap_err(), Unsplit::TooBig);
    }
}

#[test]
fn a_checksum_that_the_kernel_left_open_is_completed() {
    let kernel = superpacket(true, 0x02, 20, &[]);
    let cut = segments(&header(true, GSO_NONE, 0, 16), kernel, MTU).unwrap();
    assert!(cut.len() == 1 && is_intact(&cut[0]));
    let kernel = udp_superpacket(false, b"one question");
    let cut = segments(&header(false, GSO_NONE, 0, 6), kernel, MTU).unwrap();
    assert!(cut.len() == 1 && is_intact(&cut[0]));
}

#[test]
fn streams_are_joined_each_by_itself_and_keep_their_order() {
    let one = segments(&header(false, GSO_TCPV4, 1000, 16), superpacket(false, 0x10, 12, &bytes(3000)), MTU)
        .unwrap();
    let mut other = one.clone();
    for packet in &mut other {
        packet[20] ^= 1; // its source port, and a checksum that fits
        packet[36..38].fill(0);
        let layout = packet::layout(packet).unwrap();
        let sum = checksum::add(checksum::pseudo(&layout, packet, packet.len() - 20), &packet[20..]);
        packet[36..38].copy_from_slice(&checksum::finish(sum));
    }
    let mixed: Vec<Vec<u8>> =
        one.iter().zip(&other).flat_map(|(one, other)| [one.clone(), other.clone()]).collect();
    let joined = joined(&mixed);
    assert_eq!(joined.iter().map(|(_, packet)| packet.len()).collect::<Vec<_>>(), [3052, 3052]);
}

#[test]
fn what_the_kernel_would_not_join_is_not_joined() {
    let cut = || {
        segments(&header(false, GSO_TCPV4, 1000, 16), superpacket(false, 0x10, 0, &bytes(2000)), MTU).unwrap()
    };
    let resum = |packet: &mut Vec<u8>| {
        checksum::set_ipv4(&mut packet[..20]);
        packet[36..38].fill(0);
        let layout = packet::layout(packet).unwrap();
        let sum = checksum::add(checksum::pseudo(&layout, packet, packet.len() - 20), &packet[20..]);
        packet[36..38].copy_from_slice(&checksum::finish(sum));
    };
    assert_eq!(joined(&cut()).len(), 1);
    for (what, byte, value) in [
        ("another class of service", 1, 4),
        ("another time to live", 8, 63),
        ("a sequence number that leaves a hole", 27, 1),
        ("another acknowledgement", 31, 8),
        ("a finished stream", 33, 0x11),
        ("a reset", 33, 0x14),
        ("another window", 34, 2),
    ] {
        let mut packets = cut();
        packets[1][byte] = value;
        resum(&mut packets[1]);
        assert!(is_intact(&packets[1]));
        assert_eq!(joined(&packets).len(), 2, "{what}");
    }
    let mut broken = cut();
    broken[1][60] ^= 1;
    let joined = joined(&broken);
    assert_eq!(joined.len(), 2, "a broken checksum is for the kernel to find");
    assert_eq!(joined[1], (Header::default(), broken[1].clone()));
}
