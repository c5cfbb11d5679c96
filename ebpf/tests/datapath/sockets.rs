//! Real sockets: what a program that connects to a service gets, and what it is shown.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use hawser_ebpf::{Datapath, LoadConfig};
use hawser_ebpf_abi::{
    BackendSpec, CONFIG_OWN_STALE, Config, DesiredDatapath, HEALTH_NO_NEW, Port, Reason, ServiceKey,
    ServiceSpec, SliceSpec,
};
use hawser_model::Time;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getpeername, recv, socket,
};

use crate::world::{in_a_namespace, ip, run};

pub(crate) const SERVICE: &str = "172.20.0.1:80";
pub(crate) const HERE: &str = "10.1.0.1:8080";
pub(crate) const THERE: &str = "10.2.0.1:8080";

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

pub(crate) struct World {
    pub(crate) datapath: Datapath,
    pub(crate) desired: DesiredDatapath,
    pub(crate) cgroup: std::fs::File,
}

impl World {
    pub(crate) fn new(config: &LoadConfig) -> Self {
        run("ip link set lo up");
        // At the service's own address stands what kube-proxy would have found.
        for address in [HERE, THERE, SERVICE] {
            serve(address);
        }
        let slice = |address: &str, node| {
            let at: SocketAddr = address.parse().unwrap();
            let backend =
                BackendSpec { addr: at.ip().into(), port: Port::new(at.port()), node, draining: false };
            SliceSpec { weight: 1, backends: [backend].into(), ..SliceSpec::default() }
        };
        let slices = [((1, 0), slice(HERE, 1)), ((2, 0), slice(THERE, 2))].into();
        let mut desired = DesiredDatapath { config: Config::new(1), ..DesiredDatapath::default() };
        let key = ServiceKey::new(ip("172.20.0.1"), Port::new(80), 6);
        desired.services.insert(key, ServiceSpec { slices, ..ServiceSpec::default() });
        let procs = config.cgroup2.join("kubepods/cgroup.procs");
        let cgroup = std::fs::OpenOptions::new().write(true).open(&procs).unwrap();
        let mut world = Self { datapath: Datapath::load(config).unwrap(), desired, cgroup };
        let problems = world.datapath.attach_cgroups();
        assert!(problems.is_empty(), "{problems:?}");
        world.sync();
        world
    }

    pub(crate) fn sync(&mut self) {
        self.sync_at(Time::ZERO);
    }

    fn sync_at(&mut self, now: Time) {
        let report = self.datapath.maps.sync(&self.desired, now);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    /// As affinity `local` is planned.
    fn prefer_home(&mut self) {
        for service in self.desired.services.values_mut() {
            let slices = std::mem::take(&mut service.slices).into_iter();
            let tiered =
                |(of, slice): ((u16, u8), SliceSpec)| (of, SliceSpec { tier: u8::from(of.0 != 1), ..slice });
            service.slices = slices.map(tiered).collect();
        }
        self.sync();
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.datapath.maps.counters().unwrap().into_iter().find(|(found, _)| *found == reason).unwrap().1
    }

    /// A process of the cgroup connects: who answered, and whom it thinks it talks to.
    pub(crate) fn connects(&self, to: &str, family: AddressFamily) -> Connected {
        connect_in(&self.cgroup, to.parse().unwrap(), family)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connected {
    pub(crate) answered: String,
    peer: String,
}

fn connect_in(cgroup: &std::fs::File, to: SocketAddr, family: AddressFamily) -> Connected {
    let target = as_family(to, family);
    let report = in_cgroup(cgroup, |report| child(&target, family, report));
    let (answered, peer) = report.split_once(' ').unwrap();
    Connected { answered: answered.into(), peer: peer.into() }
}

pub(crate) fn as_family(to: SocketAddr, family: AddressFamily) -> SockaddrStorage {
    match (to, family) {
        (SocketAddr::V4(v4), AddressFamily::Inet6) => {
            std::net::SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
        }
        _ => to.into(),
    }
}

/// What a process of the cgroup reports. Between fork and exit the child makes system calls only: this process has other
/// threads.
pub(crate) fn in_cgroup(cgroup: &std::fs::File, act: impl FnOnce(&OwnedFd) -> nix::Result<()>) -> String {
    let (ours, theirs) = nix::unistd::pipe().unwrap();
    // SAFETY: the child calls system calls on values made before, and leaves with _exit.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            let done = nix::unistd::write(cgroup, b"0").and_then(|_| act(&theirs));
            // SAFETY: _exit ends the child without running this process's destructors.
            unsafe { libc::_exit(done.err().map_or(0, |errno| errno as i32)) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(theirs);
            let mut report = String::new();
            std::io::Read::read_to_string(&mut std::fs::File::from(ours), &mut report).unwrap();
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0), "{report:?}");
            report
        }
    }
}

/// Formats into an array: nothing is allocated.
pub(crate) fn write_addr(to: &OwnedFd, addr: &SockaddrStorage) -> nix::Result<()> {
    let mut text = [0_u8; 80];
    let mut rest = &mut text[..];
    let _ = write!(rest, " {addr}");
    let left = rest.len();
    nix::unistd::write(to, &text[..80 - left]).map(drop)
}

fn child(to: &SockaddrStorage, family: AddressFamily, report: &OwnedFd) -> nix::Result<()> {
    let socket = socket(family, SockType::Stream, SockFlag::empty(), None)?;
    connect(socket.as_raw_fd(), to)?;
    let mut answer = [0; 64];
    let len = recv(socket.as_raw_fd(), &mut answer, nix::sys::socket::MsgFlags::empty())?;
    nix::unistd::write(report, &answer[..len])?;
    write_addr(report, &getpeername(socket.as_raw_fd())?)
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
        world.prefer_home();
        assert!((0..30).all(|_| world.connects(SERVICE, AddressFamily::Inet).answered == HERE));
        world.desired.config.flags = CONFIG_OWN_STALE;
        world.sync();
        assert_eq!(
            world.connects(SERVICE, AddressFamily::Inet),
            Connected { answered: SERVICE.into(), peer: SERVICE.into() }
        );
        assert_eq!(world.count(Reason::ConnectOwnStale), 1);
        for service in world.desired.services.values_mut() {
            service.slices = Default::default();
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
        world.prefer_home();
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
        world.datapath.maps.say_own_stale().unwrap();
        assert_eq!(
            world.connects(SERVICE, AddressFamily::Inet).answered,
            SERVICE,
            "nor does it know who is at home"
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

#[test]
fn a_client_that_connects_during_updates_always_reaches_a_backend_of_the_service() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        let cgroup = world.cgroup.try_clone().unwrap();
        let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
        let both = world.desired.clone();
        let without = |cluster: u16| {
            let mut desired = both.clone();
            desired.services.values_mut().for_each(|service| drop(service.slices.remove(&(cluster, 0))));
            desired
        };
        let versions = [both.clone(), without(1), without(2)];
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        let (report, updates) = std::thread::scope(|scope| {
            let updating = scope.spawn(|| {
                let (mut updates, began) = (0, std::time::Instant::now());
                while !done.load(order) {
                    updates += 1;
                    world.desired = versions[updates % 3].clone();
                    let passed = u64::try_from(began.elapsed().as_millis()).unwrap();
                    world.sync_at(Time::from_millis(passed));
                    // Slots that were freed rest for 2 s: so many updates fit into that.
                    std::thread::sleep(std::time::Duration::from_micros(100));
                }
                updates
            });
            let report = in_cgroup(&cgroup, |report| {
                (0..400).try_for_each(|_| {
                    child(&to, AddressFamily::Inet, report)?;
                    nix::unistd::write(report, b"\n").map(drop)
                })
            });
            done.store(true, order);
            (report, updating.join().unwrap())
        });
        let expected = [format!("{HERE} {SERVICE}"), format!("{THERE} {SERVICE}")];
        let odd: Vec<_> = report.lines().filter(|line| !expected.contains(&(*line).to_owned())).collect();
        assert!(odd.is_empty(), "{odd:?}");
        assert_eq!(report.lines().count(), 400);
        assert!(updates > 3, "{updates} updates meanwhile");
        assert_eq!(world.count(Reason::ConnectTorn), 0);
    });
}
