//! Packets that lie about where they come from.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::packet_socket::PacketSocket;
use crate::place::Place;

const ETHERNET: usize = 14;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A SYN.
    Tcp,
    Udp,
}

/// An IPv4 packet in clear, with any source.
#[derive(Clone, Debug)]
pub struct Forged {
    pub destination_mac: [u8; 6],
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub port: u16,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

impl Forged {
    /// The whole frame, checksums right: it shall be dropped for what it claims, not for how it is made.
    pub fn frame(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut ip = vec![0x45, 0];
        ip.extend((20 + segment.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, self.protocol(), 0, 0]);
        ip.extend(self.source.octets());
        ip.extend(self.destination.octets());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = self.destination_mac.to_vec();
        frame.extend([2, 0, 0, 0, 0, 0x66, 0x08, 0x00]);
        frame.extend(ip);
        frame.extend(segment);
        frame
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }

    fn segment(&self) -> Vec<u8> {
        let mut out = [self.source_port.to_be_bytes(), self.port.to_be_bytes()].concat();
        let sum_at = match self.transport {
            Transport::Tcp => {
                out.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            Transport::Udp => {
                out.extend((8 + self.payload.len() as u16).to_be_bytes());
                out.extend([0, 0]);
                6
            }
        };
        out.extend(&self.payload);
        let mut pseudo = [self.source.octets(), self.destination.octets()].concat();
        pseudo.extend([0, self.protocol()]);
        pseudo.extend((out.len() as u16).to_be_bytes());
        let sum = checksum(&[&pseudo, &out]);
        out[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }
}

/// RFC 1071 over parts of even length, but for the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends packets into a device of `place` that has no link header: a tunnel.
pub fn send_into(place: &Place, device: &str, packets: &[Forged]) -> Result<()> {
    place.in_network(|| {
        let socket = PacketSocket::open(device)?;
        packets.iter().try_for_each(|packet| socket.send(&packet.frame()[ETHERNET..]))
    })
}

/// Puts packets on the network that `place` is plugged into.
pub fn send(place: &Place, packets: &[Forged]) -> Result<()> {
    place.in_network(|| {
        let socket = PacketSocket::open("eth0")?;
        packets.iter().try_for_each(|packet| socket.send(&packet.frame()))
    })
}
