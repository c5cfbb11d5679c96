//! Many datagrams in one system call, and many of one peer in one message, in buffers that are made once.

use std::mem;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use super::counters::{Counters, Reason};
use super::sockets::{Line, Sockets};

/// Datagrams on their way out at once: two of the largest superpackets at an MTU of 1420.
pub(crate) const BATCH: usize = 128;
/// Datagrams of a usual path in it; of jumbo frames fewer fit.
const USUAL: usize = 1536;
/// `UDP_MAX_SEGMENTS` before kernel 6.9.
const MOST_SEGMENTS: usize = 64;
/// What IPv4 leaves of 64 KiB for a UDP payload; IPv6 leaves more.
const LARGEST_MESSAGE: usize = 65507;
/// Messages taken in at once, and the fewest. With GRO one of them is up to 64 KiB; without it this many calls are saved.
const RECEIVE: usize = 32;
const FEWEST: usize = 4;
/// What is taken in at once shall be about this much, so that it is still in the core's own cache when it is opened, and
/// again when the kernel takes it from here.
const CACHED: usize = 256 << 10;

/// Room for one control message with an `int`, aligned as `cmsghdr` is.
type Control = [u64; 4];
const _: () = {
    // SAFETY: CMSG_SPACE only computes.
    let needed = unsafe { libc::CMSG_SPACE(mem::size_of::<libc::c_int>() as libc::c_uint) };
    assert!(mem::size_of::<Control>() >= needed as usize);
    assert!(mem::align_of::<Control>() >= mem::align_of::<libc::cmsghdr>());
};

/// Datagrams on their way out, laid end to end.
pub(crate) struct SendBatch {
    buffer: Vec<u8>,
    used: usize,
    /// Largest datagram that `space` must offer.
    largest: usize,
    to: Vec<Line>,
    lengths: Vec<usize>,
    /// Some device on the way does not segment: each datagram is a message of its own from then on.
    single: bool,
    messages: Vec<Message>,
    names: Vec<SockaddrStorage>,
    iovecs: Vec<libc::iovec>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
}

/// Datagrams to one address, of one type and one length, of which the last may be shorter. Of one type, so that whoever
/// looks at a device that has not cut the message yet sees every handshake by itself.
#[derive(Clone, Copy)]
struct Message {
    /// Of its datagrams.
    first: usize,
    count: usize,
    start: usize,
    length: usize,
}

impl SendBatch {
    pub(crate) fn new(largest: usize) -> Self {
        Self {
            buffer: vec![0; BATCH * USUAL + largest],
            used: 0,
            largest,
            to: Vec::with_capacity(BATCH),
            lengths: Vec::with_capacity(BATCH),
            single: false,
            messages: Vec::with_capacity(BATCH),
            names: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            controls: Vec::with_capacity(BATCH),
            headers: Vec::with_capacity(BATCH),
        }
    }

    /// Whether another datagram of the largest size fits.
    pub(crate) fn has_room(&self) -> bool {
        self.to.len() < BATCH && self.buffer.len() - self.used >= self.largest
    }

    /// Whether the segments of another superpacket fit, so that they leave as one message.
    pub(crate) fn has_room_for_message(&self) -> bool {
        self.to.len() + MOST_SEGMENTS <= BATCH
            && self.buffer.len() - self.used >= LARGEST_MESSAGE + self.largest
    }

    /// Where the next datagram is to be written.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Takes in the first `length` bytes of `space`. There must be room.
    pub(crate) fn push(&mut self, length: usize, to: Line) {
        self.lengths.push(length);
        self.to.push(to);
        self.used += length;
    }

    /// Everything that a flush would send.
    #[cfg(test)]
    pub(crate) fn take(&mut self) -> Vec<(Line, Vec<u8>)> {
        let mut rest = self.buffer.as_slice();
        let sent = self.to.iter().zip(&self.lengths).map(|(to, length)| {
            let (datagram, after) = rest.split_at(*length);
            rest = after;
            (*to, datagram.to_vec())
        });
        let sent = sent.collect();
        self.clear();
        sent
    }

    fn clear(&mut self) {
        self.used = 0;
        self.to.clear();
        self.lengths.clear();
    }

    /// Sends everything, in order; what the underlay refuses is counted and left behind. Blocks while a socket is full.
    pub(crate) fn flush(&mut self, sockets: &Sockets, counters: &Counters) {
        let mut from = 0;
        while from < self.to.len() {
            let by = |to: &Line| (to.lane, to.at.is_ipv6());
            let (lane, v6) = by(&self.to[from]);
            let run = self.to[from..].iter().take_while(|to| by(to) == (lane, v6)).count();
            match sockets.of(lane, v6) {
                Some(socket) => self.send(socket, from, from + run, counters),
                None => (0..run).for_each(|_| counters.count(Reason::SendFailed)),
            }
            from += run;
        }
        self.clear();
    }

    fn send(&mut self, socket: &impl AsRawFd, mut from: usize, to: usize, counters: &Counters) {
        while from < to {
            self.gather(from, to);
            match self.send_messages(socket) {
                Ok(()) => return,
                Err((at, errno)) => {
                    let failed = self.messages[at];
                    from = failed.first + failed.count;
                    if failed.count == 1 {
                        counters.count(Reason::SendFailed);
                        continue;
                    }
                    // EIO: the device does not segment, now or ever. Anything else may be one datagram's fault.
                    self.single |= errno == Errno::EIO;
                    self.send_one_by_one(socket, failed, counters);
                }
            }
        }
    }

    /// Lays the datagrams from `from` to `to` out as messages.
    fn gather(&mut self, from: usize, to: usize) {
        self.messages.clear();
        let mut start: usize = self.lengths[..from].iter().sum();
        let mut first = from;
        while first < to {
            let size = self.lengths[first];
            let (mut count, mut length) = (1, size);
            while !self.single && first + count < to {
                let next = self.lengths[first + count];
                let ended = self.lengths[first + count - 1] < size;
                let full = count == MOST_SEGMENTS || length + next > LARGEST_MESSAGE;
                let alike = self.to[first + count] == self.to[first]
                    && self.buffer[start + length] == self.buffer[start];
                if ended || full || next > size || !alike {
                    break;
                }
                (count, length) = (count + 1, length + next);
            }
            self.messages.push(Message { first, count, start, length });
            (first, start) = (first + count, start + length);
        }
    }

    /// Sends the messages; the one that failed, and why, when one did: those before it are sent.
    fn send_messages(&mut self, socket: &impl AsRawFd) -> Result<(), (usize, Errno)> {
        self.names.clear();
        self.iovecs.clear();
        self.controls.clear();
        self.headers.clear();
        // All that the headers point to is in place before the first of them is made.
        for message in &self.messages {
            let bytes = &mut self.buffer[message.start..message.start + message.length];
            self.iovecs.push(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
            self.controls.push(segment_control(self.lengths[message.first]));
            self.names.push(self.to[message.first].at.into());
        }
        let parts = self.iovecs.iter_mut().zip(&mut self.controls).zip(&self.names);
        for (message, ((iovec, control), to)) in self.messages.iter().zip(parts) {
            // SAFETY: `mmsghdr` is plain integers and pointers, for all of which zero is a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = to.len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            if message.count > 1 {
                header.msg_hdr.msg_control = ptr::from_mut(control).cast();
                // SAFETY: CMSG_SPACE only computes.
                header.msg_hdr.msg_controllen = unsafe { libc::CMSG_SPACE(SEGMENT_LENGTH) } as usize;
            }
            self.headers.push(header);
        }
        let mut done = 0;
        while done < self.headers.len() {
            let headers = &mut self.headers[done..];
            // SAFETY: each header points to one address, one iovec and one control of the batch, which outlive the call
            // and do not move during it; the count is the slice's length.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0)
            };
            match Errno::result(sent) {
                // A short count means that the next one failed; the next call says why.
                Ok(sent) => done += sent as usize,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err((done, errno)),
            }
        }
        Ok(())
    }

    /// A message that was refused as a whole.
    fn send_one_by_one(&self, socket: &impl AsRawFd, message: Message, counters: &Counters) {
        let mut start = message.start;
        for at in message.first..message.first + message.count {
            let (bytes, to) =
                (&self.buffer[start..start + self.lengths[at]], SockaddrStorage::from(self.to[at].at));
            start += bytes.len();
            loop {
                // SAFETY: both pointers are to whole values with their lengths, which outlive the call.
                let sent = unsafe {
                    libc::sendto(
                        socket.as_raw_fd(),
                        bytes.as_ptr().cast(),
                        bytes.len(),
                        0,
                        to.as_ptr(),
                        to.len(),
                    )
                };
                match Errno::result(sent) {
                    Err(Errno::EINTR) => {}
                    Err(_) => break counters.count(Reason::SendFailed),
                    Ok(_) => break,
                }
            }
        }
    }
}

const SEGMENT_LENGTH: libc::c_uint = mem::size_of::<u16>() as libc::c_uint;

/// `UDP_SEGMENT`: where the kernel or the device cuts a message into datagrams (`udp(7)`).
fn segment_control(size: usize) -> Control {
    let mut control = Control::default();
    let header: *mut libc::cmsghdr = control.as_mut_ptr().cast();
    // SAFETY: `Control` is aligned as `cmsghdr` and has room for it and a `u16` behind it (asserted above).
    unsafe {
        (*header).cmsg_level = libc::SOL_UDP;
        (*header).cmsg_type = libc::UDP_SEGMENT;
        (*header).cmsg_len = libc::CMSG_LEN(SEGMENT_LENGTH) as usize;
        libc::CMSG_DATA(header).cast::<u16>().write_unaligned(size as u16);
    }
    control
}

/// Room for a batch of messages from the underlay.
pub(crate) struct ReceiveBatch {
    buffer: Vec<u8>,
    from: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    /// How many messages the next call asks for, and how many bytes came with the last.
    wanted: usize,
    received: usize,
}

/// The largest message that UDP has.
const LARGEST: usize = 1 << 16;
/// From one slot to the next. Not a power of two, so that small messages do not all fall on the same sets of a cache.
const SLOT: usize = LARGEST + 33 * 64;

/// One message of a batch: its datagrams lie end to end in the batch's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Of every datagram but the last.
    pub(crate) size: usize,
    pub(crate) from: SocketAddr,
}

impl ReceiveBatch {
    /// The kernel gives memory only to what was once written.
    pub(crate) fn new() -> Self {
        // SAFETY: these C structures are plain integers and pointers, for all of which zero is a value.
        let (from, iovec, header) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            buffer: vec![0; RECEIVE * SLOT],
            from: vec![from; RECEIVE],
            controls: vec![Control::default(); RECEIVE],
            iovecs: vec![iovec; RECEIVE],
            headers: vec![header; RECEIVE],
            wanted: RECEIVE,
            received: 0,
        }
    }

    /// Takes what is there without waiting; returns how many messages.
    pub(crate) fn receive(&mut self, socket: &impl AsRawFd) -> Result<usize, Errno> {
        let slots = self.buffer.chunks_exact_mut(SLOT);
        let parts = self.iovecs.iter_mut().zip(&mut self.from).zip(&mut self.controls).zip(slots);
        for (header, (((iovec, from), control), slot)) in self.headers.iter_mut().take(self.wanted).zip(parts)
        {
            *iovec = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: LARGEST };
            header.msg_hdr.msg_name = ptr::from_mut(from).cast();
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = mem::size_of::<Control>();
            header.msg_hdr.msg_flags = 0;
            header.msg_len = 0;
        }
        let count = self.wanted.min(self.headers.len()) as libc::c_uint;
        // SAFETY: each header points to its own address, iovec, control and slot of this batch, which outlive the call
        // and are longer than their iovec says; nothing else refers to them meanwhile; the count is at most the vector's length.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = Errno::result(received)? as usize;
        let bytes: usize = self.headers[..received].iter().map(|header| header.msg_len as usize).sum();
        self.received = bytes;
        self.wanted = (CACHED * received / bytes.max(1)).clamp(FEWEST, RECEIVE);
        Ok(received)
    }

    /// Bytes of the last call.
    pub(crate) fn received(&self) -> usize {
        self.received
    }

    /// Message `at` of the last batch; none if it was cut off or has no address.
    pub(crate) fn message(&self, at: usize) -> Option<Received> {
        let header = self.headers.get(at)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let (start, length) = (at * SLOT, (header.msg_len as usize).min(LARGEST));
        let size = gro_size(&header.msg_hdr).filter(|size| *size > 0).unwrap_or(LARGEST);
        let from = address(&self.from[at], header.msg_hdr.msg_namelen)?;
        Some(Received { start, end: start + length, size, from })
    }

    /// What the messages are made of; to be decrypted in place.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer
    }
}

/// `UDP_GRO`: the length of all datagrams of the message but the last; none when it is one.
fn gro_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel wrote `msg_controllen` bytes of control messages to where `msg_control` points, in a batch that
    // is borrowed; the macros stay within that length.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if ((*message).cmsg_level, (*message).cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let size = libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

fn address(storage: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: the pointer is to a whole `sockaddr_storage`, and `length` is what the kernel wrote of it.
    let storage = unsafe { SockaddrStorage::from_raw(ptr::from_ref(storage).cast(), Some(length)) }?;
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    fn bound(at: &str) -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind(at).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    fn push(batch: &mut SendBatch, datagram: &[u8], at: SocketAddr) {
        batch.space()[..datagram.len()].copy_from_slice(datagram);
        batch.push(datagram.len(), Line { lane: 0, at });
    }

    #[test]
    fn a_datagram_that_is_refused_costs_no_other() {
        let (sockets, counters) = (Sockets::bind(0, 0).expect("this test needs root"), Counters::default());
        let (here, at) = bound("127.0.0.1:0");
        // Broadcast without leave: EACCES, in the middle of one sendmmsg.
        let refused: SocketAddr = "255.255.255.255:9".parse().unwrap();
        let mut batch = SendBatch::new(2000);
        for n in 0..30u8 {
            push(&mut batch, &[n; 100], if n % 7 == 3 { refused } else { at });
        }
        batch.flush(&sockets, &counters);
        let mut buffer = [0; 200];
        let arrived: Vec<u8> = (0..26).map(|_| (here.recv(&mut buffer).unwrap(), buffer[0]).1).collect();
        let expected: Vec<u8> = (0..30).filter(|n| n % 7 != 3).collect();
        assert_eq!(arrived, expected, "all of them, in order");
        let failed = counters.list().into_iter().find(|(name, _)| *name == "send-failed").unwrap();
        assert_eq!(failed.1, 4);
    }

    #[test]
    fn each_datagram_comes_out_as_it_went_in_and_from_where_it_came_in_both_families() {
        let counters = Counters::default();
        for local in ["127.0.0.1", "::1"] {
            let (here, there) = (Sockets::bind(0, 0).unwrap(), Sockets::bind(0, 0).unwrap());
            let local = local.parse().unwrap();
            let (from, to) = (SocketAddr::new(local, here.port()), SocketAddr::new(local, there.port()));
            let mut batch = SendBatch::new(2000);
            // Trains of one length, which become messages, their shorter ends, and a few by themselves.
            let lengths = [vec![1452; 45], vec![300, 1452, 40, 40, 7], vec![1452; 10]].concat();
            let sent: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(n, length)| vec![n as u8; *length]).collect();
            sent.iter().for_each(|datagram| push(&mut batch, datagram, to));
            batch.flush(&here, &counters);
            let (mut got, mut receive) = (Vec::new(), ReceiveBatch::new());
            let patience = Instant::now() + Duration::from_secs(10);
            while got.len() < sent.len() && Instant::now() < patience {
                let socket = there.of(0, local.is_ipv6()).unwrap();
                for at in 0..receive.receive(socket).unwrap_or(0) {
                    let message = receive.message(at).unwrap();
                    assert_eq!(message.from, from);
                    let bytes = &receive.bytes()[message.start..message.end];
                    got.extend(bytes.chunks(message.size).map(<[u8]>::to_vec));
                }
            }
            assert_eq!(got, sent);
        }
    }
}
