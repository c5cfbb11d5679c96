//! UDP over the mesh address: bound to the device where there is one, so that nothing from the underlay is heard, and
//! with the time to live of what arrives (GTSM, RFC 5082).

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use hawser_discovery::bfd::TTL;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recvmsg, setsockopt,
    socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the liveness socket on {address} ({device}): {source}. fix: see that {device} has this address and that nothing else uses the port"
)]
pub struct BindError {
    pub address: SocketAddr,
    pub device: String,
    #[source]
    pub source: io::Error,
}

/// `IPTOS_CLASS_CS6`, network control: a full link must not look like a dead node.
const TOS_CS6: i32 = 0xc0;

/// Sends with TTL 255, and tells the TTL of what it receives.
pub(crate) fn open(own: Ipv4Addr, port: u16, device: Option<&str>) -> Result<UdpSocket, BindError> {
    let attempt = || -> io::Result<UdpSocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        if let Some(device) = device {
            setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
        }
        setsockopt(&fd.as_fd(), sockopt::Ipv4Tos, &TOS_CS6)?;
        setsockopt(&fd, sockopt::Ipv4Ttl, &i32::from(TTL))?;
        setsockopt(&fd, sockopt::Ipv4RecvTtl, &true)?;
        bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(own, port)))?;
        UdpSocket::from_std(std::net::UdpSocket::from(fd))
    };
    attempt().map_err(|source| BindError {
        address: SocketAddrV4::new(own, port).into(),
        device: device.unwrap_or("any device").to_owned(),
        source,
    })
}

/// What one datagram was, apart from its octets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// More than the buffer takes is cut off.
    pub len: usize,
    pub from: SocketAddrV4,
    pub ttl: u8,
}

/// The next datagram with its TTL. Cancel safe: nothing is taken before it is returned.
pub(crate) async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    socket.async_io(Interest::READABLE, || receive_now(socket, buffer)).await
}

fn receive_now(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(nix::libc::c_int);
    let message =
        recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let ttl = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4Ttl(ttl) => u8::try_from(ttl).ok(),
        _ => None,
    });
    let from = message.address.map(SocketAddrV4::from);
    match (from, ttl) {
        (Some(from), Some(ttl)) => Ok(Received { len: message.bytes, from, ttl }),
        // Asked for when the socket was made: the kernel always says both.
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram without its source or its TTL")),
    }
}
