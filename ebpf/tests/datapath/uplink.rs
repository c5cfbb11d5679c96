//! Traffic from outside, with real sockets on both sides: what a client reaches by a node's uplink, and what it sees.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_ebpf::{Attachments, Datapath, LoadConfig, TcKind};
use hawser_ebpf_abi::{
    CONFIG_UPLINKS, Config, DesiredDatapath, Endpoint, HEALTH_NO_NEW, HEALTH_RESET, IP_REMOTE, IpEntry, Port,
    PrefixKey, Reason, ServiceKey,
};
use hawser_model::Time;

use crate::device::Device;
use crate::nat::{
    Connection, HERE, PORT, Place, SERVED, SERVICES, THERE, asks_at, carry, no_waiting, services,
};
use crate::world::{in_a_namespace, ip, root, run, sysctl};

/// By family: this node, and who is outside.
const NODE: [&str; 2] = ["172.16.1.11", "fd10::11"];
const CLIENT: [&str; 2] = ["172.16.1.99", "fd10::99"];
const NODE_PORT: u16 = 30_080;

/// A node with a pod that serves; a host on its uplink; and a tunnel, at whose other end a host is that serves too.
struct Uplink {
    client: Place,
    others: [Place; 2],
    datapath: Datapath,
    desired: DesiredDatapath,
    wanted: Attachments,
    done: Arc<AtomicBool>,
}

impl Uplink {
    fn new(config: &LoadConfig) -> Self {
        no_waiting();
        sysctl("net/ipv4/ip_forward", "1");
        sysctl("net/ipv6/conf/all/forwarding", "1");
        let (client, here, there) = (Place::new(), Place::new(), Place::new());
        let uplink = plug(&client);
        let pod = here.is_a_pod("pod6", HERE);
        let tunnel = Device::tun("hawser0");
        let far = there.does(|| {
            let far = Device::tun("hawser1");
            for address in THERE {
                run(&format!("ip address add {address} dev lo nodad"));
            }
            run("ip route add default dev hawser1 src 10.2.0.9 mtu 1420");
            run("ip -6 route add default dev hawser1 src fd02::9 mtu 1420");
            far
        });
        here.serves(HERE);
        there.serves(THERE);
        let desired = desired(pod, tunnel.ifindex);
        let wanted = Attachments {
            tunnel: Some(tunnel.ifindex),
            pods: [pod].into(),
            underlay: [uplink].into(),
            uplinks: [uplink].into(),
            ..Attachments::default()
        };
        let done = Arc::new(AtomicBool::new(false));
        carry(tunnel, far, &done);
        let mut datapath = Datapath::load(config).unwrap();
        let problems = datapath.attach(&wanted);
        assert!(problems.is_empty(), "{problems:?}");
        let mut node = Self { client, others: [here, there], datapath, desired, wanted, done };
        node.sync();
        node
    }

    fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// The backends in that cluster come first.
    fn prefers(&mut self, cluster: u16) {
        self.desired.services = services(cluster, true, SERVED);
        self.sync();
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap()[reason as usize].1
    }

    fn connects(&self, (to, port): (&str, u16)) -> Connection {
        self.client.connects(to, port)
    }

    fn binds(&self, family: usize) -> UdpSocket {
        let socket = self.client.does(move || UdpSocket::bind((CLIENT[family], 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// The client's device at this thread's node. It sends ClusterIPs there, as a gateway does.
fn plug(client: &Place) -> u32 {
    run(&format!("ip link add up0 type veth peer name eth0 netns {}", client.1));
    run("ip link set up0 up");
    for (address, len) in NODE.into_iter().zip([24, 64]) {
        run(&format!("ip address add {address}/{len} dev up0"));
    }
    client.does(|| {
        run("ip link set eth0 up");
        for (address, len) in CLIENT.into_iter().zip([24, 64]) {
            run(&format!("ip address add {address}/{len} dev eth0"));
        }
        run("ip route add 172.20.0.0/16 via 172.16.1.11");
        run("ip route add fd20::/64 via fd10::11");
    });
    nix::net::if_::if_nametoindex("up0").unwrap()
}

/// Where the service is entered: at the node's port, and by its ClusterIP.
fn entrances(family: usize) -> [(&'static str, u16); 2] {
    [(NODE[family], NODE_PORT), (SERVICES[family], PORT)]
}

fn desired(pod: u32, tunnel: u32) -> DesiredDatapath {
    let config = Config {
        tunnel_ifindex: tunnel,
        tunnel_mtu: 1420,
        flags: CONFIG_UPLINKS,
        own_mesh_v4: ip("240.1.0.1"),
        own_mesh_v6: ip("fd68:6177:7365:1::1"),
        reset_after: 0,
        ..Config::new(1)
    };
    let mut frontends = BTreeMap::new();
    for (node, service) in NODE.into_iter().zip(SERVICES) {
        for proto in [6, 17] {
            let key = |address, port| ServiceKey::new(ip(address), Port::new(port), proto);
            frontends.insert(key(node, NODE_PORT), key(service, PORT));
        }
    }
    let mut desired =
        DesiredDatapath { config, services: services(2, true, SERVED), frontends, ..Default::default() };
    for (net, len) in [("10.2.0.0", 16), ("fd02::", 64)] {
        let entry = IpEntry { identity: 9, node: 1, cluster: 2, flags: IP_REMOTE };
        desired.ipcache.insert(PrefixKey::new(net.parse().unwrap(), len).unwrap(), entry);
    }
    for address in HERE {
        desired.endpoints.insert(ip(address), Endpoint { ifindex: pod, identity: 8, flags: 0 });
    }
    desired
}

#[test]
fn a_client_outside_reaches_backends_here_and_in_another_cluster_and_sees_where_it_entered() {
    for tc in [TcKind::of_this_kernel(), TcKind::Clsact] {
        in_a_namespace(move |config| {
            let mut node = Uplink::new(&LoadConfig { tc, ..config.clone() });
            for family in [0, 1] {
                for entrance in entrances(family) {
                    node.prefers(2);
                    let mut there = node.connects(entrance);
                    assert_eq!(there.who, THERE[family]);
                    there.echoes();
                    let socket = node.binds(family);
                    assert_eq!(asks_at(&socket, entrance.0, entrance.1), THERE[family]);

                    node.prefers(1);
                    let mut here = node.connects(entrance);
                    assert_eq!(here.who, HERE[family]);
                    here.echoes();
                    assert_eq!(asks_at(&node.binds(family), entrance.0, entrance.1), HERE[family]);
                    there.echoes();
                    assert_eq!(
                        asks_at(&socket, entrance.0, entrance.1),
                        THERE[family],
                        "it keeps its backend"
                    );
                }
            }
            assert_eq!(node.count(Reason::EnterForgotten) + node.count(Reason::EnterRestored), 0);
        });
    }
}

#[test]
fn a_pod_of_this_node_sees_the_client_and_another_cluster_sees_the_nodes_mesh_address() {
    in_a_namespace(|config| {
        let mut node = Uplink::new(config);
        for (cluster, place, address, seen) in [(1, 0, HERE[0], CLIENT[0]), (2, 1, THERE[0], "240.1.0.1")] {
            node.desired.services = services(cluster, false, SERVED + 1);
            node.sync();
            let server = node.others[place].does(move || UdpSocket::bind((address, SERVED + 1)).unwrap());
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            node.binds(0).send_to(b"who am I?", (NODE[0], NODE_PORT)).unwrap();
            let (_, from) = server.recv_from(&mut [0; 9]).unwrap();
            assert_eq!(from.ip().to_string(), seen);
        }
    });
}

#[test]
fn without_the_opt_in_a_nodes_port_is_nobodys() {
    in_a_namespace(|config| {
        let mut node = Uplink::new(config);
        node.wanted.uplinks.clear();
        node.desired.config.flags = 0;
        assert_eq!(node.datapath.attach(&node.wanted).len(), 0);
        node.sync();
        let links = std::fs::read_dir(root(config).join("links")).unwrap();
        let names: Vec<_> = links.map(|link| link.unwrap().file_name().into_string().unwrap()).collect();
        assert!(!names.iter().any(|name| name.starts_with("uplink_")), "{names:?}");
        let to: SocketAddr = (NODE[0].parse::<IpAddr>().unwrap(), NODE_PORT).into();
        let refused = node.client.does(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_client_of_a_lost_cluster_is_reset_in_the_services_name_and_a_udp_client_hears_that_nobody_is_there() {
    in_a_namespace(|config| {
        let mut node = Uplink::new(config);
        for family in [0, 1] {
            let mut connection = node.connects((NODE[family], NODE_PORT));
            node.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW | HEALTH_RESET).unwrap();
            connection.stream.write_all(b"still there?").unwrap();
            let error = connection.stream.read(&mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(node.connects((NODE[family], NODE_PORT)).who, HERE[family]);
            node.datapath.maps.set_cluster_health(2, 256).unwrap();
        }
        // Nobody has this port, here or there: the error about it comes back as one about the service.
        for cluster in [2, 1] {
            node.desired.services = services(cluster, false, 9);
            node.sync();
            for family in [0, 1] {
                let socket = node.binds(family);
                socket.connect((NODE[family].parse::<IpAddr>().unwrap(), NODE_PORT)).unwrap();
                socket.send(b"anybody?").unwrap();
                let error = socket.recv(&mut [0; 9]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{} {cluster}", NODE[family]);
            }
        }
    });
}

#[test]
fn what_is_too_big_for_the_tunnel_is_told_to_its_sender() {
    in_a_namespace(|config| {
        let node = Uplink::new(config);
        for family in [0, 1] {
            let socket = node.binds(family);
            socket.connect((NODE[family].parse::<IpAddr>().unwrap(), NODE_PORT)).unwrap();
            socket.send(&[7; 1_440]).unwrap();
            let told = socket.recv(&mut [0; 100]).unwrap_err();
            assert_eq!(told.raw_os_error(), Some(libc::EMSGSIZE));
        }
        assert_eq!(node.count(Reason::UplinkInToldTooBig), 2);
    });
}
