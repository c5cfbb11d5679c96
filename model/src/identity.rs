//! Security identities: a number that travels by address, and the labels it stands for.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::shorten;
use crate::{ClusterId, ClusterIdWidth, ClusterName};

/// A numeric identity: `cluster_id << (24 - cluster bits) | local`, or a reserved one below 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(u32);

impl IdentityId {
    pub const UNKNOWN: Self = Self(0);
    pub const HOST: Self = Self(1);
    pub const WORLD: Self = Self(2);
    pub const REMOTE_NODE: Self = Self(6);
    /// Cluster-less and reserved numbers lie below this one.
    pub const FIRST_ALLOCATED: u32 = 256;

    pub fn new(cluster: ClusterId, width: ClusterIdWidth, local: u32) -> Result<Self, IdentityError> {
        let bits = 24 - width.bits();
        if local == 0 || local >> bits != 0 {
            return Err(IdentityError::Local { local, max: (1 << bits) - 1 });
        }
        Ok(Self(u32::from(cluster.get()) << bits | local))
    }

    /// A number as another cluster states it. Anything of 24 bits is a number; whose it is, is asked with
    /// [`IdentityId::belongs_to`].
    pub fn from_wire(number: u32) -> Result<Self, IdentityError> {
        if number >> 24 != 0 {
            return Err(IdentityError::Wide { number });
        }
        Ok(Self(number))
    }

    pub fn get(self) -> u32 {
        self.0
    }

    pub fn is_reserved(self) -> bool {
        self.0 < Self::FIRST_ALLOCATED
    }

    /// The part that the cluster itself allocated.
    pub fn local(self, width: ClusterIdWidth) -> u32 {
        self.0 & ((1 << (24 - width.bits())) - 1)
    }

    /// In the cluster's range, local part not zero.
    pub fn belongs_to(self, cluster: ClusterId, width: ClusterIdWidth) -> bool {
        self.0 >> (24 - width.bits()) == u32::from(cluster.get()) && self.local(width) != 0
    }
}

impl fmt::Display for IdentityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("local identity {local} is out of range 1..={max}")]
    Local { local: u32, max: u32 },
    #[error("identity {number} has more than 24 bits")]
    Wide { number: u32 },
}

/// One label of an identity. The key is what labels are sorted and found by; the source says who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    pub source: String,
    pub value: String,
}

/// The labels of an identity, sorted by key alone, as Cilium writes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Labels(BTreeMap<String, Label>);

impl Labels {
    pub const CLUSTER_KEY: &str = "io.cilium.k8s.policy.cluster";
    pub const SERVICE_ACCOUNT_KEY: &str = "io.cilium.k8s.policy.serviceaccount";
    pub const NAMESPACE_KEY: &str = "io.kubernetes.pod.namespace";
    pub const NAMESPACE_LABEL_PREFIX: &str = "io.cilium.k8s.namespace.labels.";
    pub const K8S: &str = "k8s";

    /// Parses `source:key=value;` items. The value may hold `=`; nothing may hold `;`.
    pub fn parse(text: &str) -> Result<Self, ParseLabelsError> {
        let mut labels = Self::default();
        let Some(items) = text.strip_suffix(';') else {
            return Err(ParseLabelsError::Unterminated);
        };
        for item in items.split(';') {
            let bad = || ParseLabelsError::Item { item: shorten(item) };
            let (source, rest) = item.split_once(':').ok_or_else(bad)?;
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            if source.is_empty() || key.is_empty() {
                return Err(bad());
            }
            labels.insert(source, key, value);
        }
        Ok(labels)
    }

    /// `;` would end the item early in a peer's parser, so a label that holds it is left out: false.
    pub fn insert(&mut self, source: &str, key: &str, value: &str) -> bool {
        if [source, key, value].iter().any(|part| part.contains(';')) {
            return false;
        }
        self.0.insert(key.into(), Label { source: source.into(), value: value.into() });
        true
    }

    pub fn get(&self, key: &str) -> Option<&Label> {
        self.0.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Label)> {
        self.0.iter().map(|(key, label)| (key.as_str(), label))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The cluster these labels speak for: the cluster label with source `k8s` exactly.
    pub fn cluster(&self) -> Option<&str> {
        self.get(Self::CLUSTER_KEY)
            .filter(|label| label.source == Self::K8S)
            .map(|label| label.value.as_str())
    }

    /// Whether these labels say that they belong to `name`; an identity that does not is refused.
    pub fn speak_for(&self, name: &ClusterName) -> bool {
        self.cluster() == Some(name.as_str())
    }
}

impl fmt::Display for Labels {
    /// `source:key=value;` for each label, sorted by key, no spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(key, label)| write!(f, "{}:{key}={};", label.source, label.value))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseLabelsError {
    #[error("labels do not end with ';'")]
    Unterminated,
    #[error("label {item:?} is not source:key=value")]
    Item { item: String },
}

/// An identity and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: IdentityId,
    pub labels: Labels,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: u32) -> ClusterId {
        ClusterId::new(id, ClusterIdWidth::Bits9).unwrap()
    }

    #[test]
    fn an_identity_carries_its_cluster_in_either_width() {
        let narrow = IdentityId::new(cluster(7), ClusterIdWidth::Bits8, 79).unwrap();
        assert_eq!(narrow.get(), 458_831);
        assert!(narrow.belongs_to(cluster(7), ClusterIdWidth::Bits8));
        assert!(!narrow.belongs_to(cluster(8), ClusterIdWidth::Bits8));
        let wide = IdentityId::new(cluster(511), ClusterIdWidth::Bits9, 32_767).unwrap();
        assert_eq!(wide.get(), 0xff_ffff);
        assert!(IdentityId::new(cluster(1), ClusterIdWidth::Bits9, 32_768).is_err());
        assert!(IdentityId::new(cluster(1), ClusterIdWidth::Bits8, 0).is_err());
        assert!(IdentityId::from_wire(1 << 24).is_err());
    }

    #[test]
    fn labels_are_sorted_by_key_alone_and_survive_a_round_trip() {
        let text = "k8s:app=frontend;cidr:b=x=y;k8s:empty=;";
        let labels = Labels::parse("k8s:empty=;k8s:app=frontend;cidr:b=x=y;").unwrap();
        assert_eq!(labels.to_string(), text);
        assert_eq!(Labels::parse(text).unwrap(), labels);
        assert_eq!(labels.get("b").unwrap().value, "x=y");
    }

    #[test]
    fn a_cluster_label_counts_only_when_kubernetes_vouches_for_it() {
        let name = ClusterName::parse("hawser-a").unwrap();
        assert!(Labels::parse("k8s:io.cilium.k8s.policy.cluster=hawser-a;").unwrap().speak_for(&name));
        assert!(!Labels::parse("any:io.cilium.k8s.policy.cluster=hawser-a;").unwrap().speak_for(&name));
        assert!(!Labels::parse("k8s:app=x;").unwrap().speak_for(&name));
    }

    #[test]
    fn malformed_labels_are_refused() {
        for bad in ["", "k8s:app=x", ";", "app=x;", ":app=x;", "k8s:=x;"] {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
        assert!(!Labels::default().insert("k8s", "a;b", "c"));
    }
}
