//! A Kubernetes-style JSON list exported by the real `clustermesh-apiserver`: from its start to its canaries seen by a reader.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use hawser_wire::prefix;
use serde_json::json;

use super::{Sizes, median};
use crate::bench::objects::{self, ENDPOINTS, Place};
use crate::bench::part;
use crate::bench::result::Row;
use crate::binaries;
use crate::history::dial::Door;
use crate::process::{Process, run};

const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn measure(sizes: &Sizes, dir: &Path) -> Result<Vec<Row>> {
    let dir = dir.join("export");
    let manifests = dir.join("manifests");
    fs::create_dir_all(&manifests)?;
    let at = |pod: u32| Place {
        ip: Ipv4Addr::from(0x0a01_0000 + pod),
        port: 8080,
        node: format!("node-{}", pod % 100),
    };
    objects::write(&manifests.join("list.json"), 0..sizes.services, at, [])?;
    let pki = dir.join("pki");
    let mut hawser = Command::new(binaries::find("hawser")?);
    run(hawser.args(["ca", "init", "--cluster", "home", "--id", "255", "--pki"]).arg(&pki))?;
    let (mut seconds, mut peak, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..sizes.rounds {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = dir.join(format!("{round}.yaml"));
        let store = dir.join(format!("store-{round}"));
        fs::write(&config, configuration(address, &manifests, &store, &pki))?;
        let mut command = Command::new(binaries::find("clustermesh-apiserver")?);
        command.arg("--config").arg(&config);
        let began = Instant::now();
        let mut process = Process::start(&format!("apiserver-{round}"), command, &dir)?;
        let client = Door::new("home", address, "home", &pki)?.client()?;
        exported(&client, &mut process).await?;
        seconds.push(began.elapsed().as_secs_f64());
        let held = count(&client, prefix::SERVICES).await?;
        ensure!(held == i64::from(sizes.services), "{held} of {} services are exported", sizes.services);
        let used = part::usage(process.id())?;
        peak.push(used.peak_mib);
        cpu.push(used.cpu_s);
    }
    let what =
        format!("{} global services x {ENDPOINTS} endpoints from a JSON list, exported", sizes.services);
    Ok(vec![
        Row::plain(&what, median(seconds), "s", "lower", Some(3.0)),
        Row::plain("  peak RSS", median(peak), "MiB", "lower", Some(150.0)),
        Row::plain("  its CPU", median(cpu), "s", "lower", None),
    ])
}

fn configuration(address: SocketAddr, manifests: &Path, store: &Path, pki: &Path) -> String {
    json!({
        "cluster": {"name": "home", "id": 255},
        "listen": address.to_string(),
        "advertise": [format!("https://{address}")],
        "podCIDRs": ["10.0.0.0/8"],
        "nodeCIDRs": ["172.16.0.0/16"],
        "source": {"dir": manifests},
        "store": format!("embedded:{}", store.display()),
        "pki": pki,
    })
    .to_string()
}

/// Until the canary that is written last can be read.
async fn exported(client: &Client, process: &mut Process) -> Result<()> {
    let began = Instant::now();
    let canary = format!("{}home/hawser/state/nodes/v1", prefix::SYNCED);
    while count(client, &canary).await.unwrap_or(0) == 0 {
        process.check_alive()?;
        if began.elapsed() > PATIENCE {
            bail!("nothing is exported after {PATIENCE:?}\n{}", crate::process::tail(process.log()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn count(client: &Client, prefix: &str) -> Result<i64> {
    let (key, range_end) = KeyRange::prefix(prefix.to_owned()).to_wire();
    let request = pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
    Ok(client.range(request).await.context("counting")?.count)
}
