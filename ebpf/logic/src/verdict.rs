//! The verdicts of the packet hooks at pods, the tunnel and the underlay, as functions of a packet, the maps and the device it is on.
//!
//! What is not ours is [`Action::Next`], so the CNI's own programs and the stack go on as if we were not there.

use hawser_ebpf_abi::{
    Addr, CONFIG_CUT_OFF, CONFIG_KERNEL_IPSEC, CONFIG_LEFT_OUT, Config, Endpoint, Exported, FlowKey,
    IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP, IpEntry, Nat, NatBegun, NatKey, Port, Reason,
    ServiceKey,
};

use crate::choice::Choice;
use crate::mss::{self, Clamp};
use crate::nat::{self, Change, Outcome, Sender};
use crate::packet::{Ip, Kind, Packet, Parsed, TCP_SYN, Transport, parse, quoted, transport};
use crate::reflect::{self, Control};
use crate::refuse::{self, Refusal};
use crate::reset::{self, Reset};

/// A packet, what is known about it, the maps, and the effects a verdict may have on the way.
pub trait Hook: Packet {
    fn config(&self) -> Config;
    /// In host order.
    fn ethertype(&self) -> u16;
    fn ifindex(&self) -> u32;
    fn mark(&self) -> u32;
    /// Length from the network header on.
    fn packet_len(&self) -> u32;
    /// Payload per segment when the kernel will cut the packet itself; 0 otherwise.
    fn gso_size(&self) -> u32;

    /// What is known of an address behind the tunnel. Of others it may be nothing.
    fn ip_entry(&self, addr: &Addr) -> Option<IpEntry>;
    fn endpoint(&self, addr: &Addr) -> Option<Endpoint>;
    fn exported(&self, key: &ServiceKey) -> Option<Exported>;
    fn is_exported(&self, key: &ServiceKey) -> bool {
        self.exported(key).is_some()
    }
    fn knows_flow(&self, key: &FlowKey) -> bool;
    /// The tick of a known flow's first packet; 0 when that was not seen.
    fn flow_began(&self, key: &FlowKey) -> Option<u32>;
    fn cluster_word(&self, cluster: u16) -> u32;
    fn node_word(&self, slot: u32) -> u32;
    /// After how many ticks connections to this backend are ended, where that is not as configured.
    fn reset_wish(&self, backend: &ServiceKey) -> Option<u32>;
    /// Of the clock that health words are stamped with.
    fn ticks(&self) -> u32;

    /// False when it could not be remembered. `first`: the packet begins it, whatever is known of one like it.
    fn remember_flow(&self, key: &FlowKey, first: bool) -> bool;
    fn rewrite_mss(&self, ip: &Ip, clamp: &Clamp);
    /// Turns a UDP packet round: addresses and ports change places, `answer` takes the place of `asked`.
    fn turn(&self, ip: &Ip, udp: &Transport, asked: &Control, answer: &Control);
    /// Turns a TCP packet into a reset for its sender. False when it could not be done.
    fn turn_into_reset(&self, ip: &Ip, reset: &Reset) -> bool;
    /// Turns a UDP packet into an ICMP error that quotes it, for its sender. False when it could not be done.
    fn turn_into_refusal(&self, ip: &Ip, refusal: &Refusal) -> bool;
    /// The slot of the node whose IPsec association a packet came by; 0 when it came by none.
    fn association(&self) -> u32;
    /// Counts what happened on the way.
    fn note(&self, reason: Reason);

    /// The backend for a flow to `service`, as [`crate::pin::assign`] gives it to a socket.
    fn assign(&self, service: &ServiceKey, sender: &Sender) -> Choice;
    fn nat(&self, key: &NatKey) -> Option<Nat>;
    /// False when it could not be written.
    fn write_nat(&self, key: &NatKey, nat: &Nat) -> bool;
    /// Changes one end of a TCP or UDP packet, and its checksums. False when it could not be done: the packet is spoiled.
    fn readdress(&self, ip: &Ip, transport: &Transport, change: &Change) -> bool;
    /// Changes one end, with that port, of the packet that an ICMP error quotes; `outer`: and the error's own other end, its source
    /// for the quoted destination. As above.
    fn readdress_quoted(&self, error: &Ip, quoted: &Ip, port: Port, change: &Change, outer: bool) -> bool;
    /// A translation between its steps.
    fn keep(&self, begun: &NatBegun);
    fn begun(&self) -> Option<NatBegun>;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the next program, then the stack.
    Next,
    Drop,
    /// [`tell_too_big`] says.
    TellTooBig,
    /// Out through a device without a link header.
    Steer {
        ifindex: u32,
    },
    /// Out through the pod's interface that it came from, marked as admitted.
    Return {
        ifindex: u32,
    },
    /// Into this node, as if it had come by that device.
    Hear {
        ifindex: u32,
    },
    /// Out through an uplink, from a device without a link header.
    Leave {
        ifindex: u32,
    },
    /// To a local pod through its interface, marked as admitted.
    Deliver {
        ifindex: u32,
        pod: Addr,
    },
}

/// An action and why. The reason is counted by whoever carries the action out.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub reason: Reason,
}

pub(crate) const fn next(reason: Reason) -> Verdict {
    Verdict { action: Action::Next, reason }
}

pub(crate) const fn drop(reason: Reason) -> Verdict {
    Verdict { action: Action::Drop, reason }
}

#[inline(always)]
pub(crate) fn is_remote<H: Hook + ?Sized>(hook: &H, addr: &Addr) -> bool {
    hook.ip_entry(addr).is_some_and(|entry| entry.is_remote())
}

#[inline(always)]
pub(crate) const fn flow(
    local: Addr,
    remote: Addr,
    local_port: Port,
    remote_port: Port,
    proto: u8,
) -> FlowKey {
    FlowKey { local, remote, local_port, remote_port, proto, pad0: 0, pad1: 0 }
}

/// Ingress of a pod's host-side interface: what the pod sends.
pub fn pod_from<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let translates = hook.config().flags & CONFIG_LEFT_OUT != 0;
    let verdict = pod_from_translated(hook, if translates { nat::there(hook) } else { Outcome::NotOurs });
    if verdict.action == Action::TellTooBig { tell_too_big(hook) } else { verdict }
}

/// After what became of it on behalf of a left-out pod.
#[inline(always)]
pub fn pod_from_translated<H: Hook + ?Sized>(hook: &H, outcome: Outcome) -> Verdict {
    let elsewhere = match outcome {
        Outcome::NotOurs | Outcome::GoOn => Reason::PodFromOther,
        Outcome::Translated => Reason::PodFromTranslated,
        Outcome::Unknown => Reason::PodFromNatUnknown,
        Outcome::Failed => return drop(Reason::PodFromUntranslatable),
    };
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::PodFromOther) };
    if is_remote(hook, &ip.src) {
        return drop(Reason::PodFromForgedRemote);
    }
    let Some(to) = hook.ip_entry(&ip.dst).filter(IpEntry::is_remote) else {
        return next(elsewhere);
    };
    let own = hook.endpoint(&ip.src).is_some_and(|endpoint| endpoint.ifindex == hook.ifindex());
    if !own {
        return drop(Reason::PodFromForeignSource);
    }
    let config = hook.config();
    if config.tunnel_ifindex == 0 {
        return drop(Reason::PodFromNoTunnel);
    }
    if ip.fragment {
        return drop(Reason::PodFromFragment);
    }
    let Some(transport) = transport(hook, &ip) else { return drop(Reason::PodFromMalformed) };
    if matches!(transport.kind, Kind::Tcp | Kind::Udp)
        && config.flags & CONFIG_CUT_OFF == 0
        && reset::ends(hook, &config, &to, &ip, &transport)
    {
        return end(hook, &ip, &transport);
    }
    if !fits(hook, &ip, &transport, config.tunnel_mtu) {
        // An error about an error would be the first of many (RFC 1122 §3.2.2).
        if transport.kind == Kind::IcmpError {
            return drop(Reason::PodFromTooBig);
        }
        return Verdict { action: Action::TellTooBig, reason: Reason::PodFromToldTooBig };
    }
    remember(hook, &ip, &transport);
    clamp(hook, &ip, &transport, config.tunnel_mtu);
    Verdict { action: Action::Steer { ifindex: config.tunnel_ifindex }, reason: Reason::PodFromSteered }
}

/// The connection is over: its client hears so at once, in place of nothing for minutes.
#[inline(always)]
fn end<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) -> Verdict {
    if !turn_into_end(hook, ip, transport) {
        return drop(Reason::PodFromUnresettable);
    }
    let reason = if transport.kind == Kind::Udp { Reason::PodFromRefused } else { Reason::PodFromReset };
    Verdict { action: Action::Return { ifindex: hook.ifindex() }, reason }
}

/// The packet becomes what its sender hears in place of an answer. False when it could not be done.
#[inline(always)]
fn turn_into_end<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) -> bool {
    if transport.kind == Kind::Udp {
        return refuse(hook, ip);
    }
    match reset::reset(hook, ip, hook.packet_len()) {
        Some(reset) => hook.turn_into_reset(ip, &reset),
        None => false,
    }
}

/// The message becomes its own answer: nobody takes it. False when it could not be done.
#[inline(always)]
pub(crate) fn refuse<H: Hook + ?Sized>(hook: &H, ip: &Ip) -> bool {
    match refuse::refuse(hook, ip, hook.packet_len()) {
        Some(refusal) => hook.turn_into_refusal(ip, &refusal),
        None => false,
    }
}

/// What the tunnel does not carry whole becomes the answer to itself. That comes from this node's mesh address, where there is one:
/// it is the hop that has the smaller MTU.
#[inline(always)]
pub fn tell_too_big<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return drop(Reason::PodFromTooBig) };
    let config = hook.config();
    let own = if ip.src.is_v4() { config.own_mesh_v4 } else { config.own_mesh_v6 };
    let from = if own == Addr::UNSPECIFIED { ip.dst } else { own };
    let told = match refuse::too_big(hook, &ip, hook.packet_len(), config.tunnel_mtu, from) {
        Some(refusal) => hook.turn_into_refusal(&ip, &refusal),
        None => false,
    };
    if !told {
        return drop(Reason::PodFromTooBig);
    }
    Verdict { action: Action::Return { ifindex: hook.ifindex() }, reason: Reason::PodFromToldTooBig }
}

/// Whether what the device will send at once fits the tunnel.
#[inline(always)]
pub(crate) fn fits<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport, mtu: u32) -> bool {
    let segment = hook.gso_size();
    if segment == 0 {
        return hook.packet_len() <= mtu;
    }
    ip.l4 + transport.header_len + segment <= mtu
}

/// Remembers the flow unless it is an exported endpoint that answers: that way in is open anyway. One that is closing is open
/// for a while only, and what it answers meanwhile goes on afterwards.
#[inline(always)]
fn remember<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) {
    if !matches!(transport.kind, Kind::Tcp | Kind::Udp | Kind::EchoRequest) {
        return;
    }
    let exported = hook.exported(&ServiceKey::new(ip.src, transport.src, ip.proto));
    if exported.is_some_and(|exported| exported.takes_new()) {
        return;
    }
    let flow = flow(ip.src, ip.dst, transport.src, transport.dst, ip.proto);
    let first = match transport.kind {
        Kind::Udp => !hook.knows_flow(&flow),
        _ => transport.is_bare_syn(),
    };
    if !hook.remember_flow(&flow, first) {
        hook.note(Reason::FlowForgotten);
    }
}

#[inline(always)]
pub(crate) fn clamp<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport, mtu: u32) {
    if transport.flags & TCP_SYN != 0
        && let Some(clamp) = mss::clamp(hook, ip.l4, transport.header_len, mss::limit(mtu, &ip.dst))
    {
        hook.rewrite_mss(ip, &clamp);
        hook.note(Reason::MssClamped);
    }
}

/// Ingress of the tunnel device: what the mesh sends. Nothing that is not for this node gets further.
#[inline(always)]
pub fn tunnel_in<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return drop(Reason::TunnelInMalformed) };
    let Some(sender) = hook.ip_entry(&ip.src).filter(IpEntry::is_remote) else {
        return drop(Reason::TunnelInUnknownSource);
    };
    if hook.config().flags & CONFIG_KERNEL_IPSEC != 0
        && (sender.node == 0 || sender.node != hook.association())
    {
        return drop(Reason::TunnelInOtherNode);
    }
    if ip.fragment {
        return drop(Reason::TunnelInFragment);
    }
    let Some(transport) = transport(hook, &ip) else { return drop(Reason::TunnelInMalformed) };
    let config = hook.config();
    let to_node = is_own_mesh_address(&config, &ip.dst);
    if to_node && ip.proto == IPPROTO_UDP && transport.dst == reflect::PORT {
        return reflected(hook, &config, &ip, &transport);
    }
    let (action, reason) = if to_node {
        let takes = node_takes(hook, &config, &ip, &transport);
        (Action::Next, if takes { Ok(Reason::TunnelInNode) } else { Err(Reason::TunnelInNodeNotExported) })
    } else {
        match hook.endpoint(&ip.dst) {
            None if is_remote(hook, &ip.dst) => return drop(Reason::TunnelInNotLocal),
            None => (Action::Drop, Err(Reason::TunnelInNotLocal)),
            Some(Endpoint { ifindex, .. }) => (
                Action::Deliver { ifindex, pod: ip.dst },
                to_pod(hook, &ip, &transport).ok_or(Reason::TunnelInNotExported),
            ),
        }
    };
    let reason = match reason {
        Ok(reason) => reason,
        // A backend that was withdrawn, or is gone: a socket that is connected to it hears so.
        Err(_) if transport.kind == Kind::Udp && transport.dst != reflect::PORT && refuse(hook, &ip) => {
            let action = Action::Steer { ifindex: config.tunnel_ifindex };
            return Verdict { action, reason: Reason::TunnelInRefused };
        }
        Err(reason) => return drop(reason),
    };
    if !to_node {
        clamp(hook, &ip, &transport, config.tunnel_mtu);
    }
    Verdict { action, reason }
}

#[inline(always)]
pub(crate) fn is_own_mesh_address(config: &Config, addr: &Addr) -> bool {
    *addr != Addr::UNSPECIFIED && (*addr == config.own_mesh_v4 || *addr == config.own_mesh_v6)
}

/// This node's mesh address is for the mesh's own traffic, for host-network programs that are exported, and for what answers them
/// or the flows that were sent on in this node's name.
#[inline(always)]
fn node_takes<H: Hook + ?Sized>(hook: &H, config: &Config, ip: &Ip, transport: &Transport) -> bool {
    let exported = || hook.is_exported(&ServiceKey::new(ip.dst, transport.dst, ip.proto));
    let answers = || hook.knows_flow(&flow(ip.dst, ip.src, transport.dst, transport.src, ip.proto));
    match ip.proto {
        IPPROTO_UDP => transport.dst == config.probe_port || exported() || answers(),
        IPPROTO_TCP => !transport.is_bare_syn() || exported(),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => true,
        _ => false,
    }
}

/// Egress of the tunnel device: what this node's own programs say, in the node's name. So that UDP is answered, its flow is
/// remembered; what is over ends as a pod's does. What pods and clients outside say was judged where it came in, and is not for here.
#[inline(always)]
pub fn tunnel_out<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::TunnelOutOther) };
    let config = hook.config();
    if ip.fragment || !is_own_mesh_address(&config, &ip.src) {
        return next(Reason::TunnelOutOther);
    }
    let Some(transport) = transport(hook, &ip) else { return next(Reason::TunnelOutOther) };
    // A probe is asked for its answer by its own port, and there are too many of them to remember.
    if ip.proto == IPPROTO_UDP && transport.dst == reflect::PORT {
        return next(Reason::TunnelOutOther);
    }
    let Some(to) = hook.ip_entry(&ip.dst).filter(IpEntry::is_remote) else {
        return next(Reason::TunnelOutOther);
    };
    // What is heard so comes by no association: with IPsec in the kernel the sweep ends it.
    let ends = config.flags & (CONFIG_CUT_OFF | CONFIG_KERNEL_IPSEC) == 0
        && matches!(transport.kind, Kind::Tcp | Kind::Udp)
        && reset::ends(hook, &config, &to, &ip, &transport);
    if ends && turn_into_end(hook, &ip, &transport) {
        let reason =
            if transport.kind == Kind::Udp { Reason::TunnelOutRefused } else { Reason::TunnelOutReset };
        return Verdict { action: Action::Hear { ifindex: hook.ifindex() }, reason };
    }
    if ends {
        return drop(Reason::TunnelOutUnresettable);
    }
    remember(hook, &ip, &transport);
    next(Reason::TunnelOutNode)
}

/// A probe goes back the way it came, through the tunnel, whether an agent runs or not.
#[inline(always)]
fn reflected<H: Hook + ?Sized>(hook: &H, config: &Config, ip: &Ip, udp: &Transport) -> Verdict {
    let Some((asked, answer)) = reflect::answer(hook, config, ip, udp) else {
        return drop(Reason::TunnelInProbeRefused);
    };
    hook.turn(ip, udp, &asked, &answer);
    Verdict { action: Action::Steer { ifindex: config.tunnel_ifindex }, reason: Reason::TunnelInReflected }
}

/// Why a local pod may have this packet; None when it may not.
#[inline(always)]
fn to_pod<H: Hook + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) -> Option<Reason> {
    match transport.kind {
        Kind::Tcp | Kind::Udp | Kind::EchoReply => {}
        Kind::IcmpError => return is_related(hook, ip).then_some(Reason::TunnelInRelated),
        Kind::EchoRequest | Kind::Other => return None,
    }
    let exported = hook.exported(&ServiceKey::new(ip.dst, transport.dst, ip.proto));
    if exported.is_some_and(|exported| exported.takes_new() || !transport.is_bare_syn()) {
        return Some(Reason::TunnelInExported);
    }
    let answers = !transport.is_bare_syn()
        && hook.knows_flow(&flow(ip.dst, ip.src, transport.dst, transport.src, ip.proto));
    answers.then_some(Reason::TunnelInReply)
}

/// An ICMP error is let in when the packet it quotes was the pod's own, in a flow it began or from a port it exports.
#[inline(always)]
fn is_related<H: Hook + ?Sized>(hook: &H, ip: &Ip) -> bool {
    let Some((sent, local, remote)) = quoted(hook, ip) else { return false };
    sent.src == ip.dst
        && (hook.knows_flow(&flow(sent.src, sent.dst, local, remote, sent.proto))
            || hook.is_exported(&ServiceKey::new(sent.src, local, sent.proto)))
}

/// Egress of a pod's host-side interface: a remote address counts only on what `tunnel_in` has marked.
#[inline(always)]
pub fn pod_to<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::PodToOther) };
    let config = hook.config();
    let remote = is_remote(hook, &ip.src) && hook.endpoint(&ip.src).is_none();
    if remote && (config.mark == 0 || hook.mark() & config.mark_mask != config.mark) {
        return drop(Reason::PodToOutsideTunnel);
    }
    if config.flags & CONFIG_LEFT_OUT != 0 {
        match nat::back(hook) {
            Outcome::Failed => return drop(Reason::PodToUntranslatable),
            Outcome::Translated => hook.note(Reason::NatShown),
            _ => {}
        }
    }
    next(if remote { Reason::PodToAdmitted } else { Reason::PodToOther })
}

/// Ingress of an underlay device: nobody there may speak as, or to, an address that lives in the tunnels.
#[inline(always)]
pub fn underlay_in<H: Hook + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::UnderlayOther) };
    if is_own_mesh_address(&hook.config(), &ip.dst) {
        return drop(Reason::UnderlayToMeshAddress);
    }
    if is_remote(hook, &ip.src) {
        return drop(Reason::UnderlayForgedRemote);
    }
    next(Reason::UnderlayOther)
}
