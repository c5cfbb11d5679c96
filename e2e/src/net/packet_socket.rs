//! AF_PACKET sockets (packet(7)): every frame of an interface, in and out.

use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const RECEIVE_BUFFER_BYTES: libc::c_int = 32 << 20;

/// A raw packet socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// How a frame came to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// For this host, or broadcast, or multicast.
    In,
    /// For somebody else, seen because the wire is shared.
    Passing,
    Out,
}

impl PacketSocket {
    /// Bound to one interface.
    pub fn open(interface: &str) -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: socket(2) takes no pointers.
        let fd = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol))
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("a packet socket");
        }
        // SAFETY: `fd` is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(interface).context("an interface name")?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("interface {interface}"));
        }
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        // SAFETY: the address is a sockaddr_ll of the length given.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("binding to {interface}"));
        }
        let socket = Self { fd };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        Ok(socket)
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
        // SAFETY: the value is a c_int of the length given and outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                mem::size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("setsockopt on a packet socket");
        }
        Ok(())
    }

    /// Waits up to `timeout_ms` for a frame. `None`: none came.
    pub fn receive(&self, buffer: &mut [u8], timeout_ms: i32) -> io::Result<Option<(usize, Direction)>> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as said.
        if unsafe { libc::poll(&raw mut poll, 1, timeout_ms) } <= 0 {
            return Ok(None);
        }
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut from_len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: buffer and address are writable for the lengths given.
        let got = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        let direction = match from.sll_pkttype {
            libc::PACKET_OUTGOING => Direction::Out,
            libc::PACKET_OTHERHOST => Direction::Passing,
            _ => Direction::In,
        };
        Ok(Some((got as usize, direction)))
    }

    /// Puts a whole Ethernet frame on the wire.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the frame is readable for its length.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("sending a frame");
        }
        Ok(())
    }

    /// Frames that the kernel could not hand over since the last call.
    pub fn lost(&self) -> Result<u32> {
        // SAFETY: all zeroes is a valid tpacket_stats.
        let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut len = mem::size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `stats` is writable for the length given.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("PACKET_STATISTICS");
        }
        Ok(stats.tp_drops)
    }
}
