//! The Kubernetes source against a fake API server that speaks list and watch, and breaks in every way a real one does.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that unwraps reads better")]

mod fake_api_server;

use std::collections::BTreeMap;
use std::time::Duration;

use fake_api_server::{FakeApiServer, Fault};
use hawser_sources::{KubeOptions, KubeSource, Object, ObjectRef, Pace, Pairs, SourceEvent, connect, parse};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};

const PACE: Pace = Pace { first: Duration::from_millis(1), most: Duration::from_millis(20) };
const KINDS: [&str; 6] = ["Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy"];

/// What a consumer that applies every event holds.
struct Consumer {
    source: KubeSource,
    objects: BTreeMap<ObjectRef, Object>,
    problems: BTreeMap<String, String>,
    synced: u32,
}

impl Consumer {
    async fn of(server: &FakeApiServer) -> Self {
        Self::with(server, false).await
    }

    async fn with(server: &FakeApiServer, service_exports: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, server.kubeconfig()).unwrap();
        let options = KubeOptions { kubeconfig: Some(path), context: None };
        let client = connect(&options).await.unwrap();
        let source = KubeSource::start(&client, PACE, service_exports);
        Self { source, objects: BTreeMap::new(), problems: BTreeMap::new(), synced: 0 }
    }

    async fn step(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(60), self.source.next()).await;
        match event.expect("no event came").unwrap() {
            SourceEvent::Upsert(object) => _ = self.objects.insert(object.reference(), object),
            SourceEvent::Remove(reference) => {
                assert!(self.objects.remove(&reference).is_some(), "{reference} was removed and never told");
            }
            SourceEvent::Synced => self.synced += 1,
            SourceEvent::Problem(problem) => _ = self.problems.insert(problem.file.clone(), problem.reason),
            SourceEvent::Healed { file } => _ = self.problems.remove(&file),
        }
    }

    async fn synced(&mut self) {
        while self.synced == 0 {
            self.step().await;
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let wait = async {
            while !done(self) {
                self.step().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        assert!(waited.is_ok(), "{what}: holds {:?}, problems {:?}", self.objects.keys(), self.problems);
    }

    fn names(&self) -> Vec<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }
}

/// What the fake holds, of what the source asks for, as the directory source would read it.
fn held(server: &FakeApiServer) -> BTreeMap<ObjectRef, Object> {
    let mut objects = BTreeMap::new();
    for kind in KINDS {
        let fields = if kind == "Pod" { "status.phase!=Succeeded,status.phase!=Failed" } else { "" };
        let mesh = "kubernetes.io/service-name,!multicluster.kubernetes.io/source-cluster";
        let labels = if kind == "EndpointSlice" { mesh } else { "" };
        for object in server.objects(kind, fields, labels) {
            for object in parse(&object.to_string()).unwrap() {
                objects.insert(object.reference(), object);
            }
        }
    }
    objects
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "type": "ClusterIP", "clusterIPs": ["10.96.0.9"], "ports": [{ "port": port, "protocol": "TCP" }] },
        "status": { "loadBalancer": {} },
    })
}

fn pod(name: &str, phase: &str, ip: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": name } },
        "spec": { "nodeName": "node-1", "serviceAccountName": "default", "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": phase, "podIPs": [{ "ip": format!("10.1.0.{ip}") }] },
    })
}

fn slice(name: &str, ip: u8, labels: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "shop", "labels": labels },
        "endpoints": [{ "addresses": [format!("10.1.0.{ip}")], "conditions": { "ready": true } }],
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
    })
}

fn namespace(name: &str, team: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "team": team } },
        "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
    })
}

fn export(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "name": name, "namespace": "shop", "creationTimestamp": "2026-11-20T21:44:04Z", "labels": { "its": "own" } },
        "spec": { "exportedLabels": labels }, "status": { "conditions": [] },
    })
}

#[tokio::test]
async fn service_exports_are_followed_where_they_are_asked_for() {
    let server = FakeApiServer::start().await;
    server.apply(export("cart", json!({ "a": "b" })));
    let mut consumer = Consumer::with(&server, true).await;
    consumer.synced().await;
    assert_eq!(consumer.names(), ["ServiceExport shop/cart"]);
    let Some(Object::ServiceExport(cart)) = consumer.objects.values().next() else { panic!("no export") };
    assert_eq!(cart.created.unwrap().to_string(), "2026-11-20T21:44:55Z", "the API server's time");
    assert_eq!(cart.labels, Pairs::from_iter([("a", "b")]), "and none of its own");
    server.apply(export("till", json!(null)));
    consumer.until("another", |consumer| consumer.objects.len() == 2).await;

    let mut plain = Consumer::of(&server).await;
    plain.synced().await;
    assert_eq!(plain.names(), [""; 0], "nobody else needs the CRD");
}

#[tokio::test]
async fn everything_that_was_there_comes_before_synced_and_changes_follow() {
    let server = FakeApiServer::start().await;
    server.apply(namespace("shop", "a"));
    server.apply(service("cart", 80));
    server.apply(pod("cart-1", "Running", 1));
    server.apply(pod("job-1", "Succeeded", 2));
    let mut consumer = Consumer::of(&server).await;
    consumer.synced().await;
    assert_eq!(consumer.names(), ["Namespace shop", "Pod shop/cart-1", "Service shop/cart"]);
    server.apply(service("cart", 81));
    server.apply(service("till", 90));
    // A pod that ends leaves the selector, which is told as DELETED.
    server.apply(pod("cart-1", "Failed", 1));
    assert!(server.delete("Namespace", "", "shop"));
    consumer
        .until("the changes", |c| {
            c.names() == ["Service shop/cart", "Service shop/till"] && c.objects == held(&server)
        })
        .await;
    assert_eq!(consumer.synced, 1);
    let requests = server.requests();
    assert!(
        requests.iter().any(|r| r.contains("/api/v1/pods?fieldSelector=") && r.contains("limit=500")),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_list_comes_in_pages_and_an_expired_token_begins_it_anew() {
    let server = FakeApiServer::start().await;
    for n in 0..1_203 {
        server.apply(service(&format!("s{n}"), 80));
    }
    server.plan("/services", Fault::Slow);
    let mut consumer = Consumer::of(&server).await;
    // While the first page dribbles in, history is compacted, and with it the token.
    consumer.until("some of the first page", |c| !c.objects.is_empty()).await;
    server.delete("Service", "shop", "s0");
    server.compact();
    consumer.synced().await;
    consumer.until("the rest", |c| c.objects.len() == 1_202 && c.objects == held(&server)).await;
    assert_eq!(consumer.objects.len(), 1_202);
    let pages =
        server.requests().iter().filter(|r| r.contains("/services?") && r.contains("continue=")).count();
    assert!(pages >= 3, "{pages}");
}

#[tokio::test]
async fn every_way_to_break_off_is_survived_and_nothing_is_lost_or_doubled() {
    let server = FakeApiServer::start().await;
    server.apply(service("cart", 80));
    let mut consumer = Consumer::of(&server).await;
    consumer.synced().await;
    let faults = [
        Fault::Gone,
        Fault::ErrorGone,
        Fault::ErrorInternal,
        Fault::Garbage,
        Fault::Twice,
        Fault::Slow,
        Fault::Cut,
        Fault::End,
        Fault::Refuse { code: 429, retry_after: Some(0) },
        Fault::Refuse { code: 500, retry_after: None },
        Fault::Refuse { code: 503, retry_after: None },
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        server.plan("/services", fault);
        server.cut_watches();
        let port = 1_000 + u16::try_from(n).unwrap() * 10;
        for step in 0..3 {
            server.apply(service("cart", port + step));
            server.apply(service(&format!("s{n}-{step}"), 80));
        }
        server.delete("Service", "shop", &format!("s{n}-1"));
        consumer.until(&format!("{fault:?}"), |c| c.objects == held(&server)).await;
    }
    assert_eq!(consumer.synced, 1);
}

#[tokio::test]
async fn a_server_that_is_away_is_told_and_removes_nothing() {
    let server = FakeApiServer::start().await;
    server.down(Some(503));
    let mut consumer = Consumer::of(&server).await;
    consumer.until("problems", |c| c.problems.len() == KINDS.len()).await;
    assert_eq!(consumer.synced, 0, "nothing was read");
    server.apply(service("cart", 80));
    server.down(None);
    consumer.synced().await;
    consumer.until("health", |c| c.problems.is_empty()).await;
    server.down(Some(401));
    server.cut_watches();
    consumer.until("problems again", |c| c.problems.len() == KINDS.len()).await;
    assert_eq!(consumer.names(), ["Service shop/cart"]);
    let told = &consumer.problems["kubernetes /api/v1/services"];
    assert!(told.contains("401") && told.contains("what was read stays") && told.contains("fix:"), "{told}");
    // What happened meanwhile, and was compacted away, is told when it is back.
    server.delete("Service", "shop", "cart");
    server.apply(service("till", 80));
    server.compact();
    server.down(None);
    consumer.until("what happened", |c| c.names() == ["Service shop/till"] && c.problems.is_empty()).await;
}

#[tokio::test]
async fn slices_that_a_mesh_wrote_are_not_read_back() {
    let server = FakeApiServer::start().await;
    let own = json!({ "kubernetes.io/service-name": "cart" });
    let mut foreign = own.clone();
    foreign["multicluster.kubernetes.io/source-cluster"] = json!("eu-west");
    server.apply(slice("cart-x", 1, own.clone()));
    server.apply(slice("cart-eu-west", 2, foreign.clone()));
    server.apply(slice("nobodys", 3, json!({})));
    let mut consumer = Consumer::of(&server).await;
    consumer.synced().await;
    assert_eq!(consumer.names(), ["EndpointSlice shop/cart-x"]);
    // By a watch neither.
    server.apply(slice("cart-eu-west", 4, foreign));
    server.apply(slice("cart-y", 5, own));
    consumer.until("the own one", |c| c.objects.len() == 2).await;
    assert_eq!(consumer.names(), ["EndpointSlice shop/cart-x", "EndpointSlice shop/cart-y"]);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_named_and_holds_nothing_else_up() {
    let server = FakeApiServer::start().await;
    let mut odd = service("odd", 80);
    odd["spec"]["clusterIPs"] = json!(["10.96.0.009"]);
    server.apply(odd);
    server.apply(service("cart", 80));
    let mut consumer = Consumer::of(&server).await;
    consumer.synced().await;
    assert_eq!(consumer.names(), ["Service shop/cart"]);
    assert!(
        consumer.problems["kubernetes Service shop/odd"].contains("10.96.0.009"),
        "{:?}",
        consumer.problems
    );
    server.apply(service("odd", 80));
    consumer.until("it is fixed", |c| c.objects.len() == 2 && c.problems.is_empty()).await;
}

/// One random step of a cluster's life.
fn live(server: &FakeApiServer, random: &mut StdRng) {
    let n: u8 = random.random_range(0..12);
    let name = format!("x{n}");
    match random.random_range(0..100) {
        0..25 => {
            let phase = ["Pending", "Running", "Running", "Succeeded", "Failed"][random.random_range(0..5)];
            server.apply(pod(&name, phase, random.random_range(1..200)));
        }
        25..45 => server.apply(service(&name, random.random_range(1..60_000))),
        45..65 => {
            let labels = match random.random_range(0..4) {
                0 => json!({}),
                1 => {
                    json!({ "kubernetes.io/service-name": "x1", "multicluster.kubernetes.io/source-cluster": "b" })
                }
                _ => json!({ "kubernetes.io/service-name": "x1" }),
            };
            server.apply(slice(&name, random.random_range(1..200), labels));
        }
        65..72 => server.apply(namespace(&name, ["a", "b"][random.random_range(0..2)])),
        72..92 => {
            let kind = KINDS[random.random_range(0..KINDS.len())];
            let namespace = if kind == "Namespace" { "" } else { "shop" };
            server.delete(kind, namespace, &name);
        }
        92..96 => server.cut_watches(),
        _ => server.compact(),
    }
}

/// `HISTORIES=1000` tries as many; a failure names its seed, and `HISTORY_SEED` plays that one alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_server_does_the_end_is_what_it_holds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("HISTORY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HISTORIES").unwrap_or(8),
    };
    for seed in seeds {
        let mut random = StdRng::seed_from_u64(seed);
        let server = FakeApiServer::start().await;
        server.misbehave(seed, 40);
        for _ in 0..20 {
            live(&server, &mut random);
        }
        let mut consumer = Consumer::of(&server).await;
        for _ in 0..400 {
            live(&server, &mut random);
            match random.random_range(0..10) {
                0 => tokio::time::sleep(Duration::from_millis(1)).await,
                1..4 => tokio::task::yield_now().await,
                _ => {}
            }
        }
        server.misbehave(seed, 0);
        // Something to see, even when the last step changed nothing.
        server.apply(namespace("end", "a"));
        let done = |c: &Consumer| c.synced == 1 && c.objects == held(&server);
        consumer.until(&format!("seed {seed}"), done).await;
    }
}
