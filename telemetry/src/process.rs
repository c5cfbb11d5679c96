//! What every process exports, in Prometheus' own names (`process_*`), and which build it is.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::metrics::Family;

/// Cost: three small files of /proc.
pub fn families(version: &'static str) -> Vec<Family> {
    static STARTED: OnceLock<f64> = OnceLock::new();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let started = *STARTED.get_or_init(now);
    let version = vec![("version", version.to_owned())];
    vec![
        Family::gauge("hawser_build_info", "Which build this is; always 1.").row(version, 1.0),
        Family::gauge("process_start_time", "When this process began, in seconds since the epoch.")
            .seconds()
            .value(started),
        Family::counter("process_cpu", "CPU time used, user and system.").seconds().value(cpu_seconds()),
        Family::gauge("process_resident_memory", "Memory held in RAM.").bytes().value(resident_bytes()),
        Family::gauge("process_open_fds", "Open file descriptors.").value(open_files()),
    ]
}

fn cpu_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        micros as f64 / 1e6
    })
}

fn resident_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0
}

fn open_files() -> f64 {
    std::fs::read_dir("/proc/self/fd").map_or(0.0, |files| files.count() as f64)
}
