//! `make bench-failover` cannot rot: with few cuts it measures every row, and what must never fail does not.

use std::process::Command;

use anyhow::{Result, ensure};
use hawser_e2e::{binaries, process};

#[test]
fn a_cluster_and_a_node_are_cut_off_and_nothing_fails_after_the_shift() -> Result<()> {
    binaries::check_product()?;
    process::run(Command::new(binaries::find("hawser-lab")?).args(["bench", "failover"]).env("QUICK", "1"))?;
    let dir = binaries::target_dir()?.join("bench");
    let found: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("failover-quick.json"))?)?;
    let rows = found["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(rows.len() == 43, "20 rows of a cluster, 20 of a node, 3 of full links, and not {}", rows.len());
    for row in rows {
        ensure!(row["value"].as_f64().is_some_and(f64::is_finite), "not a number: {row}");
    }
    let none = |what: &str| {
        rows.iter().filter(|row| row["key"].to_string().contains(what)).all(|row| row["value"] == 0.0)
    };
    for what in ["failed, opened after the shift", "failed, opened after the heal"] {
        ensure!(none(what), "{what}: {rows:#?}");
    }
    ensure!(std::fs::read_to_string(dir.join("failover-quick.svg"))?.contains("<circle"), "an empty picture");
    Ok(())
}
