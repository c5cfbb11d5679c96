//! The answer to a packet that the way to its peer does not carry: ICMP fragmentation needed (RFC 1191), ICMPv6 packet too
//! big (RFC 4443 §3.2). It comes from the address that the packet was for, which is behind this tunnel.

use super::checksum;

const V4: usize = 20;
const V6: usize = 40;
const ICMP: usize = 8;
/// The longest answers: RFC 1812 §4.3.2.3, RFC 8200 §5.
const MOST_V4: usize = 576;
const MOST_V6: usize = 1280;
pub(crate) const LONGEST: usize = MOST_V6;

const PROTOCOL_ICMP: u8 = 1;
const NEXT_ICMPV6: u8 = 58;
const HOPS: u8 = 64;

/// Writes the answer and gives its length. None where nobody may be told: an error about an error would be the first of many,
/// and of a later fragment nobody knows whose it is (RFC 1122 §3.2.2).
pub(crate) fn too_big(packet: &[u8], mtu: u16, into: &mut [u8; LONGEST]) -> Option<usize> {
    match packet.first()? >> 4 {
        4 => v4(packet, mtu, into),
        6 => v6(packet, mtu, into),
        _ => None,
    }
}

fn v4(packet: &[u8], mtu: u16, into: &mut [u8; LONGEST]) -> Option<usize> {
    let header = packet.get(..V4)?;
    let headers = usize::from(header[0] & 0x0f) * 4;
    let later = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    // Echo request and reply are no errors.
    let error = header[9] == PROTOCOL_ICMP && !matches!(packet.get(headers)?, 0 | 8);
    if later || error {
        return None;
    }
    let quoted = &packet[..packet.len().min(MOST_V4 - V4 - ICMP)];
    let length = V4 + ICMP + quoted.len();
    let answer = &mut into[..length];
    answer.fill(0);
    answer[0] = 0x45;
    answer[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    (answer[8], answer[9]) = (HOPS, PROTOCOL_ICMP);
    answer[12..16].copy_from_slice(&header[16..20]);
    answer[16..20].copy_from_slice(&header[12..16]);
    checksum::set_ipv4(&mut answer[..V4]);
    let icmp = &mut answer[V4..];
    (icmp[0], icmp[1]) = (3, 4);
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    icmp[ICMP..].copy_from_slice(quoted);
    let sum = checksum::finish(checksum::add(0, icmp));
    icmp[2..4].copy_from_slice(&sum);
    Some(length)
}

fn v6(packet: &[u8], mtu: u16, into: &mut [u8; LONGEST]) -> Option<usize> {
    let header = packet.get(..V6)?;
    // Types below 128 are errors.
    if header[6] == NEXT_ICMPV6 && *packet.get(V6)? < 128 {
        return None;
    }
    let quoted = &packet[..packet.len().min(MOST_V6 - V6 - ICMP)];
    let length = V6 + ICMP + quoted.len();
    let answer = &mut into[..length];
    answer.fill(0);
    answer[0] = 0x60;
    let payload = ((length - V6) as u16).to_be_bytes();
    answer[4..6].copy_from_slice(&payload);
    (answer[6], answer[7]) = (NEXT_ICMPV6, HOPS);
    answer[8..24].copy_from_slice(&header[24..40]);
    answer[24..40].copy_from_slice(&header[8..24]);
    let (ip, icmp) = answer.split_at_mut(V6);
    icmp[0] = 2;
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    icmp[ICMP..].copy_from_slice(quoted);
    let pseudo = checksum::add(checksum::add(0, &ip[8..40]), &[payload[0], payload[1], 0, NEXT_ICMPV6]);
    let sum = checksum::finish(checksum::add(pseudo, icmp));
    icmp[2..4].copy_from_slice(&sum);
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_v4(length: usize) -> Vec<u8> {
        let mut packet = vec![7; length];
        packet[..V4].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 2, 0, 2]);
        packet
    }

    #[test]
    fn the_answer_quotes_the_packet_and_names_the_mtu() {
        let mut into = [0; LONGEST];
        let packet = udp_v4(3000);
        let length = too_big(&packet, 1420, &mut into).unwrap();
        assert_eq!(length, MOST_V4);
        assert_eq!((&into[12..16], &into[16..20]), (&[10, 2, 0, 2][..], &[10, 1, 0, 1][..]));
        assert_eq!((&into[20..22], &into[26..28]), (&[3, 4][..], &1420u16.to_be_bytes()[..]));
        assert_eq!(&into[28..length], &packet[..length - 28]);
        for part in [&into[..V4], &into[V4..length]] {
            assert_eq!(checksum::finish(checksum::add(0, part)), [0, 0]);
        }

        let mut packet = vec![7; 3000];
        packet[..V6].fill(0);
        (packet[0], packet[6], packet[8], packet[24]) = (0x60, 17, 0xfd, 0xfe);
        let length = too_big(&packet, 1420, &mut into).unwrap();
        assert_eq!((length, into[8], into[24]), (MOST_V6, 0xfe, 0xfd));
        assert_eq!((&into[40..42], &into[44..48]), (&[2, 0][..], &1420u32.to_be_bytes()[..]));
        let pseudo = checksum::add(checksum::add(0, &into[8..40]), &[into[4], into[5], 0, NEXT_ICMPV6]);
        assert_eq!(checksum::finish(checksum::add(pseudo, &into[V6..length])), [0, 0]);
    }

    #[test]
    fn errors_and_later_fragments_are_not_answered() {
        let mut into = [0; LONGEST];
        let mut error = udp_v4(3000);
        (error[9], error[V4]) = (PROTOCOL_ICMP, 3);
        let mut echo = error.clone();
        echo[V4] = 8;
        let mut fragment = udp_v4(3000);
        fragment[7] = 9;
        assert_eq!(too_big(&error, 1420, &mut into), None);
        assert_eq!(too_big(&fragment, 1420, &mut into), None);
        assert!(too_big(&echo, 1420, &mut into).is_some());
        for short in 0..V6 {
            assert_eq!(too_big(&vec![0x60; short], 1420, &mut into), None);
        }
    }
}
