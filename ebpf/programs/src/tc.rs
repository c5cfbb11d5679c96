//! The packet programs: a view of the socket buffer for the logic, and what carries its verdicts out.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_redir_neigh};
use aya_ebpf::helpers::{
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_abi::{
    Addr, CONFIG_GATEWAY, CONFIG_LEFT_OUT, CONFIG_UPLINKS, Config, Endpoint, Exported, FlowKey, IPPROTO_TCP,
    IpEntry, Nat, NatBegun, NatKey, Port, Reason, ServiceKey, block_v4, block_v6,
};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::gateway;
use hawser_ebpf_logic::guard;
use hawser_ebpf_logic::mss::Clamp;
use hawser_ebpf_logic::nat::{Change, Outcome, Sender};
use hawser_ebpf_logic::packet::{ETH_P_IP, ETH_P_IPV6, Ip, Transport};
use hawser_ebpf_logic::reflect::Control;
use hawser_ebpf_logic::refuse::{LEN_V4, LEN_V6, Refusal};
use hawser_ebpf_logic::reset::{Reset, TCP_LEN};
use hawser_ebpf_logic::verdict::{self, Action, Hook, Verdict};

use crate::{enter, maps, nat};

mod read;
mod rewrite;

use read::{association, left_link_header};
use rewrite::PSEUDO;

/// TC_ACT_UNSPEC and TCX_NEXT: "not mine", so the CNI's programs behind ours run. OK would end the chain.
const NEXT: i32 = -1;
/// TC_ACT_SHOT and TCX_DROP.
const DROP: i32 = 2;
/// No result that the kernel sees: another step of the program.
pub(crate) const TELL_TOO_BIG: i32 = 100;
/// Nor this one: `tunnel_in` goes on.
const NOT_CARRIED: u64 = 101;

/// BPF_F_INGRESS.
const INGRESS: u64 = 1;

const ETHERNET: u32 = 14;
const NO_LINK_HEADER: u32 = 0;
/// The device's link header is not known beforehand: read from where the kernel says the network header is.
const ANY_LINK: u32 = u32::MAX;
/// None; or Ethernet's, of what IPsec in the kernel opened: see [`left_link_header`].
const LEFT_LINK: u32 = u32::MAX - 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

macro_rules! field {
    ($skb:expr, $field:ident) => {
        // SAFETY: the context pointer is valid for the whole program, and tc programs may read this field.
        unsafe { (&raw const (*$skb.0).$field).read_volatile() }
    };
}

/// A packet between local pods, which most are, leaves it after two bits.
#[classifier]
pub fn pod_from(ctx: TcContext) -> i32 {
    let skb = ctx.as_ptr().cast();
    let translates = maps::config().flags & CONFIG_LEFT_OUT != 0;
    if !translates && PodSkb::new(skb).is_elsewhere() {
        maps::count(Reason::PodFromOther);
        return NEXT;
    }
    let outcome = if translates { nat::there(skb) } else { Outcome::NotOurs.pack() };
    let result = pod_from_translated(skb, outcome);
    (if result == TELL_TOO_BIG as u64 { pod_from_too_big(skb) } else { result }) as i32
}

// As `verdict::pod_from`, in steps that do not call each other: the kernel's stack has 512 octets for all that are under way.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pod_from_translated(skb: *mut __sk_buff, outcome: u64) -> u64 {
    let skb = PodSkb::new(skb);
    skb.carry_out(verdict::pod_from_translated(&skb, Outcome::unpack(outcome))) as u64
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pod_from_too_big(skb: *mut __sk_buff) -> u64 {
    let skb = PodSkb::new(skb);
    skb.carry_out(verdict::tell_too_big(&skb)) as u64
}

#[classifier]
pub fn pod_to(ctx: TcContext) -> i32 {
    let skb = PodSkb::new(ctx.as_ptr().cast());
    skb.carry_out(verdict::pod_to(&skb))
}

/// At a gateway: what is sent on, or [`NOT_CARRIED`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tunnel_in_carried(skb: *mut __sk_buff) -> u64 {
    let skb = Skb::<NO_LINK_HEADER>::new(skb);
    match gateway::carried(&skb) {
        Some(verdict) => skb.carry_out(verdict) as u64,
        None => NOT_CARRIED,
    }
}

#[classifier]
pub fn tunnel_in(ctx: TcContext) -> i32 {
    if maps::config().flags & CONFIG_GATEWAY != 0 {
        let result = tunnel_in_carried(ctx.as_ptr().cast());
        if result != NOT_CARRIED {
            return result as i32;
        }
    }
    let result = tunnel_in_judged(ctx.as_ptr().cast());
    (if result == NOT_CARRIED { enter::enter_back(ctx.as_ptr().cast()) } else { result }) as i32
}

/// Gives [`NOT_CARRIED`] for what the node's mesh address would get where that has clients outside.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tunnel_in_judged(skb: *mut __sk_buff) -> u64 {
    let skb = TunnelSkb::new(skb);
    let verdict = verdict::tunnel_in(&skb);
    if verdict.reason as u32 == Reason::TunnelInNode as u32 && maps::config().flags & CONFIG_UPLINKS != 0 {
        return NOT_CARRIED;
    }
    skb.carry_out(verdict) as u64
}

/// What came in by a device was judged there, and is most of what leaves here.
#[classifier]
pub fn tunnel_out(ctx: TcContext) -> i32 {
    let skb = Skb::<NO_LINK_HEADER>::new(ctx.as_ptr().cast());
    if field!(skb, ingress_ifindex) != 0 {
        return NEXT;
    }
    skb.carry_out(verdict::tunnel_out(&skb))
}

#[classifier]
pub fn guard_in(ctx: TcContext) -> i32 {
    let skb = Skb::<ANY_LINK>::new(ctx.as_ptr().cast());
    skb.carry_out(guard::guard_in(&skb))
}

#[classifier]
pub fn guard_out(ctx: TcContext) -> i32 {
    let skb = Skb::<ANY_LINK>::new(ctx.as_ptr().cast());
    skb.carry_out(guard::guard_out(&skb))
}

#[classifier]
pub fn underlay_in(ctx: TcContext) -> i32 {
    let skb = Skb::<ANY_LINK>::new(ctx.as_ptr().cast());
    skb.carry_out(verdict::underlay_in(&skb))
}

/// A socket buffer on a device with `L2` octets of link header; the number counts where that says [`LEFT_LINK`].
pub(crate) struct Skb<const L2: u32>(*mut __sk_buff, u32);

/// On a pod's interface.
pub(crate) type PodSkb = Skb<ETHERNET>;

/// What came out of the tunnel device.
pub(crate) type TunnelSkb = Skb<LEFT_LINK>;

impl<const L2: u32> Skb<L2> {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self(skb, if L2 == LEFT_LINK { left_link_header(skb) as u32 } else { L2 })
    }

    /// Where the network header is.
    #[inline(always)]
    fn l2(&self) -> u32 {
        if L2 == LEFT_LINK { self.1 } else { L2 }
    }
}

impl PodSkb {
    /// Whether nothing remote can be at either end: where both addresses lie nothing is. Read in place, and false when that cannot be
    /// told so cheaply.
    #[inline(always)]
    fn is_elsewhere(&self) -> bool {
        const V4_SOURCE: usize = ETHERNET as usize + 12;
        const V6_SOURCE: usize = ETHERNET as usize + 8;
        let (data, end) = (field!(self, data) as usize, field!(self, data_end) as usize);
        // SAFETY: every caller has compared the end of what is read with the end of the packet.
        let half = |at: usize| u16::from_be(unsafe { ((data + at) as *const u16).read() });
        match self.ethertype() {
            ETH_P_IP if data + V4_SOURCE + 8 <= end => {
                let there = |at| maps::may_be_remote(block_v4(half(at)));
                !there(V4_SOURCE) && !there(V4_SOURCE + 4)
            }
            ETH_P_IPV6 if data + V6_SOURCE + 32 <= end => {
                let there = |at| {
                    let (first, second) = (half(at), half(at + 2));
                    // An IPv4 address in other clothes has another block: not here.
                    first | second == 0 || maps::may_be_remote(block_v6(first, second))
                };
                !there(V6_SOURCE) && !there(V6_SOURCE + 16)
            }
            _ => false,
        }
    }
}

impl<const L2: u32> Skb<L2> {
    #[inline(always)]
    pub(crate) fn carry_out(&self, verdict: Verdict) -> i32 {
        let result = match verdict.action {
            Action::Next => NEXT,
            Action::Drop => DROP,
            Action::TellTooBig => return TELL_TOO_BIG,
            // SAFETY: the helper takes integers only.
            Action::Steer { ifindex } => (unsafe { bpf_redirect(ifindex, 0) }) as i32,
            Action::Return { ifindex } => {
                self.admit();
                // SAFETY: the helper takes integers only.
                (unsafe { bpf_redirect(ifindex, 0) }) as i32
            }
            // SAFETY: as above.
            Action::Hear { ifindex } => (unsafe { bpf_redirect(ifindex, INGRESS) }) as i32,
            Action::Leave { ifindex } => match self.leave(ifindex) {
                Some(result) => result,
                None => {
                    maps::count(Reason::TunnelInUnanswerable);
                    return DROP;
                }
            },
            Action::Deliver { ifindex, pod } => match self.deliver(ifindex, pod) {
                Some(result) => result,
                None => {
                    maps::count(Reason::TunnelInUndeliverable);
                    return DROP;
                }
            },
        };
        maps::count(verdict.reason);
        result
    }

    /// Lets it pass `pod_to` with a remote address.
    #[inline(always)]
    fn admit(&self) {
        let config = maps::config();
        self.set_mark((field!(self, mark) & !config.mark_mask) | config.mark);
    }

    #[inline(always)]
    pub(crate) fn add_mark(&self, mark: u32) {
        self.set_mark(field!(self, mark) | mark);
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: tc programs may write the mark.
        unsafe { (&raw mut (*self.0).mark).write_volatile(mark) };
    }

    /// Past the stack, netfilter and `rp_filter`, as the way out went past them: onto the pod's interface.
    #[inline(always)]
    fn deliver(&self, ifindex: u32, pod: Addr) -> Option<i32> {
        self.admit();
        if !self.has_room_for_a_link_header() {
            return None;
        }
        // struct bpf_redir_neigh: the family, then the next hop in network order.
        let words = pod.words();
        let next_hop: [u32; 5] = if pod.is_v4() {
            [AF_INET, pod.v4_word(), 0, 0, 0]
        } else {
            [AF_INET6, words[0], words[1], words[2], words[3]]
        };
        const _: () = assert!(size_of::<bpf_redir_neigh>() == size_of::<[u32; 5]>());
        let params = (&raw const next_hop).cast_mut().cast::<bpf_redir_neigh>();
        // SAFETY: the parameters live until the call returns, and their size is the struct's.
        Some(unsafe { bpf_redirect_neigh(ifindex, params, size_of::<bpf_redir_neigh>() as i32, 0) } as i32)
    }
}

impl<const L2: u32> Skb<L2> {
    /// As above, by the kernel's own route through that device.
    #[inline(always)]
    fn leave(&self, ifindex: u32) -> Option<i32> {
        if !self.has_room_for_a_link_header() {
            return None;
        }
        // SAFETY: the helper takes integers; no next hop is a null pointer of length 0.
        Some(unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) } as i32)
    }

    /// Without, `bpf_redirect_neigh` drops what comes from a device that has none.
    #[inline(always)]
    fn has_room_for_a_link_header(&self) -> bool {
        // SAFETY: the helper takes the context; packet pointers it invalidates are not held here.
        (L2 == LEFT_LINK && self.l2() == ETHERNET) || unsafe { bpf_skb_change_head(self.0, ETHERNET, 0) } == 0
    }
}

impl<const L2: u32> Hook for Skb<L2> {
    #[inline(always)]
    fn association(&self) -> u32 {
        association(self.0) as u32
    }

    #[inline(always)]
    fn config(&self) -> Config {
        maps::config()
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        u16::from_be(field!(self, protocol) as u16)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        field!(self, ifindex)
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        field!(self, mark)
    }

    #[inline(always)]
    fn packet_len(&self) -> u32 {
        field!(self, len).wrapping_sub(self.l2())
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        field!(self, gso_size)
    }

    #[inline(always)]
    fn ip_entry(&self, addr: &Addr) -> Option<IpEntry> {
        maps::ip_entry(addr)
    }

    #[inline(always)]
    fn endpoint(&self, addr: &Addr) -> Option<Endpoint> {
        maps::endpoint(addr)
    }

    #[inline(always)]
    fn exported(&self, key: &ServiceKey) -> Option<Exported> {
        maps::exported(key)
    }

    #[inline(always)]
    fn knows_flow(&self, key: &FlowKey) -> bool {
        maps::knows_flow(key)
    }

    #[inline(always)]
    fn flow_began(&self, key: &FlowKey) -> Option<u32> {
        maps::flow_began(key)
    }

    #[inline(always)]
    fn cluster_word(&self, cluster: u16) -> u32 {
        maps::cluster_word(cluster)
    }

    #[inline(always)]
    fn node_word(&self, slot: u32) -> u32 {
        maps::node_word(slot)
    }

    #[inline(always)]
    fn reset_wish(&self, backend: &ServiceKey) -> Option<u32> {
        maps::reset_wish(backend)
    }

    #[inline(always)]
    fn ticks(&self) -> u32 {
        maps::ticks()
    }

    #[inline(always)]
    fn remember_flow(&self, key: &FlowKey, first: bool) -> bool {
        maps::remember_flow(key, first)
    }

    #[inline(always)]
    fn rewrite_mss(&self, ip: &Ip, clamp: &Clamp) {
        const CHECKSUM: u32 = 16; // in the TCP header
        // SAFETY: the helpers check offsets against the packet. They know about checksums still to be filled in, which
        // arithmetic of our own would spoil.
        unsafe {
            let value = clamp.new;
            bpf_skb_store_bytes(self.0, self.l2() + clamp.at, (&raw const value).cast(), 2, 0);
            bpf_l4_csum_replace(
                self.0,
                self.l2() + ip.l4 + CHECKSUM,
                clamp.sum_old.into(),
                clamp.sum_new.into(),
                2,
            );
        }
    }

    /// Only the payload changes checksums: what changes places adds up to the same.
    #[inline(always)]
    fn turn(&self, ip: &Ip, udp: &Transport, asked: &Control, answer: &Control) {
        const CHECKSUM: u32 = 6; // in the UDP header
        const MANGLED_0: u64 = 0x20; // BPF_F_MARK_MANGLED_0: no checksum stays none (RFC 768)
        self.swap_addresses(ip);
        let ports = [udp.dst.wire(), udp.src.wire()];
        let sum = self.l2() + ip.l4 + CHECKSUM;
        // SAFETY: the helpers check offsets against the packet, and read values that live until they return.
        unsafe {
            bpf_skb_store_bytes(self.0, self.l2() + ip.l4, (&raw const ports).cast(), 4, 0);
            for (old, new) in [
                (asked.head(), answer.head()),
                (asked.required_min_rx, answer.required_min_rx),
                (asked.required_min_echo_rx, answer.required_min_echo_rx),
            ] {
                bpf_l4_csum_replace(self.0, sum, old.into(), new.into(), 4 | MANGLED_0);
            }
            let at = self.l2() + ip.l4 + udp.header_len;
            bpf_skb_store_bytes(
                self.0,
                at,
                core::ptr::from_ref(answer).cast(),
                size_of::<Control>() as u32,
                0,
            );
        }
    }

    /// Cut first: the helper refuses what it cannot cut, and then nothing has changed. Segments that the device was to make of
    /// it are forgotten by that.
    #[inline(always)]
    fn turn_into_reset(&self, ip: &Ip, reset: &Reset) -> bool {
        const IP_CHECKSUM: u32 = 10; // in the IPv4 header
        const RECOMPUTE: u64 = 1; // BPF_F_RECOMPUTE_CSUM: a device's sum over all of it goes along
        // SAFETY: the helpers check offsets against the packet, and read values that live until they return.
        unsafe {
            if bpf_skb_change_tail(self.0, self.l2() + ip.l4 + TCP_LEN, 0) != 0 {
                return false;
            }
            let tcp = core::ptr::from_ref(&reset.tcp).cast();
            bpf_skb_store_bytes(self.0, self.l2() + ip.l4, tcp, TCP_LEN, RECOMPUTE);
            let len = (&raw const reset.ip_len).cast();
            bpf_skb_store_bytes(self.0, self.l2() + reset.ip_len_at, len, 2, RECOMPUTE);
            if ip.src.is_v4() {
                let checksum = (&raw const reset.ip_checksum).cast();
                bpf_skb_store_bytes(self.0, self.l2() + IP_CHECKSUM, checksum, 2, RECOMPUTE);
            }
        }
        self.swap_addresses(ip);
        L2 != ETHERNET || self.swap_macs()
    }

    /// Cut first, as above. The room comes before the network header, and that begins with it then.
    #[inline(always)]
    fn turn_into_refusal(&self, ip: &Ip, refusal: &Refusal) -> bool {
        const ADJ_ROOM_MAC: u32 = 1;
        const RECOMPUTE: u64 = 1;
        let words = refusal.words.as_ptr().cast();
        // SAFETY: the helpers check offsets against the packet; the words live until they return, and are that many.
        let done = unsafe {
            bpf_skb_change_tail(self.0, self.l2() + ip.l4 + refusal.quoted, 0) == 0
                && bpf_skb_adjust_room(self.0, refusal.len as i32, ADJ_ROOM_MAC, 0) == 0
                && if ip.src.is_v4() {
                    bpf_skb_store_bytes(self.0, self.l2(), words, LEN_V4, RECOMPUTE) == 0
                } else {
                    bpf_skb_store_bytes(self.0, self.l2(), words, LEN_V6, RECOMPUTE) == 0
                }
        };
        done && (L2 != ETHERNET || self.swap_macs())
    }

    #[inline(always)]
    fn note(&self, reason: Reason) {
        maps::count(reason);
    }

    #[inline(always)]
    fn assign(&self, service: &ServiceKey, sender: &Sender) -> Choice {
        nat::assign(service, sender)
    }

    #[inline(always)]
    fn nat(&self, key: &NatKey) -> Option<Nat> {
        maps::nat(key)
    }

    #[inline(always)]
    fn write_nat(&self, key: &NatKey, nat: &Nat) -> bool {
        maps::write_nat(key, nat)
    }

    #[inline(always)]
    fn readdress(&self, ip: &Ip, transport: &Transport, change: &Change) -> bool {
        const OF_TCP: u32 = 16; // the checksum in the header
        const OF_UDP: u32 = 6;
        const MANGLED_0: u64 = 0x20; // BPF_F_MARK_MANGLED_0: no checksum stays none (RFC 768)
        let (sum, mangled) = if ip.proto == IPPROTO_TCP { (OF_TCP, 0) } else { (OF_UDP, MANGLED_0) };
        let sum = self.l2() + ip.l4 + sum;
        let (old, port, at) = if change.is_destination {
            (ip.dst, transport.dst, self.l2() + ip.l4 + 2)
        } else {
            (ip.src, transport.src, self.l2() + ip.l4)
        };
        let new = change.port.wire();
        self.replace_address(0, &old, change, sum, PSEUDO | mangled)
            // SAFETY: the helpers check offsets against the packet, and read values that live until they return.
            && unsafe {
                bpf_l4_csum_replace(self.0, sum, port.wire().into(), new.into(), 2 | mangled) == 0
                    && bpf_skb_store_bytes(self.0, at, (&raw const new).cast(), 2, 0) == 0
            }
    }

    /// In the quoted packet only the IP header's own checksum goes along: of the rest too little is quoted to be checked.
    #[inline(always)]
    fn readdress_quoted(&self, error: &Ip, quoted: &Ip, port: Port, change: &Change, outer: bool) -> bool {
        let sum = self.l2() + error.l4 + 2;
        let new = change.port.wire();
        let (old, outer_old, at) = if change.is_destination {
            (&quoted.dst, &error.src, quoted.l4 + 2)
        } else {
            (&quoted.src, &error.dst, quoted.l4)
        };
        // SAFETY: as above.
        let done = unsafe {
            bpf_l4_csum_replace(self.0, sum, port.wire().into(), new.into(), 2) == 0
                && bpf_skb_store_bytes(self.0, self.l2() + at, (&raw const new).cast(), 2, 0) == 0
        };
        let other = Change { is_destination: !change.is_destination, ..*change };
        let pseudo = if error.src.is_v4() { 0 } else { PSEUDO };
        done && self.replace_address(error.l4 + 8, old, change, sum, 0)
            && (!outer || self.replace_address(0, outer_old, &other, sum, pseudo))
    }

    #[inline(always)]
    fn keep(&self, begun: &NatBegun) {
        maps::keep(begun);
    }

    #[inline(always)]
    fn begun(&self) -> Option<NatBegun> {
        maps::begun()
    }
}
