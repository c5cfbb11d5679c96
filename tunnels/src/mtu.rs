//! How many bytes a tunnel costs, and what is left inside.

use crate::Family;

const IPV4_HEADER: u16 = 20;
const IPV6_HEADER: u16 = 40;
const UDP_HEADER: u16 = 8;
const TCP_HEADER: u16 = 20;
/// A WireGuard data message: type and reserved (4), receiver (4), counter (8).
const DATA_HEADER: u16 = 16;
const AEAD_TAG: u16 = 16;

/// The smallest MTU that carries IPv6 (RFC 8200 §5).
pub const MIN_MTU_IPV6: u16 = 1280;

/// Ethernet's 1500 less the dearer underlay: right for either family.
pub const DEFAULT_MTU: u16 = inner(1500, Family::V6);

/// The same of ESP, which may go in UDP.
pub const DEFAULT_ESP_MTU: u16 = esp_inner(1500, Carrier::EspInUdp, Family::V6);

/// Bytes around an inner packet. Padding to 16 never grows a packet past the inner MTU, so it costs nothing here.
pub const fn outer_overhead(underlay: Family) -> u16 {
    let ip = match underlay {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    };
    ip + UDP_HEADER + DATA_HEADER + AEAD_TAG
}

/// The tunnel's MTU over a path; none where the path cannot carry IPv6's minimum inside.
pub const fn inner_mtu(path_mtu: u16, underlay: Family) -> Option<u16> {
    let left = inner(path_mtu, underlay);
    if left < MIN_MTU_IPV6 { None } else { Some(left) }
}

/// The largest TCP segment that fits a tunnel of this MTU.
pub const fn tcp_mss(tunnel_mtu: u16, family: Family) -> u16 {
    let ip = match family {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    };
    tunnel_mtu.saturating_sub(ip + TCP_HEADER)
}

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Wireguard,
    Esp,
    /// ESP in UDP (RFC 3948).
    EspInUdp,
}

/// SPI and sequence number (RFC 4303 §2), and the explicit part of the nonce (RFC 4106 §3).
const ESP_HEADER: u16 = 8 + 8;
/// Pad length and next header; with them the packet ends on four octets, so up to three are padding.
const ESP_TRAILER: u16 = 2;
const ESP_PADDING: u16 = 3;

/// Bytes around an inner packet, at the most.
const fn overhead(carrier: Carrier, underlay: Family) -> u16 {
    let ip = match underlay {
        Family::V4 => IPV4_HEADER,
        Family::V6 => IPV6_HEADER,
    };
    let esp = ip + ESP_HEADER + ESP_PADDING + ESP_TRAILER + AEAD_TAG;
    match carrier {
        Carrier::Wireguard => outer_overhead(underlay),
        Carrier::Esp => esp,
        Carrier::EspInUdp => esp + UDP_HEADER,
    }
}

/// The longest packet on the underlay that a tunnel of this MTU makes.
pub const fn longest(tunnel_mtu: u16, carrier: Carrier, underlay: Family) -> u16 {
    match carrier {
        Carrier::Wireguard => tunnel_mtu.saturating_add(outer_overhead(underlay)),
        Carrier::Esp | Carrier::EspInUdp => {
            let text = tunnel_mtu.saturating_add(ESP_TRAILER + ESP_PADDING) & !ESP_PADDING;
            text.saturating_add(overhead(carrier, underlay) - ESP_PADDING - ESP_TRAILER)
        }
    }
}

/// The longest packet that ESP carries over a path: what is encrypted ends on four octets, so the padding is as short as it
/// can be (RFC 4303 §2.4).
const fn esp_inner(path_mtu: u16, carrier: Carrier, underlay: Family) -> u16 {
    let around = overhead(carrier, underlay) - ESP_PADDING - ESP_TRAILER;
    let text = path_mtu.saturating_sub(around) & !ESP_PADDING;
    text.saturating_sub(ESP_TRAILER)
}

const fn inner(path_mtu: u16, underlay: Family) -> u16 {
    path_mtu.saturating_sub(outer_overhead(underlay))
}

const _: () = {
    assert!(outer_overhead(Family::V4) == 60);
    assert!(outer_overhead(Family::V6) == 80);
    assert!(DEFAULT_MTU == 1420);
    assert!(DEFAULT_MTU >= MIN_MTU_IPV6);
    assert!(tcp_mss(DEFAULT_MTU, Family::V4) == 1380);
    assert!(tcp_mss(DEFAULT_MTU, Family::V6) == 1360);
    assert!(overhead(Carrier::Esp, Family::V4) == 57 && overhead(Carrier::Esp, Family::V6) == 77);
    assert!(overhead(Carrier::EspInUdp, Family::V4) == 65 && overhead(Carrier::EspInUdp, Family::V6) == 85);
    assert!(DEFAULT_ESP_MTU == 1418);
    // It is the longest: with it the path is full, and one octet more costs four.
    assert!(longest(DEFAULT_ESP_MTU, Carrier::EspInUdp, Family::V6) == 1500);
    assert!(longest(DEFAULT_ESP_MTU + 1, Carrier::EspInUdp, Family::V6) == 1504);
    assert!(longest(DEFAULT_MTU, Carrier::Wireguard, Family::V6) == 1500);
    assert!(DEFAULT_ESP_MTU <= esp_inner(1500, Carrier::EspInUdp, Family::V4));
    assert!(DEFAULT_ESP_MTU <= esp_inner(1500, Carrier::Esp, Family::V6));
    assert!(inner_mtu(1340, Family::V4).is_some() && inner_mtu(1340, Family::V6).is_none());
};
