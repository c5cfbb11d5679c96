//! Reads packets, wherever their network header is; and by which association of IPsec they came.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, bpf_xfrm_state};
use aya_ebpf::helpers::{
    bpf_skb_get_xfrm_state, bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_skb_pull_data,
};
use hawser_ebpf_abi::{Addr, CONFIG_KERNEL_IPSEC, Plain};
use hawser_ebpf_logic::packet::Packet;

use super::{ANY_LINK, ETHERNET, NO_LINK_HEADER, Skb};
use crate::maps;

/// Beyond the end of every packet.
const NO_HEADER: u64 = 1 << 20;
/// enum bpf_hdr_start_off.
const BPF_HDR_START_NET: u32 = 1;

impl<const L2: u32> Packet for Skb<L2> {
    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        let (to, len) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: the helpers write exactly `len` octets to `to`, or fail (and then the value is not looked at).
        let result = unsafe {
            if L2 != ANY_LINK {
                bpf_skb_load_bytes(self.0.cast(), self.l2() + offset, to, len)
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

/// The length of the link header that a packet out of the tunnel begins with. IPsec in the kernel leaves there what the packet
/// around it had (`xfrm4_remove_tunnel_encap`), and no field of the buffer says so: it is found by where the network header's
/// octets are, of IPv4 both addresses among them. Where nothing is found nothing can be read.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn left_link_header(skb: *mut __sk_buff) -> u64 {
    if maps::config().flags & CONFIG_KERNEL_IPSEC == 0 {
        return NO_LINK_HEADER.into();
    }
    const FROM_IDENTIFICATION: u32 = 4;
    let network = Skb::<ANY_LINK>::new(skb).load::<Addr>(FROM_IDENTIFICATION);
    let Some(network) = network else { return NO_HEADER };
    let is_at = |found: Option<Addr>| found.is_some_and(|found| found == network);
    if is_at(Skb::<NO_LINK_HEADER>::new(skb).load(FROM_IDENTIFICATION)) {
        NO_LINK_HEADER.into()
    } else if is_at(Skb::<ETHERNET>::new(skb).load(FROM_IDENTIFICATION)) {
        ETHERNET.into()
    } else {
        NO_HEADER
    }
}

/// Whether this kernel has CONFIG_XFRM, and with it the helper below: the loader looks, and says 0 where it has not. The
/// verifier knows a constant of the object, and does not look at what no packet can reach.
#[unsafe(no_mangle)]
static HAS_XFRM: u32 = 1;

/// The request id of the state that a packet was decrypted by (`bpf_xfrm_state`), which is the slot of its node; 0 without one,
/// and in kernels without IPsec.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn association(skb: *mut __sk_buff) -> u64 {
    // SAFETY: it is one, and nothing writes it while programs run.
    if unsafe { (&raw const HAS_XFRM).read_volatile() } == 0 {
        return 0;
    }
    let mut state = MaybeUninit::<bpf_xfrm_state>::uninit();
    // SAFETY: the helper takes the context, and fills the state whole, or fails; only then is it read.
    unsafe {
        let found = bpf_skb_get_xfrm_state(skb, 0, state.as_mut_ptr(), size_of::<bpf_xfrm_state>() as u32, 0);
        if found == 0 { state.assume_init_ref().reqid.into() } else { 0 }
    }
}
