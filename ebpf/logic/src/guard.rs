//! The node's edge: devices that are neither the tunnel nor a pod's. What is the mesh's neither leaves nor enters there, whatever
//! routes say.
//!
//! Cost of a packet: its header is read, and one bit looked at where nothing of the address's /16 is remote.

use hawser_ebpf_abi::{Addr, IpEntry, Reason};

use crate::packet::{Parsed, parse};
use crate::verdict::{Hook, Verdict, drop, is_remote, next};

/// Ingress: a remote cluster's address counts only on what comes out of the tunnel.
#[inline(always)]
pub fn guard_in<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::GuardInOther) };
    if is_remote(hook, &ip.src) {
        return drop(Reason::GuardInForgedRemote);
    }
    next(Reason::GuardInOther)
}

/// 255.255.255.255, which lies in the mesh's 240.0.0.0/4: DHCP lives by it, and no router forwards it (RFC 919 §7).
#[inline(always)]
fn is_broadcast(addr: &Addr) -> bool {
    addr.is_v4() && addr.v4_word() == u32::MAX
}

/// Egress: mesh traffic is in the tunnel or nowhere. The tunnel's own packets are for nodes, whose ranges are apart from all pods'
/// and from the mesh's.
#[inline(always)]
pub fn guard_out<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::GuardOutOther) };
    if hook.ip_entry(&ip.dst).as_ref().is_some_and(IpEntry::is_guarded) && !is_broadcast(&ip.dst) {
        return drop(Reason::GuardOutInClear);
    }
    next(Reason::GuardOutOther)
}
