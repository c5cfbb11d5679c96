//! The bundle: what one cluster tells another to be admitted, signed by its CA. No private key travels.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::{
    ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, IpNet, MeshPlan, MeshPlanError,
    ParseClusterError, ParseEncryptionError, ParseServerUrlError, ParseTimestampError, ServerUrl, Timestamp,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::ca::{Ca, CaError};
use crate::cert::{CaCert, CertError};
use crate::yaml::{self, YamlError, block, flow, quoted};

const API_VERSION: &str = "hawser.io/v1";
const KIND: &str = "ClusterBundle";
/// Lists longer than this are no cluster's.
const MAX_LIST: usize = 256;

/// What a cluster says about itself, besides who may read it and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFacts {
    pub cluster: ClusterRef,
    pub endpoints: Vec<ServerUrl>,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
    pub width: ClusterIdWidth,
    pub mesh: MeshPlan,
    pub encryption: Encryption,
}

/// A bundle whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The cluster that may read it.
    pub audience: ClusterName,
    pub facts: BundleFacts,
    pub ca: CaCert,
    pub issued: Timestamp,
    signature: Vec<u8>,
}

/// The file, and without `signature` what is signed: this order of keys, JSON without spaces.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    r#for: String,
    cluster: ClusterText,
    endpoints: Vec<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "nodeCIDRs")]
    node_cidrs: Vec<String>,
    mesh: MeshText,
    encryption: String,
    ca: String,
    issued: String,
    #[serde(skip_serializing)]
    signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterText {
    pub(crate) name: String,
    pub(crate) id: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MeshText {
    max_connected_clusters: u32,
    ula: String,
    ipv4: String,
}

impl Bundle {
    /// Signs what this cluster says of itself, for one reader.
    pub fn create(
        ca: &Ca,
        audience: ClusterName,
        facts: BundleFacts,
        now: Timestamp,
    ) -> Result<Self, BundleError> {
        if *ca.cluster() != facts.cluster.name {
            let (ca, cluster) = (ca.cluster().clone(), facts.cluster.name.clone());
            return Err(BundleError::OtherCa { ca, cluster });
        }
        if audience == facts.cluster.name {
            return Err(BundleError::ForItself { cluster: audience });
        }
        let mut bundle = Self { audience, facts, ca: ca.cert().clone(), issued: now, signature: Vec::new() };
        bundle.signature = ca.sign_bytes(&bundle.canonical()).map_err(BundleError::Sign)?;
        Ok(bundle)
    }

    /// Reads a bundle at `reader`. What comes back was signed by the CA inside it, for this reader, and that CA is
    /// valid now. Whether it fits into this mesh is asked with [`crate::check_admission`].
    pub fn read(text: &str, reader: &ClusterName, now: Timestamp) -> Result<Self, BundleError> {
        let file: File = yaml::read(text)?;
        let signature = STANDARD.decode(&file.signature).map_err(|_| BundleError::Signature)?;
        let bundle = Self { signature, ..file.parse()? };
        // First of all, so that no later sentence is about forged facts.
        if !bundle.ca.verifies(&bundle.canonical(), &bundle.signature) {
            return Err(BundleError::Signature);
        }
        let cluster = bundle.facts.cluster.name.clone();
        if bundle.audience != *reader {
            let (audience, reader) = (bundle.audience, reader.clone());
            return Err(BundleError::OtherReader { cluster, audience, reader });
        }
        let (not_before, not_after) = (bundle.ca.not_before(), bundle.ca.not_after());
        if now > not_after {
            return Err(BundleError::CaExpired { cluster, not_after, now });
        }
        if now < not_before {
            return Err(BundleError::CaNotYetValid { cluster, not_before, now });
        }
        Ok(bundle)
    }

    /// The CA's fingerprint, to compare by voice.
    pub fn fingerprint(&self) -> String {
        self.ca.fingerprint()
    }

    fn file(&self) -> File {
        let facts = &self.facts;
        File {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            r#for: self.audience.to_string(),
            cluster: ClusterText { name: facts.cluster.name.to_string(), id: facts.cluster.id.get().into() },
            endpoints: facts.endpoints.iter().map(ToString::to_string).collect(),
            pod_cidrs: facts.pod_cidrs.iter().map(ToString::to_string).collect(),
            node_cidrs: facts.node_cidrs.iter().map(ToString::to_string).collect(),
            mesh: MeshText {
                max_connected_clusters: facts.width.max_clusters().into(),
                ula: facts.mesh.ula().to_string(),
                ipv4: facts.mesh.ipv4().to_string(),
            },
            encryption: facts.encryption.to_string(),
            ca: self.ca.pem(),
            issued: self.issued.to_string(),
            signature: String::new(),
        }
    }

    /// What is signed: the typed values printed again, so that spaces and quotes of the YAML do not matter.
    fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(&self.file()).expect("a struct of strings and numbers always prints")
    }

    /// The file.
    pub fn to_yaml(&self) -> String {
        let file = self.file();
        format!(
            "apiVersion: {API_VERSION}\nkind: {KIND}\nfor: {audience}\ncluster: {{ name: {name}, id: {id} }}\n\
             endpoints: {endpoints}\npodCIDRs: {pods}\nnodeCIDRs: {nodes}\n\
             mesh: {{ maxConnectedClusters: {max}, ula: {ula}, ipv4: {ipv4} }}\nencryption: {encryption}\n\
             ca: |\n{ca}issued: {issued}\nsignature: {signature}\n",
            audience = quoted(&file.r#for),
            name = quoted(&file.cluster.name),
            id = file.cluster.id,
            endpoints = flow(&file.endpoints),
            pods = flow(&file.pod_cidrs),
            nodes = flow(&file.node_cidrs),
            max = file.mesh.max_connected_clusters,
            ula = quoted(&file.mesh.ula),
            ipv4 = quoted(&file.mesh.ipv4),
            encryption = file.encryption,
            ca = block(&file.ca),
            issued = quoted(&file.issued),
            signature = quoted(STANDARD.encode(&self.signature)),
        )
    }
}

impl File {
    fn parse(&self) -> Result<Bundle, BundleError> {
        if self.api_version != API_VERSION || self.kind != KIND {
            let found = format!("{} {}", self.api_version, self.kind).chars().take(80).collect();
            return Err(BundleError::Kind { found });
        }
        let max = self.mesh.max_connected_clusters;
        let width = ClusterIdWidth::from_max_clusters(max)?;
        let cluster = self.cluster.parse(width)?;
        let net = |text: &str| BundleError::Cidr { key: "mesh", text: text.chars().take(80).collect() };
        let ula: Ipv6Net = self.mesh.ula.parse().map_err(|_| net(&self.mesh.ula))?;
        let ipv4: Ipv4Net = self.mesh.ipv4.parse().map_err(|_| net(&self.mesh.ipv4))?;
        let endpoints =
            self.endpoints.iter().map(|url| ServerUrl::parse(url)).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() || endpoints.len() > MAX_LIST {
            return Err(BundleError::Count { key: "endpoints", count: endpoints.len() });
        }
        Ok(Bundle {
            audience: ClusterName::parse(&self.r#for)?,
            facts: BundleFacts {
                cluster,
                endpoints,
                pod_cidrs: cidrs("podCIDRs", &self.pod_cidrs)?,
                node_cidrs: cidrs("nodeCIDRs", &self.node_cidrs)?,
                width,
                mesh: MeshPlan::new(ula, ipv4)?,
                encryption: Encryption::parse(&self.encryption)?,
            },
            ca: CaCert::from_pem(&self.ca)?,
            issued: Timestamp::parse(&self.issued)?,
            signature: Vec::new(),
        })
    }
}

impl ClusterText {
    pub(crate) fn parse(&self, width: ClusterIdWidth) -> Result<ClusterRef, ParseClusterError> {
        Ok(ClusterRef { name: ClusterName::parse(&self.name)?, id: ClusterId::new(self.id, width)? })
    }
}

fn cidrs(key: &'static str, texts: &[String]) -> Result<Vec<IpNet>, BundleError> {
    if texts.is_empty() || texts.len() > MAX_LIST {
        return Err(BundleError::Count { key, count: texts.len() });
    }
    let parse = |text: &String| match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(net),
        _ => Err(BundleError::Cidr { key, text: text.chars().take(80).collect() }),
    };
    texts.iter().map(parse).collect()
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is not readable: {0}; fix: make it again with `hawser ca bundle`")]
    Yaml(#[from] YamlError),
    #[error(
        "this is a {found}, not a {API_VERSION} {KIND}; fix: give the file that `hawser ca bundle` wrote"
    )]
    Kind { found: String },
    #[error("the bundle's {key} has {count} entries, not 1 to {MAX_LIST}")]
    Count { key: &'static str, count: usize },
    #[error("{text:?} in the bundle's {key} is no CIDR without host bits")]
    Cidr { key: &'static str, text: String },
    #[error("in the bundle: {0}")]
    Cluster(#[from] ParseClusterError),
    #[error("in the bundle: {0}")]
    Server(#[from] ParseServerUrlError),
    #[error("in the bundle: {0}")]
    Mesh(#[from] MeshPlanError),
    #[error("in the bundle: {0}")]
    Encryption(#[from] ParseEncryptionError),
    #[error("in the bundle: {0}")]
    Time(#[from] ParseTimestampError),
    #[error("the bundle's CA: {0}")]
    Ca(#[from] CertError),
    #[error(
        "the bundle's signature does not fit: it was changed on its way, or the CA in it is another one; \
         fix: fetch it again from the cluster that made it, and compare the fingerprint by voice"
    )]
    Signature,
    #[error(
        "the bundle of cluster {cluster} is for {audience}, and this is {reader}; \
         fix: `hawser ca bundle --for {reader}` at {cluster}"
    )]
    OtherReader { cluster: ClusterName, audience: ClusterName, reader: ClusterName },
    #[error(
        "the CA of cluster {cluster} expired at {not_after}, and here it is {now}; \
         fix: make a new CA and a new bundle there, or set this clock"
    )]
    CaExpired { cluster: ClusterName, not_after: Timestamp, now: Timestamp },
    #[error(
        "the CA of cluster {cluster} is valid from {not_before} on, and here it is {now}; fix: set the clocks of both sides"
    )]
    CaNotYetValid { cluster: ClusterName, not_before: Timestamp, now: Timestamp },
    #[error(
        "the CA is cluster {ca}'s, but the bundle is about {cluster}; fix: configure the one that fits the other"
    )]
    OtherCa { ca: ClusterName, cluster: ClusterName },
    #[error(
        "a bundle of cluster {cluster} for itself connects nothing; fix: name the other cluster with --for"
    )]
    ForItself { cluster: ClusterName },
    #[error("the bundle could not be signed: {0}")]
    Sign(#[source] CaError),
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
