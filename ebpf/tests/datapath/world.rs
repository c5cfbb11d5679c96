//! A place for one test: its own mounts, network and cgroups, and nothing left afterwards.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hawser_ebpf::{LoadConfig, LruSizes, TcKind};
use hawser_ebpf_abi::{ABI_VERSION, Addr};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs on a thread of its own: a namespace belongs to a thread, and this one ends with the test.
pub(crate) fn in_a_namespace(test: impl FnOnce(&LoadConfig) + Send + 'static) {
    let run = move || {
        assert!(nix::unistd::geteuid().is_root(), "this test loads eBPF programs: run it as root");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let place = tempfile::tempdir().unwrap();
        let bpffs = place.path().join("bpf");
        let cgroup2 = place.path().join("cgroup");
        for (path, kind) in [(&bpffs, "bpf"), (&cgroup2, "cgroup2")] {
            fs::create_dir(path).unwrap();
            mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
        }
        let own =
            cgroup2.join(format!("hawser-loader-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::create_dir(&own).unwrap();
        let cgroup = Cgroup(own.clone());
        for child in ["system", "kubepods"] {
            fs::create_dir(own.join(child)).unwrap();
        }
        test(&LoadConfig {
            bpffs: bpffs.clone(),
            directory: "hawser".into(),
            device: "hawser0".into(),
            cgroup2: own,
            tc: TcKind::of_this_kernel(),
            lru: LruSizes::default(),
        });
        drop(cgroup);
        for path in [&cgroup2, &bpffs] {
            nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    };
    std::thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Where the device's maps and links are pinned.
pub(crate) fn root(config: &LoadConfig) -> PathBuf {
    config.bpffs.join(&config.directory).join(format!("v{ABI_VERSION}")).join(&config.device)
}

/// A cgroup is a directory that outlives its namespace, so it is removed in any case.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        for child in ["system", "kubepods", "late"] {
            let _ = fs::remove_dir(self.0.join(child));
        }
        let _ = fs::remove_dir(&self.0);
    }
}

pub(crate) fn ip(text: &str) -> Addr {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

/// `ip ...` or `tc ...` in this thread's namespace.
pub(crate) fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn sysctl(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
