//! `cluster.yaml`: read whole, and refused whole, before anything is bound or written.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use hawser_etcd::store::{StoreTls, StoreUri};
use hawser_model::{
    ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, IpNet, MeshPlan, NodePath, ServerUrl,
};
use hawser_pki::Lifetime;
use hawser_sources::KubeOptions;
use serde::Deserialize;

use crate::exports::{Exports, ExportsText};
use crate::limits::{Limits, LimitsText};
use crate::tokenreview::AgentAccount;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it was read.
    pub file: PathBuf,
    pub cluster: ClusterRef,
    pub listen: SocketAddr,
    pub advertise: Vec<ServerUrl>,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
    pub source: SourceConfig,
    /// Whose service account tokens let a node in; none: one-time tokens alone do.
    pub agents: Option<AgentAccount>,
    /// `embedded:<dir>`, `etcd://host:port,...` or `etcds://` the same: it parses as a [`StoreUri`].
    pub store: String,
    /// With `etcds://`, and only there.
    pub store_tls: Option<StoreTls>,
    /// Where mirrors of other clusters are kept.
    pub mirrors: PathBuf,
    pub pki: PathBuf,
    /// Of the certificates that renew themselves.
    pub certificate_lifetime: Lifetime,
    pub width: ClusterIdWidth,
    pub plan: MeshPlan,
    pub encryption: Encryption,
    /// How peers reach the nodes of this cluster.
    pub path: NodePath,
    /// Whether ServiceExports are exported (MCS-API).
    pub service_exports: bool,
    /// Whether Cilium's agents in this cluster read the mirrors here: the cached layout.
    pub cached_layout: bool,
    /// What each peer may read.
    pub exports: Exports,
    /// Of each peer.
    pub limits: Limits,
    /// Where /metrics, /livez and /readyz are served; nowhere without it.
    pub metrics: Option<SocketAddr>,
}

/// Where the cluster's objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    Dir(PathBuf),
    Kubernetes(KubeOptions),
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}; fix: write it, or name another with --config")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}:{line}: {reason}; fix: see docs/src/development/contracts.md for every key")]
    Syntax { path: PathBuf, line: u64, reason: String },
    #[error("{path}: {key}: {reason}{}", if reason.contains("fix:") { "" } else { "; fix: correct it there" })]
    Value { path: PathBuf, key: &'static str, reason: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Text {
    cluster: ClusterText,
    listen: String,
    advertise: Vec<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "nodeCIDRs")]
    node_cidrs: Vec<String>,
    source: SourceText,
    #[serde(default)]
    agents: Option<AgentsText>,
    #[serde(default = "default_store")]
    store: String,
    #[serde(default, rename = "storeTLS")]
    store_tls: Option<StoreTlsText>,
    #[serde(default)]
    mirrors: Option<PathBuf>,
    #[serde(default = "default_pki")]
    pki: PathBuf,
    #[serde(default)]
    certificate_lifetime: Option<String>,
    #[serde(default)]
    mesh: MeshText,
    #[serde(default)]
    encryption: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    service_exports: bool,
    #[serde(default)]
    cached_layout: bool,
    #[serde(default)]
    exports: ExportsText,
    #[serde(default)]
    limits: LimitsText,
    #[serde(default)]
    metrics: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterText {
    name: String,
    id: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceText {
    dir: Option<PathBuf>,
    kubernetes: Option<KubernetesText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KubernetesText {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AgentsText {
    namespace: String,
    service_account: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreTlsText {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MeshText {
    max_connected_clusters: Option<u32>,
    ula: Option<String>,
    ipv4: Option<String>,
}

fn default_store() -> String {
    "embedded:/var/lib/hawser/store".into()
}

fn default_pki() -> PathBuf {
    "/etc/hawser/pki".into()
}

fn default_mirrors(store: &StoreUri) -> PathBuf {
    match store {
        StoreUri::Embedded(dir) => dir.join("mirrors"),
        StoreUri::Etcd(_) | StoreUri::Etcds(_) => "/var/lib/hawser/mirrors".into(),
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! { with_snippet: false };
        let read: Text = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(0, |location| location.line());
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
            ConfigError::Syntax { path: path.to_owned(), line, reason }
        })?;
        read.into_config(path).map_err(|(key, reason)| ConfigError::Value {
            path: path.to_owned(),
            key,
            reason,
        })
    }
}

type Refusal = (&'static str, String);

fn refuse<E: ToString>(key: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| (key, error.to_string())
}

impl Text {
    fn into_config(self, file: &Path) -> Result<Config, Refusal> {
        let max = self.mesh.max_connected_clusters.unwrap_or(255);
        let width = ClusterIdWidth::from_max_clusters(max).map_err(refuse("mesh.maxConnectedClusters"))?;
        let name = ClusterName::parse(&self.cluster.name).map_err(refuse("cluster.name"))?;
        let id = ClusterId::new(self.cluster.id, width).map_err(refuse("cluster.id"))?;
        let listen = self.listen.parse().map_err(|_| {
            let reason = format!("{:?} is not address:port; fix: write it like 0.0.0.0:2379", self.listen);
            ("listen", reason)
        })?;
        let advertise = self.advertise.iter().map(|url| ServerUrl::parse(url)).collect::<Result<Vec<_>, _>>();
        let advertise = advertise.map_err(refuse("advertise"))?;
        if advertise.is_empty() {
            return Err((
                "advertise",
                "is empty; fix: name at least one https://host:port that peers dial".into(),
            ));
        }
        let pod_cidrs = nets("podCIDRs", &self.pod_cidrs)?;
        let node_cidrs = nets("nodeCIDRs", &self.node_cidrs)?;
        let plan = self.mesh.into_plan()?;
        disjoint(&pod_cidrs, &node_cidrs, &plan)?;
        let encryption = self.encryption.as_deref().map_or(Ok(Encryption::default()), Encryption::of_setting);
        let encryption = encryption.map_err(refuse("encryption"))?;
        let path = way(self.path.as_deref(), encryption)?;
        let metrics = self.metrics.map(|text| {
            let fix = "fix: write it like 127.0.0.1:9880";
            text.parse().map_err(|_| ("metrics", format!("{text:?} is not address:port; {fix}")))
        });
        let exports = self.exports.into_exports(&name).map_err(refuse("exports"))?;
        let source = self.source.into_config()?;
        let agents = self.agents.map(|agents| AgentAccount::new(&agents.namespace, &agents.service_account));
        let agents = agents.transpose().map_err(refuse("agents"))?;
        if agents.is_some() && matches!(source, SourceConfig::Dir(_)) {
            let reason = "their tokens are reviewed by a Kubernetes API server; fix: set source.kubernetes, or leave it out";
            return Err(("agents", reason.into()));
        }
        let certificate_lifetime = self.certificate_lifetime.map_or(Ok(Lifetime::DEFAULT), |text| {
            let reason = || format!("{text:?} is not 5s to 90d; fix: write it like 24h");
            Lifetime::parse(&text).ok_or_else(|| ("certificateLifetime", reason()))
        })?;
        let store = self.store.parse().map_err(refuse("store"))?;
        let store_tls = store_tls(&store, self.store_tls)?;
        Ok(Config {
            file: file.to_owned(),
            cluster: ClusterRef { name, id },
            listen,
            advertise,
            pod_cidrs,
            node_cidrs,
            source,
            agents,
            store: self.store,
            store_tls,
            mirrors: self.mirrors.unwrap_or_else(|| default_mirrors(&store)),
            pki: self.pki,
            certificate_lifetime,
            width,
            plan,
            encryption,
            path,
            service_exports: self.service_exports,
            cached_layout: self.cached_layout,
            exports,
            limits: self.limits.into_limits().map_err(refuse("limits"))?,
            metrics: metrics.transpose()?,
        })
    }
}

impl MeshText {
    fn into_plan(self) -> Result<MeshPlan, Refusal> {
        let default = MeshPlan::default();
        let ula = self.ula.map_or(Ok(default.ula()), |net| net.parse());
        let ula = ula.map_err(|error| ("mesh.ula", format!("{error}; fix: give a /48 of fd00::/8")))?;
        let ipv4 = self.ipv4.map_or(Ok(default.ipv4()), |net| net.parse());
        let ipv4 = ipv4.map_err(|error| ("mesh.ipv4", format!("{error}; fix: give an IPv4 CIDR")))?;
        MeshPlan::new(ula, ipv4).map_err(refuse("mesh"))
    }
}

fn way(path: Option<&str>, encryption: Encryption) -> Result<NodePath, Refusal> {
    let path = path.map_or(Ok(NodePath::default()), NodePath::parse).map_err(refuse("path"))?;
    if path == NodePath::Gateways && encryption == Encryption::Ipsec {
        let reason = "gateways send on what WireGuard carries, and encryption is ipsec; fix: set encryption: wireguard in the whole mesh, or path: direct";
        return Err(("path", reason.into()));
    }
    Ok(path)
}

impl SourceText {
    fn into_config(self) -> Result<SourceConfig, Refusal> {
        match (self.dir, self.kubernetes) {
            (Some(dir), None) => Ok(SourceConfig::Dir(dir)),
            (None, Some(KubernetesText { kubeconfig: None, context: Some(context) })) => {
                let reason = format!("context {context:?} is of no file; fix: name the kubeconfig, too");
                Err(("source.kubernetes", reason))
            }
            (None, Some(KubernetesText { kubeconfig, context })) => {
                Ok(SourceConfig::Kubernetes(KubeOptions { kubeconfig, context }))
            }
            (Some(_), Some(_)) => Err(("source", "names both dir and kubernetes; fix: leave one out".into())),
            (None, None) => {
                let reason = "names neither dir nor kubernetes; fix: write dir: PATH, or kubernetes: {}";
                Err(("source", reason.into()))
            }
        }
    }
}

fn store_tls(store: &StoreUri, tls: Option<StoreTlsText>) -> Result<Option<StoreTls>, Refusal> {
    match (store, tls) {
        (StoreUri::Etcds(_), Some(StoreTlsText { ca, cert, key })) => Ok(Some(StoreTls { ca, cert, key })),
        (StoreUri::Etcds(_), None) => {
            let reason =
                "is missing, and etcds:// is reached over TLS; fix: write {ca: PATH, cert: PATH, key: PATH}";
            Err(("storeTLS", reason.into()))
        }
        (_, Some(_)) => {
            let reason = "is of no use to this store; fix: write store: etcds://..., or leave it out";
            Err(("storeTLS", reason.into()))
        }
        (_, None) => Ok(None),
    }
}

fn nets(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, Refusal> {
    let mut nets: Vec<IpNet> = Vec::new();
    for text in texts {
        let net: IpNet = text.parse().map_err(|_| (key, format!("{text:?} is not a CIDR")))?;
        if net.trunc() != net {
            return Err((key, format!("{net} has host bits; fix: write {}", net.trunc())));
        }
        nets.push(net);
    }
    if nets.is_empty() {
        return Err((key, "is empty; fix: name the ranges, peers admit nothing else".into()));
    }
    Ok(nets)
}

/// Whether two ranges share an address.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn disjoint(pods: &[IpNet], nodes: &[IpNet], plan: &MeshPlan) -> Result<(), Refusal> {
    for pod in pods {
        if let Some(node) = nodes.iter().find(|node| overlap(pod, node)) {
            return Err(("podCIDRs", format!("{pod} overlaps nodeCIDRs {node}; fix: make them disjoint")));
        }
    }
    let mesh = [IpNet::V6(plan.ula()), IpNet::V4(plan.ipv4())];
    for net in pods.iter().chain(nodes) {
        if let Some(mesh) = mesh.iter().find(|mesh| overlap(net, mesh)) {
            return Err((
                "mesh",
                format!("{mesh} overlaps {net} of this cluster; fix: choose another range"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster:
  name: us-east
  id: 1
listen: 0.0.0.0:2379
advertise: ["https://172.16.1.11:2379"]
podCIDRs: ["10.1.0.0/16"]
nodeCIDRs: ["172.16.1.0/24"]
source:
  dir: /etc/hawser/manifests
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("cluster.yaml"), text)
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.store, "embedded:/var/lib/hawser/store");
        assert_eq!(config.mirrors, Path::new("/var/lib/hawser/store/mirrors"));
        let etcd = parse(&format!("{GOOD}store: etcd://127.0.0.1:2379\n")).unwrap();
        assert_eq!(etcd.mirrors, Path::new("/var/lib/hawser/mirrors"));
        assert_eq!(config.pki, Path::new("/etc/hawser/pki"));
        assert_eq!(config.width, ClusterIdWidth::Bits8);
        assert_eq!(config.plan, MeshPlan::default());
        assert_eq!(config.encryption, Encryption::Wireguard);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = refused(&format!("{GOOD}podCidrs: []\n"));
        assert!(error.starts_with("cluster.yaml:11: ") && error.contains("podCidrs"), "{error}");
        let error = refused(&GOOD.replace("  id: 1", "  id: 1\n  region: x"));
        assert!(error.starts_with("cluster.yaml:5: ") && error.contains("region"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        for (from, to, says) in [
            ("id: 1", "id: 256", "cluster.id: cluster id 256 is out of range 1..=255"),
            ("id: 1", "id: 0", "cluster.id"),
            ("us-east", "default", "cluster.name: cluster name \"default\" is reserved"),
            ("0.0.0.0:2379", "2379", "listen: \"2379\""),
            ("https://172.16.1.11:2379", "172.16.1.11:2379", "advertise"),
            ("10.1.0.0/16", "10.1.0.1/16", "podCIDRs: 10.1.0.1/16 has host bits; fix: write 10.1.0.0/16"),
            ("10.1.0.0/16", "172.16.0.0/16", "overlaps nodeCIDRs 172.16.1.0/24"),
            ("10.1.0.0/16", "240.1.0.0/16", "240.0.0.0/4 overlaps"),
            ("\"10.1.0.0/16\"", "", "podCIDRs: is empty"),
        ] {
            let error = refused(&GOOD.replace(from, to));
            assert!(error.contains(says), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(refused(&format!("{GOOD}store: redis://x\n")).contains("neither with embedded:"));
        assert!(refused(&format!("{GOOD}mesh: {{maxConnectedClusters: 300}}\n")).contains("300"));
        assert!(refused(&format!("{GOOD}encryption: none\n")).contains("encryption: "));
        assert!(refused(&format!("{GOOD}path: nat\n")).contains("path: path \"nat\" is neither"));
        let both = refused(&format!("{GOOD}path: gateways\nencryption: ipsec\n"));
        assert!(both.contains("path: gateways send on what WireGuard carries"), "{both}");
        assert_eq!(parse(&format!("{GOOD}path: gateways\n")).unwrap().path, NodePath::Gateways);
        assert!(refused(&format!("{GOOD}certificateLifetime: 1y\n")).contains("\"1y\" is not 5s to 90d"));
        assert!(refused(&format!("{GOOD}metrics: 9880\n")).contains("metrics: \"9880\" is not address:port"));
        for (text, encryption) in [("ipsec", Encryption::Ipsec), ("auto", Encryption::Wireguard)] {
            assert_eq!(parse(&format!("{GOOD}encryption: {text}\n")).unwrap().encryption, encryption);
        }
    }

    #[test]
    fn etcd_over_tls_has_its_files_and_no_other_store_has() {
        let tls = "storeTLS: { ca: /c/ca.crt, cert: /c/client.crt, key: /c/client.key }\n";
        let config = parse(&format!("{GOOD}store: etcds://a:2379,b:2379\n{tls}")).unwrap();
        assert_eq!(config.store_tls.unwrap().key, Path::new("/c/client.key"));
        assert_eq!(config.mirrors, Path::new("/var/lib/hawser/mirrors"));
        assert!(refused(&format!("{GOOD}store: etcds://a:2379\n")).contains("storeTLS: is missing"));
        assert!(refused(&format!("{GOOD}store: etcd://a:2379\n{tls}")).contains("storeTLS: is of no use"));
        assert!(refused(&format!("{GOOD}{tls}")).contains("storeTLS: is of no use"));
    }

    #[test]
    fn a_cluster_has_one_source_and_agents_need_kubernetes() {
        let with = |source: &str| GOOD.replace("  dir: /etc/hawser/manifests", source);
        let kubernetes = |kubeconfig: Option<&str>, context: Option<&str>| {
            let (kubeconfig, context) = (kubeconfig.map(Into::into), context.map(Into::into));
            SourceConfig::Kubernetes(KubeOptions { kubeconfig, context })
        };
        assert_eq!(parse(GOOD).unwrap().source, SourceConfig::Dir("/etc/hawser/manifests".into()));
        assert_eq!(parse(&with("  kubernetes: {}")).unwrap().source, kubernetes(None, None));
        let file = parse(&with("  kubernetes: { kubeconfig: /k, context: lab }")).unwrap();
        assert_eq!(file.source, kubernetes(Some("/k"), Some("lab")));
        let agents = "agents: { namespace: hawser-system, serviceAccount: hawser-node-agent }\n";
        let config = parse(&format!("{}{agents}", with("  kubernetes: {}"))).unwrap();
        assert_eq!(
            config.agents.unwrap().username(),
            "system:serviceaccount:hawser-system:hawser-node-agent"
        );
        for (text, says) in [
            (with("  dir: /x\n  kubernetes: {}"), "source: names both"),
            (GOOD.replace("source:\n  dir: /etc/hawser/manifests", "source: {}"), "source: names neither"),
            (with("  kubernetes: { context: lab }"), "name the kubeconfig"),
            (with("  kubernetes: { kubconfig: /k }"), "kubconfig"),
            (format!("{GOOD}{agents}"), "set source.kubernetes"),
            (
                format!("{}{}", with("  kubernetes: {}"), agents.replace("hawser-system", "a:b")),
                "agents: namespace \"a:b\"",
            ),
        ] {
            let error = refused(&text);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn wide_mode_has_more_ids() {
        let wide = format!("{}mesh: {{maxConnectedClusters: 511}}\n", GOOD.replace("id: 1", "id: 500"));
        assert_eq!(parse(&wide).unwrap().cluster.id.get(), 500);
    }
}
