//! What each node's agent last said of its node: a key each under `hawser/private/reports/v1/`, written by the replica
//! that was told and read by the one that exports.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hawser_etcd::server::WriteError;
use hawser_kvstore::Cursor;
use hawser_model::{
    BootId, ClusterName, Epoch, EspEnd, Generation, MorePorts, NodeIndex, NodeName, PublicKey, TunnelEnd,
};
use hawser_wire::{Context, Entry, Key, decode, prefix};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::own::Own;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    pub boot_id: Option<BootId>,
    pub wireguard: Option<TunnelEnd>,
}

/// A new leader comes within less (`leader::election::TTL`), and exports at once.
const EXPORTED_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
#[error(
    "node {node}'s report is stored and was not exported within {} s: no replica exports; fix: see `hawser status` \
     for the store and the source",
    EXPORTED_WITHIN.as_secs()
)]
pub struct NotExported {
    pub node: NodeName,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Text {
    #[serde(rename = "bootID")]
    boot_id: Option<String>,
    wireguard: Option<End>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct End {
    epoch: u32,
    public_key: String,
    port: u16,
    mtu: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_ports: Vec<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    esp: Option<Esp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Esp {
    /// Epoch and turn.
    receives: Vec<(u32, u32)>,
    in_udp: bool,
}

fn print(report: &NodeReport) -> Bytes {
    let end = report.wireguard.as_ref().map(|end| End {
        epoch: end.epoch.get(),
        public_key: BASE64_STANDARD.encode(end.public_key.as_bytes()),
        port: end.port,
        mtu: end.mtu,
        more_ports: end.more_ports.as_slice().to_vec(),
        esp: end.esp.map(|esp| Esp {
            receives: esp.receives().map(|of| (of.epoch.get(), of.turn)).collect(),
            in_udp: esp.in_udp,
        }),
    });
    let text = Text { boot_id: report.boot_id.as_ref().map(|id| id.as_str().to_owned()), wireguard: end };
    serde_json::to_vec(&text).expect("a struct of strings and numbers always prints").into()
}

/// None for what none of our versions wrote: the agent says it again when it starts.
fn read(value: &[u8]) -> Option<NodeReport> {
    let text: Text = serde_json::from_slice(value).ok()?;
    let boot_id = text.boot_id.map(|id| BootId::parse(&id)).transpose().ok()?;
    let wireguard = match text.wireguard {
        None => None,
        Some(end) => {
            let key: [u8; 32] = BASE64_STANDARD.decode(end.public_key).ok()?.try_into().ok()?;
            let (epoch, public_key) = (Epoch::new(end.epoch)?, PublicKey::new(key).ok()?);
            let esp = match end.esp {
                None => None,
                Some(esp) => {
                    let of = |(epoch, turn)| Some(Generation { epoch: Epoch::new(epoch)?, turn });
                    let receives: Option<Vec<_>> = esp.receives.into_iter().map(of).collect();
                    Some(EspEnd::new(receives?, esp.in_udp)?)
                }
            };
            let more_ports = MorePorts::new(&end.more_ports)?;
            Some(TunnelEnd { epoch, public_key, port: end.port, mtu: end.mtu, more_ports, esp })
        }
    };
    Some(NodeReport { boot_id, wireguard })
}

fn key(node: &NodeName) -> String {
    format!("{}{node}", prefix::PRIVATE_REPORTS)
}

fn node_of(key: &[u8]) -> Option<NodeName> {
    let key = std::str::from_utf8(key).ok()?;
    NodeName::parse(key.strip_prefix(prefix::PRIVATE_REPORTS)?).ok()
}

/// Writes it down, if it says something new.
pub async fn note(own: &Own, node: &NodeName, report: &NodeReport) -> Result<(), WriteError> {
    let (key, value) = (key(node), print(report));
    match own.get(&key) {
        Some(kv) if kv.value == value => Ok(()),
        _ => own.put(key, value).await,
    }
}

/// Waits until it is exported, by whichever replica, and says under which index.
pub async fn exported(
    own: &Own,
    config: &Config,
    node: &NodeName,
    report: &NodeReport,
) -> Result<NodeIndex, NotExported> {
    let context = Context { cluster: config.cluster.clone(), width: config.width };
    let key = state_key(&config.cluster.name, node);
    let mut changes = own.subscribe();
    let found = async {
        loop {
            changes.mark_unchanged();
            let entry =
                own.get(&key).and_then(|kv| decode(&Key::parse(&kv.key).ok()?, &kv.value, &context).ok());
            if let Some(Entry::TunnelNode(known)) = entry
                // What the agent leaves open, the node's object says.
                && (report.boot_id.is_none() || known.boot_id == report.boot_id)
                && known.wireguard == report.wireguard
            {
                return known.index;
            }
            // The keyspace lives as long as the server.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::time::timeout(EXPORTED_WITHIN, found).await.map_err(|_| NotExported { node: node.clone() })
}

fn state_key(cluster: &ClusterName, node: &NodeName) -> String {
    format!("{}{cluster}/{node}", prefix::TUNNEL_NODES)
}

/// Reports as they come.
#[derive(Debug)]
pub struct Reports {
    own: Own,
    cursor: Option<Cursor>,
}

impl Reports {
    pub fn new(own: Own) -> Self {
        Self { own, cursor: None }
    }

    /// What was said since the last call; all of it the first time. Cost: the changes of the keyspace since then.
    pub fn news(&mut self) -> Vec<(NodeName, NodeReport)> {
        let said = self.own.news(prefix::PRIVATE_REPORTS, &mut self.cursor);
        said.iter().filter_map(|kv| Some((node_of(&kv.key)?, read(&kv.value)?))).collect()
    }

    /// Forgets nodes that do not exist any more. Cost: the nodes.
    pub async fn sweep(&self, exists: impl Fn(&NodeName) -> bool) -> Result<(), WriteError> {
        for kv in self.own.list(prefix::PRIVATE_REPORTS) {
            if !node_of(&kv.key).is_some_and(|node| exists(&node)) {
                self.own.take(&kv).await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written_and_nonsense_is_none() {
        let wireguard = TunnelEnd {
            epoch: Epoch::new(1).unwrap(),
            public_key: PublicKey::new([7; 32]).unwrap(),
            port: 51871,
            mtu: 1420,
            more_ports: MorePorts::new(&[51880, 51881]).unwrap(),
            esp: None,
        };
        let boot_id = Some(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").unwrap());
        let whole = NodeReport { boot_id, wireguard: Some(wireguard) };
        let empty = NodeReport { boot_id: None, wireguard: None };
        for report in [whole, empty] {
            assert_eq!(read(&print(&report)), Some(report));
        }
        for nonsense in ["", "{", "[]", r#"{"wireguard":{"epoch":0,"publicKey":"","port":1,"mtu":1}}"#] {
            assert_eq!(read(nonsense.as_bytes()), None, "{nonsense}");
        }
    }
}
