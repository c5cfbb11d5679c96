//! Pods that are left out of the socket load balancer: their packets to a service are addressed to a backend at the pod's own
//! interface, and what comes back is shown as the service's.
//!
//! A TCP connection keeps the backend that its first packet was given, whatever becomes of the service; UDP is pinned, as a socket
//! is ([`crate::pin`]). The draw is the flow's own: a repeated SYN, and a connection that was forgotten, draw the same again.
//!
//! What cannot be proven to be ours is left alone: a TCP packet in the middle of a connection that neither entry nor flow knows
//! is kube-proxy's or the CNI's.
//!
//! Cost: a packet of an established TCP connection two hash look-ups, of UDP what a message costs at a socket and one more; on the way
//! back two. Another pod's packet that is not for the mesh costs a look at its header and one look-up, on nodes that have a left-out pod.

use hawser_ebpf_abi::{
    Addr, ENDPOINT_TRANSLATED, Endpoint, FlowKey, IPPROTO_TCP, NAT_BACK, NAT_THERE, Nat, NatBegun, NatKey,
    Port, Reason, ServiceKey,
};

use crate::choice::Choice;
use crate::packet::{Ip, Kind, Parsed, Transport, parse, quoted, transport};
use crate::random::draw;
use crate::verdict::{Hook, flow};

/// Who sends, in the numbers that pins are kept by: with the highest bit, which no cookie of the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// In place of the network namespace's cookie.
    pub pod: u64,
    /// In place of the socket's.
    pub socket: u64,
    /// The flow's own draw.
    pub seed: u64,
}

impl Sender {
    #[inline(always)]
    pub(crate) fn new(pod: &Addr, port: Port, service: &ServiceKey) -> Self {
        const OURS: u64 = 1 << 63;
        let port = (port.wire() as u64) << 8 | service.proto as u64;
        Self {
            pod: name(pod, 0) | OURS,
            socket: name(pod, port) | OURS,
            seed: name(pod, (service.check() as u64) << 32 | port),
        }
    }
}

#[inline(always)]
fn name(addr: &Addr, salt: u64) -> u64 {
    let [a, b, c, d] = addr.words();
    let (high, low) = (((a as u64) << 32 | b as u64) ^ salt, (c as u64) << 32 | d as u64);
    (draw(high, low) as u64) << 32 | draw(!high, low) as u64
}

/// Another address and port for one of a packet's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub addr: Addr,
    pub port: Port,
    pub is_destination: bool,
}

/// What became of a pod's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    NotOurs,
    /// It is addressed to a backend now.
    Translated,
    /// To a service, in the middle of a connection that is not known.
    Unknown,
    /// It could not be changed, and is spoiled.
    Failed,
    /// The next step says.
    GoOn,
}

impl Outcome {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        match packed {
            1 => Self::Translated,
            2 => Self::Unknown,
            3 => Self::Failed,
            4 => Self::GoOn,
            _ => Self::NotOurs,
        }
    }
}

/// Whether this is the interface of a pod that is translated.
#[inline(always)]
fn is_left_out<H: Hook + ?Sized>(hook: &H, pod: &Addr) -> bool {
    let Endpoint { ifindex, flags, .. } = hook.endpoint(pod).unwrap_or_default();
    flags & ENDPOINT_TRANSLATED != 0 && ifindex == hook.ifindex()
}

#[inline(always)]
fn key(way: u8, pod: Addr, pod_port: Port, peer: Addr, peer_port: Port, proto: u8) -> NatKey {
    NatKey { pod, peer, pod_port, peer_port, proto, way, pad: 0 }
}

/// Addresses a left-out pod's packet to a backend, if it is to a service.
pub fn there<H: Hook + ?Sized>(hook: &H) -> Outcome {
    let mut step = begin(hook);
    if step == Outcome::GoOn {
        step = choose(hook);
    }
    if step == Outcome::GoOn { finish(hook) } else { step }
}

/// The first step, and the only one for an established TCP connection. The steps do not call each other, for the kernel's stack
/// holds 512 octets.
#[inline(always)]
pub fn begin<H: Hook + ?Sized>(hook: &H) -> Outcome {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return Outcome::NotOurs };
    if ip.fragment || !is_left_out(hook, &ip.src) {
        return Outcome::NotOurs;
    }
    let Some(transport) = transport(hook, &ip) else { return Outcome::NotOurs };
    match transport.kind {
        Kind::Tcp | Kind::Udp => {}
        Kind::IcmpError => return about_service(hook, &ip),
        _ => return Outcome::NotOurs,
    }
    let there = key(NAT_THERE, ip.src, transport.src, ip.dst, transport.dst, ip.proto);
    let established = ip.proto == IPPROTO_TCP && !transport.is_bare_syn();
    if established {
        // No backend has port 0. (An Option would leave registers unset, which the verifier minds.)
        let nat = hook.nat(&there).unwrap_or_default();
        if nat.port.wire() != 0 {
            know_back(hook, &there, &nat);
            return to_backend(hook, &ip, &transport, &nat);
        }
    }
    // Nobody is chosen yet. (Zeroes would be filled in by a loop over octets.)
    let nat = Nat { addr: ip.dst, port: transport.dst, pad: 0 };
    hook.keep(&NatBegun { there, nat, established: established as u32 });
    Outcome::GoOn
}

/// What the pod says about a packet that was shown as the service's is said to the backend, about the backend's.
#[inline(always)]
fn about_service<H: Hook + ?Sized>(hook: &H, ip: &Ip) -> Outcome {
    let Some((heard, service, pod)) = quoted(hook, ip) else { return Outcome::NotOurs };
    let there = key(NAT_THERE, heard.dst, pod, heard.src, service, heard.proto);
    let backend = hook.nat(&there).unwrap_or_default();
    if backend.port.wire() == 0 || heard.dst != ip.src || heard.src != ip.dst {
        return Outcome::NotOurs;
    }
    let change = Change { addr: backend.addr, port: backend.port, is_destination: false };
    if hook.readdress_quoted(ip, &heard, service, &change, true) {
        Outcome::Translated
    } else {
        Outcome::Failed
    }
}

/// The way back may have been forgotten while the way there was not.
#[inline(always)]
fn know_back<H: Hook + ?Sized>(hook: &H, there: &NatKey, nat: &Nat) {
    let back = NatKey { peer: nat.addr, peer_port: nat.port, way: NAT_BACK, ..*there };
    if hook.nat(&back).is_none() {
        let service = Nat { addr: there.peer, port: there.peer_port, pad: 0 };
        let written = hook.write_nat(&back, &service);
        hook.note(if written { Reason::NatRestored } else { Reason::NatForgotten });
    }
}

/// The second: which backend.
#[inline(always)]
pub fn choose<H: Hook + ?Sized>(hook: &H) -> Outcome {
    let Some(NatBegun { there, .. }) = hook.begun() else { return Outcome::NotOurs };
    let service = ServiceKey::new(there.peer, there.peer_port, there.proto);
    let sender = Sender::new(&there.pod, there.pod_port, &service);
    match hook.assign(&service, &sender) {
        Choice::Backend { addr, port, reason, .. } => {
            // Read again rather than held: before 6.2 the verifier counts stacks in steps of 32 octets, and the choice calls deep.
            let Some(begun) = hook.begun() else { return Outcome::NotOurs };
            if addr == begun.there.pod {
                hook.note(Reason::NatHairpin);
                return Outcome::NotOurs;
            }
            hook.note(reason);
            hook.keep(&NatBegun { nat: Nat { addr, port, pad: 0 }, ..begun });
            Outcome::GoOn
        }
        Choice::Untouched(reason) => {
            if reason as u32 != Reason::ConnectOther as u32 {
                hook.note(reason);
            }
            Outcome::NotOurs
        }
    }
}

/// The last: it is remembered, and done.
#[inline(always)]
pub fn finish<H: Hook + ?Sized>(hook: &H) -> Outcome {
    let Some(NatBegun { there, nat, established }) = hook.begun() else { return Outcome::NotOurs };
    if !remember(hook, &there, &nat, established != 0) {
        return Outcome::Unknown;
    }
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return Outcome::NotOurs };
    let Some(transport) = transport(hook, &ip) else { return Outcome::NotOurs };
    to_backend(hook, &ip, &transport, &nat)
}

#[inline(always)]
fn to_backend<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport, nat: &Nat) -> Outcome {
    let change = Change { addr: nat.addr, port: nat.port, is_destination: true };
    if hook.readdress(ip, transport, &change) { Outcome::Translated } else { Outcome::Failed }
}

/// Word by word: of the derived comparison LLVM 22 makes code for BPF that it cannot put down.
#[inline(always)]
fn is_same(one: &Nat, other: &Nat) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (one.addr.words(), other.addr.words());
    let ports = (one.port.wire() ^ other.port.wire()) as u32;
    (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | ports == 0
}

/// False: nothing proves that an established connection was ours.
#[inline(always)]
fn remember<H: Hook + ?Sized>(hook: &H, there: &NatKey, nat: &Nat, established: bool) -> bool {
    let back = NatKey { peer: nat.addr, peer_port: nat.port, way: NAT_BACK, ..*there };
    let service = Nat { addr: there.peer, port: there.peer_port, pad: 0 };
    let known = hook.nat(&back).unwrap_or_default();
    let new = !is_same(&known, &service);
    if new {
        let other = known.port.wire() != 0;
        if established {
            let direct: FlowKey = flow(there.pod, nat.addr, there.pod_port, nat.port, there.proto);
            if other || !hook.knows_flow(&direct) {
                return false;
            }
        } else {
            hook.note(if other { Reason::NatTakenOver } else { Reason::NatMade });
        }
        if !hook.write_nat(&back, &service) {
            hook.note(Reason::NatForgotten);
        }
    }
    if established {
        hook.note(Reason::NatRestored);
    }
    // UDP has its pin; what the pod says about an answer is led by this.
    if (there.proto == IPPROTO_TCP || new) && !hook.write_nat(there, nat) {
        hook.note(Reason::NatForgotten);
    }
    true
}

/// Shows what comes for a left-out pod from its backend, or about its packets to it, as the service's.
#[inline(always)]
pub fn back<H: Hook + ?Sized>(hook: &H) -> Outcome {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return Outcome::NotOurs };
    if ip.fragment || !is_left_out(hook, &ip.dst) {
        return Outcome::NotOurs;
    }
    let Some(transport) = transport(hook, &ip) else { return Outcome::NotOurs };
    match transport.kind {
        Kind::Tcp | Kind::Udp => of_backend(hook, &ip, &transport),
        Kind::IcmpError => about_backend(hook, &ip),
        _ => Outcome::NotOurs,
    }
}

#[inline(always)]
fn of_backend<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) -> Outcome {
    let back = key(NAT_BACK, ip.dst, transport.dst, ip.src, transport.src, ip.proto);
    let service = hook.nat(&back).unwrap_or_default();
    if service.port.wire() == 0 {
        return Outcome::NotOurs;
    }
    let change = Change { addr: service.addr, port: service.port, is_destination: false };
    if hook.readdress(ip, transport, &change) { Outcome::Translated } else { Outcome::Failed }
}

#[inline(always)]
fn about_backend<H: Hook + ?Sized>(hook: &H, ip: &Ip) -> Outcome {
    let Some((sent, local, remote)) = quoted(hook, ip) else { return Outcome::NotOurs };
    let back = key(NAT_BACK, sent.src, local, sent.dst, remote, sent.proto);
    let service = hook.nat(&back).unwrap_or_default();
    if service.port.wire() == 0 || sent.src != ip.dst {
        return Outcome::NotOurs;
    }
    let change = Change { addr: service.addr, port: service.port, is_destination: true };
    let outer = ip.src == sent.dst;
    if hook.readdress_quoted(ip, &sent, remote, &change, outer) {
        Outcome::Translated
    } else {
        Outcome::Failed
    }
}
