//! Packets as bytes, with the checksums that a real host wants to see.

use std::net::Ipv4Addr;

pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;
/// What every pod's MAC is here; the host's side of a TAP has its own, which nobody checks on ingress by a program.
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];

pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(POD_MAC);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    ethernet(0x0800, packet)
}

pub(crate) fn ipv4(src: &str, dst: &str, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto, 0, 0];
    packet.extend(src.parse::<Ipv4Addr>().unwrap().octets());
    packet.extend(dst.parse::<Ipv4Addr>().unwrap().octets());
    let len = (packet.len() + payload.len()) as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// With an MSS option of 1460 when SYN is set.
pub(crate) fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Vec<u8> {
    let options: &[u8] = if flags & SYN != 0 { &[2, 4, 0x05, 0xb4] } else { &[] };
    let mut segment = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    segment.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        (5 + options.len() as u8 / 4) << 4,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    segment.extend(options);
    let sum = transport_checksum(src, dst, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ipv4(src, dst, 6, &segment)
}

pub(crate) fn udp(src: &str, sport: u16, dst: &str, dport: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut datagram = [sport.to_be_bytes(), dport.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    datagram.extend(payload);
    ipv4(src, dst, 17, &datagram)
}

pub(crate) fn icmp(src: &str, dst: &str, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 7, 0, 1];
    message.extend(quoted);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(src, dst, 1, &message)
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn transport_checksum(src: &str, dst: &str, proto: u8, segment: &[u8]) -> u16 {
    let mut pseudo = src.parse::<Ipv4Addr>().unwrap().octets().to_vec();
    pseudo.extend(dst.parse::<Ipv4Addr>().unwrap().octets());
    pseudo.extend([0, proto]);
    pseudo.extend((segment.len() as u16).to_be_bytes());
    pseudo.extend(segment);
    checksum(&pseudo)
}

/// The MSS a TCP packet of ours announces; panics when its checksum is wrong.
pub(crate) fn announced_mss(packet: &[u8], src: &str, dst: &str) -> u16 {
    assert_eq!(transport_checksum(src, dst, 6, &packet[20..]), 0, "the checksum of what came out");
    u16::from_be_bytes([packet[42], packet[43]])
}
