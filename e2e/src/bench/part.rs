//! The parts of a benchmark are processes of their own, so that memory and CPU are each one's: JSON lines in, JSON lines out.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::binaries;
use crate::place::Place;

/// A running part; killed with the value.
#[derive(Debug)]
pub(super) struct Part {
    role: &'static str,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) peak_mib: f64,
}

impl Part {
    pub(super) fn start(role: &'static str, args: &impl Serialize) -> Result<Self> {
        Self::start_by(Command::new(binaries::find("hawser-lab")?), role, args)
    }

    /// In a place of the lab.
    pub(super) fn start_in(place: &Place, role: &'static str, args: &impl Serialize) -> Result<Self> {
        Self::start_by(place.command(binaries::find("hawser-lab")?), role, args)
    }

    fn start_by(mut command: Command, role: &'static str, args: &impl Serialize) -> Result<Self> {
        let mut child = command
            .args(["bench-part", role, &serde_json::to_string(args)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {role}"))?;
        let input = child.stdin.take().context("its input")?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Self { role, child, input, output })
    }

    /// The next thing it says.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line).with_context(|| format!("hearing {}", self.role))? == 0 {
            bail!("{} ended", self.role);
        }
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.role))
    }

    pub(super) fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        writeln!(self.input, "{}", serde_json::to_string(what)?)
            .with_context(|| format!("telling {}", self.role))
    }

    pub(super) fn ask<T: DeserializeOwned>(&mut self, what: &impl Serialize) -> Result<T> {
        self.tell(what)?;
        self.hear()
    }

    /// Nanoseconds of CPU of its first thread, exact.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.child.id())).context("schedstat")?;
        let first = text.split(' ').next().and_then(|first| first.parse().ok());
        first.with_context(|| format!("schedstat of {} says {text:?}", self.role))
    }

    /// Nanoseconds of CPU of each of its threads, exact, by their names.
    pub(super) fn threads(&self) -> Result<Vec<(String, u64)>> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let of = |task: std::io::Result<fs::DirEntry>| {
            let path = task?.path();
            let (name, stat) =
                (fs::read_to_string(path.join("comm"))?, fs::read_to_string(path.join("schedstat"))?);
            let ns = stat.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default();
            Ok((name.trim().to_owned(), ns))
        };
        let threads: std::io::Result<_> = fs::read_dir(&tasks).context(tasks)?.map(of).collect();
        threads.with_context(|| format!("the threads of {}", self.role))
    }

    pub(super) fn usage(&self) -> Result<Usage> {
        usage(self.child.id())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU in ticks of 10 ms; the peak of its resident memory.
pub(super) fn usage(pid: u32) -> Result<Usage> {
    let read = |file: &str| {
        fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("{file} of {pid}"))
    };
    let stat = read("stat")?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    let status = read("status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    let peak: f64 = peak.context("VmHWM")?.parse()?;
    Ok(Usage { cpu_s: (ticks(11) + ticks(12)) / 100.0, peak_mib: peak / 1024.0 })
}

/// What a part is started with.
pub(super) fn parse<T: DeserializeOwned>(args: &str) -> Result<T> {
    serde_json::from_str(args).context("the part's arguments")
}

/// Of the part itself: what it is told, one value at a time.
pub(super) fn told() -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let Ok(value) = serde_json::from_str(&line) else { return };
            if sender.blocking_send(value).is_err() {
                return;
            }
        }
    });
    receiver
}

pub(super) fn say(what: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(what)?);
    Ok(())
}
