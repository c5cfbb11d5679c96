//! A peer made by hand, that can say what no honest engine says.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey as Public, StaticSecret};
use hawser_model::PublicKey;

use crate::world::Netns;

pub(crate) struct Raw {
    pub(crate) tunn: Tunn,
    pub(crate) socket: UdpSocket,
    pub(crate) to: SocketAddr,
    /// The last handshake messages, to be tampered with.
    pub(crate) initiation: Vec<u8>,
    pub(crate) response: Vec<u8>,
}

pub(crate) fn key(seed: u8) -> (StaticSecret, PublicKey) {
    let secret = StaticSecret::from([seed; 32]);
    let public = PublicKey::new(Public::from(&secret).to_bytes()).unwrap();
    (secret, public)
}

impl Raw {
    pub(crate) fn new(netns: &Netns, secret: StaticSecret, engine: PublicKey, to: SocketAddr) -> Self {
        let tunn = Tunn::new(secret, Public::from(*engine.as_bytes()), None, None, 7, None);
        Self { tunn, socket: socket(netns), to, initiation: Vec::new(), response: Vec::new() }
    }

    pub(crate) fn handshake(&mut self) {
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(&mut buffer, true)
        else {
            panic!("no initiation");
        };
        self.initiation = initiation.to_vec();
        self.socket.send_to(initiation, self.to).unwrap();
        let (length, _) = self.socket.recv_from(&mut buffer).expect("the engine answers a handshake");
        self.response = buffer[..length].to_vec();
        let mut out = [0; 2048];
        let TunnResult::WriteToNetwork(keepalive) = self.tunn.decapsulate(None, &buffer[..length], &mut out)
        else {
            panic!("the engine's response is not one");
        };
        self.socket.send_to(keepalive, self.to).unwrap();
    }

    pub(crate) fn encrypted(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut out = vec![0; packet.len() + 148];
        match self.tunn.encapsulate(packet, &mut out) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn send(&mut self, packet: &[u8]) {
        let message = self.encrypted(packet);
        self.socket.send_to(&message, self.to).unwrap();
    }
}

pub(crate) fn socket(netns: &Netns) -> UdpSocket {
    let socket = netns.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// A UDP datagram in an IPv4 packet; without a UDP checksum, which IPv4 permits.
pub(crate) fn ipv4_udp(from: Ipv4Addr, to: Ipv4Addr, port: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + data.len()).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    let words = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(4000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(data);
    packet
}
