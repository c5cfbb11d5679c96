//! Packets of one TCP stream that follow each other, laid together for one write to the TUN.
//!
//! Joined is only what the kernel's own GRO would join: the same headers, the next sequence number, ACK alone, a
//! checksum that was verified here (the kernel trusts it afterwards). PSH or a shorter packet ends a group; every other
//! packet of the stream does, too. The order within a stream is kept; nothing waits longer than its batch.

use std::io::IoSlice;
use std::ops::Range;

use super::checksum;
use super::packet::{Layout, Transport, layout};
use super::vnet::{self, GSO_TCPV4, GSO_TCPV6, Header, NEEDS_CSUM};

/// IP's length field.
const LARGEST: usize = 65535;
/// Packets that one write carries: of 512 bytes and more as many as fit.
const MOST: usize = 128;
/// Groups that may still grow are looked for among so many of the newest.
const NEWEST: usize = 16;

/// The flags' place in the TCP header.
const FLAGS: usize = 13;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Refers to packets where they lie and copies nothing. Nothing is allocated for a packet once it has seen its largest
/// batch.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    groups: Vec<Group>,
    /// Payloads that follow a group's first packet.
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Group {
    header: [u8; vnet::LENGTH],
    /// The first packet's place.
    start: usize,
    end: usize,
    /// None: not a packet that others could follow.
    stream: Option<Stream>,
    count: usize,
    first_piece: Option<usize>,
    last_piece: Option<usize>,
}

#[derive(Debug)]
struct Stream {
    layout: Layout,
    /// Payload bytes of each packet but the last.
    size: usize,
    payload: usize,
    /// The sequence number that comes next.
    next: u32,
    /// The last one ends what the sender wrote at once.
    push: bool,
    open: bool,
}

#[derive(Debug)]
struct Piece {
    start: usize,
    end: usize,
    next: Option<usize>,
}

impl Joiner {
    /// Takes in `buffer[packet]`, one IP packet. All packets until [`Joiner::drain`] lie in one buffer. Cost: its checksum
    /// and a look at [`NEWEST`] groups.
    pub(crate) fn push(&mut self, buffer: &[u8], place: Range<usize>) {
        let Range { start, end } = place;
        let packet = &buffer[place];
        let Some(layout) = layout(packet).filter(|layout| layout.transport == Transport::Tcp) else {
            return self.groups.push(Group::new(start, end, None));
        };
        let newest = self.groups.iter_mut().rev().take(NEWEST);
        let grows = newest.filter(|group| group.stream.as_ref().is_some_and(|stream| stream.open));
        let same =
            grows.into_iter().find(|group| same_stream(&buffer[group.start..group.end], packet, &layout));
        if let Some(group) = same
            && let Some(stream) = &mut group.stream
        {
            if group.count < MOST && stream.takes(&buffer[group.start..group.end], packet, &layout) {
                stream.grow(packet, &layout);
                let piece = Piece { start: start + layout.headers, end, next: None };
                let index = self.pieces.len();
                self.pieces.push(piece);
                match group.last_piece {
                    Some(last) => self.pieces[last].next = Some(index),
                    None => group.first_piece = Some(index),
                }
                group.last_piece = Some(index);
                group.count += 1;
                return;
            }
            stream.open = false;
        }
        self.groups.push(Group::new(start, end, Some(Stream::begin(packet, layout))));
    }

    /// Gives each group as what one `writev` takes, a [`Header`] first, and forgets them all.
    pub(crate) fn drain(&mut self, buffer: &mut [u8], mut write: impl FnMut(&[IoSlice<'_>])) {
        for group in &mut self.groups {
            group.seal(buffer);
        }
        let mut slices = [IoSlice::new(&[]); MOST + 1];
        for group in &self.groups {
            slices[0] = IoSlice::new(&group.header);
            slices[1] = IoSlice::new(&buffer[group.start..group.end]);
            let (mut count, mut next) = (2, group.first_piece);
            while let Some(piece) = next.map(|index| &self.pieces[index]) {
                slices[count] = IoSlice::new(&buffer[piece.start..piece.end]);
                (count, next) = (count + 1, piece.next);
            }
            write(&slices[..count]);
        }
        self.groups.clear();
        self.pieces.clear();
    }
}

impl Group {
    fn new(start: usize, end: usize, stream: Option<Stream>) -> Self {
        let header = Header::default().bytes();
        Self { header, start, end, stream, count: 1, first_piece: None, last_piece: None }
    }

    /// Makes of the first packet's headers those of the whole.
    fn seal(&mut self, buffer: &mut [u8]) {
        let Some(stream) = self.stream.as_ref().filter(|_| self.count > 1) else { return };
        let layout = &stream.layout;
        let total = layout.headers + stream.payload;
        let headers = &mut buffer[self.start..self.start + layout.headers];
        layout.set_length(headers, total);
        if stream.push {
            headers[layout.ip + FLAGS] |= PSH;
        }
        let pseudo = checksum::fold(checksum::pseudo(layout, headers, total - layout.ip));
        let field = layout.ip + layout.checksum_offset();
        headers[field..field + 2].copy_from_slice(&pseudo);
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: if layout.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            headers: layout.headers as u16,
            gso_size: stream.size as u16,
            csum_start: layout.ip as u16,
            csum_offset: layout.checksum_offset() as u16,
        };
        self.header = header.bytes();
    }
}

impl Stream {
    fn begin(packet: &[u8], layout: Layout) -> Self {
        let payload = packet.len() - layout.headers;
        let flags = packet[layout.ip + FLAGS];
        // Only its checksum's being right makes it worth to wait for more.
        let open = flags == ACK && payload > 0 && plain_ipv4(packet, &layout) && intact(packet, &layout);
        let next = sequence(packet, &layout).wrapping_add(payload as u32);
        Self { layout, size: payload, payload, next, push: false, open }
    }

    fn takes(&self, first: &[u8], packet: &[u8], layout: &Layout) -> bool {
        let payload = packet.len() - layout.headers;
        let flags = packet[layout.ip + FLAGS];
        (flags == ACK || flags == ACK | PSH)
            && (1..=self.size).contains(&payload)
            && layout.headers + self.payload + payload <= LARGEST
            && sequence(packet, layout) == self.next
            && *layout == self.layout
            && same_headers(first, packet, layout)
            && intact(packet, layout)
    }

    fn grow(&mut self, packet: &[u8], layout: &Layout) {
        let payload = packet.len() - layout.headers;
        self.payload += payload;
        self.next = self.next.wrapping_add(payload as u32);
        self.push = packet[layout.ip + FLAGS] & PSH != 0;
        self.open = !self.push && payload == self.size;
    }
}

fn sequence(packet: &[u8], layout: &Layout) -> u32 {
    let at = layout.ip + 4;
    u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]])
}

/// IPv4 options are rare, and not worth to compare.
fn plain_ipv4(packet: &[u8], layout: &Layout) -> bool {
    layout.v6 || packet[0] == 0x45
}

/// The sum over what is covered, the checksum in it included, is all ones.
fn intact(packet: &[u8], layout: &Layout) -> bool {
    let segment = &packet[layout.ip..];
    let sum = checksum::add(checksum::pseudo(layout, packet, segment.len()), segment);
    checksum::fold(sum) == [0xff, 0xff]
}

/// Addresses and ports.
fn same_stream(first: &[u8], packet: &[u8], layout: &Layout) -> bool {
    let addresses = if layout.v6 { 8..40 } else { 12..20 };
    let ports = layout.ip..layout.ip + 4;
    first[0] == packet[0]
        && first[addresses.clone()] == packet[addresses]
        && first.get(ports.clone()) == packet.get(ports)
}

/// What the joined packet can say only once: class and flow or TOS, don't-fragment, TTL; acknowledgement, window, urgent
/// pointer, options.
fn same_headers(first: &[u8], packet: &[u8], layout: &Layout) -> bool {
    let same = |from: usize, to: usize| first[from..to] == packet[from..to];
    let ip = if layout.v6 { same(0, 4) && same(6, 8) } else { same(0, 2) && same(6, 10) };
    let tcp = layout.ip;
    ip && same(tcp + 8, tcp + 13) && same(tcp + 14, tcp + 16) && same(tcp + 18, layout.headers)
}
