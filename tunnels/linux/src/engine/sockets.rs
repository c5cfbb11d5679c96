//! The engine's two faces on the underlay: one UDP port, both families, marked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket,
    sockopt,
};

/// Default buffers cost a third of the throughput and lose packets by the hundred thousand (`tunnel-engine.md`).
const BUFFER: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Sockets {
    v4: UdpSocket,
    /// None on a machine without IPv6.
    v6: Option<UdpSocket>,
    port: u16,
}

impl Sockets {
    /// Binds in this thread's network namespace. Port 0 takes a free one.
    pub(crate) fn bind(port: u16, mark: u32) -> io::Result<Self> {
        let v4 =
            open(AddressFamily::Inet, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
        let port = v4.local_addr()?.port();
        let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
        let v6 = match open(AddressFamily::Inet6, &any) {
            Ok(socket) => Some(socket),
            Err(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => None,
            Err(error) => return Err(error.into()),
        };
        let sockets = Self { v4, v6, port };
        sockets.set_mark(mark)?;
        Ok(sockets)
    }

    /// Those of a predecessor.
    pub(crate) fn adopt(v4: UdpSocket, v6: Option<UdpSocket>) -> io::Result<Self> {
        let port = v4.local_addr()?.port();
        Ok(Self { v4, v6, port })
    }

    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        for socket in self.both() {
            setsockopt(socket, sockopt::Mark, &mark)?;
        }
        Ok(())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn of(&self, v6: bool) -> Option<&UdpSocket> {
        if v6 { self.v6.as_ref() } else { Some(&self.v4) }
    }

    /// Of [`Sockets::both`], in their order; the last one may be there twice.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.v4.as_fd(), self.v6.as_ref().unwrap_or(&self.v4).as_fd()]
    }

    pub(crate) fn both(&self) -> impl Iterator<Item = &UdpSocket> {
        std::iter::once(&self.v4).chain(&self.v6)
    }
}

fn open(family: AddressFamily, address: &dyn SockaddrLike) -> Result<UdpSocket, Errno> {
    let fd: OwnedFd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&fd.as_fd(), sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd.as_fd(), sockopt::RcvBufForce, &BUFFER)?;
    setsockopt(&fd.as_fd(), sockopt::SndBufForce, &BUFFER)?;
    // Datagrams of one peer come as one, in kernels >= 5.0; where they do not, each comes by itself.
    let _ = setsockopt(&fd.as_fd(), sockopt::UdpGroSegment, &true);
    bind(fd.as_raw_fd(), address)?;
    Ok(fd.into())
}
