//! Traffic that enters from outside the mesh, at an uplink that was opted in: to a service's NodePort, to one of its external
//! addresses, or to its ClusterIP as a router sends it. It is given a backend as a socket is, and what comes back is shown as the
//! service's.
//!
//! A backend of the own cluster is reached as kube-proxy reaches it: by a mark that has netfilter hide the client behind this node's
//! address, so that the answer passes here. Without that mark only pods of this node are, and see the client. A backend of another cluster sees this node's mesh address, and a port of it that is this
//! flow's: who is outside is nobody in the mesh, and the answer must come back here.
//!
//! TCP keeps the backend that its first packet was given, UDP is pinned as a socket is ([`crate::pin`]). What cannot be proven to be ours
//! is left alone: it is kube-proxy's or the stack's.
//!
//! Cost: a packet of an established TCP connection two hash look-ups, and to another cluster three more; of UDP what a message costs at a
//! socket besides. On the way back one. A packet that is not ours a look at its header and one look-up (TCP), or two (a first packet, UDP).

use hawser_ebpf_abi::{
    Addr, CONFIG_CUT_OFF, CONFIG_UPLINKS, Config, ENTER_BACK, ENTER_THERE, ENTERED_ANSWERED,
    ENTERED_BACKEND_DONE, ENTERED_CLIENT_DONE, ENTERED_MASQUERADED, EnterBegun, EnterKey, Entered,
    IPPROTO_TCP, IPPROTO_UDP, IpEntry, Port, Reason, ServiceKey, TICK_SHIFT,
};

use crate::choice::Choice;
use crate::nat::{Change, Sender};
use crate::packet::{Ip, Kind, Parsed, TCP_RST, Transport, parse, quoted, transport};
use crate::random::{below, draw};
use crate::verdict::{
    Action, Hook, Verdict, clamp, drop, fits, flow, is_own_mesh_address, is_remote, next, refuse,
};
use crate::{refuse, reset};

/// Flows to one backend can have so many ports of this node's mesh address, from this one on. Below those that the kernel gives
/// its sockets (32768 to 60999), and above the port that probes are reflected at.
pub const FIRST_PORT: u16 = 8_192;
pub const PORTS: u32 = 24_576;
/// Ports that are looked at for a new flow.
const TRIES: u32 = 8;

const fn ticks(seconds: u64) -> u32 {
    ((seconds * 1_000_000_000) >> TICK_SHIFT) as u32
}

/// A port is another flow's after so much silence: of UDP, of what was never answered, of what is closed (RFC 9293's 2 MSL, as Linux
/// has it); of what is closed already after [`CLOSED`] where nothing else is free; of an open connection.
const SILENT: u32 = ticks(60);
const CLOSED: u32 = ticks(10);
const OPEN: u32 = ticks(3 * 60 * 60);

const DONE: u32 = ENTERED_CLIENT_DONE | ENTERED_BACKEND_DONE;
const TCP_FIN: u8 = 0x01;

/// What the programs of uplinks look at and do beside what all packet programs do.
pub trait Uplink: Hook {
    /// The service's entry, where it is entered by another address or port.
    fn frontend(&self, key: &ServiceKey) -> Option<ServiceKey>;
    fn entered(&self, key: &EnterKey) -> Option<Entered>;
    /// `new`: only if there is none. False when it could not be written.
    fn write_entered(&self, key: &EnterKey, to: &Entered, new: bool) -> bool;
    fn forget_entered(&self, key: &EnterKey);
    /// This flow was seen just now: its state is no longer `without`, and is `with`.
    fn touch_entered(&self, key: &EnterKey, without: u32, with: u32);
    fn keep_entered(&self, begun: &EnterBegun);
    fn begun_entered(&self) -> Option<EnterBegun>;
    /// Of what is kept so, the destination.
    fn send_entered_to(&self, addr: Addr, port: Port);
    /// Netfilter is to put the node's address in the client's place.
    fn masquerade(&self, mark: u32);
}

/// What is to be done next with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is not ours.
    Other,
    Choose,
    Settle,
    Remember,
    Carry,
    /// It is an ICMP error.
    About,
    /// Nothing, though it is to a service.
    Left,
    NoPort,
}

impl Step {
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self as u64
    }

    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        match packed {
            1 => Self::Choose,
            2 => Self::Settle,
            3 => Self::Remember,
            4 => Self::Carry,
            5 => Self::About,
            6 => Self::Left,
            7 => Self::NoPort,
            _ => Self::Other,
        }
    }

    /// Of a packet that nothing is done with.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Left => next(Reason::UplinkInLeft),
            Self::NoPort => drop(Reason::UplinkInNoPort),
            _ => next(Reason::UplinkInOther),
        }
    }
}

#[inline(always)]
fn key(way: u8, src: Addr, src_port: Port, dst: Addr, dst_port: Port, proto: u8) -> EnterKey {
    EnterKey { src, dst, src_port, dst_port, proto, way, pad: 0 }
}

/// The way back of what is sent on so.
#[inline(always)]
fn back_of(to: &Entered, proto: u8) -> EnterKey {
    key(ENTER_BACK, to.dst, to.dst_port, to.src, to.src_port, proto)
}

/// What comes back is sent on as the service's, to the client.
#[inline(always)]
fn answer_of(there: &EnterKey, to: &Entered, seen: u32) -> Entered {
    Entered {
        src: there.dst,
        dst: there.src,
        src_port: there.dst_port,
        dst_port: there.src_port,
        ifindex: to.ifindex,
        seen,
        state: 0,
    }
}

/// Whether it goes to another cluster, in this node's name.
#[inline(always)]
fn is_in_our_name(there: &EnterKey, to: &Entered) -> bool {
    to.src != there.src
}

/// Ingress of an uplink that was opted in.
pub fn uplink_in<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    let mut step = begin(hook);
    if step == Step::Choose {
        step = choose(hook);
    }
    if step == Step::Settle {
        step = settle(hook);
    }
    if step == Step::Remember {
        step = remember(hook);
    }
    match step {
        Step::Carry => {
            let verdict = carry(hook);
            if verdict.action == Action::TellTooBig { tell_too_big(hook) } else { verdict }
        }
        Step::About => about(hook),
        step => step.verdict(),
    }
}

/// The first step, and for an established TCP connection the last but one. The steps do not call each other, for the kernel's stack
/// holds 512 octets.
#[inline(always)]
pub fn begin<H: Uplink + ?Sized>(hook: &H) -> Step {
    if hook.config().flags & CONFIG_UPLINKS == 0 {
        return Step::Other;
    }
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return Step::Other };
    if ip.fragment {
        return Step::Other;
    }
    let Some(transport) = transport(hook, &ip) else { return Step::Other };
    match transport.kind {
        Kind::Tcp | Kind::Udp => {}
        Kind::IcmpError => return Step::About,
        _ => return Step::Other,
    }
    let there = key(ENTER_THERE, ip.src, transport.src, ip.dst, transport.dst, ip.proto);
    if transport.kind == Kind::Tcp && !transport.is_bare_syn() {
        let Some(to) = hook.entered(&there) else { return Step::Other };
        if !is_its(hook, &there, &to) {
            return Step::Other;
        }
        hook.keep_entered(&EnterBegun { there, to });
        return Step::Carry;
    }
    // What claims to be of the mesh came the wrong way, and our own address there is nobody's from outside.
    if is_remote(hook, &ip.src) || is_own_mesh_address(&hook.config(), &ip.dst) {
        return Step::Other;
    }
    let asked = ServiceKey::new(ip.dst, transport.dst, ip.proto);
    let service = hook.frontend(&asked).unwrap_or(asked);
    // Nobody is chosen yet: it is to the service.
    let to = Entered {
        src: ip.src,
        dst: service.addr,
        src_port: transport.src,
        dst_port: service.port,
        ifindex: hook.ifindex(),
        seen: 0,
        state: 0,
    };
    hook.keep_entered(&EnterBegun { there, to });
    Step::Choose
}

/// Whether the way back is still this flow's. One that was forgotten is made again.
#[inline(always)]
fn is_its<H: Uplink + ?Sized>(hook: &H, there: &EnterKey, to: &Entered) -> bool {
    let back = back_of(to, there.proto);
    if let Some(held) = hook.entered(&back) {
        return held.dst == there.src && held.dst_port == there.src_port && held.src == there.dst;
    }
    let written = hook.write_entered(&back, &answer_of(there, to, hook.ticks()), true);
    hook.note(if written { Reason::EnterRestored } else { Reason::EnterForgotten });
    written
}

/// The second: which backend. Nothing besides, as the choice calls deep, and before 6.2 the verifier counts stacks in steps of 32 octets.
#[inline(always)]
pub fn choose<H: Uplink + ?Sized>(hook: &H) -> Step {
    let Some(EnterBegun { there, to }) = hook.begun_entered() else { return Step::Other };
    let service = ServiceKey::new(to.dst, to.dst_port, there.proto);
    let sender = Sender::new(&there.src, there.src_port, &service);
    match hook.assign(&service, &sender) {
        Choice::Backend { addr, port, reason, .. } => {
            hook.note(reason);
            hook.send_entered_to(addr, port);
            Step::Settle
        }
        Choice::Untouched(reason) => {
            if reason as u32 != Reason::ConnectOther as u32 {
                hook.note(reason);
            }
            Step::Other
        }
    }
}

/// The third: whom the backend sees.
#[inline(always)]
pub fn settle<H: Uplink + ?Sized>(hook: &H) -> Step {
    let Some(EnterBegun { there, mut to }) = hook.begun_entered() else { return Step::Other };
    let config = hook.config();
    if is_remote(hook, &to.dst) {
        let own = if to.dst.is_v4() { config.own_mesh_v4 } else { config.own_mesh_v6 };
        if own == Addr::UNSPECIFIED {
            return Step::Left;
        }
        to.src = own;
    } else if config.masquerade_mark != 0 {
        to.state = ENTERED_MASQUERADED;
    } else if hook.endpoint(&to.dst).is_none() {
        return Step::Left;
    }
    hook.keep_entered(&EnterBegun { there, to });
    Step::Remember
}

/// The fourth: a known flow that is given the same backend keeps its port; another one is remembered, both ways.
#[inline(always)]
pub fn remember<H: Uplink + ?Sized>(hook: &H) -> Step {
    let Some(EnterBegun { there, to }) = hook.begun_entered() else { return Step::Other };
    if let Some(known) = hook.entered(&there) {
        let same = known.dst == to.dst
            && known.dst_port == to.dst_port
            && is_in_our_name(&there, &known) == is_in_our_name(&there, &to);
        if same && is_its(hook, &there, &known) {
            hook.keep_entered(&EnterBegun { there, to: known });
            return Step::Carry;
        }
    }
    let to = if is_in_our_name(&there, &to) {
        let port = take_port(hook, &there, &to);
        if port == 0 {
            return Step::NoPort;
        }
        Entered { src_port: Port::new(port), ..to }
    } else {
        let back = back_of(&to, there.proto);
        if !hook.write_entered(&back, &answer_of(&there, &to, hook.ticks()), false) {
            hook.note(Reason::EnterForgotten);
        }
        to
    };
    hook.note(Reason::EnterMade);
    if !hook.write_entered(&there, &to, false) {
        hook.note(Reason::EnterForgotten);
    }
    hook.keep_entered(&EnterBegun { there, to });
    Step::Carry
}

/// A port that no other flow to this backend has, taken; 0 = none was found. Another try begins elsewhere.
#[inline(always)]
fn take_port<H: Uplink + ?Sized>(hook: &H, there: &EnterKey, to: &Entered) -> u16 {
    let now = hook.ticks();
    let ports = (there.src_port.wire() as u64) << 16 | to.dst_port.wire() as u64;
    let [a, b, c, d] = there.src.words();
    let seed = ((a ^ b ^ c ^ d) as u64) << 32 ^ ports ^ (now as u64) << 8;
    for n in 0..2 * TRIES {
        // The same ports twice: first those that nobody minds.
        let port = FIRST_PORT + below(draw(seed, (n % TRIES) as u64), PORTS) as u16;
        let closed = if n < TRIES { SILENT } else { CLOSED };
        let own = Entered { src_port: Port::new(port), ..*to };
        let back = back_of(&own, there.proto);
        if let Some(held) = hook.entered(&back) {
            if now.wrapping_sub(held.seen) < patience(&held, there.proto, closed) {
                continue;
            }
            hook.forget_entered(&back);
        }
        if hook.write_entered(&back, &answer_of(there, &own, now), true) {
            return port;
        }
    }
    0
}

/// For so long a silent flow keeps its port.
#[inline(always)]
const fn patience(held: &Entered, proto: u8, closed: u32) -> u32 {
    if proto == IPPROTO_TCP && held.state & DONE == DONE {
        closed
    } else if proto == IPPROTO_UDP || held.state & ENTERED_ANSWERED == 0 {
        SILENT
    } else {
        OPEN
    }
}

/// The last: it goes.
#[inline(always)]
pub fn carry<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    let Some(EnterBegun { there, to }) = hook.begun_entered() else { return next(Reason::UplinkInOther) };
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::UplinkInOther) };
    let Some(transport) = transport(hook, &ip) else { return next(Reason::UplinkInOther) };
    // A connection that is begun anew is not closed, whatever the one before it was.
    let anew = if transport.is_bare_syn() { DONE } else { 0 };
    hook.touch_entered(&back_of(&to, there.proto), anew, done(&transport, ENTERED_CLIENT_DONE));
    let config = hook.config();
    let destination = Change { addr: to.dst, port: to.dst_port, is_destination: true };
    if !is_in_our_name(&there, &to) {
        if to.state & ENTERED_MASQUERADED != 0 {
            hook.masquerade(config.masquerade_mark);
        }
        return match hook.readdress(&ip, &transport, &destination) {
            true => next(Reason::UplinkInOwn),
            false => drop(Reason::UplinkInUntranslatable),
        };
    }
    let Some(entry) = hook.ip_entry(&to.dst).filter(IpEntry::is_remote) else {
        return drop(Reason::UplinkInNoTunnel);
    };
    if config.tunnel_ifindex == 0 {
        return drop(Reason::UplinkInNoTunnel);
    }
    // As it will be.
    let sent = Ip { src: to.src, dst: to.dst, ..ip };
    let ends = Transport { src: to.src_port, dst: to.dst_port, ..transport };
    if config.flags & CONFIG_CUT_OFF == 0 && reset::ends(hook, &config, &entry, &sent, &ends) {
        return end(hook, &ip, &transport);
    }
    if !fits(hook, &ip, &transport, config.tunnel_mtu) {
        return Verdict { action: Action::TellTooBig, reason: Reason::UplinkInToldTooBig };
    }
    let flow = flow(to.src, to.dst, to.src_port, to.dst_port, ip.proto);
    let first = transport.is_bare_syn() || transport.kind == Kind::Udp && !hook.knows_flow(&flow);
    if !hook.remember_flow(&flow, first) {
        hook.note(Reason::FlowForgotten);
    }
    clamp(hook, &ip, &transport, config.tunnel_mtu);
    let source = Change { addr: to.src, port: to.src_port, is_destination: false };
    if hook.readdress(&ip, &transport, &source) && hook.readdress(&ip, &transport, &destination) {
        steer(&config)
    } else {
        drop(Reason::UplinkInUntranslatable)
    }
}

#[inline(always)]
const fn steer(config: &Config) -> Verdict {
    Verdict { action: Action::Steer { ifindex: config.tunnel_ifindex }, reason: Reason::UplinkInSteered }
}

/// What a segment says about the end of its connection: a reset ends both ways.
#[inline(always)]
const fn done(transport: &Transport, fin: u32) -> u32 {
    if transport.flags & TCP_RST != 0 {
        DONE
    } else if transport.flags & TCP_FIN != 0 {
        fin
    } else {
        0
    }
}

/// The connection is over: its client hears so at once.
#[inline(always)]
fn end<H: Uplink + ?Sized>(hook: &H, ip: &Ip, transport: &Transport) -> Verdict {
    let turned = match transport.kind {
        Kind::Udp => refuse(hook, ip),
        _ => match reset::reset(hook, ip, hook.packet_len()) {
            Some(reset) => hook.turn_into_reset(ip, &reset),
            None => false,
        },
    };
    if !turned {
        return drop(Reason::UplinkInUntranslatable);
    }
    Verdict { action: Action::Return { ifindex: hook.ifindex() }, reason: Reason::UplinkInReset }
}

/// What the tunnel does not carry whole becomes the answer to itself, in the service's name: who is outside knows no other.
#[inline(always)]
pub fn tell_too_big<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return drop(Reason::UplinkInTooBig) };
    let mtu = hook.config().tunnel_mtu;
    let told = match refuse::too_big(hook, &ip, hook.packet_len(), mtu, ip.dst) {
        Some(refusal) => hook.turn_into_refusal(&ip, &refusal),
        None => false,
    };
    if !told {
        return drop(Reason::UplinkInTooBig);
    }
    Verdict { action: Action::Return { ifindex: hook.ifindex() }, reason: Reason::UplinkInToldTooBig }
}

/// What is said outside about an answer of the service is said to the backend, about the backend's.
#[inline(always)]
pub fn about<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return next(Reason::UplinkInOther) };
    let Some((sent, from, to)) = quoted(hook, &ip) else { return next(Reason::UplinkInOther) };
    let there = key(ENTER_THERE, sent.dst, to, sent.src, from, sent.proto);
    let Some(entered) = hook.entered(&there) else { return next(Reason::UplinkInOther) };
    if sent.src != ip.dst || is_remote(hook, &ip.src) {
        return next(Reason::UplinkInOther);
    }
    let backend = Change { addr: entered.dst, port: entered.dst_port, is_destination: false };
    if !hook.readdress_quoted(&ip, &sent, from, &backend, true) {
        return drop(Reason::UplinkInUntranslatable);
    }
    if !is_in_our_name(&there, &entered) {
        return next(Reason::UplinkInOwn);
    }
    let config = hook.config();
    if config.tunnel_ifindex == 0 {
        return drop(Reason::UplinkInNoTunnel);
    }
    if hook.packet_len() > config.tunnel_mtu {
        return drop(Reason::UplinkInTooBig);
    }
    let own = Change { addr: entered.src, port: entered.src_port, is_destination: true };
    match hook.readdress_quoted(&ip, &sent, to, &own, true) {
        true => steer(&config),
        false => drop(Reason::UplinkInUntranslatable),
    }
}

/// A packet that an ICMP error is about: its header, and the ports that it came from and went to.
type Quoted = (Ip, Port, Port);

/// What a packet answers that a backend, or somebody on the way to it, sends; with what it quotes of that.
#[inline(always)]
fn answered<H: Uplink + ?Sized>(
    hook: &H,
    ip: &Ip,
    transport: &Transport,
) -> Option<(EnterKey, Entered, Option<Quoted>)> {
    match transport.kind {
        Kind::Tcp | Kind::Udp => {
            let back = key(ENTER_BACK, ip.src, transport.src, ip.dst, transport.dst, ip.proto);
            Some((back, hook.entered(&back)?, None))
        }
        Kind::IcmpError => {
            let (sent, from, to) = quoted(hook, ip)?;
            let back = key(ENTER_BACK, sent.dst, to, sent.src, from, sent.proto);
            let entered = hook.entered(&back)?;
            (sent.src == ip.dst).then_some((back, entered, Some((sent, from, to))))
        }
        _ => None,
    }
}

/// Egress of an uplink that was opted in: answers of the own cluster.
#[inline(always)]
pub fn uplink_out<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    const OTHER: Verdict = next(Reason::UplinkOutOther);
    if hook.config().flags & CONFIG_UPLINKS == 0 {
        return OTHER;
    }
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return OTHER };
    if ip.fragment {
        return OTHER;
    }
    let Some(transport) = transport(hook, &ip) else { return OTHER };
    let Some((_, to, about)) = answered(hook, &ip, &transport) else { return OTHER };
    let shown = match about {
        None => {
            let source = Change { addr: to.src, port: to.src_port, is_destination: false };
            hook.readdress(&ip, &transport, &source)
        }
        Some((sent, _, port)) => {
            let service = Change { addr: to.src, port: to.src_port, is_destination: true };
            hook.readdress_quoted(&ip, &sent, port, &service, ip.src == sent.dst)
        }
    };
    if shown { next(Reason::UplinkOutShown) } else { drop(Reason::UplinkOutUntranslatable) }
}

/// What `tunnel_in` would give this node's mesh address: an answer to a client outside goes on to it.
#[inline(always)]
pub fn tunnel_back<H: Uplink + ?Sized>(hook: &H) -> Verdict {
    const NODE: Verdict = next(Reason::TunnelInNode);
    let Parsed::Ip(ip) = parse(hook, hook.ethertype()) else { return NODE };
    let Some(transport) = transport(hook, &ip) else { return NODE };
    let Some((back, to, about)) = answered(hook, &ip, &transport) else { return NODE };
    let source = Change { addr: to.src, port: to.src_port, is_destination: false };
    let client = Change { addr: to.dst, port: to.dst_port, is_destination: true };
    let shown = match about {
        None => {
            hook.touch_entered(&back, 0, ENTERED_ANSWERED | done(&transport, ENTERED_BACKEND_DONE));
            hook.readdress(&ip, &transport, &source) && hook.readdress(&ip, &transport, &client)
        }
        // Whoever says it: an address of the mesh is of no use outside.
        Some((sent, from, port)) => {
            let service = Change { is_destination: true, ..source };
            let client = Change { is_destination: false, ..client };
            hook.readdress_quoted(&ip, &sent, port, &service, true)
                && hook.readdress_quoted(&ip, &sent, from, &client, true)
        }
    };
    if !shown {
        return drop(Reason::TunnelInUnanswerable);
    }
    Verdict { action: Action::Leave { ifindex: to.ifindex }, reason: Reason::TunnelInAnswered }
}
