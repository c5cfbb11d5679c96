//! Names in certificates: every subject is one common name, and every common name says what its holder is for.

use std::fmt;

use hawser_model::{ClusterName, NodeName};

/// Who an admin is: 1 to 32 of lower-case letters, digits, `.`, `_`, `-`; shown in logs and refusals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(String);

impl UserName {
    pub const MAX_LEN: usize = 32;

    pub fn parse(text: &str) -> Option<Self> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let len_ok = (1..=Self::MAX_LEN).contains(&text.len());
        (len_ok && text.bytes().all(ok)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A common name of a certificate that one of our CAs signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommonName {
    /// `ca-<cluster>`: the CA itself.
    Ca(ClusterName),
    /// `server-<cluster>`: serves, and is nobody as a client.
    Server(ClusterName),
    Admin(UserName),
    Agent {
        cluster: ClusterName,
        node: NodeName,
    },
    Remote(ClusterName),
    /// `local-<cluster>`: Cilium's agents in the cluster itself, as Cilium names them.
    Local(ClusterName),
}

impl CommonName {
    /// Reads a name that `own`'s CA signed. The cluster has to be known, because both it and the node may hold `-`.
    pub fn parse(text: &str, own: &ClusterName) -> Option<Self> {
        let cluster = |text| ClusterName::parse(text).ok();
        if let Some(user) = text.strip_prefix("admin-") {
            return UserName::parse(user).map(Self::Admin);
        }
        if let Some(rest) = text.strip_prefix("agent-") {
            let node = rest.strip_prefix(own.as_str())?.strip_prefix('-')?;
            return Some(Self::Agent { cluster: own.clone(), node: NodeName::parse(node).ok()? });
        }
        if let Some(name) = text.strip_prefix("remote-") {
            return cluster(name).map(Self::Remote);
        }
        if let Some(name) = text.strip_prefix("local-") {
            return cluster(name).map(Self::Local);
        }
        if let Some(name) = text.strip_prefix("server-") {
            return cluster(name).map(Self::Server);
        }
        text.strip_prefix("ca-").and_then(cluster).map(Self::Ca)
    }
}

impl fmt::Display for CommonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca(cluster) => write!(f, "ca-{cluster}"),
            Self::Server(cluster) => write!(f, "server-{cluster}"),
            Self::Admin(user) => write!(f, "admin-{user}"),
            Self::Agent { cluster, node } => write!(f, "agent-{cluster}-{node}"),
            Self::Remote(cluster) => write!(f, "remote-{cluster}"),
            Self::Local(cluster) => write!(f, "local-{cluster}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_prints_as_it_parsed_even_with_dashes_everywhere() {
        let own = ClusterName::parse("us-east").unwrap();
        for text in [
            "ca-us-east",
            "server-us-east",
            "admin-jo.h_n-1",
            "agent-us-east-node-1.a-b.c",
            "remote-eu-west",
            "local-us-east",
        ] {
            assert_eq!(CommonName::parse(text, &own).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_of_no_kind_is_none() {
        let own = ClusterName::parse("us-east").unwrap();
        for text in [
            "",
            "admin-",
            "admin-Bob",
            "admin-a b",
            "agent-us-east",
            "agent-us-east-",
            "agent-us-eastnode",
            "agent-eu-west-node-1",
            "agent-us-east-No",
            "remote-",
            "remote-default",
            "root",
            "kubernetes-admin",
        ] {
            assert_eq!(CommonName::parse(text, &own), None, "{text}");
        }
    }
}
