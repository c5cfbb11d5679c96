//! What a cluster publishes of its objects, and what of them it keeps to itself.
#![allow(clippy::unwrap_used, reason = "a test that unwraps reads better")]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use clustermesh_apiserver::config::Config;
use clustermesh_apiserver::export::{self, Export, Held, Section, Step};
use clustermesh_apiserver::identity::Allocator;
use clustermesh_apiserver::nodes::Indices;
use clustermesh_apiserver::objects::{Objects, Touched};
use clustermesh_apiserver::reports::NodeReport;
use hawser_kvstore::{KeyValue, SharedKv};
use hawser_model::{Epoch, NodeName, PublicKey, Time, TunnelEnd};
use hawser_sources::{Change, Files, SourceEvent};

const SHOP: &str = include_str!("../sources/testdata/shop.yaml");

const CONFIG: &str = r#"
cluster: { name: us-east, id: 1 }
listen: 127.0.0.1:0
advertise: ["https://127.0.0.1:2379"]
podCIDRs: ["10.1.0.0/16", "fd00:10:1::/48"]
nodeCIDRs: ["172.16.1.0/24"]
source: { dir: /nowhere }
"#;

struct Cluster {
    files: Files,
    objects: Objects,
    export: Export,
    wanted: BTreeMap<String, Bytes>,
}

impl Cluster {
    fn new(more: &str) -> Self {
        let config = Config::parse(Path::new("cluster.yaml"), &format!("{CONFIG}{more}\n")).unwrap();
        let identities = Allocator::new(config.cluster.id, config.width, [], Time::ZERO);
        let export = Export::new(&config, identities, Indices::default());
        Self { files: Files::default(), objects: Objects::default(), export, wanted: BTreeMap::new() }
    }

    fn with(text: &str) -> Self {
        Self::with_config("", text)
    }

    fn with_config(more: &str, text: &str) -> Self {
        let mut cluster = Self::new(more);
        cluster.says(text);
        cluster
    }

    fn says(&mut self, text: &str) {
        for event in self.files.apply(vec![("a.yaml".into(), Change::Text(text.into()))]) {
            self.objects.apply(event);
        }
        self.objects.apply(SourceEvent::Synced);
        self.make();
    }

    fn make(&mut self) {
        self.wanted.clear();
        for section in Section::ALL {
            self.wanted.extend(self.export.pieces(section, &self.objects, true, Time::ZERO).flatten());
        }
        let own = |key: &String| {
            Section::ALL.into_iter().flat_map(Section::prefixes).any(|prefix| key.starts_with(prefix))
        };
        assert!(
            self.wanted.keys().all(own),
            "what no section owns would never be deleted: {:?}",
            self.wanted
        );
    }

    /// The steps from what this held to what it wants now.
    fn steps_from(&self, held: &BTreeMap<String, Bytes>) -> Vec<Step> {
        let kv = |(key, value): (&String, &Bytes)| {
            let (key, value) = (key.clone().into(), value.clone());
            SharedKv::new(&KeyValue { key, value, ..KeyValue::default() })
        };
        let mut held = Held::of(held.iter().map(kv));
        let mut steps = held.puts(self.wanted.clone().into_iter().collect());
        steps.extend(held.deletes());
        steps
    }

    fn entries(&self) -> BTreeMap<String, String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.wanted.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.export.problems().map(str::to_owned).collect()
    }
}

#[test]
fn a_global_service_is_published_twice_and_told_to_the_agents() {
    let cluster = Cluster::with(SHOP);
    assert_eq!(cluster.problems(), [""; 0]);
    let entries = cluster.entries();
    let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "cilium/state/endpointslices/v1/us-east/shop/cart-x7k2p",
            "cilium/state/identities/v1/id/65537",
            "cilium/state/ip/v1/default/10.1.0.9",
            "cilium/state/ip/v1/default/fd00:10:1::9",
            "cilium/state/nodes/v1/us-east/node-1",
            "cilium/state/services/v1/us-east/shop/cart",
            "hawser/local/services/v1/us-east/shop/cart",
            "hawser/private/namespaces/v1/shop",
            "hawser/state/nodes/v1/us-east/node-1",
        ]
    );
    let service = &entries["cilium/state/services/v1/us-east/shop/cart"];
    assert!(
        service.contains(r#""backends":{"10.1.0.9":{"http":{"Protocol":"TCP","Port":8080}}}"#),
        "{service}"
    );
    assert!(
        service.contains(r#""frontends":{"10.96.10.1":{"http":{"Protocol":"TCP","Port":80}}}"#),
        "{service}"
    );
    let pod = &entries["cilium/state/ip/v1/default/10.1.0.9"];
    assert!(pod.contains(r#""HostIP":"172.16.1.11","ID":65537,"Key":255"#), "{pod}");
    assert_eq!(
        entries["cilium/state/identities/v1/id/65537"],
        "k8s:app=cart;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;\
         k8s:io.cilium.k8s.namespace.labels.team=a;k8s:io.cilium.k8s.policy.cluster=us-east;\
         k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=shop;"
    );
    let node = &entries["hawser/state/nodes/v1/us-east/node-1"];
    assert!(node.contains(r#""index":1,"meshIPv4":"240.1.0.1""#), "{node}");
}

#[test]
fn agents_are_told_where_a_service_is_entered_from_outside_unless_that_shows_clients_or_asks_who_they_are() {
    let service = |spec: &str, ingress: &str| {
        let text = SHOP
            .replace(
                "    - name: http\n      port: 80\n",
                "    - name: http\n      nodePort: 30080\n      port: 80\n",
            )
            .replace(
                "    sessionAffinity: None\n",
                &format!("    sessionAffinity: None\n    externalIPs: [198.51.100.7]\n{spec}"),
            )
            .replace("    loadBalancer: {}\n", &format!("    loadBalancer: {{ ingress: [{ingress}] }}\n"));
        Cluster::with(&text).entries()["hawser/local/services/v1/us-east/shop/cart"].clone()
    };
    let balancer = "{ ip: 203.0.113.9 }";
    let told = service("", balancer);
    assert!(
        told.contains(r#""externalIPs":["198.51.100.7","203.0.113.9"],"nodePorts":{"http":30080}"#),
        "{told}"
    );
    for (spec, ingress) in [
        ("", "{ ip: 203.0.113.9, ipMode: Proxy }"),
        ("    loadBalancerSourceRanges: [10.0.0.0/8]\n", balancer),
    ] {
        let told = service(spec, ingress);
        assert!(told.contains(r#""externalIPs":["198.51.100.7"],"nodePorts""#), "{told}");
    }
    let told = service("    externalTrafficPolicy: Local\n", balancer);
    assert!(!told.contains("externalIPs") && !told.contains("nodePorts"), "{told}");
}

#[test]
fn what_is_not_global_or_not_shared_stays_home() {
    let plain = Cluster::with(&SHOP.replace("hawser.io/global: \"true\"", "team: \"a\"")).entries();
    assert!(!plain.keys().any(|key| key.contains("services/") || key.contains("slices/")));
    let consumer = "hawser.io/global: \"true\"\n      hawser.io/shared: \"false\"";
    let consumer = Cluster::with(&SHOP.replace("hawser.io/global: \"true\"", consumer)).entries();
    assert!(consumer.contains_key("hawser/local/services/v1/us-east/shop/cart"));
    assert!(!consumer.keys().any(|key| key.contains("state/services/") || key.contains("slices/")));
}

#[test]
fn a_typo_in_an_annotation_is_told_and_never_guessed() {
    let cluster = Cluster::with(&SHOP.replace("global: \"true\"", "global: \"yes\""));
    assert!(cluster.problems()[0].starts_with("service shop/cart: annotation hawser.io/global: \"yes\""));
    assert!(!cluster.entries().keys().any(|key| key.contains("services/")));
}

#[test]
fn an_endpoint_that_takes_no_traffic_is_no_backend_and_the_service_stays() {
    let idle = SHOP.replace("ready: true\n      serving: true", "ready: false\n      serving: false");
    let entries = Cluster::with(&idle).entries();
    assert!(entries["cilium/state/services/v1/us-east/shop/cart"].contains(r#""backends":{}"#));
    assert!(entries["hawser/local/services/v1/us-east/shop/cart"].contains(r#""backends":{}"#));
}

#[test]
fn an_address_that_no_peer_would_admit_is_not_published() {
    let cluster = Cluster::with(&SHOP.replace("10.1.0.9", "192.0.2.9").replace("172.16.1.11", "192.0.2.1"));
    let entries = cluster.entries();
    assert!(!entries.values().any(|value| value.contains("192.0.2.9")));
    assert!(entries["cilium/state/services/v1/us-east/shop/cart"].contains(r#""backends":{}"#));
    let problems = cluster.problems().join("\n");
    for says in ["InternalIP 192.0.2.1", "192.0.2.9", "fix: add"] {
        assert!(problems.contains(says), "{problems}");
    }
}

#[test]
fn a_host_network_pod_has_its_nodes_identity_and_no_entry() {
    let host = SHOP.replace(
        "    nodeName: node-1\n    restart",
        "    nodeName: node-1\n    hostNetwork: true\n    restart",
    );
    assert!(!Cluster::with(&host).entries().keys().any(|key| key.contains("/ip/")));
    let done = SHOP.replace("phase: Running", "phase: Succeeded");
    assert!(!Cluster::with(&done).entries().keys().any(|key| key.contains("/ip/")));
}

#[test]
fn an_agents_word_appears_in_both_forms_of_its_node() {
    let mut cluster = Cluster::with(SHOP);
    let name = NodeName::parse("node-1").unwrap();
    let end = TunnelEnd {
        epoch: Epoch::FIRST,
        public_key: PublicKey::new([7; 32]).unwrap(),
        port: 51871,
        mtu: 1420,
        more_ports: hawser_model::MorePorts::default(),
        esp: None,
    };
    let report = NodeReport { boot_id: None, wireguard: Some(end) };
    assert!(cluster.export.report(name.clone(), report.clone()));
    assert!(!cluster.export.report(name, report), "nothing new");
    cluster.make();
    let entries = cluster.entries();
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let cilium = &entries["cilium/state/nodes/v1/us-east/node-1"];
    assert!(cilium.contains(r#""EncryptionKey":255"#), "{cilium}");
    assert!(cilium.contains(&format!(r#""WireguardPubKey":"{key}""#)), "{cilium}");
    let ours = &entries["hawser/state/nodes/v1/us-east/node-1"];
    assert!(ours.contains(&format!(r#""publicKey":"{key}","port":51871"#)), "{ours}");
}

#[test]
fn the_same_objects_again_write_nothing_and_a_change_writes_only_itself() {
    let mut cluster = Cluster::with(SHOP);
    let held = cluster.wanted.clone();
    cluster.says(SHOP);
    assert_eq!(cluster.steps_from(&held), []);
    cluster.says(&SHOP.replace("global: \"true\"", "global: \"true\"\n      hawser.io/affinity: local"));
    let steps = cluster.steps_from(&held);
    let [Step::Put { key, value }] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!(key, "hawser/local/services/v1/us-east/shop/cart");
    assert!(String::from_utf8_lossy(value).contains(r#""affinity":"local""#));
}

#[test]
fn two_pods_that_claim_one_address_do_not_fight_for_it() {
    let pods = |text: &str, name: &str| {
        let start = text.find("- apiVersion: v1\n  kind: Pod").unwrap();
        let end = start + text[start + 2..].find("\n- apiVersion").unwrap() + 3;
        text[start..end].replace("name: cart-5d9-abcde", &format!("name: {name}"))
    };
    let both = SHOP.replacen(
        "- apiVersion: v1\n  kind: Pod",
        &format!("{}- apiVersion: v1\n  kind: Pod", pods(SHOP, "zz")),
        1,
    );
    let cluster = Cluster::with(&both);
    assert!(cluster.entries()["cilium/state/ip/v1/default/10.1.0.9"].contains("cart-5d9-abcde"));
    assert!(cluster.problems().iter().any(|p| p.contains("its address 10.1.0.9 is shop/cart-5d9-abcde's")));
}

/// As Cilium's fixture has it, so that what is told of it can be compared with what Cilium told.
const EXPORTED: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: exported, namespace: shop, labels: { app: exported } }
spec:
  clusterIP: 10.96.10.4
  ports: [{ name: http, protocol: TCP, port: 80, appProtocol: http }]
  selector: { app: cart }
  sessionAffinity: ClientIP
  sessionAffinityConfig: { clientIP: { timeoutSeconds: 600 } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: exported-abcde, namespace: shop, labels: { kubernetes.io/service-name: exported } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints:
- addresses: ["10.1.0.9"]
  conditions: { ready: false, serving: true, terminating: true }
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: { name: exported, namespace: shop, creationTimestamp: "2026-11-20T21:44:04Z", labels: { its: own } }
spec: { exportedLabels: { a: b }, exportedAnnotations: { c: d } }
"#;

#[test]
fn an_exported_service_is_told_as_cilium_tells_it_and_its_endpoints_travel_under_the_derived_name() {
    let cluster = Cluster::with_config("serviceExports: true", EXPORTED);
    assert_eq!(cluster.problems(), [""; 0]);
    let entries = cluster.entries();
    let keys: Vec<&str> = entries.keys().map(String::as_str).filter(|key| key.contains("/shop/")).collect();
    assert_eq!(
        keys,
        [
            "cilium/state/endpointslices/v1/us-east/shop/derived-o5q7lodl2q-exported-abcde",
            "cilium/state/serviceexports/v1/us-east/shop/exported",
            "cilium/state/services/v1/us-east/shop/derived-o5q7lodl2q",
        ]
    );
    let ciliums = include_str!("../../model/wire/testdata/cilium-keyspace.txt").lines();
    let of_cilium = ciliums
        .skip_while(|line| *line != "KEY   cilium/state/serviceexports/v1/c1/shop/exported")
        .find_map(|line| line.strip_prefix("VALUE "))
        .unwrap();
    assert_eq!(entries[keys[1]], of_cilium.replace(r#""cluster":"c1""#, r#""cluster":"us-east""#));
    let derived = &entries[keys[2]];
    assert!(derived.contains(r#""name":"derived-o5q7lodl2q","frontends":{}"#), "{derived}");
    // Serving and on its way out: a backend still, as Cilium exports it.
    assert!(derived.contains(r#""10.1.0.9":{"http":{"Protocol":"TCP","Port":8080}}"#), "{derived}");
    assert!(derived.contains(r#""hawserDraining":["10.1.0.9"]"#), "and ours know that it drains: {derived}");

    let off = Cluster::with(EXPORTED).entries();
    assert!(!off.keys().any(|key| key.contains("/shop/")), "{:?}", off.keys());
}

#[test]
fn an_export_that_cannot_be_told_is_named() {
    for (from, to, why) in [
        (
            "kind: Service\nmetadata: { name: exported,",
            "kind: Service\nmetadata: { name: other,",
            "no Service of that name",
        ),
        ("  clusterIP: 10.96.10.4\n", "  type: ExternalName\n", "an ExternalName cannot be exported"),
        (", creationTimestamp: \"2026-11-20T21:44:04Z\"", "", "creationTimestamp is missing"),
    ] {
        let cluster = Cluster::with_config("serviceExports: true", &EXPORTED.replace(from, to));
        let problems = cluster.problems();
        assert!(problems.iter().any(|text| text.contains(why) && text.contains("fix:")), "{problems:?}");
        assert!(!cluster.entries().keys().any(|key| key.contains("serviceexports")));
    }
}

#[test]
fn what_a_cluster_says_of_itself_has_every_capability_that_a_cilium_cluster_asks_for() {
    for (more, says) in [
        (
            "",
            r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":255,"serviceExportsEnabled":false,"endpointSlicesExportMode":"services-and-endpointslices"}}"#,
        ),
        (
            "serviceExports: true\nmesh: { maxConnectedClusters: 511 }",
            r#"{"id":1,"capabilities":{"syncedCanaries":true,"maxConnectedClusters":511,"serviceExportsEnabled":true,"endpointSlicesExportMode":"services-and-endpointslices"}}"#,
        ),
    ] {
        let config = Config::parse(Path::new("cluster.yaml"), &format!("{CONFIG}{more}\n")).unwrap();
        assert_eq!(export::cluster_config(&config).encode(), says);
    }
    assert_eq!(export::RESOURCES.len(), hawser_wire::Resource::ALL.len(), "a canary for each");
}

/// What a change of a few services writes, as the exporter does it.
fn write_few(cluster: &mut Cluster, touched: &Touched, held: &mut BTreeMap<String, Bytes>) {
    assert!(!touched.services, "{touched:?}");
    let (keys, entries) = cluster.export.few(&touched.few, &cluster.objects).unwrap();
    let kv = |key: &String| {
        let (key, value) = (key.clone().into(), held.get(key)?.clone());
        Some(SharedKv::new(&KeyValue { key, value, ..KeyValue::default() }))
    };
    let mut those = Held::of(keys.iter().filter_map(kv));
    let puts = those.puts(entries);
    for step in puts.into_iter().chain(those.deletes()) {
        match step {
            Step::Put { key, value } => assert_ne!(held.insert(key, value.clone()), Some(value)),
            Step::Delete { key } => assert!(held.remove(&key).is_some(), "{key}"),
        }
    }
}

#[test]
fn a_change_of_one_service_writes_what_the_whole_section_would() {
    let stray = SHOP.replace("  - addresses:\n    - 10.1.0.9", "  - addresses:\n    - 8.8.8.8");
    let texts = [
        SHOP.replace("10.96.10.1", "10.96.10.2"),
        SHOP.replace("kubernetes.io/service-name: cart", "kubernetes.io/service-name: till"),
        stray.clone(),
        SHOP.replace("hawser.io/global: \"true\"", "hawser.io/global: \"yes\""),
        SHOP.replace("cart-x7k2p", "cart-other"),
        SHOP.replace("hawser.io/global: \"true\"", "hawser.io/shared: \"true\""),
    ];
    for text in &texts {
        assert_ne!(text, SHOP);
        let mut cluster = Cluster::with(SHOP);
        let mut held = cluster.wanted.clone();
        for text in [text.as_str(), SHOP, text, &stray] {
            let mut touched = Touched::default();
            for event in cluster.files.apply(vec![("a.yaml".into(), Change::Text(text.into()))]) {
                touched = touched.and(cluster.objects.apply(event));
            }
            write_few(&mut cluster, &touched, &mut held);
            let problems = cluster.problems();
            cluster.make();
            assert_eq!(held, cluster.wanted);
            assert_eq!(problems, cluster.problems());
        }
    }
}
