//! What must hold before anything is changed: root, cgroup2, bpffs, a free port. Each refusal is one sentence and its fix.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;

use nix::unistd::geteuid;

use crate::config::Config;

const MOUNTINFO: &str = "/proc/self/mountinfo";

#[derive(Debug, thiserror::Error)]
pub enum Refused {
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
        "no bpffs is mounted here and mounting one at {BPFFS} failed: {reason}. fix: mount -t bpf bpf {BPFFS}"
    )]
    NoBpffs { reason: String },
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
pub struct Mounts {
    pub cgroup2: PathBuf,
    pub bpffs: PathBuf,
}

/// Checks everything and makes nothing. A bpffs is not mounted from here: in a container's own mount namespace it would
/// vanish with the agent, and with it what was meant to stay.
pub fn check(config: &Config) -> Result<Mounts, Refused> {
    root()?;
    let mounts = mounts()?;
    free_port(config.port)?;
    Ok(mounts)
}

pub fn root() -> Result<(), Refused> {
    let uid = geteuid();
    if uid.is_root() { Ok(()) } else { Err(Refused::NotRoot { uid: uid.as_raw() }) }
}

pub fn mounts() -> Result<Mounts, Refused> {
    let text = std::fs::read_to_string(MOUNTINFO)
        .map_err(|error| Refused::Mountinfo { reason: error.to_string() })?;
    let cgroup2 = find_mount(&text, "cgroup2").ok_or(Refused::NoCgroup2)?;
    let bpffs = find_mount(&text, "bpf").ok_or(Refused::NoBpffs)?;
    Ok(Mounts { cgroup2, bpffs })
}

/// WireGuard's port must be free before the device is touched. O(1): bound and let go again.
fn free_port(port: u16) -> Result<(), Refused> {
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
    fn a_port_in_use_is_named() {
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let refused = free_port(port).unwrap_err();
        assert!(refused.to_string().contains(&format!("UDP port {port} is in use")), "{refused}");
        drop(taken);
        free_port(port).unwrap();
    }
}
