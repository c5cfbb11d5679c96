//! Real UDP sockets, connected and not, of both families: who gets a message, and from whom the answer seems to come.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use hawser_ebpf::{LoadConfig, LruSizes};
use hawser_ebpf_abi::{BackendSpec, HEALTH_NO_NEW, Port, Reason, ServiceKey, ServiceSpec, SliceSpec, map};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getpeername, recvfrom, sendto,
    setsockopt, socket, sockopt::ReceiveTimeout,
};

use crate::sockets::{HERE, SERVICE, THERE, World, as_family, in_cgroup, write_addr};
use crate::world::{in_a_namespace, run};

const SERVICE_6: &str = "[fd00:20::1]:80";
const HERE_6: &str = "[fd00:1::1]:8080";
const THERE_6: &str = "[fd00:2::1]:8080";
const UDP: u8 = 17;
/// Messages per socket.
const SENDS: usize = 8;

/// Answers every message with its own address, from that address.
fn serve(address: &'static str) {
    let at: SocketAddr = address.parse().unwrap();
    if at.is_ipv6() {
        run(&format!("ip address add {}/128 dev lo nodad", at.ip()));
    }
    let socket = UdpSocket::bind(at).unwrap();
    std::thread::spawn(move || {
        let mut message = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut message) {
            let _ = socket.send_to(address.as_bytes(), from);
        }
    });
}

/// The TCP world, and the same service by UDP and by IPv6.
fn world(config: &LoadConfig) -> World {
    let mut world = World::new(config);
    for address in [HERE, THERE, SERVICE, HERE_6, THERE_6, SERVICE_6] {
        serve(address);
    }
    let slice = |address: &str, node| {
        let at: SocketAddr = address.parse().unwrap();
        let backend = BackendSpec { addr: at.ip().into(), port: Port::new(at.port()), node, draining: false };
        SliceSpec { weight: 1, backends: [backend].into(), ..SliceSpec::default() }
    };
    for (service, here, there) in [(SERVICE, HERE, THERE), (SERVICE_6, HERE_6, THERE_6)] {
        let at: SocketAddr = service.parse().unwrap();
        let key = ServiceKey::new(at.ip().into(), Port::new(at.port()), UDP);
        let slices = [((1, 0), slice(here, 1)), ((2, 0), slice(there, 2))].into();
        world.desired.services.insert(key, ServiceSpec { slices, ..ServiceSpec::default() });
    }
    world.sync();
    world
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    SendTo,
    Connect,
}

/// One socket sends [`SENDS`] messages: each answer, and from whom it seems to come. A connected one says its peer last.
fn talk(world: &World, to: &str, family: AddressFamily, how: How) -> Vec<String> {
    let to = as_family(to.parse().unwrap(), family);
    let report = in_cgroup(&world.cgroup, |report| child(&to, family, how, report));
    report.split_whitespace().map(str::to_owned).collect()
}

fn child(to: &SockaddrStorage, family: AddressFamily, how: How, report: &OwnedFd) -> nix::Result<()> {
    let socket = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
    if how == How::Connect {
        connect(socket.as_raw_fd(), to)?;
    }
    for _ in 0..SENDS {
        match how {
            How::Connect => nix::sys::socket::send(socket.as_raw_fd(), b"who?", MsgFlags::empty())?,
            How::SendTo => sendto(socket.as_raw_fd(), b"who?", to, MsgFlags::empty())?,
        };
        let mut answer = [0; 64];
        let (len, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut answer)?;
        nix::unistd::write(report, &answer[..len])?;
        write_addr(report, &from.ok_or(nix::errno::Errno::EINVAL)?)?;
        nix::unistd::write(report, b" ")?;
    }
    if how == How::Connect {
        write_addr(report, &getpeername(socket.as_raw_fd())?)?;
    }
    Ok(())
}

/// Every socket keeps to one backend, all backends are used, and every answer seems to come from `shown`.
fn both_are_used(world: &World, to: &str, family: AddressFamily, shown: &str, [here, there]: [&str; 2]) {
    for how in [How::SendTo, How::Connect] {
        let mut used = [0, 0];
        for _ in 0..30 {
            let words = talk(world, to, family, how);
            let (messages, peer) = words.split_at(2 * SENDS);
            let first = &messages[0];
            assert!(messages.chunks(2).all(|said| said == [first.clone(), shown.to_owned()]), "{messages:?}");
            assert!(
                peer.iter().all(|peer| peer == shown) && (how == How::SendTo || peer.len() == 1),
                "{peer:?}"
            );
            used[usize::from(first == there)] += 1;
            assert!(first == here || first == there, "{first}");
        }
        assert!(used.iter().all(|sockets| *sockets > 0), "{used:?}");
    }
}

#[test]
fn udp_goes_to_every_cluster_and_answers_come_from_the_service() {
    in_a_namespace(|config| {
        let world = world(config);
        both_are_used(&world, SERVICE, AddressFamily::Inet, SERVICE, [HERE, THERE]);
        let sockets = 30;
        assert_eq!(world.count(Reason::PinKept), sockets * (SENDS as u64 - 1));
        assert_eq!(world.count(Reason::RecvRestored), 2 * sockets * SENDS as u64);
        let plain = talk(&world, THERE, AddressFamily::Inet, How::SendTo);
        assert!(plain.iter().all(|word| word == THERE), "no service, no change: {plain:?}");
        assert_eq!((world.count(Reason::SendOther), world.count(Reason::RecvOther)), (8, 8));
    });
}

#[test]
fn a_v6_socket_that_sends_to_a_v4_mapped_service_crosses_the_hooks_and_sees_the_service() {
    in_a_namespace(|config| {
        let world = world(config);
        let shown = "[::ffff:172.20.0.1]:80";
        both_are_used(&world, SERVICE, AddressFamily::Inet6, shown, [HERE, THERE]);
    });
}

#[test]
fn udp_over_ipv6_does_the_same() {
    in_a_namespace(|config| {
        let world = world(config);
        both_are_used(&world, SERVICE_6, AddressFamily::Inet6, SERVICE_6, [HERE_6, THERE_6]);
    });
}

/// Sends one message and reports who answered.
fn ask(socket: &OwnedFd, to: &SockaddrStorage, report: &OwnedFd) -> nix::Result<[u8; 64]> {
    sendto(socket.as_raw_fd(), b"who?", to, MsgFlags::empty())?;
    let mut answer = [0; 64];
    let (len, _) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut answer)?;
    nix::unistd::write(report, &answer[..len])?;
    nix::unistd::write(report, b" ")?;
    Ok(answer)
}

#[test]
fn a_socket_leaves_a_backend_that_became_unhealthy_and_stays_where_it_went() {
    in_a_namespace(|config| {
        let World { mut datapath, cgroup, .. } = world(config);
        let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
        for _ in 0..10 {
            let report = in_cgroup(&cgroup, |report| {
                let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
                setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
                let first = ask(&socket, &to, report)?;
                let cluster = if first.starts_with(HERE.as_bytes()) { 1 } else { 2 };
                // The forked process has the maps as well.
                let set = |datapath: &mut hawser_ebpf::Datapath, word| {
                    datapath.maps.set_cluster_health(cluster, word).map_err(|_| nix::errno::Errno::EIO)
                };
                set(&mut datapath, HEALTH_NO_NEW)?;
                for _ in 0..4 {
                    ask(&socket, &to, report)?;
                }
                set(&mut datapath, 256)?;
                for _ in 0..4 {
                    ask(&socket, &to, report)?;
                }
                Ok(())
            });
            let said: Vec<_> = report.split_whitespace().collect();
            let other = if said[0] == HERE { THERE } else { HERE };
            assert_eq!(said[1..], [other; 8], "{said:?}");
        }
        let counters = datapath.maps.counters().unwrap();
        let count = |reason| counters.iter().find(|(found, _)| *found == reason).unwrap().1;
        assert_eq!((count(Reason::PinUnhealthy), count(Reason::PinMade)), (10, 20));
    });
}

#[test]
fn session_affinity_keeps_a_namespace_at_one_backend_until_it_is_withdrawn() {
    in_a_namespace(|config| {
        let mut world = world(config);
        for service in world.desired.services.values_mut() {
            service.session_seconds = 600;
        }
        world.sync();
        let mut answered = std::collections::BTreeSet::new();
        for _ in 0..20 {
            answered.extend(talk(&world, SERVICE, AddressFamily::Inet, How::SendTo).into_iter().step_by(2));
        }
        assert_eq!(answered.len(), 1, "{answered:?}");
        let mut connected = std::collections::BTreeSet::new();
        connected.extend((0..20).map(|_| world.connects(SERVICE, AddressFamily::Inet).answered));
        assert_eq!(connected.len(), 1, "{connected:?}");
        let (gone, left) = if answered.contains(HERE) { (1, THERE) } else { (2, HERE) };
        for service in world.desired.services.values_mut() {
            service.slices.remove(&(gone, 0));
        }
        world.sync();
        assert_eq!(talk(&world, SERVICE, AddressFamily::Inet, How::SendTo)[0], left);
        assert!(world.count(Reason::PinGone) > 0);
    });
}

/// As the agent writes a cluster whose backends are about to end.
fn drain(world: &mut World, cluster: u16) {
    for service in world.desired.services.values_mut() {
        let slice = service.slices.remove(&(cluster, 0)).unwrap();
        let backends = slice.backends.into_iter().map(|backend| BackendSpec { draining: true, ..backend });
        let slice = SliceSpec { tier: 1, backends: backends.collect(), ..slice };
        service.slices.insert((cluster, 2), slice);
    }
    world.sync();
}

#[test]
fn a_socket_stays_with_a_backend_that_drains_and_what_is_new_goes_elsewhere_while_there_is_anything_else() {
    in_a_namespace(|config| {
        let mut world = world(config);
        let cgroup = world.cgroup.try_clone().unwrap();
        let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
        let (said, tell) = nix::unistd::pipe().unwrap();
        let (go, begin) = nix::unistd::pipe().unwrap();
        let (stayed, moved, connected) = std::thread::scope(|scope| {
            let talking = scope.spawn(|| {
                in_cgroup(&cgroup, |report| {
                    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
                    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
                    let first = ask(&socket, &to, report)?;
                    nix::unistd::write(&tell, &first[3..4])?;
                    nix::unistd::read(&go, &mut [0])?;
                    (0..4).try_for_each(|_| ask(&socket, &to, report).map(drop))
                })
            });
            let mut cluster = [0];
            nix::unistd::read(&said, &mut cluster).unwrap();
            drain(&mut world, u16::from(cluster[0] - b'0'));
            let moved: Vec<_> =
                (0..10).map(|_| talk(&world, SERVICE, AddressFamily::Inet, How::SendTo)[0].clone()).collect();
            let connected: Vec<_> =
                (0..10).map(|_| world.connects(SERVICE, AddressFamily::Inet).answered).collect();
            nix::unistd::write(&begin, b"!").unwrap();
            (talking.join().unwrap(), moved, connected)
        });
        let stayed: Vec<_> = stayed.split_whitespace().collect();
        let other = if stayed[0] == HERE { THERE } else { HERE };
        assert_eq!(stayed, [stayed[0]; 5]);
        assert!(moved.iter().chain(&connected).all(|answered| answered == other), "{moved:?} {connected:?}");
        assert_eq!(world.count(Reason::ConnectDraining), 0);

        drain(&mut world, if other == HERE { 1 } else { 2 });
        let last: std::collections::BTreeSet<_> =
            (0..30).map(|_| world.connects(SERVICE, AddressFamily::Inet).answered).collect();
        assert_eq!(last.len(), 2, "with nothing else left they serve: {last:?}");
        assert_eq!(world.count(Reason::ConnectDraining), 30);
    });
}

#[test]
fn with_maglev_a_namespace_goes_to_one_backend_by_tcp_and_udp_until_that_is_withdrawn_or_down() {
    in_a_namespace(|config| {
        let mut world = world(config);
        for service in world.desired.services.values_mut() {
            service.maglev = true;
        }
        world.sync();
        let tcp = |world: &World| {
            let all = (0..20).map(|_| world.connects(SERVICE, AddressFamily::Inet).answered);
            all.collect::<std::collections::BTreeSet<_>>()
        };
        let home = tcp(&world);
        assert_eq!(home.len(), 1, "{home:?}");
        let udp: std::collections::BTreeSet<_> = (0..20)
            .flat_map(|_| talk(&world, SERVICE, AddressFamily::Inet, How::SendTo).into_iter().step_by(2))
            .collect();
        assert_eq!(udp.len(), 1, "{udp:?}");
        assert_eq!(world.count(Reason::PinMade), 0);
        let (cluster, other) = if home.contains(HERE) { (1, THERE) } else { (2, HERE) };
        world.datapath.maps.set_cluster_health(cluster, HEALTH_NO_NEW).unwrap();
        assert_eq!(tcp(&world), [other.to_owned()].into());
        world.datapath.maps.set_cluster_health(cluster, 256).unwrap();
        assert_eq!(tcp(&world), home, "and back");
        for service in world.desired.services.values_mut() {
            service.slices.remove(&(cluster, 0));
        }
        world.sync();
        assert_eq!(tcp(&world), [other.to_owned()].into());
    });
}

#[test]
fn what_an_lru_map_has_no_room_for_is_counted_and_no_message_is_lost_and_a_new_size_is_taken_over() {
    in_a_namespace(|config| {
        let small = LruSizes { socket_pins: 128, sock_rev: 128, ..LruSizes::default() };
        let config = LoadConfig { lru: small, ..config.clone() };
        let world = world(&config);
        let to = as_family(SERVICE.parse().unwrap(), AddressFamily::Inet);
        let report = in_cgroup(&world.cgroup, |report| {
            let mut sockets = Vec::new();
            for _ in 0..400 {
                let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
                setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
                ask(&socket, &to, report)?;
                sockets.push(socket);
            }
            // Most likely forgotten by now, and answered all the same.
            ask(&sockets[0], &to, report)?;
            Ok(())
        });
        assert_eq!(report.split_whitespace().count(), 401, "every message is answered");
        let forgotten = |datapath: &hawser_ebpf::Datapath, map| {
            let uses = datapath.lru().unwrap();
            uses.into_iter().find(|found| found.map == map).unwrap().forgotten()
        };
        // Whether the first had been forgotten too: the kernel frees in batches, by CPU.
        let expected = 400 - 128..=401 - 128;
        for map in [map::SOCKET_PINS, map::SOCK_REV] {
            let forgotten = forgotten(&world.datapath, map);
            assert!(expected.contains(&forgotten), "{map}: {forgotten}, expected {expected:?}");
        }
        assert_eq!(forgotten(&world.datapath, map::FLOWS), 0);
        // An agent with another setting: nothing else is made anew.
        let services = world.desired.clone();
        drop(world);
        let config = LoadConfig { lru: LruSizes { socket_pins: 1_024, ..small }, ..config };
        let mut datapath = hawser_ebpf::Datapath::load(&config).unwrap();
        assert_eq!(forgotten(&datapath, map::SOCKET_PINS), 0);
        let writes = datapath.maps.sync(&services, hawser_model::Time::ZERO).writes;
        assert!(writes > 0, "services of an earlier agent are flipped to runs of this one's");
        assert_eq!(datapath.maps.sync(&services, hawser_model::Time::ZERO).writes, 0);
    });
}
