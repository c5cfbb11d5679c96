//! What is too big for the tunnel, with real sockets in a pod whose own MTU is 1500: its kernel learns the tunnel's.

use std::io::Write as _;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use hawser_ebpf::{Attachments, Datapath, LoadConfig, TcKind};
use hawser_ebpf_abi::{Config, DesiredDatapath, Endpoint, IP_REMOTE, IpEntry, PrefixKey, Reason};
use hawser_model::Time;
use nix::sched::{CloneFlags, unshare};

use crate::device::Device;
use crate::packet::{ACK, SYN, ipv4, transport_checksum};
use crate::world::{in_a_namespace, ip, run, sysctl};

const POD: &str = "10.1.0.5";
const REMOTE: &str = "10.2.0.9";
const POD_6: &str = "fd01::5";
const REMOTE_6: &str = "fd02::9";
const MTU: u32 = 1420;
/// Of the node's end: the pod's gateway.
const MAC: &str = "02:00:00:00:00:01";

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, which does what it is told.
struct Pod {
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

    fn does<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        self.jobs.send(Box::new(move || tell.send(act()).unwrap())).unwrap();
        told.recv().expect("the pod's work panicked")
    }
}

struct Node {
    pod: Pod,
    tunnel: Device,
    datapath: Datapath,
    desired: DesiredDatapath,
}

impl Node {
    fn new(config: &LoadConfig) -> Self {
        sysctl("net/ipv4/ip_forward", "1");
        sysctl("net/ipv6/conf/all/forwarding", "1");
        let (pod, tunnel) = (Pod::new(), Device::tun("hawser0"));
        let ifindex = nix::net::if_::if_nametoindex("pod5").unwrap();
        let config_word = Config {
            tunnel_ifindex: tunnel.ifindex,
            tunnel_mtu: MTU,
            own_mesh_v4: ip("240.1.0.1"),
            own_mesh_v6: ip("fd68:6177:7365:1::1"),
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
            Attachments { tunnel: Some(tunnel.ifindex), pods: [ifindex].into(), underlay: [].into() };
        let problems = datapath.attach(&wanted);
        assert!(problems.is_empty(), "{problems:?}");
        let mut node = Self { pod, tunnel, datapath, desired };
        node.sync();
        node
    }

    fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// The next packet of that protocol that leaves through the tunnel.
    fn sent(&self, proto: u8) -> Vec<u8> {
        std::iter::repeat_with(|| self.tunnel.receives().expect("a packet comes out of the tunnel"))
            .find(|packet| if packet[0] >> 4 == 4 { packet[9] == proto } else { packet[6] == proto })
            .unwrap()
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap().into_iter().find(|(found, _)| *found == reason).unwrap().1
    }

    fn ends(self) {
        drop(self.pod.jobs);
        self.pod.thread.join().unwrap();
    }
}

fn on_a_node(test: impl Fn(Node) + Send + Clone + 'static) {
    for kind in [TcKind::Tcx, TcKind::Clsact] {
        let test = test.clone();
        in_a_namespace(move |config| test(Node::new(&LoadConfig { tc: kind, ..config.clone() })));
    }
}

/// Level, and the options for "never cut" and for the MTU of a connected socket's path (`ip(7)`, `ipv6(7)`).
fn options(family: IpAddr) -> (i32, i32, i32) {
    match family {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU),
    }
}

fn never_cut(socket: &UdpSocket, family: IpAddr) {
    let (level, option, _) = options(family);
    let value = libc::IP_PMTUDISC_DO;
    // SAFETY: the value is a c_int of the length given and outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), 4) };
    assert_eq!(set, 0);
}

fn path_mtu(socket: &UdpSocket, family: IpAddr) -> i32 {
    let (level, _, option) = options(family);
    let (mut value, mut len) = (0_i32, 4);
    // SAFETY: value and length are writable, and the length is the value's.
    let got =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) };
    assert_eq!(got, 0);
    value
}

#[test]
fn a_udp_socket_learns_the_tunnels_mtu_and_hears_that_its_message_is_too_long() {
    on_a_node(|node| {
        for (local, remote, fits) in [(POD, REMOTE, 1392), (POD_6, REMOTE_6, 1372)] {
            let told = node.count(Reason::PodFromToldTooBig);
            let (local, remote): (IpAddr, IpAddr) = (local.parse().unwrap(), remote.parse().unwrap());
            let learnt = node.pod.does(move || {
                let socket = UdpSocket::bind((local, 0)).unwrap();
                never_cut(&socket, local);
                socket.connect((remote, 53)).unwrap();
                assert_eq!(path_mtu(&socket, local), 1500);
                socket.send(&vec![7; fits + 1]).unwrap();
                let refused = (0..200).find_map(|_| {
                    std::thread::sleep(Duration::from_millis(5));
                    socket.send(&vec![7; fits + 1]).err()
                });
                assert_eq!(refused.and_then(|error| error.raw_os_error()), Some(libc::EMSGSIZE));
                // What the error left behind is told once.
                let _ = socket.take_error();
                socket.send(&vec![7; fits]).unwrap();
                path_mtu(&socket, local)
            });
            assert_eq!(learnt, MTU as i32);
            assert!(node.count(Reason::PodFromToldTooBig) > told);
            assert_eq!(node.sent(17).len(), MTU as usize, "what fits, and nothing before it");
        }
        node.ends();
    });
}

#[test]
fn a_connection_that_was_made_for_a_larger_tunnel_goes_on_through_a_smaller_one() {
    on_a_node(|mut node| {
        let (connected, stream) = channel();
        let jobs = node.pod.jobs.clone();
        jobs.send(Box::new(move || connected.send(TcpStream::connect((REMOTE, 80)).unwrap()).unwrap()))
            .unwrap();
        let syn = node.sent(6);
        let seq = u32::from_be_bytes(syn[24..28].try_into().unwrap());
        let mut segment = [&80_u16.to_be_bytes()[..], &syn[20..22]].concat();
        segment.extend(0x0102_0304_u32.to_be_bytes());
        segment.extend((seq + 1).to_be_bytes());
        // Takes segments of 1,380 octets.
        segment.extend([6 << 4, SYN | ACK, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0x64]);
        let sum = transport_checksum(REMOTE, POD, 6, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        node.tunnel.sends(&ipv4(REMOTE, POD, 6, &segment));
        assert_eq!(node.sent(6)[33], ACK, "established");
        let mut stream = stream.recv().unwrap();

        node.desired.config.tunnel_mtu = 1300;
        node.sync();
        // More than a segment: the device is given them uncut, and their checksum unfinished.
        stream.write_all(&[7; 20_000]).unwrap();
        let data = node.sent(6);
        assert!(data.len() > 1000, "{}", data.len());
        assert!(node.count(Reason::PodFromToldTooBig) > 0);
        assert_eq!(node.count(Reason::PodFromTooBig), 0);
        drop(jobs);
        node.ends();
    });
}
