//! Users' real connections, counted by the node that serves them: what works, what is refused, what nobody answers.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::time::Duration;

use hawser_ebpf_abi::{IP_REMOTE, IpEntry, NodeTraffic, PrefixKey};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, send, socket};

use crate::sockets::{HERE, SERVICE, THERE, World, as_family, in_cgroup};
use crate::world::{in_a_namespace, ip, run};

/// The slot of the node that serves [`THERE`].
const SLOT: u32 = 2;

fn remote(world: &mut World) {
    let entry = IpEntry { identity: 7, node: SLOT, cluster: 2, flags: IP_REMOTE };
    world.desired.ipcache.insert(PrefixKey { bits: 128, addr: ip("10.2.0.1") }, entry);
    world.sync();
}

fn seen(world: &World) -> NodeTraffic {
    world.datapath.maps.node_traffic(SLOT).unwrap()
}

/// Waits for what the kernel's timers bring.
fn until(world: &World, what: impl Fn(&NodeTraffic) -> bool) -> NodeTraffic {
    for _ in 0..400 {
        let now = seen(world);
        if what(&now) {
            return now;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("it did not come to that: {:?}", seen(world));
}

#[test]
fn connections_to_another_cluster_are_counted_and_no_others() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        assert!(world.datapath.no_users().is_none(), "{:?}", world.datapath.no_users());
        remote(&mut world);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            (0..10).for_each(|_| assert_eq!(world.connects(THERE, family).answered, THERE));
        }
        assert_eq!(world.connects(HERE, AddressFamily::Inet).answered, HERE);
        let all = until(&world, |seen| seen.closed == 20);
        assert_eq!((all.begun, all.established, all.late, all.stalled), (20, 20, 0, 0));
        // A service's connections count where they were sent.
        let there =
            (0..30).filter(|_| world.connects(SERVICE, AddressFamily::Inet).answered == THERE).count();
        assert_eq!(seen(&world).begun, 20 + there as u64);
        // Refused is the application's word, not the path's.
        let nobody = "10.2.0.1:9".parse().unwrap();
        let refused = in_cgroup(&world.cgroup, |report| attempt(&nobody, report));
        assert_eq!(refused, Errno::ECONNREFUSED.desc());
        let now = seen(&world);
        assert_eq!((now.begun, now.established, now.late), (21 + there as u64, 20 + there as u64, 0));
    });
}

fn attempt(to: &SocketAddr, report: &OwnedFd) -> nix::Result<()> {
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match connect(client.as_raw_fd(), &as_family(*to, AddressFamily::Inet)) {
        Ok(()) => Ok(()),
        // `Display` of an errno without formatting: nothing may be allocated here.
        Err(errno) => nix::unistd::write(report, errno.desc().as_bytes()).map(drop),
    }
}

#[test]
fn attempts_that_nobody_answers_are_late_by_client_and_silence_stalls_a_connection() {
    in_a_namespace(|config| {
        let mut world = World::new(config);
        remote(&mut world);
        let listener = TcpListener::bind("10.2.0.1:7000").unwrap();
        let to: SockaddrStorage = listener.local_addr().unwrap().into();
        let (ours, theirs) = nix::unistd::pipe().unwrap();
        let cgroup = world.cgroup.try_clone().unwrap();
        // Established, acknowledged once, and then the path swallows everything.
        let speaking = std::thread::spawn(move || {
            in_cgroup(&cgroup, |report| {
                let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                connect(client.as_raw_fd(), &to)?;
                nix::unistd::write(report, b"connected")?;
                let mut go = [0];
                nix::unistd::read(&ours, &mut go)?;
                send(client.as_raw_fd(), b"is anybody there", MsgFlags::empty())?;
                nix::unistd::read(&ours, &mut go)?;
                Ok(())
            })
        });
        let (server, _) = listener.accept().unwrap();
        until(&world, |seen| seen.established == 1);
        run("iptables -A INPUT -i lo -d 10.2.0.1 -j DROP");
        nix::unistd::write(&theirs, b".").unwrap();
        let cgroup = world.cgroup.try_clone().unwrap();
        let unanswered = std::thread::spawn(move || {
            in_cgroup(&cgroup, |_| {
                for last in [3_u8, 4, 5] {
                    let client =
                        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
                    let from: SockaddrStorage = SocketAddr::from(([127, 0, 0, last], 0)).into();
                    nix::sys::socket::bind(client.as_raw_fd(), &from)?;
                    let begun = connect(client.as_raw_fd(), &to);
                    if begun != Err(Errno::EINPROGRESS) {
                        return Err(Errno::EINVAL);
                    }
                    // Open until the process ends.
                    let _ = client.into_raw_fd();
                }
                std::thread::sleep(Duration::from_secs(3));
                Ok(())
            })
        });
        let now = until(&world, |seen| seen.late == 3 && seen.stalled == 1);
        assert_eq!((now.begun, now.established), (4, 1), "{now:?}");
        assert!(world.datapath.maps.late_clients(&now) >= 2, "{now:?}");
        nix::unistd::write(&theirs, b".").unwrap();
        unanswered.join().unwrap();
        run("iptables -F INPUT");
        drop(server);
        speaking.join().unwrap();
    });
}
