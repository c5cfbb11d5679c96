//! Pods that are left out of the socket load balancer, with real sockets on both sides: what they reach and what they see.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use hawser_ebpf::{Attachments, Datapath, LoadConfig};
use hawser_ebpf_abi::{
    BackendSpec, CONFIG_LEFT_OUT, Config, DesiredDatapath, ENDPOINT_TRANSLATED, Endpoint, HEALTH_NO_NEW,
    HEALTH_RESET, IP_REMOTE, IpEntry, LeftOut, NAT_BACK, NAT_THERE, Port, PrefixKey, Reason, ServiceKey,
    ServiceSpec, SliceSpec,
};
use hawser_model::Time;
use nix::sched::{CloneFlags, unshare};

use crate::device::Device;
use crate::sockets::{SERVICE, World};
use crate::world::{in_a_namespace, ip, root, run, sysctl};

/// By family: the service, and its backends here and there.
pub(crate) const SERVICES: [&str; 2] = ["172.20.0.1", "fd20::1"];
pub(crate) const HERE: [&str; 2] = ["10.1.0.6", "fd01::6"];
pub(crate) const THERE: [&str; 2] = ["10.2.0.9", "fd02::9"];
const POD: [&str; 2] = ["10.1.0.5", "fd01::5"];
pub(crate) const PORT: u16 = 80;
pub(crate) const SERVED: u16 = 8080;

/// A network namespace of its own, and the thread that is in it.
pub(crate) struct Place(Sender<Box<dyn FnOnce() + Send>>, pub(crate) nix::unistd::Pid);

impl Place {
    pub(crate) fn new() -> Self {
        let (tell, told) = channel::<Box<dyn FnOnce() + Send>>();
        let (say, said) = channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            no_waiting();
            run("ip link set lo up");
            say.send(nix::unistd::gettid()).unwrap();
            told.into_iter().for_each(|act| act());
        });
        let id = said.recv().unwrap();
        Self(tell, id)
    }

    /// Panics of `act` are this thread's.
    pub(crate) fn does<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (say, said) = channel();
        self.0.send(Box::new(move || drop(say.send(act())))).unwrap();
        said.recv().expect("it came to its end")
    }

    /// A pod on this thread's node, by an interface of its own.
    pub(crate) fn is_a_pod(&self, name: &str, addresses: [&'static str; 2]) -> u32 {
        run(&format!("ip link add {name} type veth peer name eth0 netns {}", self.1));
        run(&format!("ip address add 10.1.255.254/32 dev {name}"));
        run(&format!("ip address add fd01::ffff/128 dev {name} nodad"));
        run(&format!("ip link set {name} up"));
        let [v4, v6] = addresses;
        run(&format!("ip route add {v4}/32 dev {name}"));
        run(&format!("ip route add {v6}/128 dev {name}"));
        self.does(move || {
            run("ip link set eth0 up");
            run(&format!("ip address add {v4}/32 dev eth0"));
            run(&format!("ip address add {v6}/128 dev eth0 nodad"));
            for gateway in ["10.1.255.254", "fd01::ffff"] {
                run(&format!("ip route add {gateway} dev eth0"));
                run(&format!("ip route add default via {gateway}"));
            }
        });
        nix::net::if_::if_nametoindex(name).unwrap()
    }

    pub(crate) fn connects(&self, to: &str, port: u16) -> Connection {
        let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), port).into();
        let stream = self.does(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)));
        let stream = stream.unwrap_or_else(|error| panic!("{to}: {error}"));
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let mut connection = Connection { stream, who: String::new() };
        let mut octet = [0];
        while connection.stream.read_exact(&mut octet).is_ok() && octet != *b"\n" {
            connection.who.push(octet[0].into());
        }
        connection
    }

    /// Echoes, and says first who it is.
    pub(crate) fn serves(&self, addresses: [&'static str; 2]) {
        for address in addresses {
            let at: SocketAddr = (address.parse::<IpAddr>().unwrap(), SERVED).into();
            let (tcp, udp) =
                self.does(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.unwrap();
                    std::thread::spawn(move || {
                        let mut from = stream.try_clone().unwrap();
                        let _ = stream.write_all(format!("{address}\n").as_bytes());
                        std::io::copy(&mut from, &mut stream)
                    });
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 2_000];
                while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(address.as_bytes(), from);
                }
            });
        }
    }
}

/// No duplicate address detection: addresses are there at once.
pub(crate) fn no_waiting() {
    for family in ["all", "default"] {
        sysctl(&format!("net/ipv6/conf/{family}/accept_dad"), "0");
    }
}

/// A node with a left-out pod and one that serves; and a tunnel, at whose other end a host is that serves too.
struct Node {
    client: Place,
    others: [Place; 2],
    datapath: Datapath,
    desired: DesiredDatapath,
    config: LoadConfig,
    done: Arc<AtomicBool>,
}

impl Node {
    fn new(config: &LoadConfig) -> Self {
        no_waiting();
        sysctl("net/ipv4/ip_forward", "1");
        sysctl("net/ipv6/conf/all/forwarding", "1");
        let (client, here, there) = (Place::new(), Place::new(), Place::new());
        let pods = [client.is_a_pod("pod5", POD), here.is_a_pod("pod6", HERE)];
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
        let desired = desired(pods, tunnel.ifindex);
        let wanted = Attachments {
            tunnel: Some(tunnel.ifindex),
            pods: pods.into(),
            translated: [pods[0]].into(),
            ..Attachments::default()
        };
        let done = Arc::new(AtomicBool::new(false));
        carry(tunnel, far, &done);
        let mut datapath = Datapath::load(config).unwrap();
        let problems = datapath.attach(&wanted);
        assert!(problems.is_empty(), "{problems:?}");
        let config = config.clone();
        let mut node = Self { client, others: [here, there], datapath, desired, config, done };
        node.sync();
        node
    }

    fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// The backends in that cluster come first, and the others if they are still `there`.
    fn prefers(&mut self, cluster: u16, others: bool) {
        self.desired.services = services(cluster, others, SERVED);
        self.sync();
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap()[reason as usize].1
    }

    fn connects(&self, family: usize) -> Connection {
        self.client.connects(SERVICES[family], PORT)
    }

    fn binds(&self, family: usize) -> UdpSocket {
        let socket = self.client.does(move || UdpSocket::bind((POD[family], 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    /// Forgets the entries of one way.
    fn forgets(&self, way: u8) -> usize {
        let map = MapData::from_pin(root(&self.config).join("maps").join("nat")).unwrap();
        let mut nat: HashMap<_, [u8; 40], [u8; 20]> = Map::LruHashMap(map).try_into().unwrap();
        let of_way: Vec<_> = nat.keys().map(Result::unwrap).filter(|key| key[37] == way).collect();
        of_way.iter().for_each(|key| nat.remove(key).unwrap());
        of_way.len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    /// Who answered.
    pub(crate) who: String,
}

impl Connection {
    /// More than a segment: the device is given them uncut, and their checksum unfinished.
    pub(crate) fn echoes(&mut self) {
        let said: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let mut writer = self.stream.try_clone().unwrap();
        let sent = said.clone();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let mut heard = vec![0; said.len()];
        self.stream.read_exact(&mut heard).unwrap();
        writing.join().unwrap();
        assert!(heard == said, "octet for octet");
    }
}

/// Who answers this socket's message, which must seem to come from the service.
fn asks(socket: &UdpSocket, family: usize) -> String {
    asks_at(socket, SERVICES[family], PORT)
}

/// The same, of whoever is entered there.
pub(crate) fn asks_at(socket: &UdpSocket, to: &str, port: u16) -> String {
    let to: SocketAddr = (to.parse::<IpAddr>().unwrap(), port).into();
    socket.send_to(b"who?", to).unwrap();
    let mut buffer = [0; 100];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, to);
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

/// Packets from one end of the tunnel to the other and back.
pub(crate) fn carry(tunnel: Device, far: Device, done: &Arc<AtomicBool>) {
    let ends = Arc::new([tunnel, far]);
    for (from, to) in [(0, 1), (1, 0)] {
        let (ends, done) = (ends.clone(), done.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                match ends[from].has_now() {
                    Some(packet) => ends[to].sends(&packet),
                    None => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        });
    }
}

fn desired([client, here]: [u32; 2], tunnel: u32) -> DesiredDatapath {
    let config =
        Config { tunnel_ifindex: tunnel, tunnel_mtu: 1420, flags: CONFIG_LEFT_OUT, ..Config::new(1) };
    let mut desired = DesiredDatapath { config, services: services(2, true, SERVED), ..Default::default() };
    for (net, len) in [("10.2.0.0", 16), ("fd02::", 64)] {
        let entry = IpEntry { identity: 9, node: 1, cluster: 2, flags: IP_REMOTE };
        desired.ipcache.insert(PrefixKey::new(net.parse().unwrap(), len).unwrap(), entry);
    }
    for (pod, here_pod) in POD.into_iter().zip(HERE) {
        let left_out = Endpoint { ifindex: client, identity: 8, flags: ENDPOINT_TRANSLATED };
        desired.endpoints.insert(ip(pod), left_out);
        desired.endpoints.insert(ip(here_pod), Endpoint { ifindex: here, identity: 8, flags: 0 });
    }
    desired
}

pub(crate) fn services(
    first: u16,
    others: bool,
    port: u16,
) -> std::collections::BTreeMap<ServiceKey, ServiceSpec> {
    let mut services = std::collections::BTreeMap::new();
    for (family, service) in SERVICES.into_iter().enumerate() {
        let slice = |cluster: u16, address: &str| {
            let backend = BackendSpec {
                addr: ip(address),
                port: Port::new(port),
                node: cluster.into(),
                draining: false,
            };
            let tier = u8::from(cluster != first);
            ((cluster, 0), SliceSpec { weight: 1, tier, backends: [backend].into(), ..SliceSpec::default() })
        };
        let slices = [slice(1, HERE[family]), slice(2, THERE[family])];
        let slices = slices.into_iter().filter(|((cluster, _), _)| others || *cluster == first).collect();
        let spec = ServiceSpec { slices, ..ServiceSpec::default() };
        for proto in [6, 17] {
            services.insert(ServiceKey::new(ip(service), Port::new(PORT), proto), spec.clone());
        }
    }
    services
}

#[test]
fn a_left_out_pod_reaches_backends_here_and_in_another_cluster_and_sees_the_service() {
    in_a_namespace(|config| {
        let mut node = Node::new(config);
        for family in [0, 1] {
            node.prefers(2, true);
            let mut there = node.connects(family);
            assert_eq!(there.who, THERE[family]);
            there.echoes();
            let socket = node.binds(family);
            assert_eq!(asks(&socket, family), THERE[family]);

            node.prefers(1, true);
            let mut here = node.connects(family);
            assert_eq!(here.who, HERE[family]);
            here.echoes();
            assert_eq!(asks(&node.binds(family), family), HERE[family]);
            there.echoes();
            assert_eq!(asks(&socket, family), THERE[family], "a socket keeps its backend");

            node.prefers(1, false);
            there.echoes();
            assert_eq!(asks(&socket, family), HERE[family], "and is given another one when that is gone");
        }
        assert_eq!(node.count(Reason::NatForgotten) + node.count(Reason::NatTakenOver), 0);
    });
}

#[test]
fn a_translation_that_is_lost_is_made_again_from_what_is_still_known() {
    in_a_namespace(|config| {
        let mut node = Node::new(config);
        let (mut v4, mut v6) = (node.connects(0), node.connects(1));
        node.prefers(1, true);
        let mut here = node.connects(0);
        node.prefers(2, true);
        for way in [NAT_THERE, NAT_BACK] {
            assert_eq!(node.forgets(way), 3);
            v4.echoes();
            v6.echoes();
        }
        assert!(node.count(Reason::NatRestored) >= 2);
        assert_eq!(node.count(Reason::PodFromNatUnknown), 0);
        // Nobody knows this one any more, and what is chosen today is not its backend.
        node.forgets(NAT_THERE);
        node.forgets(NAT_BACK);
        here.stream.write_all(b"anybody?").unwrap();
        while node.count(Reason::PodFromNatUnknown) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn a_connection_to_a_lost_cluster_is_reset_in_the_services_name() {
    in_a_namespace(|config| {
        let mut node = Node::new(config);
        node.desired.config.reset_after = 0;
        node.sync();
        for family in [0, 1] {
            let mut connection = node.connects(family);
            node.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW | HEALTH_RESET).unwrap();
            connection.stream.write_all(b"still there?").unwrap();
            let error = connection.stream.read(&mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_eq!(node.connects(family).who, HERE[family]);
            node.datapath.maps.set_cluster_health(2, 256).unwrap();
        }
    });
}

#[test]
fn a_backend_hears_that_a_left_out_pod_takes_its_answer_no_more() {
    in_a_namespace(|config| {
        let mut node = Node::new(config);
        node.desired.services = services(2, false, SERVED + 1);
        node.sync();
        for family in [0, 1] {
            let server = node.others[1].does(move || UdpSocket::bind((THERE[family], SERVED + 1)).unwrap());
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let socket = node.binds(family);
            socket.send_to(b"who?", (SERVICES[family].parse::<IpAddr>().unwrap(), PORT)).unwrap();
            let (_, from) = server.recv_from(&mut [0; 9]).unwrap();
            server.connect(from).unwrap();
            server.send(b"me").unwrap();
            socket.recv(&mut [0; 9]).unwrap();
            drop(socket);
            server.send(b"and more").unwrap();
            let error = server.recv(&mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{from}");
        }
    });
}

#[test]
fn a_left_out_pods_udp_socket_hears_that_nobody_takes_its_message() {
    in_a_namespace(|config| {
        let mut node = Node::new(config);
        node.desired.services = services(2, true, 9);
        node.sync();
        for family in [0, 1] {
            let socket = node.binds(family);
            socket.connect((SERVICES[family].parse::<IpAddr>().unwrap(), PORT)).unwrap();
            socket.send(b"anybody?").unwrap();
            let error = socket.recv(&mut [0; 9]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", SERVICES[family]);
        }
    });
}

fn who(world: &World) -> String {
    world.connects(SERVICE, nix::sys::socket::AddressFamily::Inet).answered
}

#[test]
fn sockets_of_a_left_out_namespace_keep_the_address_that_they_ask_for() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        let cookie = hawser_ebpf::own_netns_cookie().unwrap();
        world.desired.config.flags |= CONFIG_LEFT_OUT;
        world.sync();
        assert_ne!(who(&world), SERVICE, "no namespace is left out yet");
        world.desired.left_out.insert(cookie, LeftOut::default());
        world.sync();
        assert_eq!(who(&world), SERVICE, "kube-proxy's, and the packet programs'");
        assert_eq!(world.count(Reason::SocketLeftOut), 1);
    });
}
