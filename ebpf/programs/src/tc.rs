//! The packet programs: a view of the socket buffer for the logic, and what carries its verdicts out.

use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, bpf_redir_neigh, bpf_xfrm_state};
use aya_ebpf::helpers::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
    bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_get_xfrm_state, bpf_skb_load_bytes,
    bpf_skb_load_bytes_relative, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use hawser_ebpf_abi::{
    Addr, CONFIG_LEFT_OUT, Config, Endpoint, Exported, FlowKey, IPPROTO_TCP, IpEntry, Nat, NatBegun, NatKey,
    Plain, Port, Reason, ServiceKey,
};
use hawser_ebpf_logic::choice::Choice;
use hawser_ebpf_logic::mss::Clamp;
use hawser_ebpf_logic::nat::{Change, Outcome, Sender};
use hawser_ebpf_logic::packet::{Ip, Packet, Transport};
use hawser_ebpf_logic::reflect::Control;
use hawser_ebpf_logic::refuse::{LEN_V4, LEN_V6, Refusal};
use hawser_ebpf_logic::reset::{Reset, TCP_LEN};
use hawser_ebpf_logic::verdict::{self, Action, Hook, Verdict};

use crate::{maps, nat};

/// TC_ACT_UNSPEC and TCX_NEXT: "not mine", so the CNI's programs behind ours run. OK would end the chain.
const NEXT: i32 = -1;
/// TC_ACT_SHOT and TCX_DROP.
const DROP: i32 = 2;
/// No result that the kernel sees: another step of `pod_from`.
const TELL_TOO_BIG: i32 = 100;

const ETHERNET: u32 = 14;
const NO_LINK_HEADER: u32 = 0;
/// The device's link header is not known beforehand: read from where the kernel says the network header is.
const ANY_LINK: u32 = u32::MAX;

/// enum bpf_hdr_start_off.
const BPF_HDR_START_NET: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[classifier]
pub fn pod_from(ctx: TcContext) -> i32 {
    let skb = ctx.as_ptr().cast();
    let translates = maps::config().flags & CONFIG_LEFT_OUT != 0;
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
    let skb = Skb::<ETHERNET>(ctx.as_ptr().cast());
    skb.carry_out(verdict::pod_to(&skb))
}

#[classifier]
pub fn tunnel_in(ctx: TcContext) -> i32 {
    let skb = Skb::<NO_LINK_HEADER>(ctx.as_ptr().cast());
    skb.carry_out(verdict::tunnel_in(&skb))
}

#[classifier]
pub fn underlay_in(ctx: TcContext) -> i32 {
    let skb = Skb::<ANY_LINK>(ctx.as_ptr().cast());
    skb.carry_out(verdict::underlay_in(&skb))
}

/// A socket buffer on a device with `L2` octets of link header.
pub(crate) struct Skb<const L2: u32>(*mut __sk_buff);

/// On a pod's interface.
pub(crate) type PodSkb = Skb<ETHERNET>;

impl PodSkb {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }
}

macro_rules! field {
    ($skb:expr, $field:ident) => {
        // SAFETY: the context pointer is valid for the whole program, and tc programs may read this field.
        unsafe { (&raw const (*$skb.0).$field).read_volatile() }
    };
}

impl<const L2: u32> Skb<L2> {
    #[inline(always)]
    fn carry_out(&self, verdict: Verdict) -> i32 {
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
        let mark = (field!(self, mark) & !config.mark_mask) | config.mark;
        // SAFETY: tc programs may write the mark.
        unsafe { (&raw mut (*self.0).mark).write_volatile(mark) };
    }

    /// Past the stack, netfilter and `rp_filter`, as the way out went past them: onto the pod's interface.
    #[inline(always)]
    fn deliver(&self, ifindex: u32, pod: Addr) -> Option<i32> {
        self.admit();
        // Without room for a link header `bpf_redirect_neigh` drops what comes from a device that has none.
        // SAFETY: the helper takes the context; packet pointers it invalidates are not held here.
        if unsafe { bpf_skb_change_head(self.0, ETHERNET, 0) } != 0 {
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

impl<const L2: u32> Packet for Skb<L2> {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let (to, len) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: the helpers write exactly `len` octets to `to`, or fail (and then the value is not looked at).
        let result = unsafe {
            if L2 != ANY_LINK {
                bpf_skb_load_bytes(self.0.cast(), L2 + offset, to, len)
            } else {
                relative(self.0, offset, to, len)
            }
        };
        // SAFETY: on success all octets were written, and every bit pattern is a value of a Plain type.
        (result == 0).then(|| unsafe { value.assume_init() })
    }
}

/// Reads relative to the network header. That helper sees the linear part only, so a buffer whose headers are still in
/// fragments is pulled together once.
///
/// # Safety
/// `to` must be writable for `len` octets.
#[inline(always)]
unsafe fn relative(skb: *mut __sk_buff, offset: u32, to: *mut core::ffi::c_void, len: u32) -> i64 {
    // SAFETY: the caller's promise.
    let result = unsafe { bpf_skb_load_bytes_relative(skb.cast(), offset, to, len, BPF_HDR_START_NET) };
    if result == 0 {
        return result;
    }
    // SAFETY: the helper takes the context; 0 means "what is linear already plus nothing", so ask for headers.
    unsafe {
        bpf_skb_pull_data(skb, ETHERNET + 40);
        bpf_skb_load_bytes_relative(skb.cast(), offset, to, len, BPF_HDR_START_NET)
    }
}

/// The request id of the state that a packet was decrypted by (`bpf_xfrm_state`), which is the slot of its node; 0 without one.
/// The helper is in kernels with CONFIG_XFRM, which all that can do IPsec have, and those of all distributions.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn association(skb: *mut __sk_buff) -> u64 {
    let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
    // SAFETY: the helper takes the context, and fills the state whole, or fails; only then is it read.
    unsafe {
        let found = bpf_skb_get_xfrm_state(skb, 0, state.as_mut_ptr(), size_of::<bpf_xfrm_state>() as u32, 0);
        if found == 0 { state.assume_init_ref().reqid.into() } else { 0 }
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
        field!(self, len).wrapping_sub(L2)
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
            bpf_skb_store_bytes(self.0, L2 + clamp.at, (&raw const value).cast(), 2, 0);
            bpf_l4_csum_replace(self.0, L2 + ip.l4 + CHECKSUM, clamp.sum_old.into(), clamp.sum_new.into(), 2);
        }
    }

    /// Only the payload changes checksums: what changes places adds up to the same.
    #[inline(always)]
    fn turn(&self, ip: &Ip, udp: &Transport, asked: &Control, answer: &Control) {
        const CHECKSUM: u32 = 6; // in the UDP header
        const MANGLED_0: u64 = 0x20; // BPF_F_MARK_MANGLED_0: no checksum stays none (RFC 768)
        self.swap_addresses(ip);
        let ports = [udp.dst.wire(), udp.src.wire()];
        let sum = L2 + ip.l4 + CHECKSUM;
        // SAFETY: the helpers check offsets against the packet, and read values that live until they return.
        unsafe {
            bpf_skb_store_bytes(self.0, L2 + ip.l4, (&raw const ports).cast(), 4, 0);
            for (old, new) in [
                (asked.head(), answer.head()),
                (asked.required_min_rx, answer.required_min_rx),
                (asked.required_min_echo_rx, answer.required_min_echo_rx),
            ] {
                bpf_l4_csum_replace(self.0, sum, old.into(), new.into(), 4 | MANGLED_0);
            }
            let at = L2 + ip.l4 + udp.header_len;
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
            if bpf_skb_change_tail(self.0, L2 + ip.l4 + TCP_LEN, 0) != 0 {
                return false;
            }
            let tcp = core::ptr::from_ref(&reset.tcp).cast();
            bpf_skb_store_bytes(self.0, L2 + ip.l4, tcp, TCP_LEN, RECOMPUTE);
            let len = (&raw const reset.ip_len).cast();
            bpf_skb_store_bytes(self.0, L2 + reset.ip_len_at, len, 2, RECOMPUTE);
            if ip.src.is_v4() {
                let checksum = (&raw const reset.ip_checksum).cast();
                bpf_skb_store_bytes(self.0, L2 + IP_CHECKSUM, checksum, 2, RECOMPUTE);
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
            bpf_skb_change_tail(self.0, L2 + ip.l4 + refusal.quoted, 0) == 0
                && bpf_skb_adjust_room(self.0, refusal.len as i32, ADJ_ROOM_MAC, 0) == 0
                && if ip.src.is_v4() {
                    bpf_skb_store_bytes(self.0, L2, words, LEN_V4, RECOMPUTE) == 0
                } else {
                    bpf_skb_store_bytes(self.0, L2, words, LEN_V6, RECOMPUTE) == 0
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
        let sum = L2 + ip.l4 + sum;
        let (old, port, at) = if change.is_destination {
            (ip.dst, transport.dst, L2 + ip.l4 + 2)
        } else {
            (ip.src, transport.src, L2 + ip.l4)
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
    fn readdress_quoted(&self, error: &Ip, quoted: &Ip, port: Port, change: &Change) -> bool {
        let sum = L2 + error.l4 + 2;
        let new = change.port.wire();
        // SAFETY: as above.
        let done = unsafe {
            bpf_l4_csum_replace(self.0, sum, port.wire().into(), new.into(), 2) == 0
                && bpf_skb_store_bytes(self.0, L2 + quoted.l4 + 2, (&raw const new).cast(), 2, 0) == 0
        };
        let source = Change { is_destination: false, ..*change };
        let pseudo = if error.src.is_v4() { 0 } else { PSEUDO };
        done && self.replace_address(error.l4 + 8, &quoted.dst, change, sum, 0)
            && (error.src != quoted.dst || self.replace_address(0, &error.src, &source, sum, pseudo))
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

/// BPF_F_PSEUDO_HDR: the checksum covers the address through its pseudo-header, which a device does not sum up.
const PSEUDO: u64 = 0x10;

impl<const L2: u32> Skb<L2> {
    /// One address of the IP header at `header`, and the checksums that cover it: IPv4's own, and the transport's at `sum`. An
    /// ICMP checksum does not cover IPv4 addresses, its own packet's or (with the header's checksum) the quoted one's.
    #[inline(always)]
    fn replace_address(&self, header: u32, old: &Addr, change: &Change, sum: u32, flags: u64) -> bool {
        const V4_SOURCE: u32 = 12;
        const V4_CHECKSUM: u32 = 10;
        const V6_SOURCE: u32 = 8;
        const RECOMPUTE: u64 = 1; // a device's sum over all of it goes along, as the transport's checksum takes it back
        let header = L2 + header;
        let (old, new) = (old.words(), change.addr.words());
        // SAFETY: the helpers check offsets against the packet, and read values that live until they return.
        unsafe {
            if change.addr.is_v4() {
                let at = header + if change.is_destination { V4_SOURCE + 4 } else { V4_SOURCE };
                let (old, new) = (old[3], new[3]);
                return bpf_l3_csum_replace(self.0, header + V4_CHECKSUM, old.into(), new.into(), 4) == 0
                    && (flags & PSEUDO == 0
                        || bpf_l4_csum_replace(self.0, sum, old.into(), new.into(), 4 | flags) == 0)
                    && bpf_skb_store_bytes(self.0, at, (&raw const new).cast(), 4, 0) == 0;
            }
            let at = header + if change.is_destination { V6_SOURCE + 16 } else { V6_SOURCE };
            let stored = if flags & PSEUDO != 0 { RECOMPUTE } else { 0 };
            bpf_l4_csum_replace(self.0, sum, old[0].into(), new[0].into(), 4 | flags) == 0
                && bpf_l4_csum_replace(self.0, sum, old[1].into(), new[1].into(), 4 | flags) == 0
                && bpf_l4_csum_replace(self.0, sum, old[2].into(), new[2].into(), 4 | flags) == 0
                && bpf_l4_csum_replace(self.0, sum, old[3].into(), new[3].into(), 4 | flags) == 0
                && bpf_skb_store_bytes(self.0, at, (&raw const new).cast(), 16, stored) == 0
        }
    }

    /// Sums over both stay what they are.
    #[inline(always)]
    fn swap_addresses(&self, ip: &Ip) {
        const V4_SOURCE: u32 = 12; // in the IPv4 header; the destination follows
        const V6_SOURCE: u32 = 8;
        let (from, to) = (ip.src.words(), ip.dst.words());
        // SAFETY: the helper checks offsets against the packet, and reads values that live until it returns.
        unsafe {
            if ip.src.is_v4() {
                let swapped = [ip.dst.v4_word(), ip.src.v4_word()];
                bpf_skb_store_bytes(self.0, L2 + V4_SOURCE, (&raw const swapped).cast(), 8, 0);
            } else {
                bpf_skb_store_bytes(self.0, L2 + V6_SOURCE, (&raw const to).cast(), 16, 0);
                bpf_skb_store_bytes(self.0, L2 + V6_SOURCE + 16, (&raw const from).cast(), 16, 0);
            }
        }
    }

    /// Of the link header: it goes back to who sent it.
    #[inline(always)]
    fn swap_macs(&self) -> bool {
        let mut macs = MaybeUninit::<[u16; 6]>::uninit();
        // SAFETY: the helpers write and read exactly the 12 octets, which are looked at only when they were written.
        unsafe {
            if bpf_skb_load_bytes(self.0.cast(), 0, macs.as_mut_ptr().cast(), 12) != 0 {
                return false;
            }
            let [a, b, c, d, e, f] = macs.assume_init();
            let swapped = [d, e, f, a, b, c];
            bpf_skb_store_bytes(self.0, 0, (&raw const swapped).cast(), 12, 0) == 0
        }
    }
}
