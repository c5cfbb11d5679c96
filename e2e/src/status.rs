//! What `hawser ... -o json` says, as far as the lab relies on it.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// The agent's half of `hawser status -o json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct AgentStatus {
    pub cluster: String,
    pub node: String,
    pub mesh_ipv4: String,
    /// Who encrypts: `kernel` or `userspace`.
    pub wireguard: String,
    pub problems: Vec<String>,
    pub clusters: Vec<ClusterStatus>,
    pub tunnels: Vec<TunnelStatus>,
    pub reasons: Vec<ReasonCount>,
    pub services: u32,
    pub cluster_word_writes: u64,
    pub node_word_writes: u64,
    pub transitions: Vec<Transition>,
    pub stuck_connections: StuckConnections,
    pub probing: Option<Probing>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probing {
    pub sent: u64,
    pub replies: u64,
}

/// How connections to what is down are ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StuckConnections {
    pub reset: u64,
    pub swept: u64,
    pub keep_alive: bool,
    pub sweep: bool,
    pub missing: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterStatus {
    pub name: String,
    pub own: bool,
    pub synced: bool,
    pub revision: i64,
    pub data_plane: String,
    pub standing: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelStatus {
    pub cluster: String,
    pub node: String,
    pub endpoint: String,
    pub public_key: String,
    pub last_handshake_ms_ago: i64,
    pub rtt_us: i64,
    pub health: String,
    pub health_reason: String,
    /// In 256ths.
    pub weight: u32,
    pub probes_lost_per_mille: u32,
    pub proves: String,
    pub via: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ReasonCount {
    pub reason: String,
    pub drop: bool,
    pub packets: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transition {
    pub about: String,
    pub from: String,
    pub to: String,
    pub reason: String,
    pub unix_ms: i64,
}

/// `hawser service get shop/cart -o json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceView {
    pub affinity: String,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServicePort {
    pub port: u32,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Backend {
    pub cluster: String,
    pub address: String,
    pub health: String,
    pub eligible: bool,
}

/// Names may be in either case style; the lab reads camelCase.
fn camel(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (camel_key(&key), camel(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(camel).collect()),
        other => other,
    }
}

fn camel_key(key: &str) -> String {
    let mut parts = key.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        out.extend(chars.next().map(|first| first.to_ascii_uppercase()));
        out.push_str(chars.as_str());
    }
    out
}

/// `hawser plan -o json`: what the next reconcile would do, one text each.
pub fn operations(text: &str) -> Result<Vec<String>> {
    let value: Value = serde_json::from_str(text).with_context(|| format!("plan: {text}"))?;
    let list = value.get("operations").unwrap_or(&value).as_array().cloned().unwrap_or_default();
    Ok(list.iter().map(ToString::to_string).collect())
}

impl AgentStatus {
    pub fn parse(text: &str) -> Result<Self> {
        let mut value: Value = serde_json::from_str(text).with_context(|| format!("status: {text}"))?;
        if let Some(agent) = value.get_mut("agent") {
            value = agent.take();
        }
        let status: Self = serde_json::from_value(camel(value)).context("the agent's status")?;
        if status.node.is_empty() {
            bail!("the agent did not answer: {text}");
        }
        Ok(status)
    }

    /// Whether everything of `clusters` (name, nodes) is here: synced, tunnels with a handshake and a round trip.
    pub fn is_whole(&self, own: &str, clusters: &[(String, usize)]) -> Result<()> {
        for (name, nodes) in clusters {
            let Some(cluster) = self.clusters.iter().find(|cluster| cluster.name == *name) else {
                bail!("{}/{} does not know {name}", self.cluster, self.node);
            };
            if !cluster.synced {
                bail!("{}/{}: {name} is not synced", self.cluster, self.node);
            }
            let alive = self.tunnels.iter().filter(|tunnel| tunnel.cluster == *name && tunnel.rtt_us >= 0);
            let alive = alive.count();
            if name != own && alive < *nodes {
                bail!("{}/{}: {alive} of {nodes} tunnels to {name} answered", self.cluster, self.node);
            }
            if name != own && cluster.data_plane != "up" {
                bail!("{}/{}: {name} is {}", self.cluster, self.node, cluster.data_plane);
            }
        }
        Ok(())
    }

    /// Packets dropped so far, by reason.
    pub fn drops(&self) -> impl Iterator<Item = &ReasonCount> {
        self.reasons.iter().filter(|reason| reason.drop)
    }

    /// Of packets, so far.
    pub fn count(&self, reason: &str) -> u64 {
        self.reasons.iter().find(|found| found.reason == reason).map_or(0, |found| found.packets)
    }

    /// What was said of `about` since then, oldest first.
    pub fn said(&self, about: &str, since_ms: u64) -> Vec<String> {
        let since = self.transitions.iter().filter(|said| said.unix_ms.unsigned_abs() >= since_ms);
        since.filter(|said| said.about == about).map(|said| said.to.clone()).collect()
    }

    pub fn data_plane_of(&self, cluster: &str) -> &str {
        self.clusters.iter().find(|c| c.name == cluster).map_or("absent", |c| c.data_plane.as_str())
    }
}

impl ServiceView {
    pub fn parse(text: &str) -> Result<Self> {
        let mut value: Value = serde_json::from_str(text).with_context(|| format!("service: {text}"))?;
        for wrapper in ["services", "service"] {
            if let Some(inner) = value.get_mut(wrapper) {
                value = inner.take();
            }
        }
        if let Value::Array(mut items) = value {
            value = if items.is_empty() { bail!("no such service: {text}") } else { items.remove(0) };
        }
        serde_json::from_value(camel(value)).context("the service")
    }

    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.ports.iter().flat_map(|port| &port.backends)
    }

    pub fn backends_of(&self, cluster: &str) -> usize {
        self.backends().filter(|backend| backend.cluster == cluster).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_case_styles_are_read() {
        let snake = r#"{"cluster":"a","node":"n","cluster_word_writes":3,"transitions":[{"unix_ms":5}]}"#;
        let camel =
            r#"{"agent":{"cluster":"a","node":"n","clusterWordWrites":3,"transitions":[{"unixMs":5}]}}"#;
        for text in [snake, camel] {
            let status = AgentStatus::parse(text).unwrap();
            assert_eq!((status.cluster_word_writes, status.transitions[0].unix_ms), (3, 5));
        }
    }
}
