//! What a gateway sends on: from a node of another cluster to one of its own or back, out of the tunnel and into it again.
//!
//! Whose a source is has been proven by the tunnel; what may be reached is judged where it arrives. The TTL stays, for a mesh is one
//! hop and probes count on it: a packet meets one gateway, because foreign sources reach a gateway from their own nodes alone.

use hawser_ebpf_abi::{IP_CARRIED, IpEntry, Reason};

use crate::packet::{Ip, Kind, Parsed, parse, transport};
use crate::refuse;
use crate::verdict::{Action, Hook, Verdict, clamp, drop, fits};

/// None when it is not for others. Between two other clusters, and between two nodes of the own one, nothing is.
#[inline(always)]
pub fn carried<H: Hook + ?Sized>(hook: &H) -> Option<Verdict> {
    // What cannot be read is named by `tunnel_in`.
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return None };
    let carried = |entry: &IpEntry| entry.flags & IP_CARRIED != 0;
    let from = hook.ip_entry(&ip.src).filter(carried)?;
    let to = hook.ip_entry(&ip.dst).filter(carried)?;
    (from.is_remote() != to.is_remote()).then(|| send_on(hook, &ip))
}

#[inline(always)]
fn send_on<H: Hook + ?Sized>(hook: &H, ip: &Ip) -> Verdict {
    if ip.fragment {
        return drop(Reason::TunnelInFragment);
    }
    let Some(transport) = transport(hook, ip) else { return drop(Reason::TunnelInMalformed) };
    let config = hook.config();
    let back = Action::Steer { ifindex: config.tunnel_ifindex };
    if !fits(hook, ip, &transport, config.tunnel_mtu) {
        // In the name of whom it was for: no other address of ours is believed at both ends.
        let told = transport.kind != Kind::IcmpError
            && match refuse::too_big(hook, ip, hook.packet_len(), config.tunnel_mtu, ip.dst) {
                Some(refusal) => hook.turn_into_refusal(ip, &refusal),
                None => false,
            };
        let action = if told { back } else { Action::Drop };
        return Verdict { action, reason: Reason::TunnelInCarriedTooBig };
    }
    clamp(hook, ip, &transport, config.tunnel_mtu);
    Verdict { action: back, reason: Reason::TunnelInCarried }
}
