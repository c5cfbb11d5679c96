//! What an agent remembers over a restart: slots, so that kernel state keeps its meaning, and tunnels, so that packets
//! flow again before the API server is reached (fail static).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_agent_core::{AgentConfig, NodeSlots, Plan};
use hawser_discovery::NodeId;
use hawser_model::{
    BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, NodeIndex, NodeName, PublicKey,
};
use hawser_tunnels::{Desired, Device, Peer, PeerName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::state::{StateDir, StateError};

pub(crate) const FILE: &str = "memory.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    slots: Vec<SlotRecord>,
    peers: Vec<PeerRecord>,
    routes: Vec<String>,
    guards: Vec<String>,
    /// Whom to probe: a node and its mesh address.
    #[serde(default)]
    probed: Vec<ProbedRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SlotRecord {
    cluster: u16,
    index: u16,
    slot: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct PeerRecord {
    cluster: String,
    id: u16,
    node: String,
    key: String,
    endpoint: SocketAddr,
    allowed: Vec<String>,
    #[serde(default)]
    boot_id: Option<String>,
    #[serde(default)]
    slot: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProbedRecord {
    cluster: u16,
    index: u16,
    address: Ipv4Addr,
}

impl Memory {
    pub(crate) fn of(plan: &Plan, slots: &NodeSlots) -> Self {
        let slot = |(node, slot): (NodeId, u32)| SlotRecord {
            cluster: node.cluster.get(),
            index: node.index.get(),
            slot,
        };
        let probed = plan.probed.iter().map(|(node, address)| ProbedRecord {
            cluster: node.cluster.get(),
            index: node.index.get(),
            address: *address,
        });
        let tunnels = plan.tunnels.as_ref();
        let peers = tunnels.into_iter().flat_map(|desired| &desired.peers).map(|peer| PeerRecord {
            cluster: peer.name.cluster.name.to_string(),
            id: peer.name.cluster.id.get(),
            node: peer.name.node.to_string(),
            key: STANDARD.encode(peer.public_key.as_bytes()),
            endpoint: peer.endpoint,
            allowed: texts(&peer.allowed),
            boot_id: peer.boot_id.as_ref().map(|id| id.as_str().to_owned()),
            slot: peer.slot,
        });
        Self {
            slots: slots.iter().map(slot).collect(),
            peers: peers.collect(),
            routes: tunnels.map(|desired| texts(&desired.routes)).unwrap_or_default(),
            guards: tunnels.map(|desired| texts(&desired.guards)).unwrap_or_default(),
            probed: probed.collect(),
        }
    }

    pub(crate) fn slots(&self, limit: u32) -> NodeSlots {
        let given = self.slots.iter().filter_map(|r| Some((node(r.cluster, r.index)?, r.slot)));
        NodeSlots::restore(limit, given)
    }

    pub(crate) fn probed(&self) -> BTreeMap<NodeId, Ipv4Addr> {
        self.probed.iter().filter_map(|r| Some((node(r.cluster, r.index)?, r.address))).collect()
    }

    /// The tunnels of the last run. What does not parse is left out: the next plan knows better anyway.
    pub(crate) fn tunnels(&self, config: &AgentConfig) -> Desired {
        let own = config.mesh_addresses();
        Desired {
            device: Device {
                name: config.device.clone(),
                public_key: config.public_key,
                port: config.port,
                mtu: config.mtu,
                mark: config.mark,
            },
            addresses: [own.ipv4.into(), own.ipv6.into()].into(),
            table: config.table,
            rule_priority: config.rule_priority,
            peers: self.peers.iter().filter_map(PeerRecord::peer).collect(),
            routes: nets(&self.routes),
            guards: nets(&self.guards),
        }
    }
}

/// Puts `new` on disk unless `known` says that it is there. After a failure `known` and the file are as they were.
pub(crate) fn keep(state: &StateDir, known: &mut Memory, new: Memory) -> Result<(), StateError> {
    if *known != new {
        state.write_json(FILE, &new)?;
        *known = new;
    }
    Ok(())
}

impl PeerRecord {
    fn peer(&self) -> Option<Peer> {
        let key: [u8; 32] = STANDARD.decode(&self.key).ok()?.try_into().ok()?;
        let cluster = ClusterRef { name: ClusterName::parse(&self.cluster).ok()?, id: cluster(self.id)? };
        Some(Peer {
            name: PeerName { cluster, node: NodeName::parse(&self.node).ok()? },
            public_key: PublicKey::new(key).ok()?,
            endpoint: self.endpoint,
            allowed: nets(&self.allowed),
            keepalive: None,
            boot_id: self.boot_id.as_deref().and_then(|id| BootId::parse(id).ok()),
            slot: self.slot,
        })
    }
}

fn texts(nets: &BTreeSet<IpNet>) -> Vec<String> {
    nets.iter().map(ToString::to_string).collect()
}

fn nets(texts: &[String]) -> BTreeSet<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn cluster(id: u16) -> Option<ClusterId> {
    ClusterId::new(id.into(), ClusterIdWidth::Bits9).ok()
}

fn node(of: u16, index: u16) -> Option<NodeId> {
    Some(NodeId { cluster: cluster(of)?, index: NodeIndex::new(index.into())? })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use hawser_model::Time;

    use super::*;

    #[test]
    fn what_was_remembered_is_what_was_planned() {
        let node = node(2, 1).unwrap();
        let mut slots = NodeSlots::new(16);
        slots.assign([node], Time::ZERO);
        let cluster = ClusterRef { name: ClusterName::parse("eu-west").unwrap(), id: node.cluster };
        let peer = Peer {
            name: PeerName { cluster, node: NodeName::parse("node-1").unwrap() },
            public_key: PublicKey::new([7; 32]).unwrap(),
            endpoint: "172.16.2.11:51871".parse().unwrap(),
            allowed: BTreeSet::from(["10.2.1.0/24".parse().unwrap()]),
            keepalive: None,
            boot_id: Some(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").unwrap()),
            slot: 3,
        };
        let config = config();
        let tunnels = Desired { peers: vec![peer], ..Memory::default().tunnels(&config) };
        let probed = BTreeMap::from([(node, Ipv4Addr::new(240, 2, 0, 1))]);
        let plan = Plan { tunnels: Some(tunnels.clone()), probed: probed.clone(), ..Plan::default() };
        let text = serde_json::to_string(&Memory::of(&plan, &slots)).unwrap();
        let memory: Memory = serde_json::from_str(&text).unwrap();
        assert_eq!(memory.tunnels(&config), tunnels);
        assert_eq!(memory.probed(), probed);
        assert_eq!(memory.slots(16).get(node), slots.get(node));
    }

    #[test]
    fn what_a_full_disk_refused_is_written_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let (mut known, mut new) = (Memory::default(), Memory::default());
        new.routes.push("10.2.0.0/16".into());
        // Nothing can be written where a directory is; root's writes stop at little else.
        let full = state.path("memory.json.new");
        std::fs::create_dir(&full).unwrap();
        let error = keep(&state, &mut known, new.clone()).unwrap_err();
        assert!(error.to_string().contains("memory.json"), "{error}");
        assert_eq!(known, Memory::default(), "it is not taken for written");
        std::fs::remove_dir(full).unwrap();
        keep(&state, &mut known, new.clone()).unwrap();
        assert_eq!(state.read_json::<Memory>(FILE).unwrap(), Some(new.clone()));
        assert_eq!(known, new);
    }

    pub(crate) fn config() -> AgentConfig {
        let cluster =
            ClusterRef { name: ClusterName::parse("us-east").unwrap(), id: super::cluster(1).unwrap() };
        AgentConfig {
            cluster,
            node: NodeName::parse("node-1").unwrap(),
            index: NodeIndex::new(1).unwrap(),
            width: ClusterIdWidth::Bits8,
            mesh: hawser_model::MeshPlan::default(),
            device: hawser_tunnels::DeviceName::parse("hawser0").unwrap(),
            public_key: PublicKey::new([1; 32]).unwrap(),
            encryption: hawser_model::Encryption::Wireguard,
            kernel_ipsec: false,
            port: 51_871,
            mtu: 1_420,
            mark: hawser_tunnels::Mark { value: 0x0048_0000, mask: 0x00ff_0000 },
            table: 18_551,
            rule_priority: 90,
            probe_port: 51_872,
            reset_after: hawser_model::ResetAfter::DEFAULT,
        }
    }
}
