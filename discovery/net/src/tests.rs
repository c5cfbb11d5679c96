//! Two echo tasks talk over real sockets on loopback addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_discovery::{About, LivenessConfig, NodeId, Probe, ProbeKind, Transition};
use hawser_model::{ClusterHealth, ClusterId, ClusterIdWidth, NodeIndex, Time};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::{Echo, EchoConfig, spawn};

const PORT: u16 = 51_872;

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

fn start(net: u8, cluster: u32) -> (Echo, mpsc::Receiver<Transition>) {
    let started = Instant::now();
    let liveness = LivenessConfig {
        interval: Duration::from_millis(50),
        timeout: Duration::from_millis(400),
        ..LivenessConfig::default()
    };
    let config = EchoConfig {
        own: node(cluster),
        address: address(net, cluster),
        port: PORT,
        device: None,
        liveness,
        clock: Arc::new(move || Time::from_duration(started.elapsed())),
        salt: cluster,
    };
    spawn(config).unwrap()
}

async fn next(changes: &mut mpsc::Receiver<Transition>) -> (About, ClusterHealth) {
    let waited = tokio::time::timeout(Duration::from_secs(30), changes.recv()).await;
    let change = waited.expect("a verdict changes").expect("the task runs");
    (change.about, change.to)
}

#[tokio::test]
async fn two_nodes_hear_each_other_until_one_goes_and_again_when_it_returns() {
    let (first, mut changes) = start(1, 1);
    let (second, second_changes) = start(1, 2);
    first.set_peers(BTreeMap::from([(node(2), address(1, 2))])).await.unwrap();
    second.set_peers(BTreeMap::from([(node(1), address(1, 1))])).await.unwrap();
    let cluster = About::Cluster(node(2).cluster);
    assert_eq!(next(&mut changes).await, (About::Node(node(2)), ClusterHealth::Up));
    assert_eq!(next(&mut changes).await, (cluster, ClusterHealth::Up));
    assert!(first.snapshot().await.unwrap().nodes[&node(2)].rtt_last.is_some());

    drop((second, second_changes));
    assert_eq!(next(&mut changes).await, (About::Node(node(2)), ClusterHealth::Down));
    assert_eq!(next(&mut changes).await, (cluster, ClusterHealth::Down));

    let (second, _changes) = start(1, 2);
    second.set_peers(BTreeMap::from([(node(1), address(1, 1))])).await.unwrap();
    assert_eq!(next(&mut changes).await, (About::Node(node(2)), ClusterHealth::Up));
    assert_eq!(next(&mut changes).await, (cluster, ClusterHealth::Up));
}

#[tokio::test]
async fn only_a_known_node_at_its_own_address_is_answered() {
    let (echo, _changes) = start(2, 1);
    echo.set_peers(BTreeMap::from([(node(2), address(2, 2))])).await.unwrap();
    let probe =
        |sender| Probe { kind: ProbeKind::Request, sender, addressee: node(1), hears_you: true, nonce: 77 };
    let to = (address(2, 1), PORT);
    let stranger = UdpSocket::bind((address(2, 9), PORT)).await.unwrap();
    let known = UdpSocket::bind((address(2, 2), PORT)).await.unwrap();
    stranger.send_to(&probe(node(2)).encode(), to).await.unwrap();
    stranger.send_to(&probe(node(9)).encode(), to).await.unwrap();
    known.send_to(b"HwEc", to).await.unwrap();
    known.send_to(&[0; 1_400], to).await.unwrap();
    known.send_to(&probe(node(2)).encode(), to).await.unwrap();
    let mut buffer = [0; 64];
    loop {
        let (len, _) = known.recv_from(&mut buffer).await.unwrap();
        let answer = Probe::parse(&buffer[..len]).unwrap();
        if answer.kind == ProbeKind::Reply {
            assert_eq!((answer.nonce, answer.sender, answer.addressee), (77, node(1), node(2)));
            break;
        }
    }
    assert_eq!(echo.snapshot().await.unwrap().counters.refused, 4);
    let nothing = stranger.try_recv_from(&mut buffer).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}
