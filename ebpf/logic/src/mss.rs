//! The TCP maximum segment size, lowered to what the tunnel carries: `bpf_redirect` checks no MTU.

use hawser_ebpf_abi::Addr;

use crate::forgotten;
use crate::packet::Packet;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Options looked at. A SYN has about five, the MSS first; whoever hides it behind a dozen others harms himself.
const MAX_OPTIONS: u32 = 12;
/// Below this an MTU is a configuration error, not a limit (RFC 791: every host takes 576).
const MIN_MSS: u32 = 216;

/// Two octets to be written, and what the checksum needs to know about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamp {
    /// Offset of the option's value from the network header.
    pub at: u32,
    /// The new value, in network order.
    pub new: u16,
    /// Old and new contribution to the one's complement sum, in network order: swapped when the value straddles two of
    /// the sum's 16-bit words (RFC 1071 §2(B)).
    pub sum_old: u16,
    pub sum_new: u16,
}

/// The largest segment that fits an MTU with the plain headers of a family.
#[inline(always)]
pub const fn limit(mtu: u32, addr: &Addr) -> u32 {
    let headers = if addr.is_v4() { 40 } else { 60 };
    let mss = mtu.saturating_sub(headers);
    if mss < MIN_MSS { MIN_MSS } else { mss }
}

/// What to write so that the peer sends segments of at most `limit`; None when there is nothing to lower.
/// `l4` is the TCP header's offset, `header_len` its length. At most 12 reads and one, on SYN and SYN-ACK only.
#[inline(always)]
pub fn clamp<P: Packet + ?Sized>(packet: &P, l4: u32, header_len: u32, limit: u32) -> Option<Clamp> {
    let sequence_number: u32 = packet.load(l4 + 4)?;
    let mut at = 20;
    for _ in 0..MAX_OPTIONS {
        at = forgotten(at, sequence_number.into());
        if at + 4 > header_len {
            return None;
        }
        let [kind, len]: [u8; 2] = packet.load(l4 + at)?;
        match kind {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            OPTION_MSS if len == 4 => {
                let [high, low]: [u8; 2] = packet.load(l4 + at + 2)?;
                let old = (high as u32) << 8 | low as u32;
                if old <= limit {
                    return None;
                }
                return Some(rewrite(l4 + at + 2, at % 2 == 1, old as u16, limit as u16));
            }
            // An option's length counts its kind and length octets.
            _ if len < 2 => return None,
            _ => at += len as u32,
        }
    }
    None
}

#[inline(always)]
const fn rewrite(at: u32, odd: bool, old: u16, new: u16) -> Clamp {
    let (sum_old, sum_new) = if odd { (old.swap_bytes(), new.swap_bytes()) } else { (old, new) };
    Clamp { at, new: new.to_be(), sum_old: sum_old.to_be(), sum_new: sum_new.to_be() }
}

/// RFC 1624, equation 3: a checksum after a 16-bit word of the data changed. All in network order.
///
/// The kernel programs leave this to `bpf_l4_csum_replace`, which knows about checksums that hardware will fill in; this is
/// the arithmetic it does, and what the tests hold it against.
pub const fn update_checksum(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
