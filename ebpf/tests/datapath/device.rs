//! Devices whose other end is this test: what is written to one arrives on the host, what the host sends can be read.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::world::run;

pub(crate) struct Device {
    file: File,
    /// Octets of link header.
    l2: usize,
    pub(crate) ifindex: u32,
}

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    pad: [u8; 22],
}

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, Request);

impl Device {
    /// With an Ethernet header: a pod's host-side interface, an underlay device.
    pub(crate) fn tap(name: &str) -> Self {
        Self::new(name, libc::IFF_TAP)
    }

    /// Bare IP: the tunnel.
    pub(crate) fn tun(name: &str) -> Self {
        Self::new(name, libc::IFF_TUN)
    }

    fn new(name: &str, kind: libc::c_int) -> Self {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let file = file.expect("/dev/net/tun opens: run as root, with CONFIG_TUN");
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            flags: (kind | libc::IFF_NO_PI) as libc::c_short,
            pad: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the request is a live struct ifreq, 40 octets, which the kernel reads.
        unsafe { tunsetiff(file.as_raw_fd(), &raw const request) }.unwrap();
        run(&format!("ip link set {name} up"));
        let ifindex = nix::net::if_::if_nametoindex(name).unwrap();
        let l2 = if kind == libc::IFF_TAP { 14 } else { 0 };
        Self { file, l2, ifindex }
    }

    /// Returns when the host has judged it: a TUN device hands packets over within the write.
    pub(crate) fn sends(&self, packet: &[u8]) {
        // A length that no device takes (shorter than a header) is refused by the kernel, which is an answer too.
        (&self.file).write_all(packet).unwrap();
    }

    /// The next packet the host sends out, if one comes.
    pub(crate) fn receives(&self) -> Option<Vec<u8>> {
        for _ in 0..100 {
            let mut ready = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(2_000_u16)).unwrap() == 0 {
                return None;
            }
            if let Some(packet) = self.has_now() {
                return Some(packet);
            }
        }
        None
    }

    /// The next packet, if it is there already. What the kernel says to the link by itself, whenever it likes, is passed over.
    pub(crate) fn has_now(&self) -> Option<Vec<u8>> {
        loop {
            let mut packet = vec![0; 10_000];
            let len = (&self.file).read(&mut packet).ok()?;
            packet.truncate(len);
            if !self.is_for_the_link(&packet) {
                return Some(packet);
            }
        }
    }

    /// Router solicitations, listener reports (RFC 4861, RFC 3810): IPv6 to ff02::/16.
    fn is_for_the_link(&self, packet: &[u8]) -> bool {
        packet.get(self.l2).is_some_and(|first| first >> 4 == 6)
            && packet.get(self.l2 + 24..self.l2 + 26) == Some(&[0xff, 0x02])
    }
}
