//! Other clusters: what we admitted them with, and what they say they can do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::shorten;
use crate::{ClusterIdWidth, ClusterRef, NodePath, Timestamp};

/// Where an API server listens: `https://host:port`, always TLS, nothing after the port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerUrl {
    text: Arc<str>,
    port: u16,
}

impl ServerUrl {
    const SCHEME: &str = "https://";
    pub const MAX_LEN: usize = 300;

    pub fn parse(text: &str) -> Result<Self, ParseServerUrlError> {
        let bad = |why| ParseServerUrlError { text: shorten(text), why };
        if text.len() > Self::MAX_LEN {
            return Err(bad("is longer than 300 characters"));
        }
        let authority = text.strip_prefix(Self::SCHEME).ok_or_else(|| bad("does not begin with https://"))?;
        let (host, port) = authority.rsplit_once(':').ok_or_else(|| bad("names no port"))?;
        let port = match port.parse::<u16>() {
            Ok(number) if number != 0 && number.to_string() == port => number,
            _ => return Err(bad("has a port that is not 1..=65535")),
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        let v6 = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let ok = match v6 {
            Some(v6) => matches!(v6.parse(), Ok(IpAddr::V6(_))),
            None => !host.is_empty() && host.len() <= 253 && host.bytes().all(name),
        };
        if !ok {
            return Err(bad("has a host that is neither a name nor an address"));
        }
        Ok(Self { text: text.into(), port })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Name or address, without the brackets of an IPv6 one.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as a resolver takes it.
    pub fn authority(&self) -> &str {
        &self.text[Self::SCHEME.len()..]
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("server address {text:?} {why}; it looks like https://172.16.1.11:2379")]
pub struct ParseServerUrlError {
    pub text: String,
    pub why: &'static str,
}

/// A cluster admitted by `hawser connect` (`hawser/local/peers/v1`): what it may say, and how to reach and prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub cluster: ClusterRef,
    pub endpoints: Vec<ServerUrl>,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
    /// PEM, during a rotation the old one and the new one. Trusted for exactly one name, `remote-<cluster>`; of a cluster on
    /// Cilium, which has no other name where it is in Cilium's legacy mode, for `remote` too.
    pub ca: String,
    pub admitted: Timestamp,
    pub kind: PeerKind,
}

/// What runs at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum PeerKind {
    #[default]
    Hawser,
    /// Cilium's clustermesh-apiserver, or any etcd with what a Cilium cluster writes in it.
    Cilium(CiliumPeer),
}

/// How a cluster on Cilium is reached, where that differs: Cilium's client configuration file (cilium-facts §2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CiliumPeer {
    /// What its server's certificate has to name; none: the host of the endpoint that is dialled.
    pub server_name: Option<String>,
    /// `cilium-host-aliases`: where hosts of the endpoints are, in place of DNS. No list is empty.
    pub aliases: BTreeMap<String, Vec<IpAddr>>,
}

/// What a cluster says about its keyspace (`cluster-config`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    pub cluster: ClusterRef,
    /// `maxConnectedClusters`.
    pub width: ClusterIdWidth,
    /// Canaries are written; without them every prefix may be read at once.
    pub synced_canaries: bool,
    /// Data lives under `cilium/cache/`, scoped by cluster.
    pub cached: bool,
    /// MCS-API: not supported, supported but off, on.
    pub service_exports: Option<bool>,
    pub endpoint_slices: ExportMode,
    /// Hawser's own; a cluster that says nothing is direct.
    pub path: NodePath,
}

/// Which form of global services a cluster publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ExportMode {
    #[default]
    ServicesOnly,
    ServicesAndSlices,
    SlicesOnly,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_https_host_and_port() {
        for (text, host, port) in [
            ("https://172.16.1.11:2379", "172.16.1.11", 2379),
            ("https://api.us-east.example:443", "api.us-east.example", 443),
            ("https://[fd00::1]:2379", "fd00::1", 2379),
        ] {
            let url = ServerUrl::parse(text).unwrap();
            assert_eq!((url.host(), url.port(), url.as_str()), (host, port, text));
            assert_eq!(format!("https://{}", url.authority()), text);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "172.16.1.11:2379",
            "http://172.16.1.11:2379",
            "https://172.16.1.11",
            "https://:2379",
            "https://a:0",
            "https://a:70000",
            "https://a:02379",
            "https://a:2379/",
            "https://user@a:2379",
            "https://fd00::1:2379",
            "https://[fd00::1%eth0]:2379",
            &format!("https://{}:1", "a".repeat(400)),
        ] {
            assert!(ServerUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
