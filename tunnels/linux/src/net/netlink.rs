//! One netlink socket, of routes or of IPsec: ask and wait, dump and collect.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Netlink aligns messages to this.
const ALIGNMENT: usize = 4;
/// The kernel fills at most 32 KiB of a dump into one datagram.
const BUFFER: usize = 64 << 10;
/// `NLM_F_DUMP_INTR`: the table changed during the dump, so it may be inconsistent.
const INTERRUPTED: u16 = 0x10;
const ATTEMPTS: usize = 10;

pub(crate) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    messages: PhantomData<fn(M)>,
}

impl Netlink {
    /// In this thread's network namespace, and bound to it for good.
    pub(crate) fn open() -> io::Result<Self> {
        Self::of(NETLINK_ROUTE)
    }
}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone> Netlink<M> {
    /// Of a protocol (`linux/netlink.h`) that speaks in `M`.
    pub(crate) fn of(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // So that the kernel honours the filters of a dump instead of ignoring them (Linux 4.20).
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER), messages: PhantomData })
    }

    /// One change, acknowledged.
    pub(crate) fn request(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.collect(&mut Vec::new()).map(|_| ())
    }

    /// One object by its name or number.
    pub(crate) fn get(&mut self, message: M) -> io::Result<Vec<M>> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut found = Vec::new();
        self.collect(&mut found)?;
        Ok(found)
    }

    /// All objects that the filter lets through. Asked for again while the kernel says that it changed meanwhile.
    pub(crate) fn dump(&mut self, filter: &M) -> io::Result<Vec<M>> {
        for _ in 0..ATTEMPTS {
            self.send(filter.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            if self.collect(&mut found)? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the table changes faster than it can be read"))
    }

    fn send(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Reads to the end of the answer; false if it was interrupted.
    fn collect(&mut self, found: &mut Vec<M>) -> io::Result<bool> {
        let mut consistent = true;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = &self.buffer[..];
            while let Some((message, after)) = split(rest) {
                rest = after;
                // A message that the crate cannot read is of a kind that we never write, so it is not ours.
                let Ok(message) = NetlinkMessage::<M>::deserialize(message) else {
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & INTERRUPTED == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(consistent),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(consistent),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}

/// What the kernel tells everybody in a group, when it happens.
pub(crate) struct Events<M> {
    socket: Socket,
    buffer: Vec<u8>,
    messages: PhantomData<fn(M)>,
}

impl<M: NetlinkDeserializable> Events<M> {
    /// In this thread's network namespace, and bound to it for good.
    pub(crate) fn of(protocol: isize, group: u32) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        // Nobody's but the kernel's.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.add_membership(group)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), messages: PhantomData })
    }

    /// One datagram's; fails where there is none.
    pub(crate) fn read(&mut self) -> io::Result<Vec<M>> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let (mut rest, mut found) = (&self.buffer[..], Vec::new());
        while let Some((message, after)) = split(rest) {
            rest = after;
            if let Ok(message) = NetlinkMessage::<M>::deserialize(message)
                && let NetlinkPayload::InnerMessage(message) = message.payload
            {
                found.push(message);
            }
        }
        Ok(found)
    }
}

impl<M> AsFd for Events<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first message of a datagram, and the rest.
fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let message = datagram.get(..length).filter(|_| length >= 16)?;
    let after = length.next_multiple_of(ALIGNMENT).min(datagram.len());
    Some((message, &datagram[after..]))
}
