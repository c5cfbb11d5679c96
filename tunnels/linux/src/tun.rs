//! A persistent TUN device: interface, routes and attached programs outlive the process that reads it. Each packet has
//! a [`vnet::Header`] before it, so that one read or write can be a whole superpacket.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use hawser_tunnels::DeviceName;
use nix::errno::Errno;

use crate::offload::vnet;

/// The largest that a read can give.
pub(crate) const LARGEST_READ: usize = vnet::LENGTH + 65535;

/// What the kernel may leave to us, widest first: checksums, TCP segments of both families, and UDP segments, which
/// kernels before 6.2 do not know (`linux/if_tun.h`).
const OFFLOADS: [libc::c_uint; 2] = [TCP_OFFLOADS | libc::TUN_F_USO4 | libc::TUN_F_USO6, TCP_OFFLOADS];
const TCP_OFFLOADS: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// One descriptor for each queue: the kernel keeps a flow on one.
#[derive(Debug)]
pub(crate) struct Tun {
    queues: Vec<File>,
}

impl Tun {
    /// Creates the device in this thread's network namespace, or adopts the one that is there; with so many queues, or
    /// with one where it was made for one.
    pub(crate) fn open(name: &DeviceName, queues: usize) -> io::Result<Self> {
        let many = libc::IFF_MULTI_QUEUE;
        let (first, many) = match Self::attach(name, many) {
            Ok(file) => (file, many),
            Err(Errno::EINVAL) => (Self::attach(name, 0)?, 0),
            Err(error) => return Err(error.into()),
        };
        let mut tun = Self { queues: vec![first] };
        while many != 0 && tun.queues.len() < queues {
            tun.queues.push(Self::attach(name, many)?);
        }
        tun.set_persistent(true)?;
        tun.set_offloads()?;
        Ok(tun)
    }

    /// The queues of a predecessor; at least one.
    pub(crate) fn adopt(queues: Vec<File>) -> Self {
        Self { queues }
    }

    pub(crate) fn queues(&self) -> &[File] {
        &self.queues
    }

    fn attach(name: &DeviceName, many: libc::c_int) -> Result<File, Errno> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many) as libc::c_short,
            },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which lives here.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        Ok(file)
    }

    /// None beyond the last.
    pub(crate) fn queue(&self, index: usize) -> Option<&File> {
        self.queues.get(index)
    }

    fn file(&self) -> &File {
        &self.queues[0]
    }

    /// The widest set that this kernel takes.
    fn set_offloads(&self) -> io::Result<()> {
        let mut refused = Errno::EINVAL;
        for offloads in OFFLOADS {
            // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes its argument by value.
            let set = unsafe {
                libc::ioctl(self.file().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
            };
            match Errno::result(set) {
                Ok(_) => return Ok(()),
                Err(errno) => refused = errno,
            }
        }
        Err(refused.into())
    }

    /// Without persistence the device goes when its last descriptor is closed.
    pub(crate) fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        let on = libc::c_ulong::from(persistent);
        // SAFETY: the descriptor is open, and TUNSETPERSIST takes its argument by value.
        Errno::result(unsafe { libc::ioctl(self.file().as_raw_fd(), libc::TUNSETPERSIST, on) })?;
        Ok(())
    }

    /// False once the device was deleted under us.
    pub(crate) fn is_attached(&self) -> bool {
        self.set_persistent(true).is_ok()
    }

    /// A header and one packet, at most [`LARGEST_READ`]; `EAGAIN` when there is none.
    pub(crate) fn read<'a>(
        &self,
        queue: usize,
        buffer: &'a mut [u8; LARGEST_READ],
    ) -> Result<(vnet::Header, &'a mut [u8]), Errno> {
        let length = nix::unistd::read(&self.queues[queue], buffer.as_mut_slice())?;
        let Some((header, packet)) = buffer[..length].split_first_chunk_mut() else {
            return Err(Errno::EAGAIN);
        };
        Ok((vnet::Header::parse(header), packet))
    }

    /// A header and the pieces of one packet. The kernel sends what answers its flow to the queue that it came by, so
    /// `flow` says which one that is.
    pub(crate) fn write(&self, flow: usize, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let queue = &self.queues[flow % self.queues.len()];
        loop {
            match nix::sys::uio::writev(queue, pieces) {
                Err(Errno::EINTR) => {}
                written => return written,
            }
        }
    }
}
