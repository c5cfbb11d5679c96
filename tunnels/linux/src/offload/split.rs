//! One packet of the TUN, up to 64 KiB, as the packets that a tunnel of some MTU carries.
//!
//! TCP is cut to the tunnel's MTU whatever size the kernel meant: a packet that `bpf_redirect` brought here has passed
//! no MTU check, and cutting it costs nothing, as it is cut anyway.

use super::checksum;
use super::packet::{Layout, Transport, layout};
use super::vnet::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Header, NEEDS_CSUM};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsplit {
    /// The header names an offload or offsets that the packet does not have.
    Malformed,
    /// Longer than the tunnel carries, and not TCP.
    TooBig,
}

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;
/// Of the flags, in the TCP header.
const FLAGS: usize = 13;

/// The segments of one packet, in order; each is written when it is asked for.
#[derive(Debug)]
pub(crate) struct Split<'a> {
    packet: &'a [u8],
    /// None: the packet goes as it is.
    cut: Option<(Layout, usize)>,
    /// Payload bytes given out, or whether the whole packet was.
    done: usize,
    index: u16,
}

/// Cost: the transport's checksum where the kernel left it to us and the packet is not cut; else nothing yet.
pub(crate) fn split<'a>(header: &Header, packet: &'a mut [u8], mtu: usize) -> Result<Split<'a>, Unsplit> {
    let whole = |packet| Split { packet, cut: None, done: 0, index: 0 };
    let layout = layout(packet);
    let tcp = layout.filter(|layout| layout.transport == Transport::Tcp);
    let udp = layout.filter(|layout| layout.transport == Transport::Udp);
    let gso_size = usize::from(header.gso_size);
    let cut = match (header.gso_type, tcp, udp) {
        (GSO_NONE, _, _) if packet.len() <= mtu => None,
        (GSO_NONE, Some(layout), _) => Some((layout, usize::MAX)),
        (GSO_NONE, _, _) => return Err(Unsplit::TooBig),
        (GSO_TCPV4 | GSO_TCPV6, Some(layout), _) if gso_size > 0 => Some((layout, gso_size)),
        (GSO_UDP_L4, _, Some(layout)) if gso_size > 0 => {
            if layout.headers + gso_size > mtu {
                return Err(Unsplit::TooBig);
            }
            Some((layout, gso_size))
        }
        _ => return Err(Unsplit::Malformed),
    };
    let Some((layout, size)) = cut else {
        if header.flags & NEEDS_CSUM != 0 {
            complete_checksum(header, packet).ok_or(Unsplit::Malformed)?;
        }
        return Ok(whole(packet));
    };
    let room = mtu.checked_sub(layout.headers).filter(|room| *room > 0).ok_or(Unsplit::TooBig)?;
    Ok(Split { packet, cut: Some((layout, size.min(room))), done: 0, index: 0 })
}

/// The kernel left the pseudo header's sum in the field.
fn complete_checksum(header: &Header, packet: &mut [u8]) -> Option<()> {
    let start = usize::from(header.csum_start);
    let field = start + usize::from(header.csum_offset);
    let sum = checksum::finish(checksum::add(0, packet.get(start..)?));
    // UDP's zero means "none", so that its other form stands for it (RFC 768).
    let udp = header.csum_offset == 6;
    let sum = if udp && sum == [0, 0] { [0xff, 0xff] } else { sum };
    packet.get_mut(field..field + 2)?.copy_from_slice(&sum);
    Some(())
}

impl Split<'_> {
    /// Writes the next segment to the start of `into`, which has room for the MTU, and gives its length.
    /// O(segment): one copy and one sum.
    pub(crate) fn next(&mut self, into: &mut [u8]) -> Option<usize> {
        let Some((layout, size)) = self.cut else {
            let whole = self.done == 0 && !self.packet.is_empty();
            self.done = self.packet.len();
            return whole.then(|| {
                into[..self.packet.len()].copy_from_slice(self.packet);
                self.packet.len()
            });
        };
        let (headers, payload) = self.packet.split_at(layout.headers);
        // A packet without payload is one segment.
        if self.done >= payload.len() && self.index > 0 {
            return None;
        }
        let end = payload.len().min(self.done + size);
        let piece = &payload[self.done..end];
        let length = headers.len() + piece.len();
        let segment = &mut into[..length];
        let (head, body) = segment.split_at_mut(headers.len());
        head.copy_from_slice(headers);
        body.copy_from_slice(piece);
        if !layout.v6 {
            let id = u16::from_be_bytes([head[4], head[5]]).wrapping_add(self.index);
            head[4..6].copy_from_slice(&id.to_be_bytes());
        }
        layout.set_length(head, length);
        match layout.transport {
            Transport::Tcp => self.patch_tcp(&mut head[layout.ip..], end == payload.len()),
            Transport::Udp => {
                let udp = ((length - layout.ip) as u16).to_be_bytes();
                head[layout.ip + 4..layout.ip + 6].copy_from_slice(&udp);
            }
        }
        set_transport_checksum(&layout, segment);
        self.done = end;
        self.index = self.index.wrapping_add(1);
        Some(length)
    }

    fn patch_tcp(&self, tcp: &mut [u8], last: bool) {
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(self.done as u32);
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[FLAGS] &= !FIN_PSH;
        }
        if self.index > 0 {
            tcp[FLAGS] &= !CWR;
        }
    }
}

fn set_transport_checksum(layout: &Layout, segment: &mut [u8]) {
    let at = layout.ip + layout.checksum_offset();
    segment[at..at + 2].fill(0);
    let pseudo = checksum::pseudo(layout, segment, segment.len() - layout.ip);
    let sum = checksum::finish(checksum::add(pseudo, &segment[layout.ip..]));
    let zero_is_none = layout.transport == Transport::Udp && sum == [0, 0];
    segment[at..at + 2].copy_from_slice(if zero_is_none { &[0xff, 0xff] } else { &sum });
}
