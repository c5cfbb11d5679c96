//! The port for Prometheus and the kubelet, on the real binary.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cluster::{Cluster, eventually};

const PAGE: &str = include_str!("../../../docs/src/reference/metrics.md");

struct Observed {
    address: String,
}

impl Observed {
    /// Starts the server with its port; it serves there before it exports.
    async fn start(cluster: &mut Cluster) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = free.to_string();
        cluster.start(&["--metrics", &address]).await;
        Self { address }
    }

    async fn get(&self, path: &str) -> Result<String, String> {
        let fetch = async {
            let mut stream = tokio::net::TcpStream::connect(&self.address).await?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        fetch.await.map_err(|error| error.to_string())
    }

    async fn until(&self, path: &str, says: &str) -> String {
        eventually(&format!("{path} says {says}"), async || {
            let answer = self.get(path).await?;
            if answer.contains(says) { Ok(answer) } else { Err(answer) }
        })
        .await
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_on_its_page_and_the_page_names_no_other() {
    let (mut east, mut west) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    west.start(&[]).await;
    let observed = Observed::start(&mut east).await;
    east.connect_with(&west).await;
    let synced = "hawser_clustermesh_remote_cluster_readiness_status{target_cluster=\"eu-west\"} 1";
    let answer = observed.until("/metrics", synced).await;
    let metrics = body(&answer);
    assert_eq!(hawser_telemetry::lint(metrics), [""; 0]);
    assert_eq!(hawser_telemetry::documented(metrics, PAGE, &["hawser_agent_"]), [""; 0]);
    for says in [
        "hawser_clustermesh_remote_clusters 1",
        "hawser_clustermesh_source_synced 1",
        "hawser_clustermesh_exported{kind=\"nodes\"} ",
        "hawser_clustermesh_store_commit_seconds_bucket{le=\"",
        "hawser_clustermesh_remote_cluster_last_heard_seconds{target_cluster=\"eu-west\"} ",
        "hawser_clustermesh_certificate_expiry_seconds{role=\"server\"} ",
    ] {
        assert!(metrics.contains(says), "{says}\n{metrics}");
    }
    // The peer's mirror watches our keyspace, and was sent what we exported after it came.
    assert!(!metrics.contains("hawser_clustermesh_watchers{keyspace=\"us-east\"} 0"), "{metrics}");
    for secret in ["shop", "cart"] {
        assert!(!metrics.contains(secret), "no service is a label: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_say_what_holds_the_server_up_and_why() {
    let (mut east, mut west) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    west.start(&[]).await;
    let bundle = west.bundle_for("us-east").await;
    assert_eq!(west.stop(), Some(0));
    let observed = Observed::start(&mut east).await;
    let ready = observed.until("/readyz?verbose", "readyz check passed").await;
    for line in
        ["[+]store ok: embedded store in ", "[+]source ok\n", "[+]certificates ok\n", "[+]mirrors ok\n"]
    {
        assert!(ready.contains(line), "{ready}");
    }
    assert_eq!(body(&observed.get("/readyz").await.unwrap()), "ok");
    let live = observed.get("/livez?verbose").await.unwrap();
    assert_eq!(body(&live), "[+]exporter ok\n[+]keyspace ok\nlivez check passed\n");

    east.connect(bundle).await.unwrap();
    let waits = observed.until("/readyz", "[-]mirrors not synced: eu-west (").await;
    assert!(waits.starts_with("HTTP/1.1 500 ") && waits.contains("[+]store ok"), "{waits}");
    assert!(observed.get("/livez").await.unwrap().starts_with("HTTP/1.1 200 "), "a new start would not help");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_keeps_nobody_from_what_was_exported() {
    let mut east = Cluster::with_shop("us-east", 1);
    Observed::start(&mut east).await;
    assert_eq!(east.stop(), Some(0));
    std::fs::write(east.path("manifests/shop.yaml"), "kind: [").unwrap();
    let observed = Observed::start(&mut east).await;
    observed.until("/readyz?verbose", "[+]source ok").await;
}
