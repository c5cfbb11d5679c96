//! What probing costs cannot stop being measured: in a small mesh every row is, and every node is up.

use std::process::Command;

use anyhow::{Result, ensure};
use hawser_e2e::{binaries, process};

#[test]
fn every_row_of_bench_probes_is_measured_in_a_small_mesh() -> Result<()> {
    process::run(Command::new(binaries::find("hawser-lab")?).args(["bench", "probes"]).env("QUICK", "1"))?;
    let path = binaries::target_dir()?.join("bench/probes-quick.json");
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let rows = found["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(rows.len() == 11, "{} rows", rows.len());
    for row in rows {
        ensure!(row["value"].as_f64().is_some_and(f64::is_finite), "not a number: {row}");
    }
    Ok(())
}
