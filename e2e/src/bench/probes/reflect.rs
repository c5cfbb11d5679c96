//! What `tunnel_in` does with a probe, for as many nodes as there are addresses: a process, so that its CPU is counted apart.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use hawser_discovery::REFLECTOR_PORT;
use hawser_discovery::bfd::{ControlPacket, State, TTL};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind,
    recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::super::part;

pub(in super::super) fn run_part() -> Result<()> {
    let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::IpTransparent, &true)?;
    setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
    setsockopt(&fd, sockopt::Ipv4Ttl, &i32::from(TTL))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, REFLECTOR_PORT)))?;
    part::say(&"ready")?;
    let mut buffer = [0; 2_048];
    loop {
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message =
            recvmsg::<SockaddrIn>(fd.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        let to = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_addr),
            _ => None,
        });
        let (from, length) = (message.address.context("a source")?, message.bytes);
        let Ok(asked) = ControlPacket::parse(&buffer[..length]) else { continue };
        let Some(own) = NonZeroU32::new(asked.your_discriminator) else { continue };
        // RFC 7880 §7.2.2; what lies behind it goes back as it came.
        let answer = ControlPacket {
            state: State::Up,
            demand: false,
            my_discriminator: own,
            your_discriminator: asked.my_discriminator.get(),
            ..asked
        };
        buffer[..ControlPacket::LEN].copy_from_slice(&answer.encode());
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: to.context("an address")?,
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let sent = [IoSlice::new(&buffer[..length])];
        // A full queue is a lost answer.
        let _ = sendmsg(
            fd.as_raw_fd(),
            &sent,
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&from),
        );
    }
}
