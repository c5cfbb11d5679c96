//! A numbered stream of small packets there and back (`ping`): how many were lost, and for how long none came.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::place::Place;
use crate::process::Process;

/// Longer than any restart: what is under way at the end is waited for.
const LINGER: Duration = Duration::from_millis(500);

/// A running stream.
#[derive(Debug)]
pub struct Echoes {
    process: Process,
    every: Duration,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub sent: u64,
    pub lost: u64,
    /// The longest run of packets without an answer, as time.
    pub gap: Duration,
}

impl Echoes {
    /// From a place to an address, one `every` so long.
    pub fn start(place: &Place, to: &str, every: Duration, logs: &Path) -> Result<Self> {
        let mut command = place.command("ping");
        command.args(["-n", "-i", &every.as_secs_f64().to_string(), to]);
        let log = logs.join("echoes.log");
        if log.exists() {
            fs::remove_file(&log).context("the last stream's log")?;
        }
        Ok(Self { process: Process::start("echoes", command, logs)?, every })
    }

    /// Answers so far.
    pub fn answered(&self) -> Result<u64> {
        Ok(numbers(&self.text()?).len() as u64)
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(self.process.log()).context("what ping said")
    }

    /// Ends it, and says what was lost on the way. What was sent in the last half second is not counted: it may be under way.
    pub fn end(mut self) -> Result<Seen> {
        let last = numbers(&self.text()?).last().copied().context("no packet was ever answered")?;
        std::thread::sleep(LINGER);
        self.process.kill()?;
        let mut numbers = numbers(&self.text()?);
        ensure!(numbers.last() > Some(&last), "nothing was answered in the end");
        numbers.retain(|number| *number <= last);
        numbers.sort_unstable();
        numbers.dedup();
        let steps = numbers.windows(2).map(|pair| pair[1] - pair[0]);
        let gap = self.every * u32::try_from(steps.max().unwrap_or(1) - 1).unwrap_or(u32::MAX);
        Ok(Seen { sent: last, lost: last - numbers.len() as u64, gap })
    }
}

/// ping counts from 1.
fn numbers(text: &str) -> Vec<u64> {
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
    text.lines().filter(|line| line.contains("time=")).filter_map(number).collect()
}
