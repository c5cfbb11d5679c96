//! The guest's file system: this machine's tools with the libraries they load, Debian's kernel modules, our binaries.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::binaries_dir;
use crate::process::run;

const INIT: &str = include_str!("init.sh");
const PRODUCT: [&str; 4] = ["clustermesh-apiserver", "hawser-node-agent", "hawser", "hawser-lab"];
/// What the lab and the tests run; the rest is busybox.
const TOOLS: [&str; 6] = ["ip", "ping", "nft", "wg", "tcpdump", "xtables-nft-multi"];
/// The names under which iptables is called.
const IPTABLES: [&str; 4] = ["iptables", "iptables-restore", "iptables-save", "ip6tables"];
/// Loaded by name at run time, so no `ldd` shows them.
const PLUGINS: &str = "usr/lib/x86_64-linux-gnu/xtables";
/// The part of the modules that networks are made of.
const MODULES: [&str; 6] = ["net", "crypto", "lib", "arch", "drivers/net", "fs/overlayfs"];
const DIRECTORIES: [&str; 16] = [
    "dev", "etc", "lib", "lib64", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "usr/sbin",
    "var/lib", "var/log", "var/tmp", "opt",
];
/// Emulated, everything takes longer: the lab waits so many times as long.
const PATIENCE: &str = "5";

pub(super) struct Image {
    pub(super) initrd: PathBuf,
    /// As `uname -r` will say.
    pub(super) release: String,
}

/// The kernel in an unpacked package.
pub(super) fn kernel(package: &Path) -> Result<PathBuf> {
    let found = only(&package.join("boot"), "vmlinuz-");
    found.with_context(|| format!("no kernel in {}\nfix: run `make vm-kernel`", package.display()))
}

impl Image {
    pub(super) fn build(dir: &Path, package: &Path, with: &[PathBuf], command: &[OsString]) -> Result<Self> {
        let mut tree = Tree { root: dir.join("root"), copied: BTreeSet::new() };
        tree.skeleton()?;
        for tool in TOOLS {
            tree.program(&which(tool)?)?;
        }
        for name in IPTABLES {
            symlink("xtables-nft-multi", tree.root.join("usr/sbin").join(name)).context("iptables' names")?;
        }
        tree.directory(&Path::new("/").join(PLUGINS))?;
        let release = tree.modules(package)?;
        let binaries = binaries_dir()?;
        for name in PRODUCT {
            tree.program(&binaries.join(name))?;
        }
        for file in with {
            tree.program(&fs::canonicalize(file).with_context(|| format!("finding {}", file.display()))?)?;
        }
        tree.script("init", INIT.as_bytes())?;
        tree.script("command", &script(&binaries, command))?;
        let initrd = dir.join("initrd");
        tree.pack(&initrd)?;
        Ok(Self { initrd, release })
    }
}

/// What the guest runs: the command as it was given here, in this directory's place.
fn script(binaries: &Path, command: &[OsString]) -> Vec<u8> {
    let mut script =
        format!("export PATH={}:$PATH HAWSER_LAB_PATIENCE={PATIENCE}\n", binaries.display()).into_bytes();
    for word in command {
        script.push(b'\'');
        for byte in word.as_bytes() {
            match byte {
                b'\'' => script.extend_from_slice(b"'\\''"),
                byte => script.push(*byte),
            }
        }
        script.extend_from_slice(b"' ");
    }
    script.push(b'\n');
    script
}

struct Tree {
    root: PathBuf,
    copied: BTreeSet<PathBuf>,
}

impl Tree {
    fn skeleton(&self) -> Result<()> {
        for directory in DIRECTORIES {
            fs::create_dir_all(self.root.join(directory)).context("the skeleton")?;
        }
        let links = [("usr/bin", "bin"), ("usr/sbin", "sbin"), ("/run", "var/run")];
        for (to, name) in links {
            symlink(to, self.root.join(name)).context("the skeleton's links")?;
        }
        fs::write(self.root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").context("/etc/passwd")?;
        fs::write(self.root.join("etc/group"), "root:x:0:\n").context("/etc/group")?;
        let busybox = which("busybox")?;
        fs::copy(&busybox, self.root.join("usr/bin/busybox")).context("busybox, the static one")?;
        // The kernel calls it to load what a netlink request names.
        symlink("../bin/busybox", self.root.join("usr/sbin/modprobe")).context("modprobe")?;
        Ok(())
    }

    /// An executable without its debug information, and what it loads, all at their own paths.
    fn program(&mut self, path: &Path) -> Result<()> {
        let to = self.place(path)?;
        run(Command::new("objcopy").arg("--strip-debug").arg(path).arg(&to))
            .with_context(|| format!("copying {}", path.display()))?;
        let libraries = run(Command::new("ldd").arg(path)).unwrap_or_default();
        let libraries: Vec<_> =
            libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
        libraries.iter().try_for_each(|library| self.file(library))
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        if !self.copied.insert(path.to_path_buf()) {
            return Ok(());
        }
        let to = self.place(path)?;
        fs::copy(path, to).map(drop).with_context(|| format!("copying {}", path.display()))
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        for entry in fs::read_dir(path).with_context(|| format!("listing {}", path.display()))? {
            self.file(&entry.context("an entry")?.path())?;
        }
        Ok(())
    }

    /// Where `path` of this machine is in the guest.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let inside = path.strip_prefix("/").with_context(|| format!("{} is not absolute", path.display()))?;
        let place = self.root.join(inside);
        let parent = place.parent().context("a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        Ok(place)
    }

    fn modules(&self, package: &Path) -> Result<String> {
        let from = only(&package.join("lib/modules"), "")?;
        let release = from.file_name().context("a release")?.to_string_lossy().into_owned();
        let to = self.root.join("lib/modules").join(&release);
        for part in MODULES {
            let parent = to.join("kernel").join(part);
            let parent = parent.parent().context("a parent")?;
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            run(Command::new("cp").arg("-r").arg(from.join("kernel").join(part)).arg(parent))?;
        }
        for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            fs::copy(from.join(list), to.join(list)).with_context(|| format!("copying {list}"))?;
        }
        run(Command::new("busybox").args(["depmod", "-b"]).arg(&self.root).arg(&release))?;
        Ok(release)
    }

    fn script(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, text).with_context(|| format!("writing {name}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).context("making it executable")
    }

    /// The whole as the kernel unpacks it (`initramfs buffer format`: newc).
    fn pack(&self, initrd: &Path) -> Result<()> {
        let names = self.root.with_extension("names");
        run(Command::new("find").args([".", "-fprint"]).arg(&names).current_dir(&self.root))?;
        let status = Command::new("busybox")
            .args(["cpio", "-o", "-H", "newc"])
            .current_dir(&self.root)
            .stdin(File::open(&names).context("the list of files")?)
            .stdout(File::create(initrd).context("the image")?)
            .stderr(Stdio::null())
            .status()
            .context("starting busybox cpio")?;
        ensure!(status.success(), "busybox cpio: {status}");
        Ok(())
    }
}

/// The only entry of a directory whose name begins so.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    let first = found.next().with_context(|| format!("nothing named {prefix}* in {}", dir.display()))?;
    if let Some(second) = found.next() {
        bail!("{} and {} are one too many", first.display(), second.display());
    }
    Ok(first)
}

fn which(tool: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|place| place.join(tool)).find(|file| file.is_file());
    let found = found.with_context(|| format!("{tool} is not on this machine\nfix: run `make setup`"))?;
    fs::canonicalize(&found).with_context(|| format!("following {}", found.display()))
}
