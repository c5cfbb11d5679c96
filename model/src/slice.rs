//! EndpointSlices as clusters share them (`endpointslices/v1`): Kubernetes' object, reduced to what a mesh needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::shorten;
use crate::{ClusterRef, Names, NodeName, PortName, Protocol, ServiceKey};

/// Namespace and name of an EndpointSlice; the name is an RFC 1123 subdomain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceKey {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl SliceKey {
    pub fn new(namespace: &str, name: &str) -> Result<Self, ParseSliceError> {
        // A namespace is a label like a service's; a slice is named like a node.
        if ServiceKey::new(namespace, "x").is_err() {
            return Err(ParseSliceError::Namespace { text: shorten(namespace) });
        }
        if NodeName::parse(name).is_err() {
            return Err(ParseSliceError::Name { text: shorten(name) });
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Namespace and name, to be shared.
    pub fn texts(&self) -> [&Arc<str>; 2] {
        [&self.namespace, &self.name]
    }

    /// Shares the namespace's text.
    pub fn share(&mut self, names: &mut Names) {
        names.share(&mut self.namespace);
    }
}

impl fmt::Display for SliceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for SliceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressFamily {
    V4,
    V6,
}

impl AddressFamily {
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub cluster: ClusterRef,
    pub key: SliceKey,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Of every address in it.
    pub family: AddressFamily,
    pub endpoints: Vec<SliceEndpoint>,
    pub ports: Vec<SlicePort>,
}

impl EndpointSlice {
    pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

    /// The service that it belongs to; none when the label is missing or names none.
    pub fn service(&self) -> Option<ServiceKey> {
        ServiceKey::new(self.key.namespace(), self.labels.get(Self::SERVICE_LABEL)?).ok()
    }
}

/// Unset conditions mean what Kubernetes says: ready and serving unless said otherwise, not terminating.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SliceEndpoint {
    pub addresses: Vec<IpAddr>,
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
    pub hostname: Option<String>,
    pub node_name: Option<String>,
    pub zone: Option<String>,
    pub hint_zones: Vec<String>,
}

impl SliceEndpoint {
    /// Counts as a backend for clusters that read no conditions: ready or serving.
    pub fn is_backend(&self) -> bool {
        let ready = self.ready.unwrap_or(true);
        ready || self.serving.unwrap_or(ready)
    }

    /// Serves, but takes nothing new while somebody else is ready: it is about to end (KEP-1669).
    pub fn is_draining(&self) -> bool {
        self.is_backend() && !self.ready.unwrap_or(true)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    pub name: PortName,
    pub protocol: Protocol,
    /// Unset means every port.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSliceError {
    #[error("namespace {text:?} is not an RFC 1123 label")]
    Namespace { text: String },
    #[error("endpoint slice name {text:?} is not an RFC 1123 subdomain")]
    Name { text: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_named_like_kubernetes_names_it() {
        assert_eq!(SliceKey::new("shop", "cart-x7f2p").unwrap().to_string(), "shop/cart-x7f2p");
        assert!(SliceKey::new("shop", &format!("{}-abcde", "a".repeat(57))).is_ok());
        for (ns, name) in [("", "a"), ("a", ""), ("a.b", "c"), ("a", "b/c"), ("a", "B")] {
            assert!(SliceKey::new(ns, name).is_err(), "{ns}/{name}");
        }
    }

    #[test]
    fn an_endpoint_is_a_backend_while_it_is_ready_or_serving() {
        let end = |ready, serving| SliceEndpoint { ready, serving, ..SliceEndpoint::default() };
        assert!(end(None, None).is_backend());
        assert!(end(Some(false), Some(true)).is_backend());
        assert!(!end(Some(false), None).is_backend());
        assert!(!end(Some(false), Some(false)).is_backend());
        assert!(end(Some(false), Some(true)).is_draining());
        assert!(!end(None, None).is_draining() && !end(Some(false), Some(false)).is_draining());
    }
}
