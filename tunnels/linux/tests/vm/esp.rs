//! Our ESP and the kernel's, in UDP, both ways. The kernel's end is made by hand: what it is asked for is what `ip xfrm`
//! says, and no code of ours.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use hawser_tunnels::{DeviceName, EspKey, Sa};
use hawser_tunnels_linux::{Engine, EngineSettings, PrivateKey, Protocol};

use crate::node::{PORT, endpoint, mesh_v4, mesh_v6};
use crate::world::{Capture, World, echo_by_tcp, unique};

/// From the engine to the kernel, and back.
const KEYS: [(u32, u8); 2] = [(0x0a0b_0c01, 0x11), (0x0a0b_0c02, 0x22)];

fn sa((spi, seed): (u32, u8)) -> Sa {
    Sa { spi, key: EspKey::new(&[seed; 36]).unwrap() }
}

/// 172.31.1.2 is the engine, 172.31.2.2 the kernel.
fn kernel(world: &World, first: u32) -> UdpSocket {
    let socket = world.b.inside(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
    let (udp_encap, espinudp): (libc::c_int, libc::c_int) = (100, 2);
    // SAFETY: the pointer is to one `int`, and that is its length (`linux/udp.h`: UDP_ENCAP, UDP_ENCAP_ESPINUDP).
    let set = unsafe {
        let length = size_of_val(&espinudp) as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            udp_encap,
            (&raw const espinudp).cast(),
            length,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let ends = [("172.31.1.2", "172.31.2.2"), ("172.31.2.2", "172.31.1.2")];
    for (at, ((from, to), (spi, seed))) in ends.into_iter().zip(KEYS).enumerate() {
        let key = format!("{seed:02x}").repeat(36);
        let behind = if at == 0 { String::new() } else { format!("replay-oseq {first:#x}") };
        world.b.run(&format!(
            "ip xfrm state add src {from} dst {to} proto esp spi {spi:#x} reqid 7 mode tunnel flag esn af-unspec \
             replay-window 1024 {behind} aead rfc4106(gcm(aes)) 0x{key} 128 encap espinudp {PORT} {PORT} 0.0.0.0"
        ));
    }
    for (one, two) in [(mesh_v4(1), mesh_v4(2)), (mesh_v6(1), mesh_v6(2))] {
        let tmpl = |from, to| format!("tmpl src {from} dst {to} proto esp reqid 7 mode tunnel");
        let (out, into) = (tmpl("172.31.2.2", "172.31.1.2"), tmpl("172.31.1.2", "172.31.2.2"));
        world.b.run(&format!("ip xfrm policy add src {two} dst {one} dir out {out}"));
        world.b.run(&format!("ip xfrm policy add src {one} dst {two} dir in {into}"));
        world.b.run(&format!("ip addr add {two} dev lo"));
    }
    world.b.run(&format!("ip route add {} via 172.31.2.1 src {}", mesh_v4(1), mesh_v4(2)));
    world.b.run(&format!("ip -6 route add {} via fd31:2::1 src {}", mesh_v6(1), mesh_v6(2)));
    socket
}

fn engine(world: &World) -> (Engine, String) {
    let dir = tempfile::tempdir().unwrap();
    let key = |name: &str| PrivateKey::load_or_create(&dir.path().join(name)).unwrap();
    let device = DeviceName::parse(&unique()).unwrap();
    let settings = EngineSettings {
        device: device.clone(),
        key: key("own"),
        port: PORT,
        more_ports: Vec::new(),
        mark: 0,
        mtu: 1420,
        take_over: false,
        protocol: Protocol::Esp,
    };
    let engine = world.a.inside(|| Engine::start(settings)).unwrap();
    let peer = key("peer").public();
    let at = endpoint([172, 31, 2, 2]);
    let text = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(peer.as_bytes())
    };
    let allowed = format!("{}/32,{}/128", mesh_v4(2), mesh_v6(2));
    world.a.run(&format!("wg set {device} peer {text} endpoint {at} allowed-ips {allowed}"));
    for (own, other) in [(mesh_v4(1), mesh_v4(2)), (mesh_v6(1), mesh_v6(2))] {
        world.a.run(&format!("ip addr add {own} dev {device}"));
        world.a.run(&format!("ip link set {device} mtu 1420 up"));
        world.a.run(&format!("ip route add {other} dev {device} src {own}"));
    }
    engine.associate(&peer, Some(&sa(KEYS[0])), &[sa(KEYS[1])]).unwrap();
    (engine, device.to_string())
}

#[test]
fn our_esp_and_the_kernels_understand_each_other() {
    let world = World::new();
    let _socket = kernel(&world, 0);
    let (engine, _) = engine(&world);
    let capture = Capture::on(&world.router);
    assert!(world.a.pings(mesh_v4(2)), "{}", world.b.run("ip -s xfrm state"));
    assert!(world.b.pings(mesh_v6(1)));
    echo_by_tcp(&world.a, &world.b, mesh_v4(2), 1 << 20);
    echo_by_tcp(&world.b, &world.a, mesh_v6(1), 1 << 20);
    let ports = capture.ipv4_ports();
    assert!(!ports.is_empty() && ports.iter().all(|port| *port == PORT), "{ports:?}");
    let dropped = engine.drops();
    for reason in ["bad-tag", "malformed", "replayed", "no-session", "bad-source"] {
        assert!(dropped.contains(&(reason, 0)), "{dropped:?}");
    }
    let states = world.b.run("ip -s xfrm state");
    assert!(states.contains("esn") && states.contains("encap type espinudp"), "{states}");
}

#[test]
fn the_lower_half_of_the_numbers_wraps_and_nobody_notices() {
    let world = World::new();
    // The kernel goes on from here into the second period. A receiver that has not heard of an association yet takes numbers
    // within a window of the end for ones before the beginning, so it is a little more than that.
    let _socket = kernel(&world, u32::MAX - 8300);
    let (engine, _) = engine(&world);
    let there = world.a.inside(|| UdpSocket::bind((mesh_v4(1), 0)).unwrap());
    let here = world.b.inside(|| UdpSocket::bind((mesh_v4(2), 0)).unwrap());
    for _ in 0..8000 {
        here.send_to(&[7], there.local_addr().unwrap()).unwrap();
    }
    echo_by_tcp(&world.b, &world.a, mesh_v4(1), 1 << 20);
    let states = world.b.run("ip xfrm state");
    assert!(states.contains("oseq-hi 0x1"), "it did wrap: {states}");
    assert!(engine.drops().contains(&("bad-tag", 0)), "{:?}", engine.drops());
}
