//! The ordinary tools: Debian's `wireguard-go` as a peer, `wg` as a client.

use std::fs;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawser_model::PublicKey;
use hawser_tunnels_linux::{Driver, PrivateKey};
use wireguard_control::{Backend, Device, DeviceUpdate, Key, PeerConfigBuilder};

use crate::node::{Node, connected, endpoint, mesh_v4, mesh_v6, nets};
use crate::raw::key;
use crate::world::{Netns, World, echo_by_tcp, eventually, run, unique};

/// `wireguard-go` in a namespace, in the foreground, until dropped.
struct WireguardGo<'a> {
    netns: &'a Netns,
    device: String,
    process: Child,
    key: PrivateKey,
    _keys: tempfile::TempDir,
}

impl<'a> WireguardGo<'a> {
    fn start(netns: &'a Netns) -> Self {
        let (device, keys) = (unique(), tempfile::tempdir().unwrap());
        let path = keys.path().join("key");
        let key = PrivateKey::load_or_create(&path).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &netns.name, "wireguard-go", "-f", &device])
            .env("WG_PROCESS_FOREGROUND", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("wireguard-go is needed for this test");
        let go = Self { netns, device, process, key, _keys: keys };
        eventually("wireguard-go listens", || {
            fs::exists(format!("/var/run/wireguard/{}.sock", go.device)).unwrap()
        });
        let set = format!("wg set {} listen-port 51871 private-key {}", go.device, path.display());
        eventually("wireguard-go answers", || crate::world::output(&set).status.success());
        netns.run(&format!("ip addr add {}/32 dev {}", mesh_v4(2), go.device));
        netns.run(&format!("ip addr add {}/128 dev {} nodad", mesh_v6(2), go.device));
        netns.run(&format!("ip link set {} up mtu 1420", go.device));
        netns.run(&format!("ip route add {}/32 dev {} src {}", mesh_v4(1), go.device, mesh_v4(2)));
        netns.run(&format!("ip route add {}/128 dev {} src {}", mesh_v6(1), go.device, mesh_v6(2)));
        go
    }

    fn add_peer(&self, key: PublicKey) {
        let allowed = format!("{}/32,{}/128", mesh_v4(1), mesh_v6(1));
        let (device, key) = (&self.device, base64(key));
        self.netns
            .run(&format!("wg set {device} peer {key} endpoint 172.31.1.2:51871 allowed-ips {allowed}"));
    }
}

impl Drop for WireguardGo<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(format!("/var/run/wireguard/{}.sock", self.device));
    }
}

fn base64(key: PublicKey) -> String {
    STANDARD.encode(key.as_bytes())
}

fn with_wireguard_go(world: &World) -> (Node<'_>, WireguardGo<'_>) {
    let go = WireguardGo::start(&world.b);
    let mut node = Node::start(&world.a, 1);
    node.add_peer(2, go.key.public(), endpoint([172, 31, 2, 2]), &[]);
    node.reconcile();
    go.add_peer(node.driver.public_key());
    (node, go)
}

#[test]
fn wireguard_go_answers_our_handshake() {
    let world = World::new();
    let (_node, _go) = with_wireguard_go(&world);
    assert!(world.a.pings(mesh_v4(2)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 4 << 20);
    echo_by_tcp(&world.a, &world.b, mesh_v6(2), 1 << 20);
}

#[test]
fn we_answer_wireguard_gos_handshake() {
    let world = World::new();
    let (_node, _go) = with_wireguard_go(&world);
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.b, &world.a, mesh_v4(1), 4 << 20);
}

#[test]
fn wg_show_reads_the_engine() {
    let world = World::new();
    let (one, two) = connected(&world.a, &world.b);
    assert!(world.a.pings(mesh_v4(2)));
    let show = |what: &str| run(&format!("wg show {} {what}", one.device())).trim().to_owned();
    let other = base64(two.driver.public_key());
    assert_eq!(show("public-key"), base64(one.driver.public_key()));
    assert_eq!(show("listen-port"), "51871");
    assert_eq!(show("fwmark"), "0x480000");
    assert_eq!(show("peers"), other);
    assert_eq!(show("endpoints"), format!("{other}\t172.31.2.2:51871"));
    assert_eq!(show("persistent-keepalive"), format!("{other}\toff"));
    assert_eq!(show("allowed-ips"), format!("{other}\t240.2.0.1/32 fd68:6177:7365:2::1/128"));
    assert_ne!(show("latest-handshakes"), format!("{other}\t0"));
    let transfer = show("transfer");
    let bytes: Vec<u64> = transfer.split('\t').skip(1).map(|n| n.parse().unwrap()).collect();
    assert!(bytes.iter().all(|n| *n > 148), "{transfer}");
    assert!(run("wg show interfaces").split_whitespace().any(|name| name == one.device()));
    assert!(show("").contains("latest handshake:"));
}

#[test]
fn what_wg_sets_the_driver_observes() {
    let world = World::new();
    let node = Node::start(&world.a, 1);
    let (device, dir) = (node.device(), tempfile::tempdir().unwrap());
    let ((_, one), (_, two)) = (key(1), key(2));
    let (file, preshared) = (dir.path().join("conf"), STANDARD.encode([9; 32]));
    let write = |text: String| fs::write(&file, text).unwrap();
    let peers = || node.driver.observe().unwrap().peers;

    run(&format!(
        "wg set {device} peer {} allowed-ips 10.1.0.0/16,fd00:1::/64 persistent-keepalive 25",
        base64(one)
    ));
    assert_eq!(peers()[&one].allowed, nets(&["10.1.0.0/16", "fd00:1::/64"]));
    assert_eq!(peers()[&one].keepalive, Some(25));

    // A prefix that is given to another peer leaves the first in the same instant.
    run(&format!("wg set {device} peer {} allowed-ips 10.1.0.0/16", base64(two)));
    assert_eq!(peers()[&one].allowed, nets(&["fd00:1::/64"]));
    assert_eq!(peers()[&two].allowed, nets(&["10.1.0.0/16"]));

    let private = STANDARD.encode([7; 32]);
    write(format!(
        "[Interface]\nPrivateKey = {private}\nListenPort = 51999\nFwMark = 0x10\n\n[Peer]\nPublicKey = {}\n\
         PresharedKey = {preshared}\nEndpoint = [fd31:2::2]:51871\nAllowedIPs = 10.9.0.0/16\n",
        base64(one)
    ));
    run(&format!("wg setconf {device} {}", file.display()));
    let observed = node.driver.observe().unwrap();
    let state = observed.device.unwrap();
    assert_eq!((state.port, state.mark, state.public_key), (51999, 0x10, Some(key(7).1)));
    assert_eq!(observed.peers.keys().collect::<Vec<_>>(), [&one]);
    assert_eq!(observed.peers[&one].endpoint.unwrap().to_string(), "[fd31:2::2]:51871");
    assert!(run(&format!("wg show {device} preshared-keys")).contains(&preshared));

    write(format!("[Interface]\nPrivateKey = {private}\n\n[Peer]\nPublicKey = {}\n", base64(two)));
    run(&format!("wg syncconf {device} {}", file.display()));
    assert_eq!(peers().keys().collect::<Vec<_>>(), [&two]);

    run(&format!("wg set {device} peer {} remove", base64(two)));
    assert!(peers().is_empty());

    // The reconciler puts back what it wants.
    node.reconcile();
    let state = node.driver.observe().unwrap().device.unwrap();
    assert_eq!((state.port, state.public_key), (51871, Some(node.driver.public_key())));
}

#[test]
fn the_engine_answers_the_client_that_configures_the_kernel() {
    let world = World::new();
    let node = Node::start(&world.a, 1);
    let name = node.device().parse().unwrap();
    let ((_, one), endpoint) = (key(1), endpoint([172, 31, 2, 2]));
    let peer = PeerConfigBuilder::new(&Key(*one.as_bytes()))
        .set_endpoint(endpoint)
        .set_persistent_keepalive_interval(25)
        .add_allowed_ip("10.1.0.0".parse().unwrap(), 16);
    DeviceUpdate::new().add_peer(peer).apply(&name, Backend::Userspace).unwrap();
    assert_eq!(node.driver.observe().unwrap().peers[&one].allowed, nets(&["10.1.0.0/16"]));

    let device = Device::get(&name, Backend::Userspace).unwrap();
    assert_eq!(device.listen_port, Some(51871));
    let [peer] = &device.peers[..] else { panic!("{} peers", device.peers.len()) };
    assert_eq!((peer.config.endpoint, peer.config.persistent_keepalive_interval), (Some(endpoint), Some(25)));

    let none = DeviceUpdate::new().remove_peer_by_key(&Key(*one.as_bytes()));
    none.apply(&name, Backend::Userspace).unwrap();
    assert!(node.driver.observe().unwrap().peers.is_empty());
}
