//! `join.yaml`: all a new node needs to reach its API server once and be believed.

use hawser_model::{
    ClusterIdWidth, ClusterRef, NodeName, ParseClusterError, ParseNodeError, ParseServerUrlError, ServerUrl,
};
use serde::Deserialize;

use crate::bundle::ClusterText;
use crate::ca_set::CaSet;
use crate::cert::CertError;
use crate::token::{Token, TokenError};
use crate::yaml::{self, YamlError, block, flow, quoted};

const MAX_SERVERS: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinFile {
    pub cluster: ClusterRef,
    pub node: NodeName,
    pub servers: Vec<ServerUrl>,
    pub token: Token,
    /// During a rotation the old one and the new one.
    pub ca: CaSet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: ClusterText,
    node: String,
    servers: Vec<String>,
    token: String,
    ca: String,
}

impl JoinFile {
    pub fn from_yaml(text: &str) -> Result<Self, JoinError> {
        let file: File = yaml::read(text)?;
        if file.servers.is_empty() || file.servers.len() > MAX_SERVERS {
            return Err(JoinError::Servers { count: file.servers.len() });
        }
        Ok(Self {
            // The file does not say how wide ids are; the API server knows, and says so after the join.
            cluster: file.cluster.parse(ClusterIdWidth::Bits9)?,
            node: NodeName::parse(&file.node)?,
            servers: file.servers.iter().map(|url| ServerUrl::parse(url)).collect::<Result<_, _>>()?,
            token: Token::parse(&file.token)?,
            ca: CaSet::from_pem(&file.ca)?,
        })
    }

    pub fn to_yaml(&self) -> String {
        format!(
            "cluster: {{ name: {name}, id: {id} }}\nnode: {node}\nservers: {servers}\ntoken: {token}\nca: |\n{ca}",
            name = quoted(&self.cluster.name),
            id = self.cluster.id,
            node = quoted(&self.node),
            servers = flow(&self.servers),
            token = quoted(self.token.reveal()),
            ca = block(&self.ca.pem()),
        )
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    #[error("the join file is not readable: {0}; fix: make it again with `hawser ca token`")]
    Yaml(#[from] YamlError),
    #[error("the join file names {count} servers, not 1 to {MAX_SERVERS}")]
    Servers { count: usize },
    #[error("in the join file: {0}")]
    Cluster(#[from] ParseClusterError),
    #[error("in the join file: {0}")]
    Node(#[from] ParseNodeError),
    #[error("in the join file: {0}")]
    Server(#[from] ParseServerUrlError),
    #[error("in the join file: {0}")]
    Token(#[from] TokenError),
    #[error("in the join file, the CA: {0}")]
    Ca(#[from] CertError),
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
