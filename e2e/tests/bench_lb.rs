//! `make bench-lb` cannot rot: with small sizes it measures every row and writes what it found.

use std::process::Command;

use anyhow::{Result, ensure};
use hawser_e2e::{binaries, process};

#[test]
fn every_row_of_bench_lb_is_measured_with_small_sizes() -> Result<()> {
    binaries::check_product()?;
    process::run(Command::new(binaries::find("hawser-lab")?).args(["bench", "lb"]).env("QUICK", "1"))?;
    let dir = binaries::target_dir()?.join("bench");
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("lb-quick.json"))?)?;
    let rows = found["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    for row in rows {
        ensure!(row["value"].as_f64().is_some_and(f64::is_finite), "not a number: {row}");
    }
    for what in [
        "0 other services: short connections",
        "20 other services: short connections, over no service",
        "20 other services: short connections, over iptables",
        "20 other services: short connections, over nftables",
        "20 other services: keep-alive requests, over no service",
        "20 other services: CPU of a connection",
        "20 others over 0",
        "connect() of a UDP socket, p50",
        "connect() of a UDP socket, p99",
        "agent, RSS",
        "memory of its BPF maps",
        "everything in the maps",
        "one endpoint changes",
    ] {
        ensure!(rows.iter().any(|row| row["key"].to_string().contains(what)), "{what:?} is not measured");
    }
    let beside = rows.iter().filter(|row| row["peers"]["nftables"].as_f64().is_some()).count();
    ensure!(beside == 6, "{beside} rows have the other ways beside them");
    let picture = std::fs::read_to_string(dir.join("lb-quick.svg"))?;
    ensure!(picture.matches("<circle").count() == 16, "two points of four lines in two panels");
    Ok(())
}
