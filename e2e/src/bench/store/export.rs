//! A Kubernetes-style JSON list exported by the real `clustermesh-apiserver`: from its start to its canaries seen by a reader.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use hawser_wire::prefix;
use serde_json::{Value, json};

use super::{Sizes, median, part};
use crate::bench::result::Row;
use crate::binaries;
use crate::history::dial::Door;
use crate::process::{Process, run};

const ENDPOINTS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn measure(sizes: &Sizes, dir: &Path) -> Result<Vec<Row>> {
    let dir = dir.join("export");
    let manifests = dir.join("manifests");
    fs::create_dir_all(&manifests)?;
    write_list(&manifests.join("list.json"), sizes.services)?;
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

/// `kubectl get services,endpointslices -A -o json`, as the API server sends it: without indentation, managed fields left out.
fn write_list(path: &Path, services: u32) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(br#"{"apiVersion":"v1","items":["#)?;
    let all = (0..services).map(service).chain((0..services).map(slice));
    for (n, item) in all.enumerate() {
        if n > 0 {
            out.write_all(b",")?;
        }
        serde_json::to_writer(&mut out, &item)?;
    }
    out.write_all(br#"],"kind":"List","metadata":{"resourceVersion":""}}"#)?;
    out.flush().context("writing the list")
}

fn uid(of: u32, n: u32) -> String {
    format!("{of:08x}-0000-4000-8000-{n:012x}")
}

fn service(n: u32) -> Value {
    let (namespace, name) = (format!("team-{}", n % 20), format!("service-{n}"));
    let address = Ipv4Addr::from(0xac20_0000 + n).to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "annotations": {"hawser.io/global": "true"},
            "creationTimestamp": "2026-11-21T00:00:00Z",
            "labels": {"app": name, "app.kubernetes.io/part-of": namespace},
            "name": name, "namespace": namespace, "resourceVersion": (1000 + n).to_string(), "uid": uid(1, n),
        },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": name}, "sessionAffinity": "None", "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(n: u32) -> Value {
    let (namespace, name) = (format!("team-{}", n % 20), format!("service-{n}"));
    let endpoint = |at: u32| {
        let pod = n * ENDPOINTS + at;
        json!({
            "addresses": [Ipv4Addr::from(0x0a01_0000 + pod).to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", pod % 100),
            "targetRef": {"kind": "Pod", "name": format!("{name}-7d9c5b8f6d-x2x4{at}"), "namespace": namespace, "uid": uid(2, pod)},
            "zone": format!("zone-{}", pod % 3),
        })
    };
    let owner = json!({
        "apiVersion": "v1", "blockOwnerDeletion": true, "controller": true, "kind": "Service", "name": name, "uid": uid(1, n),
    });
    json!({
        "addressType": "IPv4",
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        "kind": "EndpointSlice",
        "metadata": {
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T00:00:00Z"},
            "creationTimestamp": "2026-11-21T00:00:00Z", "generateName": format!("{name}-"), "generation": 1,
            "labels": {
                "app": name, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name,
            },
            "name": format!("{name}-abcde"), "namespace": namespace, "ownerReferences": [owner],
            "resourceVersion": (100_000 + n).to_string(), "uid": uid(3, n),
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}
