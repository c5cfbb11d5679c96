//! A persistent TUN device: interface, routes and attached programs outlive the process that reads it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use hawser_tunnels::DeviceName;
use nix::errno::Errno;

#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Creates the device in this thread's network namespace, or adopts the one that is there.
    pub(crate) fn open(name: &DeviceName) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
            },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one `ifreq`, which lives here.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        let tun = Self { file };
        tun.set_persistent(true)?;
        Ok(tun)
    }

    /// Without persistence the device goes when its last descriptor is closed.
    pub(crate) fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        let on = libc::c_ulong::from(persistent);
        // SAFETY: the descriptor is open, and TUNSETPERSIST takes its argument by value.
        Errno::result(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETPERSIST, on) })?;
        Ok(())
    }

    /// False once the device was deleted under us.
    pub(crate) fn is_attached(&self) -> bool {
        self.set_persistent(true).is_ok()
    }

    /// One packet; `EAGAIN` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        nix::unistd::read(&self.file, buffer)
    }

    pub(crate) fn write(&self, packet: &[u8]) -> Result<usize, Errno> {
        nix::unistd::write(&self.file, packet)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
