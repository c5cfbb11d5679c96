//! Clusters on Cilium: admitted by what an operator says of them, and given files to read us with (cilium-facts §2).

use bytes::Bytes;
use hawser_api::admin::{CiliumCluster, CiliumConfigReply, NamedFile};
use hawser_model::{
    CiliumPeer, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, IpNet, ParseClusterError,
    ParseServerUrlError, Peer, PeerKind, ServerUrl,
};
use hawser_pki::{
    Authority, CILIUM_FILE_MAX, CaError, CaSet, CertError, CiliumConfig, CiliumFacts, CiliumFiles,
    IssuedWithKey, Leaf,
};
use hawser_wire::limits;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::trust::now;

#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    #[error("{0}")]
    Cluster(#[from] ParseClusterError),
    #[error("{0}")]
    Server(#[from] ParseServerUrlError),
    #[error("{key} has {count} entries, not {min} to {max}")]
    Count { key: &'static str, count: usize, min: usize, max: usize },
    #[error("{text:?} in {key} is no CIDR without host bits; fix: such as 10.2.0.0/16")]
    Cidr { key: &'static str, text: String },
    #[error("the cluster's CA: {0}")]
    Ca(#[from] CertError),
    #[error("alias {host:?}: {text:?} is no address")]
    Alias { host: String, text: String },
    #[error("server name {text:?} is no host name")]
    ServerName { text: String },
}

/// What an operator says of a cluster, parsed. Whether it fits is asked with [`hawser_pki::check_cilium`].
pub fn facts(text: &CiliumCluster) -> Result<CiliumFacts, DescribeError> {
    // The widest: this mesh's own width is a rule of admission, with a sentence of its own.
    let id = ClusterId::new(text.id, ClusterIdWidth::Bits9)?;
    let count = |key, count, min, max| match (min..=max).contains(&count) {
        true => Ok(()),
        false => Err(DescribeError::Count { key, count, min, max }),
    };
    count("endpoints", text.endpoints.len(), 1, limits::ENDPOINTS)?;
    count("cilium-host-aliases", text.aliases.len(), 0, limits::ENDPOINTS)?;
    let cidrs = |key: &'static str, texts: &[String]| {
        count(key, texts.len(), 1, limits::CIDRS)?;
        let parse = |text: &String| match text.parse::<IpNet>() {
            Ok(net) if net.trunc() == net => Ok(net),
            _ => Err(DescribeError::Cidr { key, text: text.chars().take(80).collect() }),
        };
        texts.iter().map(parse).collect::<Result<Vec<_>, _>>()
    };
    let mut reach = CiliumPeer::default();
    if !text.server_name.is_empty() {
        if rustls::pki_types::ServerName::try_from(text.server_name.as_str()).is_err() {
            return Err(DescribeError::ServerName { text: text.server_name.chars().take(80).collect() });
        }
        reach.server_name = Some(text.server_name.clone());
    }
    for alias in &text.aliases {
        count("cilium-host-aliases", alias.ips.len(), 1, limits::ENDPOINTS)?;
        let host: String = alias.hostname.chars().take(limits::NAME_BYTES).collect();
        let bad = |text: &String| DescribeError::Alias {
            host: host.clone(),
            text: text.chars().take(80).collect(),
        };
        let ips = alias.ips.iter().map(|ip| ip.parse::<std::net::IpAddr>().map_err(|_| bad(ip)));
        let ips = ips.map(|ip| ip.map(|ip| ip.to_canonical())).collect::<Result<Vec<_>, _>>()?;
        reach.aliases.insert(host, ips);
    }
    Ok(CiliumFacts {
        cluster: ClusterRef { name: ClusterName::parse(&text.name)?, id },
        endpoints: text.endpoints.iter().map(|url| ServerUrl::parse(url)).collect::<Result<_, _>>()?,
        pod_cidrs: cidrs("--pod-cidr", &text.pod_cidrs)?,
        node_cidrs: cidrs("--node-cidr", &text.node_cidrs)?,
        ca: CaSet::from_pem(&text.ca)?,
        reach,
    })
}

#[derive(Debug, thiserror::Error)]
pub enum ShownError {
    #[error("the certificate to show needs its key, and the key its certificate; fix: give both, or neither")]
    Half,
    #[error("the {what} to show is longer than {CILIUM_FILE_MAX} bytes")]
    TooLarge { what: &'static str },
    #[error("the certificate to show: {0}")]
    Cert(#[from] CertError),
    #[error(
        "the certificate to show ({name}) and its key cannot be used together: {source}; fix: give the two that belong together"
    )]
    Pair {
        name: String,
        #[source]
        source: rustls::Error,
    },
    #[error("the {what} to show is no PEM: {source}")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("the certificate to show ({name}) expired at {not_after}; fix: give one that is valid")]
    Expired { name: String, not_after: hawser_model::Timestamp },
}

/// The certificate that a Cilium cluster made for its readers: kept at [`crate::peers::shown_key`], never given out.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Shown {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Shown {
    /// None when the request gives none: then it is shown our own certificate for peers.
    pub fn of(text: &CiliumCluster) -> Result<Option<Self>, ShownError> {
        match (text.certificate.is_empty(), text.key.is_empty()) {
            (true, true) => return Ok(None),
            (false, false) => {}
            _ => return Err(ShownError::Half),
        }
        for (what, pem) in [("certificate", &text.certificate), ("key", &text.key)] {
            if pem.len() > CILIUM_FILE_MAX {
                return Err(ShownError::TooLarge { what });
            }
        }
        let shown = Self { certificate: text.certificate.clone(), key: text.key.clone() };
        let Leaf { name, not_after, .. } = Leaf::from_pem(&shown.certificate)?;
        shown.certified()?;
        match not_after < now() {
            true => Err(ShownError::Expired { name, not_after }),
            false => Ok(Some(shown)),
        }
    }

    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("two texts always print").into()
    }

    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// For a TLS client. Refused when the key is another certificate's.
    pub fn certified(&self) -> Result<CertifiedKey, ShownError> {
        let pem = |what| move |source| ShownError::Pem { what, source };
        let chain =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(pem("certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(pem("key"))?;
        let name = Leaf::from_pem(&self.certificate)?.name;
        let pair = |source| ShownError::Pair { name: name.clone(), source };
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(pair)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(pair)?;
        Ok(certified)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("{0}; fix: name a connected cluster that runs Cilium, as `hawser status` does")]
    Name(#[from] ParseClusterError),
    #[error(
        "cluster {cluster} is not connected; fix: `hawser connect --cilium` it first: nobody reads here before he is admitted"
    )]
    NotConnected { cluster: ClusterName },
    #[error("cluster {cluster} runs Hawser, and needs no files; fix: `hawser ca bundle --for {cluster}`")]
    Hawser { cluster: ClusterName },
    #[error(
        "cachedLayout is off, so Cilium in this cluster has nothing to read; fix: set `cachedLayout: true` in cluster.yaml"
    )]
    NotCached,
    #[error("the certificate cannot be made: {0}")]
    Ca(#[from] CaError),
}

/// What Cilium mounts to read this cluster: a connected cluster named `reader`, or, when that is empty, Cilium here.
pub fn files(
    config: &Config,
    authority: &Authority,
    peers: &[Peer],
    reader: &str,
) -> Result<CiliumConfigReply, FilesError> {
    let own = &config.cluster.name;
    let ca_pem = authority.trusted().pem();
    let reach = CiliumConfig::of(own, &config.advertise);
    if reader.is_empty() {
        if !config.cached_layout {
            return Err(FilesError::NotCached);
        }
        let issued = authority.issuing().issue_cilium_local(now())?;
        return Ok(reply(
            CiliumFiles::local(&reach, peers.iter().map(|peer| &peer.cluster.name), ca_pem, &issued),
            &issued,
        ));
    }
    let reader = ClusterName::parse(reader)?;
    match peers.iter().find(|peer| peer.cluster.name == reader).map(|peer| &peer.kind) {
        None => return Err(FilesError::NotConnected { cluster: reader }),
        Some(PeerKind::Hawser) => return Err(FilesError::Hawser { cluster: reader }),
        Some(PeerKind::Cilium(_)) => {}
    }
    let issued = authority.issuing().issue_cilium_remote(&reader, now())?;
    Ok(reply(CiliumFiles::remote(own, &reach, ca_pem, &issued), &issued))
}

fn reply(files: CiliumFiles, issued: &IssuedWithKey) -> CiliumConfigReply {
    let named = |(name, text): (String, String)| NamedFile { secret: name.ends_with(".key"), name, text };
    CiliumConfigReply {
        files: files.0.into_iter().map(named).collect(),
        not_after: issued.cert.not_after.to_string(),
    }
}
