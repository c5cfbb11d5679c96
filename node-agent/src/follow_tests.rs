//! A real API server on loopback, two keyspaces in it, and what an agent makes of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_agent_core::{HealthWords, Interfaces, NodeSlots, Output};
use hawser_etcd::pb::{DeleteRangeRequest, PutRequest};
use hawser_etcd::server::{AllowAll, EtcdServer, KeyspaceHandle, Keyspaces, MemoryWriter, SharedKeyspace};
use hawser_kvstore::{Identity, Keyspace, Limits};
use hawser_model::{
    AddressKind, ClusterId, ClusterIdWidth, ClusterRef, Epoch, MeshPlan, Node, NodeAddress, NodeIndex,
    NodeName, Peer, PeerKind, PublicKey, ServerUrl, Timestamp, TunnelEnd, TunnelNode,
};
use hawser_wire::{Entry, Resource};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::clock::Clock;

fn cluster(id: u32, name: &str) -> ClusterRef {
    ClusterRef {
        name: ClusterName::parse(name).unwrap(),
        id: ClusterId::new(id, ClusterIdWidth::Bits8).unwrap(),
    }
}

fn us() -> ClusterRef {
    cluster(1, "us-east")
}

fn eu() -> ClusterRef {
    cluster(2, "eu-west")
}

fn memory(cluster: &ClusterRef) -> KeyspaceHandle {
    let name = cluster.name.as_str();
    let identity = Identity::new(name, u64::from(cluster.id.get()), 0);
    let keyspace = SharedKeyspace::new(Keyspace::new(identity, Limits::default()));
    KeyspaceHandle::new(name, keyspace.clone(), MemoryWriter::spawn(keyspace))
}

/// Serves both keyspaces, to everybody, for as long as the runtime lives.
async fn api_server() -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let keyspaces = Keyspaces::new(memory(&us()));
    keyspaces.add(memory(&eu()));
    let server = EtcdServer::new(keyspaces, Arc::new(AllowAll), vec![url.clone()]);
    let serving = tonic::transport::Server::builder().add_routes(server.routes());
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    tonic::transport::Endpoint::from_shared(url).unwrap().connect_lazy()
}

async fn publish(channel: &Channel, of: &ClusterRef, entries: &[Entry]) {
    let client = Client::for_cluster(channel.clone(), of.name.as_str()).unwrap();
    for entry in entries {
        let key = entry.key(of).to_string().into();
        client.put(PutRequest { key, value: entry.encode(), ..PutRequest::default() }).await.unwrap();
    }
}

async fn withdraw(channel: &Channel, of: &ClusterRef, entry: &Entry) {
    let client = Client::for_cluster(channel.clone(), of.name.as_str()).unwrap();
    let key = entry.key(of).to_string().into();
    client.delete_range(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }).await.unwrap();
}

fn node(of: &ClusterRef, octet: u8) -> Vec<Entry> {
    let name = NodeName::parse("node-1").unwrap();
    let index = NodeIndex::new(1).unwrap();
    let ip = IpAddr::from([172, 16, octet, 11]);
    let node = Node {
        cluster: of.clone(),
        name: name.clone(),
        addresses: vec![NodeAddress { kind: AddressKind::InternalIp, ip }],
        pod_cidrs: vec![format!("10.{octet}.1.0/24").parse().unwrap()],
        boot_id: None,
        wireguard_key: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    };
    let end = TunnelEnd {
        epoch: Epoch::FIRST,
        public_key: PublicKey::new([octet; 32]).unwrap(),
        port: 51_871,
        mtu: 1_420,
        more_ports: hawser_model::MorePorts::default(),
        esp: None,
    };
    let mesh = MeshPlan::default().addresses(of.id, index, &name);
    let tunnel = TunnelNode {
        cluster: of.clone(),
        name,
        index,
        mesh,
        boot_id: None,
        wireguard: Some(end),
        public_endpoint: None,
        gateway: false,
    };
    vec![Entry::Node(node), Entry::TunnelNode(tunnel)]
}

fn canaries() -> Vec<Entry> {
    Resource::ALL.map(|resource| Entry::Synced { resource, at: None }).into()
}

fn peer() -> Entry {
    Entry::LocalPeer(Peer {
        cluster: eu(),
        endpoints: vec![ServerUrl::parse("https://172.16.2.11:2379").unwrap()],
        pod_cidrs: vec!["10.2.0.0/16".parse().unwrap()],
        node_cidrs: vec!["172.16.2.0/24".parse().unwrap()],
        ca: "PEM".into(),
        admitted: Timestamp::parse("2026-11-20T12:00:00Z").unwrap(),
        kind: PeerKind::Hawser,
    })
}

/// The driver's loop without a kernel: runs until the plan has `peers` peers.
async fn run_until(
    agent: &mut Agent,
    followers: &mut Followers,
    heard: &mut mpsc::Receiver<Heard>,
    peers: usize,
) {
    let clock = Clock::start();
    let reached = |agent: &Agent| agent.plan().tunnels.as_ref().is_some_and(|t| t.peers.len() == peers);
    let work = async {
        while !reached(agent) {
            while let Some(output) = agent.poll_output() {
                match output {
                    Output::Follow(cluster) => followers.follow(&cluster).unwrap(),
                    Output::Unfollow(cluster) => followers.unfollow(&cluster),
                    Output::Reconcile => agent.handle_reconciled(Vec::new(), true, clock.now()),
                    Output::Word(_)
                    | Output::Flip(_)
                    | Output::Sweep
                    | Output::Guard
                    | Output::OwnStale
                    | Output::LookAtPeers => {}
                }
            }
            if agent.wants_interfaces() {
                agent.handle_interfaces(Interfaces::default(), clock.now());
            }
            tokio::select! {
                Some(heard) = heard.recv() => followers.tell(agent, heard, clock.now()),
                () = tokio::time::sleep(Duration::from_millis(10)) => agent.handle_time(clock.now()),
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), work).await;
    assert!(waited.is_ok(), "{:#?}", agent.clusters(clock.now()));
}

#[tokio::test]
async fn what_is_published_becomes_tunnels_and_what_is_withdrawn_goes() {
    let channel = api_server().await;
    publish(&channel, &us(), &[node(&us(), 1), vec![peer()], canaries()].concat()).await;
    publish(&channel, &eu(), &[node(&eu(), 2), canaries()].concat()).await;

    let config = crate::memory::tests::config();
    let mut agent = Agent::new(config, NodeSlots::new(64), HealthWords::default(), Time::ZERO);
    let (mut followers, mut heard) = Followers::new(channel.clone(), us().name, Arc::new(Notify::new()));
    run_until(&mut agent, &mut followers, &mut heard, 1).await;
    let tunnels = agent.plan().tunnels.clone().unwrap();
    assert_eq!(tunnels.peers[0].name.to_string(), "eu-west/node-1");
    assert_eq!(agent.view().cluster(&eu().name).unwrap().refused.count, 0);

    withdraw(&channel, &eu(), &node(&eu(), 2)[1]).await;
    run_until(&mut agent, &mut followers, &mut heard, 0).await;
    publish(&channel, &eu(), &node(&eu(), 2)).await;
    run_until(&mut agent, &mut followers, &mut heard, 1).await;

    withdraw(&channel, &us(), &peer()).await;
    run_until(&mut agent, &mut followers, &mut heard, 0).await;
    assert!(agent.plan().tunnels.as_ref().is_some_and(|tunnels| tunnels.routes.is_empty()));
}
