//! Many datagrams in one system call, in buffers that are made once.

use std::io;
use std::mem;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use super::counters::{Counters, Reason};
use super::sockets::Sockets;

/// Datagrams per call. More gains nothing measurable; fewer costs calls.
pub(crate) const BATCH: usize = 64;

/// Datagrams on their way out, laid end to end.
pub(crate) struct SendBatch {
    buffer: Vec<u8>,
    used: usize,
    /// Largest datagram that `space` must offer.
    largest: usize,
    to: Vec<SockaddrStorage>,
    lengths: Vec<usize>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl SendBatch {
    pub(crate) fn new(largest: usize) -> Self {
        Self {
            buffer: vec![0; BATCH * 2048 + largest],
            used: 0,
            largest,
            to: Vec::with_capacity(BATCH),
            lengths: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            headers: Vec::with_capacity(BATCH),
        }
    }

    /// Whether another datagram of the largest size fits.
    pub(crate) fn has_room(&self) -> bool {
        self.to.len() < BATCH && self.buffer.len() - self.used >= self.largest
    }

    /// Where the next datagram is to be written.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    /// Takes in the first `length` bytes of `space`. There must be room.
    pub(crate) fn push(&mut self, length: usize, to: SocketAddr) {
        self.lengths.push(length);
        self.to.push(to.into());
        self.used += length;
    }

    /// Sends everything, in order; what the underlay refuses is counted and left behind. Blocks while a socket is full.
    pub(crate) fn flush(&mut self, sockets: &Sockets, counters: &Counters) {
        if self.to.is_empty() {
            return;
        }
        self.iovecs.clear();
        let mut rest = &mut self.buffer[..];
        for length in &self.lengths {
            let (datagram, after) = rest.split_at_mut(*length);
            self.iovecs.push(libc::iovec { iov_base: datagram.as_mut_ptr().cast(), iov_len: *length });
            rest = after;
        }
        self.headers.clear();
        for (iovec, to) in self.iovecs.iter_mut().zip(&self.to) {
            // SAFETY: `mmsghdr` is plain integers and pointers, for all of which zero is a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = to.len();
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            self.headers.push(header);
        }
        let mut from = 0;
        while from < self.to.len() {
            let v6 = is_v6(&self.to[from]);
            let run = self.to[from..].iter().take_while(|to| is_v6(to) == v6).count();
            send_run(sockets, v6, &mut self.headers[from..from + run], counters);
            from += run;
        }
        self.used = 0;
        self.to.clear();
        self.lengths.clear();
    }
}

fn is_v6(to: &SockaddrStorage) -> bool {
    to.as_sockaddr_in6().is_some()
}

fn send_run(sockets: &Sockets, v6: bool, mut headers: &mut [libc::mmsghdr], counters: &Counters) {
    let Some(socket) = sockets.of(v6) else {
        headers.iter().for_each(|_| counters.count(Reason::SendFailed));
        return;
    };
    while !headers.is_empty() {
        // SAFETY: each header points to one address and one iovec of the batch, which outlive the call and do not move
        // during it; the count is the slice's length.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0)
        };
        match Errno::result(sent) {
            // A short count means that the next one failed; the next call says why.
            Ok(sent) => headers = &mut headers[sent as usize..],
            Err(Errno::EINTR) => {}
            Err(_) => {
                counters.count(Reason::SendFailed);
                headers = &mut headers[1..];
            }
        }
    }
}

/// Room for a batch of datagrams from the underlay.
pub(crate) struct ReceiveBatch {
    slot: usize,
    buffer: Vec<u8>,
    from: Vec<libc::sockaddr_storage>,
    iovecs: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl ReceiveBatch {
    pub(crate) fn new(largest: usize) -> Self {
        // SAFETY: these C structures are plain integers and pointers, for all of which zero is a value.
        let (from, iovec, header) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            slot: largest,
            buffer: vec![0; BATCH * largest],
            from: vec![from; BATCH],
            iovecs: vec![iovec; BATCH],
            headers: vec![header; BATCH],
        }
    }

    /// Takes what is there without waiting; returns how many.
    pub(crate) fn receive(&mut self, socket: &impl AsRawFd) -> Result<usize, Errno> {
        let slots = self.buffer.chunks_exact_mut(self.slot);
        for (((header, iovec), from), slot) in
            self.headers.iter_mut().zip(&mut self.iovecs).zip(&mut self.from).zip(slots)
        {
            *iovec = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            header.msg_hdr.msg_name = ptr::from_mut(from).cast();
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_flags = 0;
            header.msg_len = 0;
        }
        let count = self.headers.len() as libc::c_uint;
        // SAFETY: each header points to its own address, iovec and slot of this batch, which outlive the call; nothing
        // else refers to them meanwhile; the count is the vector's length.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        Errno::result(received).map(|received| received as usize)
    }

    /// The datagram in slot `at` of the last batch and where it came from; none if it was cut off or has no address.
    pub(crate) fn datagram(&self, at: usize) -> Option<(&[u8], SocketAddr)> {
        let header = self.headers.get(at)?;
        if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let data = self.buffer.get(at * self.slot..)?.get(..header.msg_len as usize)?;
        Some((data, address(&self.from[at], header.msg_hdr.msg_namelen)?))
    }
}

fn address(storage: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: the pointer is to a whole `sockaddr_storage`, and `length` is what the kernel wrote of it.
    let storage = unsafe { SockaddrStorage::from_raw(ptr::from_ref(storage).cast(), Some(length)) }?;
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

/// Sends one datagram outside any batch.
pub(crate) fn send_one(sockets: &Sockets, data: &[u8], to: SocketAddr, counters: &Counters) {
    let sent = match sockets.of(to.is_ipv6()) {
        Some(socket) => socket.send_to(data, to),
        None => Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    if sent.is_err() {
        counters.count(Reason::SendFailed);
    }
}
