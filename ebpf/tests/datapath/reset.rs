//! Stuck connections, with a real socket in a pod of its own: what it hears when the other cluster is gone.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hawser_ebpf::{Attachments, Datapath, LoadConfig, TcKind};
use hawser_ebpf_abi::{
    CONFIG_CUT_OFF, Config, DesiredDatapath, Endpoint, HEALTH_NO_NEW, HEALTH_RESET, IP_REMOTE, IpEntry, Port,
    PrefixKey, RESET_NEVER, Reason, ResetWish, ServiceKey,
};
use hawser_model::Time;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::sockopt;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, getsockopt, setsockopt, socket};

use crate::device::Device;
use crate::packet::{ACK, SYN, ipv4, transport_checksum};
use crate::sockets::{SERVICE, THERE, World, as_family, in_cgroup};
use crate::world::{in_a_namespace, ip, run, sysctl};

const POD: &str = "10.1.0.5";
const REMOTE: &str = "10.2.0.9";
const DOWN: u32 = HEALTH_NO_NEW | HEALTH_RESET;

/// A pod with one connection to 10.2.0.9:80. It writes when it is told to, and says how the next read ended.
struct Pod {
    speak: Sender<()>,
    heard: Receiver<Result<usize, ErrorKind>>,
    thread: JoinHandle<()>,
}

impl Pod {
    fn new() -> Self {
        let (speak, told) = channel();
        let (tell, heard) = channel();
        let (say_id, id) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            say_id.send(nix::unistd::gettid()).unwrap();
            told.recv().unwrap();
            run("ip link set eth0 up");
            run("ip address add 10.1.0.5/32 dev eth0");
            run("ip route add 10.1.255.254 dev eth0");
            run("ip route add default via 10.1.255.254");
            let mut stream = TcpStream::connect((REMOTE, 80)).unwrap();
            for () in told {
                // More than a segment: the device is given them uncut, and their checksum unfinished.
                stream.write_all(&[7; 20_000]).unwrap();
                stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
                tell.send(stream.read(&mut [0; 10]).map_err(|error| error.kind())).unwrap();
            }
        });
        let id = id.recv().unwrap();
        run(&format!("ip link add pod5 type veth peer name eth0 netns {id}"));
        run("ip address add 10.1.255.254/32 dev pod5");
        run("ip link set pod5 up");
        run("ip route add 10.1.0.5/32 dev pod5");
        Self { speak, heard, thread }
    }

    fn speaks(&self) {
        self.speak.send(()).unwrap();
    }

    fn ends(self) {
        drop(self.speak);
        self.thread.join().unwrap();
    }
}

/// The node between the pod and the tunnel, whose other end is this test.
struct Node {
    pod: Pod,
    tunnel: Device,
    datapath: Datapath,
    desired: DesiredDatapath,
}

impl Node {
    fn new(config: &LoadConfig) -> Self {
        sysctl("net/ipv4/ip_forward", "1");
        let (pod, tunnel) = (Pod::new(), Device::tun("hawser0"));
        let ifindex = nix::net::if_::if_nametoindex("pod5").unwrap();
        let config_word = Config {
            tunnel_ifindex: tunnel.ifindex,
            tunnel_mtu: 1420,
            own_mesh_v4: ip("240.1.0.1"),
            reset_after: 0,
            ..Config::new(1)
        };
        let mut desired = DesiredDatapath { config: config_word, ..DesiredDatapath::default() };
        let entry = IpEntry { identity: 9, node: 1, cluster: 2, flags: IP_REMOTE };
        desired.ipcache.insert(PrefixKey::new("10.2.0.0".parse().unwrap(), 16).unwrap(), entry);
        desired.endpoints.insert(ip(POD), Endpoint { ifindex, identity: 8, flags: 0 });
        let mut datapath = Datapath::load(config).unwrap();
        let wanted =
            Attachments { tunnel: Some(tunnel.ifindex), pods: [ifindex].into(), underlay: [].into() };
        let problems = datapath.attach(&wanted);
        assert!(problems.is_empty(), "{problems:?}");
        let mut node = Self { pod, tunnel, datapath, desired };
        node.sync();
        node.pod.speaks();
        node.shakes_hands();
        node
    }

    fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// The next TCP packet that leaves through the tunnel.
    fn sent(&self) -> Vec<u8> {
        std::iter::repeat_with(|| self.tunnel.receives().expect("a packet comes out of the tunnel"))
            .find(|packet| packet[0] >> 4 == 4 && packet[9] == 6)
            .unwrap()
    }

    fn shakes_hands(&self) {
        let syn = self.sent();
        assert_eq!(syn[33], SYN);
        let seq = u32::from_be_bytes(syn[24..28].try_into().unwrap());
        let mut segment = [&80_u16.to_be_bytes()[..], &syn[20..22]].concat();
        segment.extend(0x0102_0304_u32.to_be_bytes());
        segment.extend((seq + 1).to_be_bytes());
        segment.extend([5 << 4, SYN | ACK, 0xff, 0xff, 0, 0, 0, 0]);
        let sum = transport_checksum(REMOTE, POD, 6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.tunnel.sends(&ipv4(REMOTE, POD, 6, &segment));
        assert_eq!(self.sent()[33], ACK, "established");
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap()[reason as usize].1
    }

    /// What the pod says is a reset at once: nothing of it leaves.
    fn ends_with_a_reset(self) {
        self.pod.speaks();
        assert_eq!(self.pod.heard.recv().unwrap(), Err(ErrorKind::ConnectionReset));
        assert!(self.count(Reason::PodFromReset) > 0);
        assert_eq!(self.tunnel.has_now(), None);
        self.pod.ends();
    }

    /// What the pod says leaves as it always did.
    fn goes_on(self) {
        self.pod.speaks();
        let data = self.sent();
        assert!(data.len() > 500, "{}", data.len());
        assert_eq!(self.count(Reason::PodFromReset), 0);
        // A peer that is there ends the wait.
        let seq = data[28..32].to_vec();
        let mut segment = [&80_u16.to_be_bytes()[..], &data[20..22], &seq, &data[24..28]].concat();
        segment.extend([5 << 4, 4, 0, 0, 0, 0, 0, 0]);
        let sum = transport_checksum(REMOTE, POD, 6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.tunnel.sends(&ipv4(REMOTE, POD, 6, &segment));
        assert_eq!(self.pod.heard.recv().unwrap(), Err(ErrorKind::ConnectionReset));
        self.pod.ends();
    }
}

fn on_a_node(test: impl Fn(Node) + Send + Clone + 'static) {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        let test = test.clone();
        in_a_namespace(move |config| test(Node::new(&LoadConfig { tc: kind, ..config.clone() })));
    }
}

#[test]
fn a_pods_connection_to_a_cluster_that_is_down_ends_with_a_reset_at_its_next_packet() {
    on_a_node(|mut node| {
        node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        node.ends_with_a_reset();
    });
}

#[test]
fn a_pods_connection_to_a_node_that_is_down_ends_as_well() {
    on_a_node(|mut node| {
        node.datapath.maps.set_node_health(1, DOWN).unwrap();
        node.ends_with_a_reset();
    });
}

#[test]
fn what_is_to_be_left_alone_goes_on_into_the_tunnel() {
    let lone: [fn(&mut Node); 4] = [
        |node| node.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW).unwrap(),
        |node| node.datapath.maps.set_cluster_health(3, DOWN).unwrap(),
        |node| {
            node.desired.config.flags |= CONFIG_CUT_OFF;
            node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        },
        |node| {
            let backend = ServiceKey::new(ip(REMOTE), Port::new(80), 6);
            node.desired.reset_wishes.insert(backend, ResetWish { ticks: RESET_NEVER.into() });
            node.datapath.maps.set_cluster_health(2, DOWN).unwrap();
        },
    ];
    for happens in lone {
        in_a_namespace(move |config| {
            let mut node = Node::new(config);
            happens(&mut node);
            node.sync();
            node.goes_on();
        });
    }
}

#[test]
fn a_connection_to_another_cluster_keeps_itself_alive_unless_its_program_chose_otherwise() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        let asks = |world: &World, own: bool| {
            let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
            in_cgroup(&world.cgroup, move |report| {
                let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
                if own {
                    setsockopt(&socket, sockopt::KeepAlive, &true)?;
                    setsockopt(&socket, sockopt::TcpKeepIdle, &77)?;
                }
                connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to)?;
                let idle = getsockopt(&socket, sockopt::TcpKeepIdle)?;
                let said: &[u8] = match (getsockopt(&socket, sockopt::KeepAlive)?, idle) {
                    (true, 10) => b"ours",
                    (true, 77) => b"its own",
                    (false, _) => b"none",
                    _ => b"something else",
                };
                nix::unistd::write(report, said).map(drop)
            })
        };
        // Everybody goes to the other cluster.
        world.datapath.maps.set_cluster_health(1, HEALTH_NO_NEW).unwrap();
        assert_eq!((asks(&world, false).as_str(), asks(&world, true).as_str()), ("ours", "its own"));
        assert_eq!(world.count(Reason::KeepAliveSet), 1);
        let there: std::net::SocketAddr = THERE.parse().unwrap();
        let backend = ServiceKey::new(there.ip().into(), Port::new(there.port()), 6);
        world.desired.reset_wishes.insert(backend, ResetWish { ticks: RESET_NEVER.into() });
        world.sync();
        assert_eq!(asks(&world, false), "none", "what never ends need not speak");
        // And home.
        world.datapath.maps.set_cluster_health(1, 256).unwrap();
        world.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW).unwrap();
        world.desired.reset_wishes.clear();
        world.sync();
        assert_eq!(asks(&world, false), "none");
    });
}
