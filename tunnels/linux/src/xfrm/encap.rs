//! The UDP port by which the kernel takes ESP in UDP (RFC 3948) from peers whose agents carry themselves.
//!
//! The kernel asks for a socket that says so, and such a socket lives as long as a process has it. Several may have the
//! port at once (`SO_REUSEPORT`), and which of them a packet meets does not matter, because the kernel never puts it into one:
//! so a successor opens its own before its predecessor closes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hawser_tunnels::Mark;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket,
    sockopt,
};

use super::kernel::UDP_ENCAP_ESPINUDP;

/// `linux/udp.h`.
const UDP_ENCAP: libc::c_int = 100;

/// RFC 3948 §2.3: no receiver takes it for ESP.
const KEEPALIVE: [u8; 1] = [0xff];

/// Held for what the kernel does while they are open.
pub(super) struct Encap {
    v4: UdpSocket,
    /// None on a machine without IPv6.
    v6: Option<UdpSocket>,
}

impl Encap {
    /// In this thread's network namespace.
    pub(super) fn open(port: u16, mark: Mark) -> io::Result<Self> {
        let v4 = of_family(
            AddressFamily::Inet,
            &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
            mark,
        )?;
        let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
        let v6 = match of_family(AddressFamily::Inet6, &any, mark) {
            Ok(socket) => Some(socket),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => None,
                _ => return Err(error),
            },
        };
        Ok(Self { v4, v6 })
    }

    /// A NAT before it remembers this port for longer.
    pub(super) fn keep_alive(&self, peer: SocketAddr) -> io::Result<()> {
        let socket = if peer.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        socket.map_or(Ok(()), |socket| socket.send_to(&KEEPALIVE, peer).map(drop))
    }
}

fn of_family(family: AddressFamily, address: &dyn SockaddrLike, mark: Mark) -> io::Result<UdpSocket> {
    let fd: OwnedFd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd.as_fd(), sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd.as_fd(), sockopt::ReusePort, &true)?;
    setsockopt(&fd.as_fd(), sockopt::Mark, &mark.value)?;
    let kind = libc::c_int::from(UDP_ENCAP_ESPINUDP);
    // SAFETY: the pointer is to one `int`, which outlives the call, and that is its length.
    let set = unsafe {
        let length = size_of_val(&kind) as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_UDP, UDP_ENCAP, (&raw const kind).cast(), length)
    };
    Errno::result(set)?;
    // Last, so that no packet meets a socket that does not say so yet.
    bind(fd.as_raw_fd(), address)?;
    Ok(fd.into())
}
