//! The probing task over real sockets on loopback addresses, against a reflector in user space.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_discovery::bfd::{ControlPacket, State};
use hawser_discovery::{About, LivenessConfig, NodeId, REFLECTOR_PORT, Why};
use hawser_model::{ClusterHealth, ClusterId, ClusterIdWidth, NodeIndex, Time};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::{Prober, ProberConfig, Verdict, spawn_prober};

fn node(cluster: u32) -> NodeId {
    NodeId {
        cluster: ClusterId::new(cluster, ClusterIdWidth::Bits8).unwrap(),
        index: NodeIndex::new(1).unwrap(),
    }
}

/// Each test has its own loopback /24, so that tests run side by side.
fn address(net: u8, cluster: u32) -> Ipv4Addr {
    Ipv4Addr::new(127, 72, net, u8::try_from(cluster).unwrap())
}

fn config(net: u8) -> ProberConfig {
    let started = Instant::now();
    let liveness = LivenessConfig { interval: Duration::from_millis(150), ..LivenessConfig::default() };
    ProberConfig {
        address: address(net, 1),
        port: 51_872,
        device: None,
        liveness,
        clock: Arc::new(move || Time::from_duration(started.elapsed())),
        seed: 3,
    }
}

fn start(net: u8) -> (Prober, mpsc::Receiver<Verdict>) {
    spawn_prober(config(net)).unwrap()
}

/// Answers as the kernel's reflector does, with this state, until it is dropped.
async fn reflector(net: u8, cluster: u32, state: State, ttl: u32) -> tokio::task::JoinHandle<()> {
    let socket = UdpSocket::bind((address(net, cluster), REFLECTOR_PORT)).await.unwrap();
    socket.set_ttl(ttl).unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = ControlPacket::parse(&buffer[..len]).unwrap();
            assert!(asked.demand);
            let answer = ControlPacket {
                state,
                demand: false,
                my_discriminator: asked.your_discriminator.try_into().unwrap(),
                your_discriminator: asked.my_discriminator.get(),
                ..asked
            };
            socket.send_to(&answer.encode(), from).await.unwrap();
        }
    })
}

async fn next(verdicts: &mut mpsc::Receiver<Verdict>) -> (About, ClusterHealth) {
    loop {
        let waited = tokio::time::timeout(Duration::from_secs(30), verdicts.recv()).await;
        if let Verdict::Changed(change) = waited.expect("a verdict changes").expect("the task runs") {
            return (change.about, change.to);
        }
    }
}

#[tokio::test]
async fn a_node_is_up_while_its_reflector_answers_and_again_when_it_returns() {
    let (probes, mut verdicts) = start(1);
    let answering = reflector(1, 2, State::Up, 255).await;
    probes.set_peers(BTreeMap::from([(node(2), address(1, 2).into())])).await.unwrap();
    let cluster = About::Cluster(node(2).cluster);
    assert_eq!(next(&mut verdicts).await, (About::Node(node(2)), ClusterHealth::Up));
    assert_eq!(next(&mut verdicts).await, (cluster, ClusterHealth::Up));
    assert!(probes.snapshot().await.unwrap().nodes[&node(2)].rtt_last.is_some());

    answering.abort();
    let _ = answering.await;
    assert_eq!(next(&mut verdicts).await, (About::Node(node(2)), ClusterHealth::Down));
    assert_eq!(next(&mut verdicts).await, (cluster, ClusterHealth::Down));

    let _answering = reflector(1, 2, State::Up, 255).await;
    let mut back = [next(&mut verdicts).await, next(&mut verdicts).await];
    back.sort_by_key(|(about, _)| *about);
    assert_eq!(back, [(About::Node(node(2)), ClusterHealth::Up), (cluster, ClusterHealth::Up)]);
}

#[tokio::test]
async fn what_was_routed_on_the_way_and_what_a_stranger_says_is_refused() {
    let (probes, mut verdicts) = start(2);
    let _routed = reflector(2, 2, State::Up, 254).await;
    probes.set_peers(BTreeMap::from([(node(2), address(2, 2).into())])).await.unwrap();
    let stranger = UdpSocket::bind((address(2, 9), REFLECTOR_PORT)).await.unwrap();
    stranger.send_to(&[0; 24], (address(2, 1), 51_872)).await.unwrap();
    assert_eq!(next(&mut verdicts).await, (About::Node(node(2)), ClusterHealth::Down));
    let counters = probes.snapshot().await.unwrap().counters;
    assert_eq!(counters.replies, 0);
    assert!(counters.refused >= 2, "{counters:?}");
}

#[tokio::test]
async fn a_reflector_that_is_out_of_service_on_purpose_leaves_the_last_verdict() {
    let (probes, mut verdicts) = start(3);
    let answering = reflector(3, 2, State::Up, 255).await;
    probes.set_peers(BTreeMap::from([(node(2), address(3, 2).into())])).await.unwrap();
    assert_eq!(next(&mut verdicts).await, (About::Node(node(2)), ClusterHealth::Up));
    answering.abort();
    let _ = answering.await;
    let leaving = reflector(3, 2, State::AdminDown, 255).await;
    loop {
        let snapshot = probes.snapshot().await.unwrap();
        if snapshot.nodes[&node(2)].admin_down {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = probes.snapshot().await.unwrap().counters.sent;
    loop {
        let snapshot = probes.snapshot().await.unwrap();
        assert_eq!(snapshot.nodes[&node(2)].verdict, ClusterHealth::Up);
        if snapshot.counters.sent >= asked + 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    leaving.abort();
}

/// Fakes the path's far end: a reflector that large probes do not reach.
#[tokio::test]
async fn a_probe_as_large_as_users_packets_leaves_at_that_size_and_its_loss_makes_the_node_grey() {
    const MTU: u16 = 1_420;
    let config = ProberConfig {
        liveness: LivenessConfig {
            interval: Duration::from_millis(60),
            mtu: Some(MTU),
            ..LivenessConfig::default()
        },
        ..config(4)
    };
    let (probes, mut verdicts) = spawn_prober(config).unwrap();
    let socket = UdpSocket::bind((address(4, 2), REFLECTOR_PORT)).await.unwrap();
    socket.set_ttl(255).unwrap();
    let reflector = tokio::spawn(async move {
        let mut buffer = [0; 2_000];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = ControlPacket::parse(&buffer[..len]).unwrap();
            // Behind it zeroes, up to an IPv4 packet of exactly the MTU.
            assert!(len == ControlPacket::LEN || len == usize::from(MTU) - 28, "{len}");
            let reply = ControlPacket {
                demand: false,
                my_discriminator: asked.your_discriminator.try_into().unwrap(),
                your_discriminator: asked.my_discriminator.get(),
                state: State::Up,
                ..asked
            };
            if len == ControlPacket::LEN {
                socket.send_to(&reply.encode(), from).await.unwrap();
            }
        }
    });
    probes.set_peers(BTreeMap::from([(node(2), address(4, 2).into())])).await.unwrap();
    let grey = loop {
        let waited = tokio::time::timeout(Duration::from_secs(60), verdicts.recv()).await;
        if let Verdict::Grey(grey) = waited.expect("it is seen").expect("the task runs") {
            break grey;
        }
    };
    assert_eq!((grey.node, grey.weight, grey.why), (node(2), 16, Why::BlackHole { octets: MTU }));
    let snapshot = probes.snapshot().await.unwrap();
    assert_eq!(snapshot.nodes[&node(2)].verdict, ClusterHealth::Up);
    assert!(snapshot.counters.large >= 4 && snapshot.counters.sent > snapshot.counters.large);
    assert!(!reflector.is_finished());
    reflector.abort();
}
