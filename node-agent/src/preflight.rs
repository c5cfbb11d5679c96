//! What must hold before anything is changed: root, cgroup2, bpffs, a free port. Each refusal is one sentence and its fix.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;

use nix::unistd::geteuid;

const MOUNTINFO: &str = "/proc/self/mountinfo";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(
        "hawser-node-agent runs as uid {uid}, but tunnels, routes and eBPF need root. fix: run it as root"
    )]
    NotRoot { uid: u32 },
    #[error("cannot read {MOUNTINFO}: {reason}. fix: mount /proc")]
    Mountinfo { reason: String },
    #[error(
        "no cgroup2 is mounted here, and socket programs attach to cgroups. fix: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoCgroup2,
    #[error(
        "no bpffs is mounted here, and maps and links must outlive the agent. fix: mount -t bpf bpf /sys/fs/bpf"
    )]
    NoBpffs,
    #[error("this is kernel {release}, and the datapath needs 5.15 or newer. fix: a newer kernel")]
    OldKernel { release: String },
    #[error("{path} cannot be opened: {reason}. fix: {fix}")]
    Missing { path: &'static str, reason: String, fix: &'static str },
    #[error(
        "UDP port {port} is in use by another program, and WireGuard needs it. fix: stop that program (ss -lunp sport = :{port}), \
         or set another `port`"
    )]
    PortInUse { port: u16 },
    #[error("UDP port {port} cannot be opened: {reason}. fix: see that this network namespace has IPv4")]
    Port { port: u16, reason: String },
}

/// Where the kernel's file systems are, found in mountinfo and never by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounts {
    pub cgroup2: PathBuf,
    pub bpffs: PathBuf,
}

pub(crate) fn root() -> Result<(), Refused> {
    let uid = geteuid();
    if uid.is_root() { Ok(()) } else { Err(Refused::NotRoot { uid: uid.as_raw() }) }
}

/// A bpffs is not mounted from here: in a container's own mount namespace it would vanish with the agent, and with it
/// what was meant to stay.
pub(crate) fn mounts() -> Result<Mounts, Refused> {
    let text = std::fs::read_to_string(MOUNTINFO)
        .map_err(|error| Refused::Mountinfo { reason: error.to_string() })?;
    let cgroup2 = find_mount(&text, "cgroup2").ok_or(Refused::NoCgroup2)?;
    let bpffs = find_mount(&text, "bpf").ok_or(Refused::NoBpffs)?;
    Ok(Mounts { cgroup2, bpffs })
}

/// What the datapath and the tunnels need of the kernel; the loader finds out about the rest and says so.
pub(crate) fn kernel() -> Result<(), Refused> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    if version(release).is_none_or(|version| version < (5, 15)) {
        return Err(Refused::OldKernel { release: release.to_owned() });
    }
    let needed = [
        ("/dev/net/tun", "modprobe tun, or give the container the device"),
        ("/sys/kernel/btf/vmlinux", "a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted"),
    ];
    for (path, fix) in needed {
        if let Err(error) = std::fs::File::open(path) {
            return Err(Refused::Missing { path, reason: error.to_string(), fix });
        }
    }
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// WireGuard's port must be free before the device is touched. O(1): bound and let go again.
pub(crate) fn free_port(port: u16) -> Result<(), Refused> {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(Refused::PortInUse { port }),
        Err(error) => Err(Refused::Port { port, reason: error.to_string() }),
    }
}

/// The last mount of a kind that shows the whole file system: later mounts hide earlier ones (proc(5), mountinfo).
fn find_mount(mountinfo: &str, kind: &str) -> Option<PathBuf> {
    let of_kind = |line: &&str| {
        let (_, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some(kind)).then_some(())
    };
    let line = mountinfo.lines().rev().find(|line| of_kind(line).is_some())?;
    line.split(' ').nth(4).map(unescape)
}

/// Blanks and the like are written as octal.
fn unescape(path: &str) -> PathBuf {
    PathBuf::from(
        path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
25 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
31 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
40 25 0:33 / /mnt/my\\040bpf rw - bpf bpf rw,mode=700
";

    #[test]
    fn mounts_are_found_by_kind_not_by_path() {
        assert_eq!(find_mount(INFO, "cgroup2"), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_mount(INFO, "bpf"), Some("/mnt/my bpf".into()));
        assert_eq!(find_mount(INFO, "cgroup"), None);
        let later = format!("{INFO}41 25 0:34 / /sys/fs/bpf rw - bpf bpf rw\n");
        assert_eq!(find_mount(&later, "bpf"), Some("/sys/fs/bpf".into()));
    }

    #[test]
    fn a_kernels_version_is_read_from_its_release() {
        assert_eq!(version("6.1.0-13-amd64"), Some((6, 1)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("six"), None);
        assert!(kernel().is_ok(), "this machine runs the tests of the datapath too");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = free_port(port).unwrap_err();
        assert!(refused.to_string().contains(&format!("UDP port {port} is in use")), "{refused}");
        drop(taken);
        free_port(port).unwrap();
    }
}
