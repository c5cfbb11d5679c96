//! Getting into a lab that is up: its namespaces and, unlike plain `nsenter`, the cgroup whose programs apply.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::lab::PlaceEntry;
use crate::{binaries, cgroup};

/// Becomes `command` (a shell without one) in `place` of the lab `lab`, or of the newest.
pub fn run(place: &str, lab: Option<u32>, command: &[OsString]) -> Result<u8> {
    let entry = find(place, lab)?;
    // Asked for now: in there, another /proc knows nothing of this process.
    let path = path_with_product()?;
    let procs = entry.cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("moving into {}", procs.display()))?;
    let kinds = [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let open = |(file, kind)| Ok((File::open(format!("/proc/{}/ns/{file}", entry.host_pid))?, kind));
    let namespaces: Vec<_> = kinds
        .into_iter()
        .map(open)
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("{place} is gone"))?;
    for (namespace, kind) in namespaces {
        setns(namespace, kind).with_context(|| format!("entering {place}"))?;
    }
    let shell = [OsString::from("bash")];
    let command = if command.is_empty() { &shell[..] } else { command };
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).env("PS1", format!("{place}# ")).env("PATH", path);
    // The PID namespace holds for children only, so this is a child and not an exec. It dies with us.
    // SAFETY: prctl is a system call that allocates nothing.
    unsafe {
        child.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?));
    }
    let status = child.status().with_context(|| format!("starting {}", command[0].display()))?;
    Ok(status.code().map_or(1, |code| code as u8))
}

/// So that `hawser` is found by its name.
fn path_with_product() -> Result<OsString> {
    let mut path = binaries::dir()?.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

fn find(place: &str, lab: Option<u32>) -> Result<PlaceEntry> {
    let path = match lab {
        Some(pid) => labs()?.into_iter().find(|dir| dir.ends_with(format!("hawser-lab-{pid}"))),
        None => labs()?.pop(),
    };
    let path = path.ok_or_else(|| anyhow!("no lab is up\nfix: start one with `hawser-lab demo --keep`"))?;
    let text = fs::read_to_string(path.join("places.json")).context("reading places.json")?;
    let places: Vec<PlaceEntry> = serde_json::from_str(&text).context("places.json")?;
    let names: Vec<String> = places.iter().map(|entry| entry.name.clone()).collect();
    match places.into_iter().find(|entry| entry.name == place) {
        Some(entry) => Ok(entry),
        None => bail!("there is no {place} in this lab; there are: {}", names.join(", ")),
    }
}

/// Run directories of living labs, oldest first.
fn labs() -> Result<Vec<PathBuf>> {
    let runs = binaries::target_dir()?.join("lab");
    let mut labs = Vec::new();
    for entry in fs::read_dir(&runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.rsplit('-').next()).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(cgroup::is_lab)
            && let Ok(made) = entry.path().join("places.json").metadata().and_then(|meta| meta.modified())
        {
            labs.push((made, entry.path()));
        }
    }
    labs.sort();
    Ok(labs.into_iter().map(|(_, path)| path).collect())
}
