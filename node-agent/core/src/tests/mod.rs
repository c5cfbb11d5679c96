//! Meshes told in a few lines: `mk_node(..)`, `mk_service(..)` and what one node's agent makes of them.

mod agent;
mod budget;
mod cilium;
mod datapath;
mod drains;
mod flips;
mod gateways;
mod health;
mod paths;
mod resets;
mod services;
mod slots;
mod spread;
mod tunnels;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::{
    AddressKind, Affinity, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Endpoint, Epoch,
    GlobalService, IdentityId, MeshPlan, Node, NodeAddress, NodeIndex, NodeName, Outside, Peer, PeerKind,
    PortMap, PortName, Protocol, PublicKey, ServerUrl, ServiceKey, ServicePort, SharedService, Time,
    Timestamp, TunnelEnd, TunnelNode,
};
use hawser_tunnels::{DeviceName, Mark};
use hawser_wire::{Entry, Resource};

use crate::{Agent, AgentConfig, HealthWords, Interfaces, NodeSlots, Output, WordWrite};

pub(crate) const WIDTH: ClusterIdWidth = ClusterIdWidth::Bits8;

/// `us-east` (1), `eu-west` (2), `ap-south` (3).
pub(crate) fn cluster(id: u32) -> ClusterRef {
    let name = ["us-east", "eu-west", "ap-south", "sa-east"][id as usize - 1];
    ClusterRef { name: ClusterName::parse(name).unwrap(), id: ClusterId::new(id, WIDTH).unwrap() }
}

pub(crate) fn name(id: u32) -> ClusterName {
    cluster(id).name
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(byte: u8) -> PublicKey {
    PublicKey::new([byte; 32]).unwrap()
}

pub(crate) fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// Cluster `c`'s node `n`: 172.16.c.10n, pods 10.c.n.0/24, key c·16+n.
pub(crate) fn mk_node(c: u32, n: u32) -> Vec<Entry> {
    let node = NodeName::parse(&format!("node-{n}")).unwrap();
    let index = NodeIndex::new(n).unwrap();
    vec![
        Entry::Node(Node {
            cluster: cluster(c),
            name: node.clone(),
            addresses: vec![NodeAddress {
                kind: AddressKind::InternalIp,
                ip: ip(&format!("172.16.{c}.10{n}")),
            }],
            pod_cidrs: vec![format!("10.{c}.{n}.0/24").parse().unwrap()],
            boot_id: None,
            wireguard_key: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }),
        Entry::TunnelNode(TunnelNode {
            cluster: cluster(c),
            name: node.clone(),
            index,
            mesh: MeshPlan::default().addresses(cluster(c).id, index, &node),
            boot_id: None,
            wireguard: Some(TunnelEnd {
                epoch: Epoch::FIRST,
                public_key: key((c * 16 + n) as u8),
                port: 51_871,
                mtu: 1_420,
                more_ports: hawser_model::MorePorts::new(&[51_880 + n as u16]).unwrap(),
                esp: None,
            }),
            public_endpoint: None,
            gateway: false,
        }),
    ]
}

/// Pod `10.c.n.p` on node `n` of cluster `c`.
pub(crate) fn mk_pod(c: u32, n: u32, p: u32) -> Entry {
    mk_pod_at(c, &format!("10.{c}.{n}.{p}"), n)
}

pub(crate) fn mk_pod_at(c: u32, address: &str, n: u32) -> Entry {
    Entry::Endpoint(Endpoint {
        ip: ip(address),
        host: Some(ip(&format!("172.16.{c}.10{n}"))),
        identity: IdentityId::new(cluster(c).id, WIDTH, 7).unwrap(),
        encryption_key: 255,
        namespace: "shop".into(),
        pod: "cart".into(),
        service_account: "default".into(),
        named_ports: BTreeMap::new(),
        left_out: false,
    })
}

fn http(port: u16) -> BTreeMap<PortName, ServicePort> {
    BTreeMap::from([(PortName::parse("http").unwrap(), ServicePort { protocol: Protocol::Tcp, port })])
}

fn backends(pods: &[&str], port: u16) -> PortMap {
    pods.iter().map(|pod| (ip(pod), http(port))).collect()
}

/// shop/cart as the own cluster (1) has it: 10.96.0.80:80.
pub(crate) fn mk_service(affinity: Affinity, pods: &[&str]) -> Entry {
    Entry::LocalService(GlobalService {
        cluster: cluster(1),
        key: ServiceKey::new("shop", "cart").unwrap(),
        cluster_ips: vec![ip("10.96.0.80")],
        ports: http(80),
        routing: hawser_model::Routing { affinity, ..Default::default() },
        shared: true,
        backends: backends(pods, 8_080),
        draining: Default::default(),
        zones: BTreeMap::new(),
        outside: Default::default(),
    })
}

/// shop/cart as cluster `c` shares it.
pub(crate) fn mk_shared(c: u32, pods: &[&str], port: u16) -> Entry {
    Entry::Service(SharedService {
        cluster: cluster(c),
        key: ServiceKey::new("shop", "cart").unwrap(),
        frontends: PortMap::new(),
        backends: backends(pods, port),
        draining: Default::default(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        include_external: true,
        shared: true,
    })
}

/// Cluster `c`, admitted with 10.c.0.0/16 and 172.16.c.0/24.
pub(crate) fn mk_peer(c: u32) -> Entry {
    Entry::LocalPeer(Peer {
        cluster: cluster(c),
        endpoints: vec![ServerUrl::parse(&format!("https://172.16.{c}.11:2379")).unwrap()],
        pod_cidrs: vec![format!("10.{c}.0.0/16").parse().unwrap()],
        node_cidrs: vec![format!("172.16.{c}.0/24").parse().unwrap()],
        ca: "PEM".into(),
        admitted: Timestamp::parse("2026-11-20T12:00:00Z").unwrap(),
        kind: PeerKind::Hawser,
    })
}

pub(crate) fn mk_config() -> AgentConfig {
    AgentConfig {
        cluster: cluster(1),
        node: NodeName::parse("node-1").unwrap(),
        index: NodeIndex::new(1).unwrap(),
        width: WIDTH,
        mesh: MeshPlan::default(),
        device: DeviceName::parse("hawser0").unwrap(),
        public_key: key(0x11),
        encryption: hawser_model::Encryption::Wireguard,
        kernel_ipsec: false,
        masquerade_mark: 0x4000,
        port: 51_871,
        mtu: 1_420,
        mark: Mark { value: 0x0048_0000, mask: 0x00ff_0000 },
        probe_port: 51_872,
        reset_after: hawser_model::ResetAfter::DEFAULT,
    }
}

/// The agent of us-east's node-1, and the shell that carries out what it says.
pub(crate) struct Mesh {
    pub(crate) agent: Agent,
    pub(crate) now: Time,
    pub(crate) words: Vec<WordWrite>,
    pub(crate) follows: Vec<Output>,
    pub(crate) reconciles: usize,
    /// What was guarded before there was a plan.
    pub(crate) guarded: Vec<hawser_tunnels::Desired>,
    pub(crate) looks: usize,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self::restarted(NodeSlots::new(65_536), HealthWords::default())
    }

    pub(crate) fn restarted(slots: NodeSlots, health: HealthWords) -> Self {
        let agent = Agent::new(mk_config(), slots, health, ms(1_000));
        Self {
            agent,
            now: ms(1_000),
            words: vec![],
            follows: vec![],
            reconciles: 0,
            guarded: vec![],
            looks: 0,
        }
    }

    /// us-east with two nodes, eu-west and ap-south with two each, all complete and planned.
    pub(crate) fn of_three() -> Self {
        let mut mesh = Self::new();
        mesh.say(1, [mk_node(1, 1), mk_node(1, 2), vec![mk_peer(2), mk_peer(3)]].concat());
        mesh.complete(1);
        for c in [2, 3] {
            mesh.say(c, [mk_node(c, 1), mk_node(c, 2)].concat());
            mesh.complete(c);
        }
        mesh.settle();
        mesh
    }

    pub(crate) fn say(&mut self, c: u32, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            let key = entry.key(&cluster(c)).to_string();
            self.agent.handle_put(&name(c), key.as_bytes(), &entry.encode(), self.now);
        }
    }

    pub(crate) fn withdraw(&mut self, c: u32, entry: &Entry) {
        let key = entry.key(&cluster(c)).to_string();
        self.agent.handle_delete(&name(c), key.as_bytes(), self.now);
    }

    /// Everything of this cluster has been published and listed.
    pub(crate) fn complete(&mut self, c: u32) {
        let canary = |resource| Entry::Synced { resource, at: None };
        self.say(c, Resource::ALL.map(canary));
        self.agent.handle_listed(&name(c), 10, self.now);
    }

    /// Time passes until nothing is left to be planned; every reconcile succeeds.
    pub(crate) fn settle(&mut self) {
        self.pass(200);
        while self.agent.poll_deadline().is_some_and(|deadline| deadline.timer == crate::Timer::Debounce) {
            self.pass(200);
        }
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        let end = self.now + std::time::Duration::from_millis(millis);
        loop {
            self.drain(true);
            if self.agent.wants_interfaces() {
                self.agent.handle_interfaces(Interfaces::default(), self.now);
            }
            let next = self.agent.poll_deadline().map(|d| d.at).filter(|at| *at <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.agent.handle_time(self.now);
        }
        self.now = end;
        self.agent.handle_time(end);
        self.drain(true);
    }

    /// So many seconds in which all clusters are heard but these.
    pub(crate) fn silence(&mut self, silent: &[u32], seconds: u64) {
        for _ in 0..seconds {
            self.pass(1_000);
            for c in (1..=3).filter(|c| !silent.contains(c)) {
                self.agent.handle_heard(&name(c), None, self.now);
            }
        }
        self.settle();
    }

    pub(crate) fn drain(&mut self, success: bool) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Word(write) => self.words.push(write),
                Output::Reconcile => {
                    self.reconciles += 1;
                    self.agent.handle_reconciled(vec![], success, self.now);
                }
                Output::Guard => self.guarded.push(self.agent.guards()),
                Output::LookAtPeers => self.looks += 1,
                follow => self.follows.push(follow),
            }
        }
    }

    /// The shell finds an interface for every local pod: its last octet.
    pub(crate) fn find_interfaces(&mut self) {
        self.settle();
        let octet = |pod: &IpAddr| pod.to_string().rsplit('.').next().unwrap().parse::<u32>().unwrap();
        let pods = self.agent.local_pods().iter().map(|pod| (*pod, octet(pod))).collect();
        self.agent.handle_interfaces(Interfaces { tunnel: 9, pods, ..Interfaces::default() }, self.now);
        self.settle();
    }

    pub(crate) fn tunnels(&self) -> &hawser_tunnels::Desired {
        self.agent.plan().tunnels.as_ref().unwrap()
    }

    pub(crate) fn peer_names(&self) -> BTreeSet<String> {
        self.tunnels().peers.iter().map(|peer| peer.name.to_string()).collect()
    }
}
