//! Many global Services and their EndpointSlices, as the Kubernetes API lists them.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Of each service.
pub(super) const ENDPOINTS: u32 = 4;

/// Where an endpoint is. Those of one service have one port.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) ip: Ipv4Addr,
    pub(super) port: u16,
    pub(super) node: String,
}

/// Of service `n`, at its port 80.
pub(super) fn cluster_ip(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac20_0000 + n)
}

/// `kubectl get services,endpointslices -A -o json`, as the API server sends it: without indentation, managed fields left out.
/// `more` are other objects of the same list.
pub(super) fn write(
    path: &Path,
    services: Range<u32>,
    at: impl Fn(u32) -> Place,
    more: impl IntoIterator<Item = Value>,
) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(br#"{"apiVersion":"v1","items":["#)?;
    let slices = services.clone().map(|n| slice(n, &at));
    let all = services.map(service).chain(slices).chain(more);
    for (n, item) in all.enumerate() {
        if n > 0 {
            out.write_all(b",")?;
        }
        serde_json::to_writer(&mut out, &item)?;
    }
    out.write_all(br#"],"kind":"List","metadata":{"resourceVersion":""}}"#)?;
    out.flush().context("writing the list")
}

/// Service `n` and its slice, of those that ask for a table.
pub(super) fn maglev(n: u32, at: impl Fn(u32) -> Place) -> [Value; 2] {
    let mut service = service(n);
    service["metadata"]["annotations"]["hawser.io/algorithm"] = json!("maglev");
    [service, slice(n, &at)]
}

fn uid(of: u32, n: u32) -> String {
    format!("{of:08x}-0000-4000-8000-{n:012x}")
}

fn service(n: u32) -> Value {
    let (namespace, name) = (format!("team-{}", n % 20), format!("service-{n}"));
    let address = cluster_ip(n).to_string();
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

fn slice(n: u32, at: &impl Fn(u32) -> Place) -> Value {
    let (namespace, name) = (format!("team-{}", n % 20), format!("service-{n}"));
    let port = at(n * ENDPOINTS).port;
    let endpoint = |number: u32| {
        let pod = n * ENDPOINTS + number;
        let place = at(pod);
        json!({
            "addresses": [place.ip.to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": place.node,
            "targetRef": {"kind": "Pod", "name": format!("{name}-7d9c5b8f6d-x2x4{number}"), "namespace": namespace, "uid": uid(2, pod)},
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
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    })
}
