//! Judging what crosses between regions: WireGuard, TLS on 2379, or a violation.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::frame::{Carried, Ipv4, Tcp, Udp, parse};
use super::sniffer::Observer;

const WIREGUARD_PORT: u16 = 51871;
/// Of parallel sessions.
const MORE_PORTS: RangeInclusive<u16> = 51880..=51886;
const API_PORT: u16 = 2379;
/// A packet as long as the tunnel's MTU of 1420: padding stops there.
const FULL: usize = 1420 + 32;
/// The largest TLSCiphertext (RFC 8446 5.2 allows 256 bytes over 2^14; 1.2 allowed 2048).
const TLS_RECORD_MAX: usize = (1 << 14) + 2048;
const VIOLATIONS_KEPT: usize = 10;

/// What was seen, and everything that should not have been.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Secrecy {
    #[serde(skip)]
    needle: Vec<u8>,
    pub frames: u64,
    /// By the name of the message type.
    pub wireguard: BTreeMap<&'static str, u64>,
    /// Packets of ESP, where they are expected.
    pub esp: u64,
    #[serde(skip)]
    ipsec: bool,
    pub tls_records: u64,
    pub noise: BTreeMap<&'static str, u64>,
    pub marker_seen: u64,
    pub violation_count: u64,
    /// The first few.
    pub violations: Vec<String>,
    #[serde(skip)]
    flows: HashMap<(Ipv4Addr, Ipv4Addr, u16, u16), TlsFlow>,
}

/// One direction of a TCP connection, followed record by record.
#[derive(Debug)]
struct TlsFlow {
    next: u32,
    header: Vec<u8>,
    /// Bytes of the current record still to come.
    rest: usize,
}

impl Secrecy {
    /// `marker` must never appear.
    pub fn watching_for(marker: &str) -> Self {
        Self { needle: marker.as_bytes().to_vec(), ..Self::default() }
    }

    /// Where the mesh encrypts with IPsec: ESP, as it is or in UDP, in the place of WireGuard.
    pub fn over_ipsec(self) -> Self {
        Self { ipsec: true, ..self }
    }

    fn violation(&mut self, text: String) {
        self.violation_count += 1;
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(text);
        }
    }

    fn ipv4(&mut self, packet: &Ipv4<'_>) {
        let between = || format!("{} > {}", packet.source, packet.destination);
        if is_inner(packet.source) || is_inner(packet.destination) {
            return self.violation(format!(
                "{} protocol {}: addresses of the mesh",
                between(),
                packet.protocol
            ));
        }
        if self.ipsec && is_esp(packet) {
            self.esp += 1;
        } else if let Some(udp) = packet.udp() {
            match wireguard_message(&udp) {
                Some(message) => *self.wireguard.entry(message).or_default() += 1,
                None => {
                    let ports = (udp.source, udp.destination);
                    self.violation(format!("{} UDP {ports:?}: not WireGuard", between()));
                }
            }
        } else if let Some(tcp) = packet.tcp() {
            if tcp.source == API_PORT || tcp.destination == API_PORT {
                if let Err(reason) = self.tls(packet, &tcp) {
                    self.violation(format!("{} TCP {API_PORT}: {reason}", between()));
                }
            } else {
                let ports = (tcp.source, tcp.destination);
                self.violation(format!("{} TCP {ports:?} in clear", between()));
            }
        } else if packet.protocol == 1 {
            *self.noise.entry("icmp").or_default() += 1;
        } else {
            self.violation(format!("{} IP protocol {}", between(), packet.protocol));
        }
    }

    /// Follows the records of one direction. The capture began before the connection, so every byte is accounted for.
    fn tls(&mut self, packet: &Ipv4<'_>, tcp: &Tcp<'_>) -> Result<(), String> {
        let key = (packet.source, packet.destination, tcp.source, tcp.destination);
        if tcp.syn {
            let next = tcp.sequence.wrapping_add(1);
            self.flows.insert(key, TlsFlow { next, header: Vec::new(), rest: 0 });
            return Ok(());
        }
        if tcp.payload.is_empty() {
            return Ok(());
        }
        let flow = self.flows.get_mut(&key).ok_or("a connection whose beginning was not seen")?;
        let ahead = flow.next.wrapping_sub(tcp.sequence) as i32;
        if ahead < 0 {
            return Err(format!("{} bytes are missing", -ahead));
        }
        let fresh = tcp.payload.get(ahead as usize..).unwrap_or_default();
        flow.next = flow.next.wrapping_add(fresh.len() as u32);
        self.tls_records += flow.feed(fresh)?;
        Ok(())
    }
}

impl TlsFlow {
    /// How many records began in `bytes`.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<u64, String> {
        let mut records = 0;
        while !bytes.is_empty() {
            let skip = self.rest.min(bytes.len());
            self.rest -= skip;
            bytes = &bytes[skip..];
            while self.rest == 0 && !bytes.is_empty() {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                if let [kind, major, minor, high, low] = self.header[..] {
                    let length = usize::from(high) << 8 | usize::from(low);
                    if !(20..=24).contains(&kind) || major != 3 || minor > 4 || length > TLS_RECORD_MAX {
                        return Err(format!("not a TLS record: {:02x?}", self.header));
                    }
                    self.header.clear();
                    self.rest = length;
                    records += 1;
                }
            }
        }
        Ok(records)
    }
}

/// Pods' addresses and the mesh's own: never between regions, whatever the packet carries.
fn is_inner(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first == 10 || (240..255).contains(&first)
}

/// By its protocol (RFC 4303), or in UDP between the tunnels' ports: neither a keepalive nor a key exchange (RFC 3948 §2).
fn is_esp(packet: &Ipv4<'_>) -> bool {
    let in_udp = |udp: Udp<'_>| {
        let ports = udp.source == WIREGUARD_PORT && udp.destination == WIREGUARD_PORT;
        // SPI, sequence number, the nonce's part and the tag around four octets at least; one octet keeps a NAT open.
        let whole = udp.payload.len() >= 36 && udp.payload.len().is_multiple_of(4);
        ports && (udp.payload == [0xff] || (whole && udp.payload[..4] >= [0, 0, 1, 0][..]))
    };
    packet.protocol == 50 || packet.udp().is_some_and(in_udp)
}

/// The message types of the WireGuard protocol, with their exact sizes.
fn wireguard_message(udp: &Udp<'_>) -> Option<&'static str> {
    let is_ours = |port: &u16| *port == WIREGUARD_PORT || MORE_PORTS.contains(port);
    if ![udp.source, udp.destination].iter().any(is_ours) {
        return None;
    }
    match (udp.payload.get(..4)?, udp.payload.len()) {
        ([1, 0, 0, 0], 148) => Some("initiation"),
        ([2, 0, 0, 0], 92) => Some("response"),
        ([3, 0, 0, 0], 64) => Some("cookie"),
        ([4, 0, 0, 0], FULL) => Some("data"),
        ([4, 0, 0, 0], length) if length >= 32 && length.is_multiple_of(16) => Some("data"),
        _ => None,
    }
}

impl Observer for Secrecy {
    fn see(&mut self, frame: &[u8]) {
        self.frames += 1;
        if !self.needle.is_empty() && frame.windows(self.needle.len()).any(|window| window == self.needle) {
            self.marker_seen += 1;
        }
        match parse(frame) {
            Carried::Ipv4(packet) => self.ipv4(&packet),
            Carried::Arp => *self.noise.entry("arp").or_default() += 1,
            // ICMPv6, also behind the hop-by-hop option of multicast listener reports.
            Carried::Ipv6(58, _) | Carried::Ipv6(0, [58, ..]) => {
                *self.noise.entry("icmpv6").or_default() += 1;
            }
            Carried::Ipv6(next, _) => self.violation(format!("IPv6 with next header {next}")),
            Carried::Other(ether_type) => self.violation(format!("EtherType {ether_type:#06x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::forge::{Forged, Transport};

    fn frame(transport: Transport, source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
        Forged {
            destination_mac: [2; 6],
            source: Ipv4Addr::new(172, 16, 1, 11),
            destination: Ipv4Addr::new(172, 16, 2, 11),
            source_port,
            port,
            transport,
            payload: payload.to_vec(),
        }
        .frame()
    }

    #[test]
    fn a_marker_in_clear_is_seen_and_named() {
        let mut secrecy = Secrecy::watching_for("cargo");
        secrecy.see(&frame(Transport::Udp, 4000, 8080, b"the cargo manifest"));
        assert_eq!((secrecy.marker_seen, secrecy.violation_count), (1, 1));
        assert_eq!(secrecy.violations[0], "172.16.1.11 > 172.16.2.11 UDP (4000, 8080): not WireGuard");
    }

    #[test]
    fn wireguard_is_known_by_type_and_size() {
        let mut secrecy = Secrecy::default();
        let mut data = vec![0; 96];
        data[0] = 4;
        secrecy.see(&frame(Transport::Udp, 51871, 51871, &data));
        secrecy.see(&frame(Transport::Udp, 51871, 51871, b"plain text on the right port"));
        assert_eq!((secrecy.wireguard["data"], secrecy.violation_count), (1, 1));
    }

    #[test]
    fn an_address_of_the_mesh_is_a_violation_whatever_the_packet_is() {
        let mut secrecy = Secrecy::default();
        let mut ping = frame(Transport::Udp, 0, 0, &[]);
        ping[14 + 9] = 1;
        secrecy.see(&ping);
        assert_eq!(secrecy.violation_count, 0, "{:?}", secrecy.violations);
        ping[14 + 16..14 + 20].copy_from_slice(&[10, 2, 1, 10]);
        secrecy.see(&ping);
        assert_eq!(secrecy.violations, ["172.16.1.11 > 10.2.1.10 protocol 1: addresses of the mesh"]);
    }

    #[test]
    fn tls_records_are_followed_across_segments() {
        let mut flow = TlsFlow { next: 0, header: Vec::new(), rest: 0 };
        assert_eq!(flow.feed(&[22, 3, 1, 0]), Ok(0));
        assert_eq!(flow.feed(&[4, 1, 2]), Ok(1));
        assert_eq!(flow.feed(&[3, 4, 23, 3, 3, 0, 1, 9]), Ok(1));
        assert!(flow.feed(b"GET / HTTP/1.1").is_err());
    }
}
