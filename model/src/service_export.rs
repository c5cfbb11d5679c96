//! Services exported to the clusterset (MCS-API v0.5.0), as one cluster tells the others (`serviceexports/v1`).

use std::collections::BTreeMap;

use crate::{AddressFamily, ClusterRef, PortName, Protocol, ServiceKey, Timestamp};

/// The Service behind a ServiceExport. Its endpoints travel as those of a global service of a derived name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceExport {
    pub cluster: ClusterRef,
    pub key: ServiceKey,
    /// Those that the ServiceExport names for export; never its own or the Service's.
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// When the ServiceExport was created: in a conflict the oldest wins.
    pub created: Timestamp,
    pub ports: Vec<ExportedPort>,
    pub kind: ImportKind,
    pub session_affinity: SessionAffinity,
    /// Empty when the cluster does not say.
    pub ip_families: Vec<AddressFamily>,
    pub internal_traffic_policy: Option<InternalTrafficPolicy>,
    pub traffic_distribution: Option<TrafficDistribution>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedPort {
    pub name: PortName,
    pub protocol: Protocol,
    pub app_protocol: Option<String>,
    pub port: u16,
}

/// What the ServiceImport is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportKind {
    ClusterSetIp,
    Headless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SessionAffinity {
    #[default]
    None,
    /// The timeout in seconds; none where the cluster leaves it to the default (3 h).
    ClientIp(Option<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InternalTrafficPolicy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    PreferClose,
    PreferSameZone,
    PreferSameNode,
}

macro_rules! words {
    ($type:ident { $($value:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            /// As Kubernetes writes it.
            pub fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$value),)+
                    _ => None,
                }
            }

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }
        }
    };
}

words!(ImportKind { ClusterSetIp => "ClusterSetIP", Headless => "Headless" });
words!(InternalTrafficPolicy { Cluster => "Cluster", Local => "Local" });
words!(TrafficDistribution {
    PreferClose => "PreferClose",
    PreferSameZone => "PreferSameZone",
    PreferSameNode => "PreferSameNode",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_kubernetes() {
        for word in ["ClusterSetIP", "Headless"] {
            assert_eq!(ImportKind::parse(word).unwrap().as_str(), word);
        }
        for word in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
            assert_eq!(TrafficDistribution::parse(word).unwrap().as_str(), word);
        }
        assert_eq!(InternalTrafficPolicy::parse("Local"), Some(InternalTrafficPolicy::Local));
        assert_eq!(ImportKind::parse("headless"), None);
        assert_eq!(InternalTrafficPolicy::parse(""), None);
    }
}
