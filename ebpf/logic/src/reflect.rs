//! Seamless BFD's reflector (RFC 7880 §7.2, RFC 7881): the answer as a function of the probe. No session, no agent.
//!
//! A node's discriminator is its IPv4 mesh address, which everybody computes and nobody has to be told.

use hawser_ebpf_abi::{CONFIG_STOPPED, Config, IP_MESH_ADDRESS, Plain, Port};

use crate::packet::{Ip, Transport};
use crate::verdict::Hook;

/// Where a reflector listens (RFC 7881 §3).
pub const PORT: Port = Port::new(7784);
/// What a probe is sent with and still has after one hop (RFC 5881 §5): its answer leaves with the same header.
const TTL: u8 = 255;
/// In microseconds: no initiator may ask more often (RFC 7880 §7.2.2). A hundred a second.
const REQUIRED_MIN_RX: u32 = 10_000;

const VERSION_1: u8 = 1 << 5;
const UP: u8 = 3 << 6;
const ADMIN_DOWN: u8 = 0;
/// RFC 5880 §4.1, "administratively down".
const DIAGNOSTIC_ADMIN_DOWN: u8 = 7;
const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const INDEPENDENT: u8 = 1 << 3;
const AUTHENTICATED: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

/// A BFD control packet (RFC 5880 §4.1) as words, in network order: what follows the UDP header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub version_diagnostic: u8,
    pub state_flags: u8,
    pub detect_mult: u8,
    pub length: u8,
    pub my_discriminator: u32,
    pub your_discriminator: u32,
    pub desired_min_tx: u32,
    pub required_min_rx: u32,
    pub required_min_echo_rx: u32,
}
// SAFETY: repr(C), integers only, sizes add up to 24 without padding.
unsafe impl Plain for Control {}
const _: () = assert!(size_of::<Control>() == 24);

impl Control {
    /// The first word, as checksums see it.
    #[inline(always)]
    pub const fn head(&self) -> u32 {
        u32::from_ne_bytes([self.version_diagnostic, self.state_flags, self.detect_mult, self.length])
    }
}

/// The answer to what came to [`PORT`]; None when it is no probe of a node of the mesh for this one. The discards are those
/// of RFC 5880 §6.8.6, as far as they can be told without a session, and of RFC 7880 §7.2.1.
#[inline(always)]
pub fn answer<H: Hook + ?Sized>(
    hook: &H,
    config: &Config,
    ip: &Ip,
    udp: &Transport,
) -> Option<(Control, Control)> {
    let asked: Control = hook.load(ip.l4 + udp.header_len)?;
    // IPv4 (RFC 791 §3.1) has its time to live at 8, IPv6 (RFC 8200 §3) its hop limit at 7.
    let ttl: u8 = hook.load(if ip.src.is_v4() { 8 } else { 7 })?;
    // Two reflectors must not answer each other: no probe comes from the port, and answers have no D bit.
    let a_probe = udp.src != PORT
        && asked.state_flags & (AUTHENTICATED | DEMAND | MULTIPOINT) == DEMAND
        && asked.version_diagnostic & 0xe0 == VERSION_1
        && asked.length == size_of::<Control>() as u8
        && asked.detect_mult != 0
        && asked.my_discriminator != 0;
    let for_us = config.own_mesh_v4.is_v4() && asked.your_discriminator == config.own_mesh_v4.v4_word();
    let from_a_node = hook.ip_entry(&ip.src).is_some_and(|entry| entry.flags & IP_MESH_ADDRESS != 0);
    (ttl == TTL && a_probe && for_us && from_a_node)
        .then_some((asked, reflection(&asked, config.flags & CONFIG_STOPPED != 0)))
}

/// RFC 7880 §7.2.2: discriminators change places, the state is ours (AdminDown when this node's agent was `stopped` on
/// purpose), and D says who answers.
#[inline(always)]
pub const fn reflection(asked: &Control, stopped: bool) -> Control {
    let is_final = if asked.state_flags & POLL != 0 { FINAL } else { 0 };
    Control {
        version_diagnostic: if stopped { VERSION_1 | DIAGNOSTIC_ADMIN_DOWN } else { VERSION_1 },
        // Independent of the control plane (§4.1): it answers while no agent runs.
        state_flags: if stopped { ADMIN_DOWN } else { UP } | INDEPENDENT | is_final,
        detect_mult: asked.detect_mult,
        length: asked.length,
        my_discriminator: asked.your_discriminator,
        your_discriminator: asked.my_discriminator,
        desired_min_tx: asked.desired_min_tx,
        required_min_rx: REQUIRED_MIN_RX.to_be(),
        required_min_echo_rx: 0,
    }
}
