//! `make bench-store` cannot rot: with small sizes it measures every row and writes what it found.

use std::process::Command;

use anyhow::{Result, ensure};
use hawser_e2e::{binaries, process};

#[test]
fn every_row_of_bench_store_is_measured_with_small_sizes() -> Result<()> {
    process::run(Command::new(binaries::find("hawser-lab")?).args(["bench", "store"]).env("QUICK", "1"))?;
    let dir = binaries::target_dir()?.join("bench");
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("store-quick.json"))?)?;
    let rows = found["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    for row in rows {
        ensure!(row["value"].as_f64().is_some_and(f64::is_finite), "not a number: {row}");
    }
    let beside = rows.iter().filter(|row| row["peers"]["etcd"].as_f64().is_some()).count();
    ensure!(beside == 4, "{beside} rows have a real etcd beside them");
    for what in [
        "first sync",
        "MeshView",
        "10,000 changes/s",
        "bulk",
        "restart",
        "slow remote",
        "dead remote",
        "exported",
        "bytes per event",
        "come back",
    ] {
        ensure!(rows.iter().any(|row| row["key"].to_string().contains(what)), "{what:?} is not measured");
    }
    for what in [
        "first sync, 4 clusters",
        "first sync, 2 large",
        "MeshView",
        "500 changes/s",
        "10,000 changes/s",
        "bulk",
    ] {
        let row = rows.iter().find(|row| row["key"].as_str().is_some_and(|key| key.contains(what)));
        let cached = row.and_then(|row| row["peers"]["from a real etcd, cached layout"].as_f64());
        ensure!(cached.is_some_and(f64::is_finite), "{what:?} has no second column");
    }
    let picture = std::fs::read_to_string(dir.join("store-quick.svg"))?;
    ensure!(picture.matches("<circle").count() == 32, "four points of two lines in four panels");
    Ok(())
}
