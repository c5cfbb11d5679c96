//! A command on Debian 12's own kernel, in QEMU: what this machine's kernel lacks (WireGuard, ESP, netem, clsact alone) is
//! there. The guest is the kernel of Debian's package and a file system in memory made of this machine's own files.

mod image;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::binaries;
use image::Image;

/// What the guest's init prints at the end.
const EXIT: &str = "hawser-vm: exit ";
const QEMU: &str = "qemu-system-x86_64";

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Directory with an unpacked `linux-image-*-cloud-amd64` (`boot/`, `lib/modules/`).
    #[arg(long, default_value = "target/vm/kernel")]
    kernel: PathBuf,
    /// A further file for the guest, at the same path; its shared libraries come with it.
    #[arg(long = "with")]
    with: Vec<PathBuf>,
    /// The guest is ended after this.
    #[arg(long, default_value_t = 8)]
    minutes: u64,
    /// The guest's memory.
    #[arg(long, default_value_t = 3072)]
    mebibytes: u32,
    /// What to run, as root; the lab's and the product's binaries are on the PATH.
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Boots, runs the command, and returns its exit code.
pub fn run(options: &Options) -> Result<u8> {
    let kernel = image::kernel(&options.kernel)?;
    let dir = tempfile::Builder::new().prefix("hawser-vm-").tempdir().context("a directory for the image")?;
    let image = Image::build(dir.path(), &options.kernel, &options.with, &options.command)?;
    let begun = Instant::now();
    let mut guest = boot(&kernel, &image.initrd, options)?;
    let code = watch(&mut guest, Duration::from_secs(options.minutes * 60));
    // Over or not: nothing of it stays.
    let _ = guest.kill();
    guest.wait().context("waiting for the guest")?;
    let code = code?;
    println!("hawser-vm: {} ended after {:.0?} with {code}", image.release, begun.elapsed());
    Ok(code)
}

/// Emulated (`tcg`): hardware acceleration is not to be had everywhere, and this is fast enough.
fn boot(kernel: &Path, initrd: &Path, options: &Options) -> Result<Child> {
    let mut command = Command::new(QEMU);
    command
        .args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"])
        .args(["-m", &format!("{}M", options.mebibytes)])
        .args(["-display", "none", "-serial", "stdio", "-nodefaults", "-no-user-config", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    command.spawn().with_context(|| format!("starting {QEMU}\nfix: run `make setup`"))
}

/// Passes on what the guest prints until it says how it ended.
fn watch(guest: &mut Child, patience: Duration) -> Result<u8> {
    let console = guest.stdout.take().context("the guest's console")?;
    let (say, said) = mpsc::sync_channel(64);
    // Ends with the console, which ends with the guest.
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    let until = Instant::now() + patience;
    loop {
        match said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches('\r');
                if let Some(code) = line.strip_prefix(EXIT) {
                    return code.parse().with_context(|| format!("the guest's exit code {code:?}"));
                }
                println!("{line}");
                std::io::stdout().flush().context("passing on the console")?;
            }
            Err(RecvTimeoutError::Timeout) => bail!("the guest did not end within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the guest ended without saying how: its last lines are above")
            }
        }
    }
}

/// The lab's own folder of binaries, which the guest has at the same place.
fn binaries_dir() -> Result<PathBuf> {
    binaries::check_product()?;
    binaries::dir()
}
