//! A Cilium agent as a remote sees it, and nothing of it but that: cilium-facts §1.11, step by step, over real TLS from the files
//! that an operator mounts. It stands in for the real one, which cannot be had here.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use hawser_pki::CiliumConfig;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

/// Cilium's list page.
const PAGE: i64 = 256;
/// Types of resources by their names in keys, with what a reader appends.
const TYPES: [&str; 6] =
    ["nodes/v1", "services/v1", "endpointslices/v1", "serviceexports/v1", "identities/v1", "ip/v1"];

/// What it has read of one cluster.
pub(crate) struct FakeCiliumAgent {
    name: String,
    kv: pb::kv_client::KvClient<Channel>,
    watches: pb::watch_client::WatchClient<Channel>,
    /// Of the first reply; another one would tear the connection down.
    cluster_id: u64,
    pub(crate) config: Value,
    /// Values by key, of every type whose canary there was.
    pub(crate) read: BTreeMap<String, Vec<u8>>,
    pub(crate) pages: usize,
    open: Vec<(String, Streaming<pb::WatchResponse>, mpsc::Sender<pb::WatchRequest>)>,
}

impl FakeCiliumAgent {
    /// Connects as the file `name` in `dir` says, and reads all there is.
    /// `max` is the agent's own maxConnectedClusters.
    pub(crate) async fn read(dir: &Path, name: &str, max: u64) -> Result<Self, String> {
        let channel = dial(dir, name).await.map_err(|error| error.to_string())?;
        let mut agent = Self {
            name: name.to_owned(),
            kv: pb::kv_client::KvClient::new(channel.clone()),
            watches: pb::watch_client::WatchClient::new(channel),
            cluster_id: 0,
            config: Value::Null,
            read: BTreeMap::new(),
            pages: 0,
            open: Vec::new(),
        };
        // A bare prefix, as an exception.
        let (beats, revision) = agent.list("cilium/.heartbeat").await?;
        let [(_, beat)] = &beats[..] else { return Err(format!("{} heartbeats", beats.len())) };
        let beat = String::from_utf8_lossy(beat);
        hawser_model::Timestamp::parse(&beat).map_err(|error| error.to_string())?;
        agent.watch("cilium/.heartbeat", revision + 1).await?;
        agent.config = agent.cluster_config(max).await?;
        agent.wait_for_canaries().await?;
        for kind in TYPES {
            let prefix = agent.prefix(kind);
            let (kvs, revision) = agent.list(&prefix).await?;
            agent.read.extend(kvs);
            agent.watch(&prefix, revision + 1).await?;
        }
        Ok(agent)
    }

    fn cached(&self) -> bool {
        self.config.pointer("/capabilities/cached").and_then(Value::as_bool).unwrap_or(false)
    }

    /// What of the type there is to list, in the layout that the config says.
    fn prefix(&self, kind: &str) -> String {
        let name = &self.name;
        match (self.cached(), kind) {
            (false, "identities/v1") => "cilium/state/identities/v1/id/".into(),
            (false, "ip/v1") => "cilium/state/ip/v1/default/".into(),
            (false, kind) => format!("cilium/state/{kind}/{name}/"),
            (true, "identities/v1") => format!("cilium/cache/identities/v1/{name}/id/"),
            (true, kind) => format!("cilium/cache/{kind}/{name}/"),
        }
    }

    /// Step 4: a header always, and always the same cluster.
    fn same_cluster(&mut self, header: Option<&pb::ResponseHeader>) -> Result<i64, String> {
        let header = header.ok_or("a reply without a header")?;
        if header.cluster_id == 0 || (self.cluster_id != 0 && self.cluster_id != header.cluster_id) {
            return Err(format!("cluster id {} after {}", header.cluster_id, self.cluster_id));
        }
        self.cluster_id = header.cluster_id;
        Ok(header.revision)
    }

    /// Steps 5 and 6.
    async fn cluster_config(&mut self, max: u64) -> Result<Value, String> {
        let request = pb::RangeRequest {
            key: format!("cilium/cluster-config/{}", self.name).into(),
            ..Default::default()
        };
        let reply = self.kv.range(request).await.map_err(|status| status.to_string())?.into_inner();
        self.same_cluster(reply.header.as_ref())?;
        let kv = reply.kvs.first().ok_or("expected, not retrieved")?;
        let config: Value = serde_json::from_slice(&kv.value).map_err(|error| error.to_string())?;
        let id = config["id"].as_u64().unwrap_or(0);
        if !(1..=max).contains(&id) {
            return Err(format!("cluster id {id} is not 1 to {max}"));
        }
        let capabilities = &config["capabilities"];
        let theirs = capabilities["maxConnectedClusters"].as_u64();
        if max == 511 && theirs != Some(max) {
            return Err(format!("maxConnectedClusters is {theirs:?} there and {max} here"));
        }
        let mode = capabilities["endpointSlicesExportMode"].as_str().unwrap_or("");
        if !["", "services-and-endpointslices", "endpointslices-only"].contains(&mode) {
            return Err(format!("export mode {mode:?}"));
        }
        Ok(config)
    }

    /// Step 7.
    async fn wait_for_canaries(&mut self) -> Result<(), String> {
        if self.config.pointer("/capabilities/syncedCanaries") != Some(&Value::Bool(true)) {
            return Err("no canaries".into());
        }
        let layout = if self.cached() { "cilium/cache" } else { "cilium/state" };
        let prefix = format!("cilium/synced/{}/", self.name);
        let mut missing: Vec<String> = TYPES.iter().map(|kind| format!("{prefix}{layout}/{kind}")).collect();
        let (kvs, revision) = self.list(&prefix).await?;
        missing.retain(|canary| !kvs.iter().any(|(key, _)| key == canary));
        self.watch(&prefix, revision + 1).await?;
        while !missing.is_empty() {
            let (key, value) =
                self.next(&prefix).await.map_err(|error| format!("{error}: no {missing:?}"))?;
            missing.retain(|canary| value.is_none() || *canary != key);
        }
        Ok(())
    }

    /// Step 8: pages of 256, ascending by key, all at the revision of the first.
    async fn list(&mut self, prefix: &str) -> Result<(Vec<(String, Vec<u8>)>, i64), String> {
        let (mut key, range_end) = KeyRange::prefix(prefix.to_owned()).to_wire();
        let (mut all, mut pinned) = (Vec::new(), 0);
        loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision: pinned,
                sort_order: pb::range_request::SortOrder::Ascend.into(),
                sort_target: pb::range_request::SortTarget::Key.into(),
                ..Default::default()
            };
            let reply = self.kv.range(request).await.map_err(|status| status.to_string())?.into_inner();
            let revision = self.same_cluster(reply.header.as_ref())?;
            if pinned == 0 {
                pinned = revision;
            }
            self.pages += 1;
            for kv in &reply.kvs {
                let text = String::from_utf8_lossy(&kv.key).into_owned();
                if all.last().is_some_and(|(last, _)| *last >= text) {
                    return Err(format!("{text} is out of order"));
                }
                all.push((text, kv.value.to_vec()));
            }
            match (reply.more, reply.kvs.last()) {
                (true, Some(last)) => key = [&last.key[..], &[0]].concat().into(),
                _ => return Ok((all, pinned)),
            }
        }
    }

    async fn watch(&mut self, prefix: &str, start_revision: i64) -> Result<(), String> {
        let (key, range_end) = KeyRange::prefix(prefix.to_owned()).to_wire();
        let create = pb::WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
        let union = pb::watch_request::RequestUnion::CreateRequest(create);
        let (to, requests) = mpsc::channel(1);
        let first = pb::WatchRequest { request_union: Some(union) };
        to.send(first).await.map_err(|error| error.to_string())?;
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(requests));
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        let mut replies =
            self.watches.watch(request).await.map_err(|status| status.to_string())?.into_inner();
        let created = replies.message().await.map_err(|status| status.to_string())?.ok_or("no answer")?;
        self.same_cluster(created.header.as_ref())?;
        if !created.created || created.canceled {
            return Err(format!("the watch of {prefix} was not created: {}", created.cancel_reason));
        }
        self.open.push((prefix.to_owned(), replies, to));
        Ok(())
    }

    /// The next change below a watched prefix: its key, and its value if it was put.
    pub(crate) async fn next(&mut self, prefix: &str) -> Result<(String, Option<Vec<u8>>), String> {
        let at = self.open.iter().position(|(watched, ..)| watched == prefix).ok_or("not watched")?;
        let (_, replies, _) = &mut self.open[at];
        let reply = tokio::time::timeout(Duration::from_secs(60), replies.message());
        let reply = reply.await.map_err(|_| "nothing in a minute")?.map_err(|status| status.to_string())?;
        let reply = reply.ok_or("the stream ended")?;
        self.same_cluster(reply.header.as_ref())?;
        let event = reply.events.first().ok_or("no event")?;
        let kv = event.kv.as_ref().ok_or("an event without its key")?;
        let put = event.r#type() == pb::mvccpb::event::EventType::Put;
        Ok((String::from_utf8_lossy(&kv.key).into_owned(), put.then(|| kv.value.to_vec())))
    }

    /// The next change of a type.
    pub(crate) async fn next_of(&mut self, kind: &str) -> Result<(String, Option<Vec<u8>>), String> {
        let prefix = self.prefix(kind);
        self.next(&prefix).await
    }
}

/// Steps 1 and 2: the file, the files that it names, and its own names for hosts.
async fn dial(dir: &Path, name: &str) -> io::Result<Channel> {
    let text = std::fs::read_to_string(dir.join(name))?;
    assert!(text.contains("endpoints:"), "Cilium takes no other file for a configuration");
    let config = CiliumConfig::read(&text).map_err(io::Error::other)?;
    let mounted = |path: &Option<String>| {
        let path = path.as_deref().unwrap();
        let file = path.strip_prefix("/var/lib/cilium/clustermesh/").expect("where Cilium mounts it");
        std::fs::read(dir.join(file))
    };
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(&mounted(&config.trusted_ca_file)?) {
        roots.add(ca.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let chain = CertificateDer::pem_slice_iter(&mounted(&config.cert_file)?).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(&mounted(&config.key_file)?).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map_err(io::Error::other)?, key)
        .map_err(io::Error::other)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(tls));
    let url = config.endpoints[0].clone();
    let ip: IpAddr = match config.aliases.get(url.host()) {
        Some(ips) => ips[0],
        None => url.host().parse().expect("an alias, or an address"),
    };
    let server = ServerName::try_from(url.host().to_owned()).unwrap();
    let port = url.port();
    let connect = tower::service_fn(move |_| {
        let (connector, server) = (connector.clone(), server.clone());
        async move {
            let stream = tokio::net::TcpStream::connect((ip, port)).await?;
            Ok::<_, io::Error>(TokioIo::new(connector.connect(server, stream).await?))
        }
    });
    // The authority is the endpoint's, as gRPC for Go sends it.
    let endpoint = Endpoint::from_shared(url.as_str().to_owned()).map_err(io::Error::other)?;
    endpoint.connect_with_connector(connect).await.map_err(io::Error::other)
}
