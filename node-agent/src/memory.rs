//! What an agent remembers over a restart: slots, so that kernel state keeps its meaning, and tunnels, so that packets
//! flow again before the API server is reached (fail static).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_agent_core::{AgentConfig, Draining, NodeSlots, Plan};
use hawser_discovery::{NodeId, Reflector};
use hawser_model::{
    BootId, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Epoch, EspEnd, Generation, NodeIndex,
    NodeName, PortName, Protocol, PublicKey, ServiceKey,
};
use hawser_tunnels::{Desired, Device, Peer, PeerName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::millis;
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
    /// Backends that are withdrawn, and served in their grace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    draining: Vec<DrainingRecord>,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_ports: Vec<u16>,
    #[serde(default)]
    boot_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    esp: Option<EspRecord>,
    /// The key of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    #[serde(default)]
    slot: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EspRecord {
    /// Epoch and turn.
    receives: Vec<(u32, u32)>,
    in_udp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ProbedRecord {
    cluster: u16,
    index: u16,
    address: Ipv4Addr,
    /// Of its end of the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DrainingRecord {
    namespace: String,
    service: String,
    port_name: String,
    protocol: String,
    cluster: String,
    id: u16,
    ip: IpAddr,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<(u16, String)>,
    #[serde(default)]
    elsewhere: bool,
    /// By the wall clock: a run of before knows no other.
    withdrawn_unix_ms: i64,
}

/// The same moment comes out a little otherwise each time it is asked for.
const SAME_MOMENT: i64 = 2_000;

impl Memory {
    /// `unix_ms`: now.
    pub(crate) fn of(
        plan: &Plan,
        slots: &NodeSlots,
        draining: impl Iterator<Item = Draining>,
        unix_ms: i64,
    ) -> Self {
        let slot = |(node, slot): (NodeId, u32)| SlotRecord {
            cluster: node.cluster.get(),
            index: node.index.get(),
            slot,
        };
        let probed = plan.probed.iter().map(|(node, at)| ProbedRecord {
            cluster: node.cluster.get(),
            index: node.index.get(),
            address: at.address,
            mtu: at.mtu,
        });
        let tunnels = plan.tunnels.as_ref();
        let peers = tunnels.into_iter().flat_map(|desired| &desired.peers).map(|peer| PeerRecord {
            cluster: peer.name.cluster.name.to_string(),
            id: peer.name.cluster.id.get(),
            node: peer.name.node.to_string(),
            key: STANDARD.encode(peer.public_key.as_bytes()),
            endpoint: peer.endpoint,
            allowed: texts(&peer.allowed),
            more_ports: peer.more_ports.clone(),
            boot_id: peer.boot_id.as_ref().map(|id| id.as_str().to_owned()),
            esp: peer.esp.map(EspRecord::of),
            via: peer.via.map(|key| STANDARD.encode(key.as_bytes())),
            slot: peer.slot,
        });
        Self {
            slots: slots.iter().map(slot).collect(),
            peers: peers.collect(),
            routes: tunnels.map(|desired| texts(&desired.routes)).unwrap_or_default(),
            guards: tunnels.map(|desired| texts(&desired.guards)).unwrap_or_default(),
            probed: probed.collect(),
            draining: draining.map(|known| DrainingRecord::of(&known, unix_ms)).collect(),
        }
    }

    /// What is there already has the time that it has there.
    fn keeping_times_of(mut self, known: &Self) -> Self {
        for record in &mut self.draining {
            let at = record.withdrawn_unix_ms;
            let same = |other: &&DrainingRecord| {
                (at - other.withdrawn_unix_ms).abs() <= SAME_MOMENT
                    && DrainingRecord { withdrawn_unix_ms: at, ..(*other).clone() } == *record
            };
            if let Some(other) = known.draining.iter().find(same) {
                record.withdrawn_unix_ms = other.withdrawn_unix_ms;
            }
        }
        self
    }

    pub(crate) fn draining(&self, unix_ms: i64) -> impl Iterator<Item = Draining> {
        self.draining.iter().filter_map(move |record| record.parse(unix_ms))
    }

    pub(crate) fn slots(&self, limit: u32) -> NodeSlots {
        let given = self.slots.iter().filter_map(|r| Some((node(r.cluster, r.index)?, r.slot)));
        NodeSlots::restore(limit, given)
    }

    pub(crate) fn probed(&self) -> BTreeMap<NodeId, Reflector> {
        let reflector = |r: &ProbedRecord| Reflector { address: r.address, mtu: r.mtu };
        self.probed.iter().filter_map(|r| Some((node(r.cluster, r.index)?, reflector(r)))).collect()
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
            peers: self.peers.iter().filter_map(PeerRecord::peer).collect(),
            routes: nets(&self.routes),
            guards: nets(&self.guards),
        }
    }
}

/// Puts `new` on disk unless `known` says that it is there. After a failure `known` and the file are as they were.
pub(crate) fn keep(state: &StateDir, known: &mut Memory, new: Memory) -> Result<(), StateError> {
    let new = new.keeping_times_of(known);
    if *known != new {
        state.write_json(FILE, &new)?;
        *known = new;
    }
    Ok(())
}

impl DrainingRecord {
    fn of(known: &Draining, unix_ms: i64) -> Self {
        let Draining { service, name, protocol, cluster, ip, port, node, elsewhere, age } = known;
        Self {
            namespace: service.namespace().to_owned(),
            service: service.name().to_owned(),
            port_name: name.as_str().to_owned(),
            protocol: protocol.as_str().to_owned(),
            cluster: cluster.name.to_string(),
            id: cluster.id.get(),
            ip: *ip,
            port: *port,
            node: node.as_ref().map(|(node, name)| (node.index.get(), name.to_string())),
            elsewhere: *elsewhere,
            withdrawn_unix_ms: unix_ms - millis(*age),
        }
    }

    /// A clock that was set back makes it young, and never older than it is.
    fn parse(&self, unix_ms: i64) -> Option<Draining> {
        let id = cluster(self.id)?;
        let named = |(index, name): &(u16, String)| {
            let index = NodeIndex::new((*index).into())?;
            Some((NodeId { cluster: id, index }, NodeName::parse(name).ok()?))
        };
        let age = u64::try_from(unix_ms - self.withdrawn_unix_ms).unwrap_or(0);
        Some(Draining {
            service: ServiceKey::new(&self.namespace, &self.service).ok()?,
            name: PortName::parse(&self.port_name).ok()?,
            protocol: Protocol::parse(&self.protocol).ok()?,
            cluster: ClusterRef { name: ClusterName::parse(&self.cluster).ok()?, id },
            ip: self.ip,
            port: self.port,
            node: match &self.node {
                Some(node) => Some(named(node)?),
                None => None,
            },
            elsewhere: self.elsewhere,
            age: Duration::from_millis(age),
        })
    }
}

impl PeerRecord {
    fn peer(&self) -> Option<Peer> {
        let via = match &self.via {
            Some(via) => Some(key(via)?),
            None => None,
        };
        let cluster = ClusterRef { name: ClusterName::parse(&self.cluster).ok()?, id: cluster(self.id)? };
        Some(Peer {
            name: PeerName { cluster, node: NodeName::parse(&self.node).ok()? },
            public_key: key(&self.key)?,
            endpoint: self.endpoint,
            allowed: nets(&self.allowed),
            keepalive: None,
            more_ports: self.more_ports.clone(),
            boot_id: self.boot_id.as_deref().and_then(|id| BootId::parse(id).ok()),
            esp: self.esp.as_ref().and_then(EspRecord::end),
            via,
            slot: self.slot,
        })
    }
}

fn key(text: &str) -> Option<PublicKey> {
    let key: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
    PublicKey::new(key).ok()
}

impl EspRecord {
    fn of(end: EspEnd) -> Self {
        let receives = end.receives().map(|of| (of.epoch.get(), of.turn)).collect();
        Self { receives, in_udp: end.in_udp }
    }

    fn end(&self) -> Option<EspEnd> {
        let of = |(epoch, turn): &(u32, u32)| Some(Generation { epoch: Epoch::new(*epoch)?, turn: *turn });
        let receives: Option<Vec<_>> = self.receives.iter().map(of).collect();
        EspEnd::new(receives?, self.in_udp)
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
            more_ports: vec![51880],
            boot_id: Some(BootId::parse("6c1f0c1e-1111-4222-8333-444455556666").unwrap()),
            esp: EspEnd::new([Generation { epoch: Epoch::FIRST, turn: 4 }], true),
            via: Some(PublicKey::new([8; 32]).unwrap()),
            slot: 3,
        };
        let config = config();
        let tunnels = Desired { peers: vec![peer], ..Memory::default().tunnels(&config) };
        let at = Reflector { address: Ipv4Addr::new(240, 2, 0, 1), mtu: Some(1_380) };
        let probed = BTreeMap::from([(node, at)]);
        let plan = Plan { tunnels: Some(tunnels.clone()), probed: probed.clone(), ..Plan::default() };
        let text = serde_json::to_string(&Memory::of(&plan, &slots, std::iter::empty(), 0)).unwrap();
        let memory: Memory = serde_json::from_str(&text).unwrap();
        assert_eq!(memory.tunnels(&config), tunnels);
        assert_eq!(memory.probed(), probed);
        assert_eq!(memory.slots(16).get(node), slots.get(node));
    }

    #[test]
    fn a_grace_is_as_old_after_a_restart_as_it_was_and_costs_no_second_write() {
        let known = Draining {
            service: ServiceKey::new("shop", "cart").unwrap(),
            name: PortName::parse("http").unwrap(),
            protocol: Protocol::Tcp,
            cluster: ClusterRef {
                name: ClusterName::parse("eu-west").unwrap(),
                id: super::cluster(2).unwrap(),
            },
            ip: "10.2.1.8".parse().unwrap(),
            port: 9_090,
            node: Some((node(2, 1).unwrap(), NodeName::parse("node-1").unwrap())),
            elsewhere: false,
            age: Duration::from_secs(4),
        };
        let of = |age: u64, unix_ms: i64| {
            let known = Draining { age: Duration::from_millis(age), ..known.clone() };
            Memory::of(&Plan::default(), &NodeSlots::new(4), std::iter::once(known), unix_ms)
        };
        let first = of(4_000, 1_000_000);
        let text = serde_json::to_string(&first).unwrap();
        let read: Memory = serde_json::from_str(&text).unwrap();
        assert_eq!(read.draining(1_000_000).collect::<Vec<_>>(), std::slice::from_ref(&known));
        let later: Vec<_> = read.draining(1_003_000).map(|known| known.age.as_secs()).collect();
        assert_eq!(later, [7]);
        assert_eq!(of(5_003, 1_001_000).keeping_times_of(&first), first, "a few milliseconds are no news");
        assert_ne!(of(0, 1_009_000).keeping_times_of(&first), first, "withdrawn once more, they are");
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
            masquerade_mark: 0,
            port: 51_871,
            mtu: 1_420,
            mark: hawser_tunnels::Mark { value: 0x0048_0000, mask: 0x00ff_0000 },
            probe_port: 51_872,
            reset_after: hawser_model::ResetAfter::DEFAULT,
        }
    }
}
