//! The runner's own world: PID 1 of a PID namespace, with private mounts and network, that dies as one.
//!
//! ```text
//! outer (owns the cgroup subtree and the run directory)
//!   '- PID 1: the command (demo, a test): its network namespace is the router between the regions
//!        '- everything else
//! ```
//! PID 1 dies with the outer process (`PR_SET_PDEATHSIG`), and with PID 1 the kernel kills every process of the
//! namespace; the last process takes the mounts, network namespaces, pinned maps and netfilter rules with it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, geteuid, pipe2, sethostname};

use crate::{binaries, cgroup};

/// Environment of the inner process.
pub const ENV_NAME: &str = "HAWSER_LAB";
pub const ENV_CGROUP: &str = "HAWSER_LAB_CGROUP";
pub const ENV_DIR: &str = "HAWSER_LAB_DIR";
pub const ENV_HOST_PID: &str = "HAWSER_LAB_HOST_PID";

/// The procfs of the machine, as seen from within: `readlink` of its `self` is the caller's pid out there.
pub const HOST_PROC: &str = "/run/lab/hostproc";

/// Run directories kept for whoever looks into a failure.
const KEPT_RUNS: usize = 12;

/// What the inner process is told about its lab.
#[derive(Clone, Debug)]
pub struct Inside {
    pub name: String,
    pub cgroup: PathBuf,
    pub dir: PathBuf,
    pub host_pid: u32,
}

impl Inside {
    /// `None` outside of a lab.
    pub fn current() -> Option<Self> {
        Some(Self {
            name: env::var(ENV_NAME).ok()?,
            cgroup: env::var_os(ENV_CGROUP)?.into(),
            dir: env::var_os(ENV_DIR)?.into(),
            host_pid: env::var(ENV_HOST_PID).ok()?.parse().ok()?,
        })
    }
}

/// Runs `command` as PID 1 of a new lab and returns its exit code, with nothing left behind.
///
/// Must be called while the process has one thread.
pub fn run(command: &[OsString]) -> Result<u8> {
    if !geteuid().is_root() {
        bail!("the lab makes namespaces, cgroups and eBPF maps, and you are not root\nfix: run it with sudo");
    }
    cgroup::sweep_stale()?;
    let signals = wanted_signals();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals), None).context("blocking signals")?;
    let owner = std::process::id();
    let name = format!("hawser-lab-{owner}");
    let cgroup = cgroup::create(owner)?;
    let dir = make_run_dir(&name)?;

    unshare(CloneFlags::CLONE_NEWPID).context("a new PID namespace")?;
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("a pipe")?;
    // SAFETY: this process has a single thread (see above), so the child may run ordinary code.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            drop(write);
            let error = match enter(&name, &cgroup, &dir, &read) {
                Ok(()) => anyhow::Error::from(Command::new(&command[0]).args(&command[1..]).exec())
                    .context(format!("starting {}", command[0].display())),
                Err(error) => error,
            };
            eprintln!("hawser-lab: {error:#}");
            std::process::exit(1);
        }
        ForkResult::Parent { child } => {
            let code = wait_for(child, &signals)?;
            cgroup::remove(&cgroup)?;
            if code == 0 {
                fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            }
            drop(write);
            Ok(code)
        }
    }
}

fn wanted_signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    set
}

/// Waits for PID 1; Ctrl-C and friends kill it, and with it everything inside.
fn wait_for(child: Pid, signals: &SigSet) -> Result<u8> {
    loop {
        let signal = signals.wait().context("waiting for signals")?;
        if signal != Signal::SIGCHLD {
            kill(child, Signal::SIGKILL).context("killing the lab")?;
            waitpid(child, None).context("waiting for the lab")?;
            return Ok(128 + signal as u8);
        }
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).context("waiting for the lab")? {
            WaitStatus::Exited(_, code) => return Ok(code as u8),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as u8),
            _ => {}
        }
    }
}

/// In the child: dies with its parent, and gets its own mounts, network, host name.
fn enter(name: &str, cgroup: &Path, dir: &Path, parent: &OwnedFd) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")?;
    // The parent may have died before that line: its end of the pipe tells.
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO).context("poll")? > 0 {
        bail!("the outer process is gone");
    }
    let host_pid = fs::read_link("/proc/self").context("reading /proc/self")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("new namespaces")?;
    sethostname(name).context("naming the lab")?;
    private_mounts()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("unblocking signals")?;
    // SAFETY: one thread, see `run`.
    unsafe {
        env::set_var(ENV_NAME, name);
        env::set_var(ENV_CGROUP, cgroup);
        env::set_var(ENV_DIR, dir);
        env::set_var(ENV_HOST_PID, host_pid);
    }
    Ok(())
}

/// Nothing mounted here shows outside, and mount points can be made without touching the disk.
fn private_mounts() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("private mounts")?;
    mount(Some("lab"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("tmpfs on /run")?;
    for dir in ["hawser", "wireguard", "lab/hostproc"] {
        fs::create_dir_all(Path::new("/run").join(dir)).context("making directories in /run")?;
    }
    mount(Some("/proc"), HOST_PROC, NONE, MsFlags::MS_BIND, NONE).context("keeping the outer /proc")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("proc of the lab")?;
    cover("/etc")?;
    cover("/var/lib")?;
    fs::create_dir_all("/etc/hawser").context("making /etc/hawser")?;
    fs::create_dir_all("/var/lib/hawser").context("making /var/lib/hawser")
}

/// Puts a tmpfs over `dir` whose entries lead to what was there, so that mount points may be added to it.
fn cover(dir: &str) -> Result<()> {
    const NONE: Option<&str> = None;
    let below = PathBuf::from(format!("/run/lab/below{dir}"));
    fs::create_dir_all(&below).with_context(|| format!("making {}", below.display()))?;
    mount(Some(dir), &below, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("keeping {dir}"))?;
    mount(Some("lab"), dir, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .with_context(|| format!("covering {dir}"))?;
    for entry in fs::read_dir(&below).with_context(|| format!("reading {}", below.display()))?.flatten() {
        let name = entry.file_name();
        if name == "hawser" {
            continue;
        }
        // A relative link means something only where it stands.
        let target = fs::read_link(entry.path()).unwrap_or_else(|_| below.join(&name));
        symlink(target, Path::new(dir).join(&name)).with_context(|| format!("covering {dir}"))?;
    }
    Ok(())
}

/// `target/lab/<name>`: logs of every process, kept when something failed.
fn make_run_dir(name: &str) -> Result<PathBuf> {
    let runs = binaries::target_dir()?.join("lab");
    let dir = runs.join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    prune(&runs);
    Ok(dir)
}

/// Of runs whose owner is gone, the newest are kept.
fn prune(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    let mut dead: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.rsplit('-').next()).and_then(|pid| pid.parse().ok());
            pid.is_some_and(|pid| pid != std::process::id() && !cgroup::is_lab(pid))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    dead.sort();
    for (_, path) in dead.iter().rev().skip(KEPT_RUNS) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Runs `command` from an ordinary, many-threaded process (a test) and returns its output with how it ended.
pub fn run_from_test(command: &mut Command) -> Result<(String, bool)> {
    // SAFETY: prctl is a system call that allocates nothing.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e: Errno| e.into()));
    }
    let output = command.output().context("starting hawser-lab")?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if let Some(signal) = output.status.signal() {
        text.push_str(&format!("\nkilled by signal {signal}\n"));
    }
    Ok((text, output.status.success()))
}
