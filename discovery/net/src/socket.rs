//! The echo socket: bound to the own mesh address and, where there is a device, to it, so that nothing from the underlay is heard.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::net::UdpSocket;

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the echo socket on {address} ({device}): {source}. fix: see that {device} has this address and that nothing else uses the port"
)]
pub struct BindError {
    pub address: SocketAddr,
    pub device: String,
    #[source]
    pub source: io::Error,
}

/// `IPTOS_CLASS_CS6`, network control: a full link must not look like a dead node.
const TOS_CS6: i32 = 0xc0;

pub(crate) fn open(own: Ipv4Addr, port: u16, device: Option<&str>) -> Result<UdpSocket, BindError> {
    let attempt = || -> io::Result<UdpSocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        if let Some(device) = device {
            setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
        }
        setsockopt(&fd.as_fd(), sockopt::Ipv4Tos, &TOS_CS6)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(SocketAddrV4::new(own, port)))?;
        UdpSocket::from_std(std::net::UdpSocket::from(fd))
    };
    attempt().map_err(|source| BindError {
        address: SocketAddrV4::new(own, port).into(),
        device: device.unwrap_or("any device").to_owned(),
        source,
    })
}
