//! A place where processes of the lab run: namespaces held by one sleeping process, and a cgroup.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{binaries, enclave};

/// Directories that are a node's own.
const NODE_DIRS: &[&str] = &["/etc/hawser", "/var/lib/hawser", "/run/hawser", "/run/wireguard"];

/// Namespaces and cgroup, entered by a child between fork and exec.
#[derive(Debug)]
struct Door {
    cgroup: File,
    namespaces: Vec<(File, CloneFlags)>,
}

impl Door {
    /// System calls only: runs in a forked child of a process with threads.
    fn enter(&self) -> io::Result<()> {
        (&self.cgroup).write_all(b"0")?;
        for (namespace, kind) in &self.namespaces {
            setns(namespace, *kind)?;
        }
        Ok(())
    }
}

/// A node, a pod, or a host on the underlay. Its namespaces go when the place is dropped and its processes are gone.
#[derive(Debug)]
pub struct Place {
    name: String,
    pause: Child,
    host_pid: u32,
    cgroup: PathBuf,
    door: Arc<Door>,
}

impl Place {
    /// A machine: own mounts, network, host name, and a cgroup namespace in which its subtree is the root.
    pub fn machine(name: &str, host_name: &str, cgroup: &Path) -> Result<Self> {
        let system = cgroup.join("system");
        fs::create_dir_all(&system).with_context(|| format!("making {}", system.display()))?;
        fs::create_dir_all(cgroup.join("kubepods")).context("making kubepods")?;
        let mut command = Command::new(binaries::find("hawser-lab")?);
        command.args(["pause", "--host-name", host_name, "--cgroup"]).arg(cgroup);
        let kinds = [
            ("mnt", CloneFlags::CLONE_NEWNS),
            ("net", CloneFlags::CLONE_NEWNET),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ];
        Self::start(name, command, system, &kinds)
    }

    /// A pod of this machine: its own network, in a cgroup of its own below `kubepods`.
    pub fn pod(&self, name: &str) -> Result<Self> {
        let machine = self.cgroup.parent().ok_or_else(|| anyhow!("a machine's cgroup has a parent"))?;
        let cgroup = machine.join("kubepods").join(name);
        fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        let mut command = self.command(binaries::find("hawser-lab")?);
        command.arg("pause");
        let kinds = [
            ("mnt", CloneFlags::CLONE_NEWNS),
            ("net", CloneFlags::CLONE_NEWNET),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ];
        Self::start(&format!("{}/{name}", self.name), command, cgroup, &kinds)
    }

    fn start(
        name: &str,
        mut command: Command,
        cgroup: PathBuf,
        kinds: &[(&str, CloneFlags)],
    ) -> Result<Self> {
        let mut pause = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the holder of {name}"))?;
        let mut line = String::new();
        let stdout = pause.stdout.take().context("the holder's output")?;
        BufReader::new(stdout).read_line(&mut line).with_context(|| format!("hearing from {name}"))?;
        let host_pid = line.trim().strip_prefix("ready ").and_then(|pid| pid.parse().ok());
        let Some(host_pid) = host_pid else { bail!("the holder of {name} did not start: {line:?}") };
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, pause.id().to_string())
            .with_context(|| format!("moving into {}", procs.display()))?;
        let namespaces = kinds
            .iter()
            .map(|(file, kind)| Ok((File::open(format!("/proc/{}/ns/{file}", pause.id()))?, *kind)))
            .collect::<io::Result<_>>()
            .with_context(|| format!("opening the namespaces of {name}"))?;
        let procs = OpenOptions::new().write(true).open(&procs).context("opening cgroup.procs")?;
        let door = Arc::new(Door { cgroup: procs, namespaces });
        Ok(Self { name: name.to_owned(), pause, host_pid, cgroup, door })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of the holder, in the lab's PID namespace.
    pub fn pid(&self) -> u32 {
        self.pause.id()
    }

    /// Of the holder, as the machine around the lab sees it: for `nsenter -t`.
    pub fn host_pid(&self) -> u32 {
        self.host_pid
    }

    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        // Logs are files here.
        command.env("NO_COLOR", "1");
        let door = Arc::clone(&self.door);
        // SAFETY: `Door::enter` makes system calls only, so it may run between fork and exec.
        unsafe { command.pre_exec(move || door.enter()) };
        command
    }

    /// A file as a process here would name it.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Runs `f` on a thread of its own in the place's network namespace.
    pub fn in_network<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let network = self.door.namespaces.iter().find(|(_, kind)| *kind == CloneFlags::CLONE_NEWNET);
        let (network, kind) = network.ok_or_else(|| anyhow!("{} has a network", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(network, *kind).context("entering the network")?;
                f()
            });
            thread.join().map_err(|_| anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// Writes a file all at once: readers see the old one or the new one.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        let path = self.path(path);
        let parent = path.parent().context("a file has a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let hidden = format!(".{}.new", path.file_name().unwrap_or_default().display());
        let new = parent.join(hidden);
        fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("renaming to {}", path.display()))
    }

    pub fn read(&self, path: impl AsRef<Path>) -> Result<String> {
        let path = self.path(path);
        fs::read_to_string(&path).with_context(|| format!("reading {} of {}", path.display(), self.name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.pause.kill();
        let _ = self.pause.wait();
    }
}

/// What the holder runs: makes the namespaces, says so, sleeps.
pub fn pause(machine: Option<(&str, &Path)>) -> Result<()> {
    match machine {
        Some((host_name, cgroup)) => become_machine(host_name, cgroup)?,
        None => {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
            own_sysfs()?;
        }
    }
    let host_pid = fs::read_link(Path::new(enclave::HOST_PROC).join("self")).context("the pid outside")?;
    println!("ready {}", host_pid.display());
    loop {
        nix::unistd::pause();
    }
}

fn become_machine(host_name: &str, cgroup: &Path) -> Result<()> {
    const NONE: Option<&str> = None;
    // The cgroup namespace's root is wherever the caller is at that moment.
    fs::write(cgroup.join("cgroup.procs"), "0").context("entering the node's cgroup")?;
    unshare(
        CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("the node's namespaces")?;
    fs::write(cgroup.join("system/cgroup.procs"), "0").context("entering system")?;
    nix::unistd::sethostname(host_name).context("the host name")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("private mounts")?;
    for dir in NODE_DIRS {
        mount(Some("node"), *dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("tmpfs on {dir}"))?;
    }
    // Detached, not covered: mountinfo lists covered mounts too, and the product reads mountinfo.
    umount2("/sys", MntFlags::MNT_DETACH).context("leaving the machine's /sys")?;
    for (kind, at) in [("sysfs", "/sys"), ("cgroup2", "/sys/fs/cgroup"), ("bpf", "/sys/fs/bpf")] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), NONE)
            .with_context(|| format!("{kind} on {at}"))?;
    }
    Ok(())
}

/// `/sys/class/net` shows the network of whoever mounted it, so a pod needs mounts of its own.
fn own_sysfs() -> Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    umount2("/sys", MntFlags::MNT_DETACH).context("leaving the node's /sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), NONE).context("sysfs")
}
