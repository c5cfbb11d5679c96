//! One cgroup2 subtree per lab, named after the process that owns it, and none left behind.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PREFIX: &str = "hawser-lab-";

/// Where cgroup2 is mounted. Found in mountinfo, because hybrid machines have it at an odd place.
pub fn mount_point() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    match find_cgroup2(&text) {
        Some(path) => Ok(path),
        None => bail!("no cgroup2 is mounted here\nfix: mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

/// `36 35 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw`: the type follows the lone dash (proc(5)).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (back.split(' ').next()? == "cgroup2").then(|| PathBuf::from(front.split(' ').nth(4).unwrap_or("/")))
    })
}

/// The subtree of the lab whose outer process is `owner`.
pub fn create(owner: u32) -> Result<PathBuf> {
    let path = mount_point()?.join(format!("{PREFIX}{owner}"));
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// Removes what labs left whose owner is gone. A subtree with a living process in it is never touched: rmdir refuses.
pub fn sweep_stale() -> Result<()> {
    let root = mount_point()?;
    for entry in fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))?.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
        if owner.is_some_and(|pid| !is_lab(pid)) {
            remove_once(&entry.path());
        }
    }
    Ok(())
}

/// Whether `pid` is a living lab: pids are reused, so its name counts too, and a zombie is not living.
pub fn is_lab(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    stat.split_once(" (hawser-lab) ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Removes a subtree whose processes were killed; the kernel needs a moment to let the last of them go.
pub fn remove(tree: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    while !remove_once(tree) {
        if Instant::now() > until {
            bail!("{} still holds processes", tree.display());
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Children first: cgroups are removed with rmdir, and only when empty.
fn remove_once(tree: &Path) -> bool {
    if let Ok(entries) = fs::read_dir(tree) {
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())) {
            remove_once(&entry.path());
        }
    }
    match fs::remove_dir(tree) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let hybrid = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("22 27 0:21 / /proc rw - proc proc rw\n"), None);
    }
}
