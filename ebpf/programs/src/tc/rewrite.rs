//! Addresses in a packet, and the checksums that cover them.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use hawser_ebpf_abi::Addr;
use hawser_ebpf_logic::nat::Change;
use hawser_ebpf_logic::packet::Ip;

use super::Skb;

/// BPF_F_PSEUDO_HDR: the checksum covers the address through its pseudo-header, which a device does not sum up.
pub(super) const PSEUDO: u64 = 0x10;

impl<const L2: u32> Skb<L2> {
    /// One address of the IP header at `header`, and the checksums that cover it: IPv4's own, and the transport's at `sum`. An
    /// ICMP checksum does not cover IPv4 addresses, its own packet's or (with the header's checksum) the quoted one's.
    #[inline(always)]
    pub(super) fn replace_address(
        &self,
        header: u32,
        old: &Addr,
        change: &Change,
        sum: u32,
        flags: u64,
    ) -> bool {
        const V4_SOURCE: u32 = 12;
        const V4_CHECKSUM: u32 = 10;
        const V6_SOURCE: u32 = 8;
        const RECOMPUTE: u64 = 1; // a device's sum over all of it goes along, as the transport's checksum takes it back
        let header = self.l2() + header;
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
    pub(super) fn swap_addresses(&self, ip: &Ip) {
        const V4_SOURCE: u32 = 12; // in the IPv4 header; the destination follows
        const V6_SOURCE: u32 = 8;
        let (from, to) = (ip.src.words(), ip.dst.words());
        // SAFETY: the helper checks offsets against the packet, and reads values that live until it returns.
        unsafe {
            if ip.src.is_v4() {
                let swapped = [ip.dst.v4_word(), ip.src.v4_word()];
                bpf_skb_store_bytes(self.0, self.l2() + V4_SOURCE, (&raw const swapped).cast(), 8, 0);
            } else {
                bpf_skb_store_bytes(self.0, self.l2() + V6_SOURCE, (&raw const to).cast(), 16, 0);
                bpf_skb_store_bytes(self.0, self.l2() + V6_SOURCE + 16, (&raw const from).cast(), 16, 0);
            }
        }
    }

    /// Of the link header: it goes back to who sent it.
    #[inline(always)]
    pub(super) fn swap_macs(&self) -> bool {
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
