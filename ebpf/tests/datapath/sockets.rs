//! Real sockets: what a program that connects to a service gets, and what it is shown.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use hawser_ebpf::{Datapath, LoadConfig};
use hawser_ebpf_abi::{
    AFFINITY_LOCAL, AFFINITY_NONE, BackendSpec, CONFIG_OWN_STALE, Config, DesiredDatapath, HEALTH_NO_NEW,
    Port, Reason, ServiceKey, ServiceSpec, SliceSpec,
};
use hawser_model::Time;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getpeername, recv, socket,
};

use crate::world::{in_a_namespace, ip, run};

const SERVICE: &str = "172.20.0.1:80";
const HERE: &str = "10.1.0.1:8080";
const THERE: &str = "10.2.0.1:8080";

/// Answers every connection with its own address.
fn serve(address: &'static str) {
    run(&format!("ip address add {}/32 dev lo", address.split(':').next().unwrap()));
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(address.as_bytes()));
        }
    });
}

struct World {
    datapath: Datapath,
    desired: DesiredDatapath,
    cgroup: std::fs::File,
}

impl World {
    fn new(config: &LoadConfig) -> Self {
        run("ip link set lo up");
        // At the service's own address stands what kube-proxy would have found.
        for address in [HERE, THERE, SERVICE] {
            serve(address);
        }
        let slice = |address: &str, node| {
            let at: SocketAddr = address.parse().unwrap();
            let backend = BackendSpec { addr: at.ip().into(), port: Port::new(at.port()), node };
            SliceSpec { weight: 1, backends: [backend].into() }
        };
        let slices = [(1, slice(HERE, 1)), (2, slice(THERE, 2))].into();
        let mut desired = DesiredDatapath { config: Config::new(1), ..DesiredDatapath::default() };
        let key = ServiceKey::new(ip("172.20.0.1"), Port::new(80), 6);
        desired.services.insert(key, ServiceSpec { affinity: AFFINITY_NONE, slices });
        let procs = config.cgroup2.join("kubepods/cgroup.procs");
        let cgroup = std::fs::OpenOptions::new().write(true).open(&procs).unwrap();
        let mut world = Self { datapath: Datapath::load(config).unwrap(), desired, cgroup };
        let problems = world.datapath.attach_cgroups();
        assert!(problems.is_empty(), "{problems:?}");
        world.sync();
        world
    }

    fn sync(&mut self) {
        let report = self.datapath.maps.sync(&self.desired, Time::ZERO);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    fn affinity(&mut self, affinity: u8) {
        self.desired.services.values_mut().for_each(|service| service.affinity = affinity);
        self.sync();
    }

    fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap().into_iter().find(|(found, _)| *found == reason).unwrap().1
    }

    /// A process of the cgroup connects: who answered, and whom it thinks it talks to.
    fn connects(&self, to: &str, family: AddressFamily) -> Connected {
        connect_in(&self.cgroup, to.parse().unwrap(), family)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Connected {
    answered: String,
    peer: String,
}

/// Between fork and exit the child makes system calls only: this process has other threads.
fn connect_in(cgroup: &std::fs::File, to: SocketAddr, family: AddressFamily) -> Connected {
    let (theirs, ours) = nix::unistd::pipe().map(|(read, write)| (write, read)).unwrap();
    let target: SockaddrStorage = match (to, family) {
        (SocketAddr::V4(v4), AddressFamily::Inet6) => {
            std::net::SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => to.into(),
    };
    // SAFETY: the child calls system calls on values made before, and leaves with _exit.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let done = child(cgroup.as_raw_fd(), &target, family, &theirs);
            // SAFETY: _exit ends the child without running this process's destructors.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(theirs);
            let mut report = String::new();
            std::io::Read::read_to_string(&mut std::fs::File::from(ours), &mut report).unwrap();
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0), "{to}: {report:?}");
            let (answered, peer) = report.split_once(' ').unwrap();
            Connected { answered: answered.into(), peer: peer.into() }
        }
    }
}

fn child(cgroup: RawFd, to: &SockaddrStorage, family: AddressFamily, report: &OwnedFd) -> nix::Result<()> {
    // SAFETY: the descriptor is the parent's file, which stays open in this copy until it exits.
    let cgroup = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(cgroup) });
    nix::unistd::write(&*cgroup, b"0")?;
    let socket = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    connect(socket.as_raw_fd(), to)?;
    let mut answer = [0; 64];
    let len = recv(socket.as_raw_fd(), &mut answer, nix::sys::socket::MsgFlags::empty())?;
    nix::unistd::write(report, &answer[..len])?;
    let peer: SockaddrStorage = getpeername(socket.as_raw_fd())?;
    // Formatting into an array: nothing is allocated.
    let mut text = [0_u8; 80];
    let mut rest = &mut text[..];
    let _ = write!(rest, " {peer}");
    let left = rest.len();
    nix::unistd::write(report, &text[..80 - left])?;
    Ok(())
}

#[test]
fn a_connection_to_a_service_goes_to_every_cluster_and_shows_the_service() {
    in_a_namespace(|config| {
        let world = World::new(config);
        let all: Vec<_> = (0..60).map(|_| world.connects(SERVICE, AddressFamily::Inet)).collect();
        assert!(all.iter().all(|connected| connected.peer == SERVICE), "{all:?}");
        for cluster in [HERE, THERE] {
            assert!(all.iter().any(|connected| connected.answered == cluster), "{cluster} in {all:?}");
        }
        assert_eq!(world.count(Reason::ConnectChosen), 60);
        assert_eq!(world.count(Reason::PeerRestored), 60);
        let other = world.connects(THERE, AddressFamily::Inet);
        assert_eq!((other.answered.as_str(), other.peer.as_str()), (THERE, THERE), "no service, no change");
        assert_eq!((world.count(Reason::ConnectOther), world.count(Reason::PeerOther)), (1, 1));
    });
}

#[test]
fn a_v4_mapped_socket_gets_the_same() {
    in_a_namespace(|config| {
        let world = World::new(config);
        let all: Vec<_> = (0..60).map(|_| world.connects(SERVICE, AddressFamily::Inet6)).collect();
        assert!(all.iter().all(|connected| connected.peer == "[::ffff:172.20.0.1]:80"), "{all:?}");
        assert!(all.iter().any(|c| c.answered == HERE) && all.iter().any(|c| c.answered == THERE), "{all:?}");
    });
}

#[test]
fn a_flipped_word_moves_every_new_connection_and_none_healthy_is_panic() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        world.datapath.maps.set_cluster_health(2, HEALTH_NO_NEW).unwrap();
        assert!((0..30).all(|_| world.connects(SERVICE, AddressFamily::Inet).answered == HERE));
        world.datapath.maps.set_cluster_health(2, 256).unwrap();
        world.datapath.maps.set_node_health(1, HEALTH_NO_NEW).unwrap();
        assert!((0..30).all(|_| world.connects(SERVICE, AddressFamily::Inet).answered == THERE));
        world.datapath.maps.set_node_health(2, HEALTH_NO_NEW).unwrap();
        let all: Vec<_> = (0..60).map(|_| world.connects(SERVICE, AddressFamily::Inet).answered).collect();
        assert!(
            all.iter().any(|a| a == HERE) && all.iter().any(|a| a == THERE),
            "health is ignored: {all:?}"
        );
        assert_eq!((world.count(Reason::ConnectChosen), world.count(Reason::ConnectPanic)), (60, 60));
    });
}

#[test]
fn affinity_local_stays_home_and_a_stale_own_cluster_is_left_to_kube_proxy() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        world.affinity(AFFINITY_LOCAL);
        assert!((0..30).all(|_| world.connects(SERVICE, AddressFamily::Inet).answered == HERE));
        world.desired.config.flags = CONFIG_OWN_STALE;
        world.sync();
        assert_eq!(
            world.connects(SERVICE, AddressFamily::Inet),
            Connected { answered: SERVICE.into(), peer: SERVICE.into() }
        );
        assert_eq!(world.count(Reason::ConnectOwnStale), 1);
        for service in world.desired.services.values_mut() {
            service.slices.clear();
        }
        world.sync();
        assert_eq!(world.connects(SERVICE, AddressFamily::Inet).answered, SERVICE);
        assert_eq!(world.count(Reason::ConnectNoBackend), 1);
    });
}

#[test]
fn a_killed_or_restarted_agent_changes_nothing_for_a_connection() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        world.affinity(AFFINITY_LOCAL);
        // SIGKILL leaves what dropping leaves: the pins.
        let World { datapath, cgroup, desired } = world;
        drop(datapath);
        let expected = Connected { answered: HERE.into(), peer: SERVICE.into() };
        assert_eq!(connect_in(&cgroup, SERVICE.parse().unwrap(), AddressFamily::Inet), expected);
        let mut world = World { datapath: Datapath::load(config).unwrap(), cgroup, desired };
        assert_eq!(
            world.connects(SERVICE, AddressFamily::Inet),
            expected,
            "adopted, before anything was said"
        );
        world.sync();
        assert_eq!(world.connects(SERVICE, AddressFamily::Inet), expected);
        assert_eq!(world.count(Reason::ConnectChosen), 3, "the counters went on counting");
    });
}

#[test]
fn who_is_in_no_child_cgroup_is_left_alone() {
    in_a_namespace(|config| {
        let world = World::new(config);
        // This process is outside of the cgroup that stands for the node.
        assert!(!Path::new(&config.cgroup2).join("cgroup.procs").as_os_str().is_empty());
        let mut stream = TcpStream::connect(SERVICE).unwrap();
        let mut answered = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answered).unwrap();
        assert_eq!(answered, SERVICE);
        assert_eq!(world.count(Reason::ConnectOther), 0);
    });
}
