//! A node between a pod with real sockets, in a network namespace of its own, and a tunnel whose other end is the test.

use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use hawser_ebpf::{Attachments, Datapath, LoadConfig, TcKind};
use hawser_ebpf_abi::{Config, DesiredDatapath, Endpoint, IP_REMOTE, IpEntry, PrefixKey, Reason};
use hawser_model::Time;
use nix::sched::{CloneFlags, unshare};

use crate::device::Device;
use crate::packet::{ACK, SYN, ipv4, transport_checksum};
use crate::world::{in_a_namespace, ip, run, sysctl};

pub(crate) const POD: &str = "10.1.0.5";
pub(crate) const REMOTE: &str = "10.2.0.9";
pub(crate) const POD_6: &str = "fd01::5";
pub(crate) const REMOTE_6: &str = "fd02::9";
pub(crate) const MTU: u32 = 1420;
/// Of the node's end: the pod's gateway.
const MAC: &str = "02:00:00:00:00:01";
const SERVER: u16 = 80;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in the pod's namespace, which does what it is told. Its sockets may be used from anywhere.
pub(crate) struct Pod {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Pod {
    fn new() -> Self {
        let (jobs, told) = channel::<Job>();
        let (say_id, id) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            say_id.send(nix::unistd::gettid()).unwrap();
            told.into_iter().for_each(|job| job());
        });
        let id = id.recv().unwrap();
        run(&format!("ip link add pod5 address {MAC} type veth peer name eth0 netns {id}"));
        run("ip address add 10.1.255.254/32 dev pod5");
        run("ip link set pod5 up");
        run("ip route add 10.1.0.5/32 dev pod5");
        let pod = Self { jobs, thread };
        pod.does(|| {
            run("ip link set eth0 up");
            run("ip address add 10.1.0.5/32 dev eth0");
            run("ip route add 10.1.255.254 dev eth0");
            run("ip route add default via 10.1.255.254");
            run("ip address add fd01::5/128 dev eth0 nodad");
            run("ip -6 route add default dev eth0");
            run(&format!("ip -6 neigh add fd02::9 lladdr {MAC} dev eth0"));
        });
        pod
    }

    fn begins<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || tell.send(act()).unwrap())).unwrap();
        told
    }

    pub(crate) fn does<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        self.begins(act).recv().expect("the pod's work panicked")
    }
}

pub(crate) struct Node {
    pub(crate) pod: Pod,
    pub(crate) tunnel: Device,
    pub(crate) datapath: Datapath,
    pub(crate) desired: DesiredDatapath,
}

impl Node {
    pub(crate) fn new(config: &LoadConfig) -> Self {
        sysctl("net/ipv4/ip_forward", "1");
        sysctl("net/ipv6/conf/all/forwarding", "1");
        let (pod, tunnel) = (Pod::new(), Device::tun("hawser0"));
        let ifindex = nix::net::if_::if_nametoindex("pod5").unwrap();
        let config_word = Config {
            tunnel_ifindex: tunnel.ifindex,
            tunnel_mtu: MTU,
            own_mesh_v4: ip("240.1.0.1"),
            own_mesh_v6: ip("fd68:6177:7365:1::1"),
            reset_after: 0,
            ..Config::new(1)
        };
        let mut desired = DesiredDatapath { config: config_word, ..DesiredDatapath::default() };
        for (prefix, len) in [("10.2.0.0", 16), ("fd02::", 16)] {
            let entry = IpEntry { identity: 9, node: 1, cluster: 2, flags: IP_REMOTE };
            desired.ipcache.insert(PrefixKey::new(prefix.parse().unwrap(), len).unwrap(), entry);
        }
        for pod in [POD, POD_6] {
            desired.endpoints.insert(ip(pod), Endpoint { ifindex, identity: 8, flags: 0 });
        }
        let mut datapath = Datapath::load(config).unwrap();
        let wanted =
            Attachments { tunnel: Some(tunnel.ifindex), pods: [ifindex].into(), ..Attachments::default() };
        let problems = datapath.attach(&wanted);
        assert!(problems.is_empty(), "{problems:?}");
        let mut node = Self { pod, tunnel, datapath, desired };
        node.sync();
        node
    }

    pub(crate) fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// The next packet of that protocol that leaves through the tunnel.
    pub(crate) fn sent(&self, proto: u8) -> Vec<u8> {
        std::iter::repeat_with(|| self.tunnel.receives().expect("a packet comes out of the tunnel"))
            .find(|packet| if packet[0] >> 4 == 4 { packet[9] == proto } else { packet[6] == proto })
            .unwrap()
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap()[reason as usize].1
    }

    /// The pod's connection to the server at the tunnel's other end, which has these TCP options.
    pub(crate) fn connects(&self, options: &[u8]) -> TcpStream {
        let stream = self.pod.begins(|| TcpStream::connect((REMOTE, SERVER)).unwrap());
        let syn = self.sent(6);
        assert_eq!(syn[33], SYN);
        let seq = u32::from_be_bytes(syn[24..28].try_into().unwrap()) + 1;
        self.answers(&syn, 0x0102_0304_u32.to_be_bytes(), seq.to_be_bytes(), SYN | ACK, options);
        assert_eq!(self.sent(6)[33], ACK, "established");
        stream.recv().unwrap()
    }

    /// A segment of the server for the connection of this packet of the pod.
    pub(crate) fn answers(&self, to: &[u8], seq: [u8; 4], ack: [u8; 4], flags: u8, options: &[u8]) {
        let mut segment = [&SERVER.to_be_bytes()[..], &to[20..22], &seq, &ack].concat();
        let words = (20 + options.len() / 4 * 4) as u8 / 4;
        segment.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(options);
        let sum = transport_checksum(REMOTE, POD, 6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.tunnel.sends(&ipv4(REMOTE, POD, 6, &segment));
    }

    pub(crate) fn ends(self) {
        drop(self.pod.jobs);
        self.pod.thread.join().unwrap();
    }
}

/// By either way to attach.
pub(crate) fn on_a_node(test: impl Fn(Node) + Send + Clone + 'static) {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        let test = test.clone();
        in_a_namespace(move |config| test(Node::new(&LoadConfig { tc: kind, ..config.clone() })));
    }
}
