//! Cilium's client configuration file: etcd's clientv3 YAML and one key of Cilium's own (cilium-facts §2).
//!
//! Read when a Cilium cluster is connected; written for a Cilium cluster that is to read ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_model::{ClusterName, ParseServerUrlError, ServerUrl};
use serde::Deserialize;

use crate::ca::{IssuedWithKey, cilium_name};
use crate::cert::MAX_PEM;
use crate::yaml::{self, YamlError, flow, quoted};

/// Where Cilium's pods have the directory.
const MOUNT: &str = "/var/lib/cilium/clustermesh";
/// More servers, or addresses of one, no cluster has.
const MAX_LIST: usize = 32;

/// What the file says. Files that it names are where Cilium's pods have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumConfig {
    pub endpoints: Vec<ServerUrl>,
    pub trusted_ca_file: Option<String>,
    pub key_file: Option<String>,
    pub cert_file: Option<String>,
    /// Hosts of endpoints, and where they are.
    pub aliases: BTreeMap<String, Vec<IpAddr>>,
}

/// etcd's own keys that say nothing here (timeouts and such) are read over, like etcd's client reads over ours.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    endpoints: Vec<String>,
    #[serde(default)]
    trusted_ca_file: Option<String>,
    /// Its name before etcd 3.4.
    #[serde(default)]
    ca_file: Option<String>,
    #[serde(default)]
    key_file: Option<String>,
    #[serde(default)]
    cert_file: Option<String>,
    #[serde(default)]
    insecure_transport: bool,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    cilium_host_aliases: Vec<AliasText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AliasText {
    hostname: String,
    ips: Vec<String>,
}

impl CiliumConfig {
    pub fn read(text: &str) -> Result<Self, CiliumConfigError> {
        let file: File = yaml::read(text)?;
        for (key, set) in [
            ("insecure-transport", file.insecure_transport),
            ("insecure-skip-tls-verify", file.insecure_skip_tls_verify),
        ] {
            if set {
                return Err(CiliumConfigError::Insecure { key });
            }
        }
        let count = file.endpoints.len();
        if !(1..=MAX_LIST).contains(&count) {
            return Err(CiliumConfigError::Count { key: "endpoints", count });
        }
        let endpoints = file.endpoints.iter().map(|url| ServerUrl::parse(url.trim_end_matches('/')));
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            trusted_ca_file: file.trusted_ca_file.or(file.ca_file),
            key_file: file.key_file,
            cert_file: file.cert_file,
            aliases: aliases(file.cilium_host_aliases)?,
        })
    }

    /// How `cluster` is reached at these addresses. A host that is an address gets the name that Cilium's Helm chart gives it, and
    /// an alias.
    pub fn of(cluster: &ClusterName, advertise: &[ServerUrl]) -> Self {
        let name = cilium_name(cluster);
        let mut aliases: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut endpoints = Vec::new();
        for url in advertise {
            let named = match url.host().parse::<IpAddr>() {
                Err(_) => url.clone(),
                Ok(ip) => {
                    let ips = aliases.entry(name.clone()).or_default();
                    if !ips.contains(&ip) {
                        ips.push(ip);
                    }
                    let url = format!("https://{name}:{}", url.port());
                    ServerUrl::parse(&url).expect("a cluster's name and a port make a URL")
                }
            };
            if !endpoints.contains(&named) {
                endpoints.push(named);
            }
        }
        Self { endpoints, trusted_ca_file: None, key_file: None, cert_file: None, aliases }
    }

    pub fn to_yaml(&self) -> String {
        let mut text = String::from("endpoints:\n");
        for url in &self.endpoints {
            text += &format!("- {url}\n");
        }
        let files = [
            ("trusted-ca-file", &self.trusted_ca_file),
            ("key-file", &self.key_file),
            ("cert-file", &self.cert_file),
        ];
        for (key, file) in files {
            if let Some(file) = file {
                text += &format!("{key}: {}\n", quoted(file));
            }
        }
        if !self.aliases.is_empty() {
            text += "cilium-host-aliases:\n";
        }
        for (host, ips) in &self.aliases {
            text += &format!("- hostname: {}\n  ips: {}\n", quoted(host), flow(ips));
        }
        text
    }
}

fn aliases(texts: Vec<AliasText>) -> Result<BTreeMap<String, Vec<IpAddr>>, CiliumConfigError> {
    if texts.len() > MAX_LIST {
        return Err(CiliumConfigError::Count { key: "cilium-host-aliases", count: texts.len() });
    }
    let mut aliases = BTreeMap::new();
    for AliasText { hostname, ips } in texts {
        let alias = |why| CiliumConfigError::Alias { host: hostname.chars().take(80).collect(), why };
        if hostname.is_empty() || hostname.len() > 253 {
            return Err(alias("is no host name"));
        }
        if !(1..=MAX_LIST).contains(&ips.len()) {
            return Err(alias("has no addresses, or too many"));
        }
        let ips = ips.iter().map(|ip| ip.parse::<IpAddr>().map(|ip| ip.to_canonical()));
        let ips: Vec<IpAddr> = ips.collect::<Result<_, _>>().map_err(|_| alias("has what is no address"))?;
        if aliases.insert(hostname.clone(), ips).is_some() {
            return Err(alias("is there twice"));
        }
    }
    Ok(aliases)
}

/// Names and texts of what Cilium mounts: into one directory, one Secret. Configs come last: Cilium takes a cluster for there when
/// its is.
#[derive(Clone, PartialEq, Eq)]
pub struct CiliumFiles(pub Vec<(String, String)>);

impl std::fmt::Debug for CiliumFiles {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl CiliumFiles {
    /// For a cluster that is to read `own`, reached at these endpoints.
    pub fn remote(own: &ClusterName, reach: &CiliumConfig, ca: String, client: &IssuedWithKey) -> Self {
        Self::with(&format!("{own}.etcd-client"), reach, std::iter::once(own), ca, client)
    }

    /// For Cilium in the cluster itself: it finds every one of these clusters at the same place, as with KVStoreMesh.
    pub fn local<'a>(
        reach: &CiliumConfig,
        clusters: impl Iterator<Item = &'a ClusterName>,
        ca: String,
        client: &IssuedWithKey,
    ) -> Self {
        Self::with("local-etcd-client", reach, clusters, ca, client)
    }

    fn with<'a>(
        stem: &str,
        reach: &CiliumConfig,
        clusters: impl Iterator<Item = &'a ClusterName>,
        ca: String,
        client: &IssuedWithKey,
    ) -> Self {
        let names = ["-ca.crt", ".key", ".crt"].map(|ending| format!("{stem}{ending}"));
        let [ca_file, key_file, cert_file] = names.clone().map(|name| Some(format!("{MOUNT}/{name}")));
        let config =
            CiliumConfig { trusted_ca_file: ca_file, key_file, cert_file, ..reach.clone() }.to_yaml();
        let texts = [ca, client.key_pem.clone(), client.cert.pem()];
        let configs = clusters.map(|cluster| (cluster.to_string(), config.clone()));
        Self(names.into_iter().zip(texts).chain(configs).collect())
    }
}

/// What a file may hold that a config names.
pub const MAX_FILE: usize = MAX_PEM;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CiliumConfigError {
    #[error("it is no etcd client configuration: {0}")]
    Yaml(#[from] YamlError),
    #[error("{key} has {count} entries, not 1 to {MAX_LIST}")]
    Count { key: &'static str, count: usize },
    #[error("{0}")]
    Server(#[from] ParseServerUrlError),
    #[error(
        "{key} is set, and a peer whose server is not proven is not connected; fix: remove it, and name trusted-ca-file"
    )]
    Insecure { key: &'static str },
    #[error("cilium-host-aliases: {host:?} {why}")]
    Alias { host: String, why: &'static str },
}

#[cfg(test)]
#[path = "cilium_tests.rs"]
mod tests;
