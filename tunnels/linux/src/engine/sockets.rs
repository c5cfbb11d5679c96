//! The engine's faces on the underlay: a UDP port for each lane, both families, marked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket,
    sockopt,
};

/// Default buffers cost a third of the throughput and lose packets by the hundred thousand (`tunnel-engine.md`).
const BUFFER: usize = 4 << 20;

/// Where a datagram goes to or came from: at which of our ports, and who the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) lane: u8,
    pub(crate) at: SocketAddr,
}

/// The first is the port that everybody knows; the others are for peers that spread over several.
#[derive(Debug)]
pub(crate) struct Sockets {
    lanes: Vec<Arc<Face>>,
}

/// One port.
#[derive(Debug)]
pub(crate) struct Face {
    v4: UdpSocket,
    /// None on a machine without IPv6.
    v6: Option<UdpSocket>,
    port: u16,
}

impl Face {
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
        let face = Self { v4, v6, port };
        face.set_mark(mark)?;
        Ok(face)
    }

    /// That of a predecessor.
    pub(crate) fn adopt(v4: UdpSocket, v6: Option<UdpSocket>) -> io::Result<Self> {
        let port = v4.local_addr()?.port();
        Ok(Self { v4, v6, port })
    }

    fn set_mark(&self, mark: u32) -> io::Result<()> {
        for socket in self.both() {
            setsockopt(socket, sockopt::Mark, &mark)?;
        }
        Ok(())
    }

    pub(crate) fn of(&self, v6: bool) -> Option<&UdpSocket> {
        if v6 { self.v6.as_ref() } else { Some(&self.v4) }
    }

    /// Of [`Face::both`], in their order; the last one may be there twice.
    pub(crate) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.v4.as_fd(), self.v6.as_ref().unwrap_or(&self.v4).as_fd()]
    }

    pub(crate) fn both(&self) -> impl Iterator<Item = &UdpSocket> {
        std::iter::once(&self.v4).chain(&self.v6)
    }
}

impl Sockets {
    /// One lane. Port 0 takes a free one.
    pub(crate) fn bind(port: u16, mark: u32) -> io::Result<Self> {
        Ok(Self::of_faces(vec![Arc::new(Face::bind(port, mark)?)]))
    }

    /// At least one.
    pub(crate) fn of_faces(lanes: Vec<Arc<Face>>) -> Self {
        Self { lanes }
    }

    /// The same with another first port.
    pub(crate) fn with_first(&self, face: Face) -> Self {
        let rest = self.lanes.iter().skip(1).cloned();
        Self { lanes: std::iter::once(Arc::new(face)).chain(rest).collect() }
    }

    /// The same with lanes at exactly these ports beyond the first, as far as they can be had: those that are there stay.
    /// Says which cannot be had, and why.
    pub(crate) fn with_more(&self, ports: &[u16], mark: u32, mut cannot: impl FnMut(u16, io::Error)) -> Self {
        let mut lanes = vec![Arc::clone(&self.lanes[0])];
        for port in ports {
            let have = self.lanes.iter().skip(1).find(|face| face.port == *port).cloned();
            match have.map_or_else(|| Face::bind(*port, mark).map(Arc::new), Ok) {
                Ok(face) => lanes.push(face),
                Err(error) => cannot(*port, error),
            }
        }
        Self { lanes }
    }

    pub(crate) fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.lanes.iter().try_for_each(|face| face.set_mark(mark))
    }

    /// Datagrams leave whole or not at all, whatever the kernel has heard of their path (RFC 8899 §4.1).
    pub(crate) fn never_fragment(&self) {
        for face in &self.lanes {
            probe(&face.v4, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE);
            if let Some(v6) = &face.v6 {
                probe(v6, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE);
            }
        }
    }

    /// The first lane's.
    pub(crate) fn port(&self) -> u16 {
        self.lanes[0].port
    }

    /// Those of the other lanes, in their order.
    pub(crate) fn more_ports(&self) -> Vec<u16> {
        self.lanes.iter().skip(1).map(|face| face.port).collect()
    }

    pub(crate) fn lanes(&self) -> &[Arc<Face>] {
        &self.lanes
    }

    pub(crate) fn lane(&self, lane: u8) -> Option<&Face> {
        self.lanes.get(usize::from(lane)).map(|face| &**face)
    }

    pub(crate) fn of(&self, lane: u8, v6: bool) -> Option<&UdpSocket> {
        self.lane(lane)?.of(v6)
    }
}

/// The kernel knows these options since 2.6.22; without them a path is taken to be as wide as its fragments are many.
fn probe(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is one int, and the pointer is to one that lives as long as the call.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
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
