//! The process is killed; the device, the routes and the secret stay.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hawser_model::PublicKey;
use hawser_tunnels::DeviceName;
use hawser_tunnels_linux::{Driver, WireguardDriver};

use crate::node::{Node, config, desired, endpoint, mesh_v4, name, nets, reconcile};
use crate::world::{Capture, Netns, World, eventually, run, send_udp, unique};

const DEVICE: &str = "HAWSER_TEST_DEVICE";
const MARKER: &[u8] = b"this must never cross in clear";

/// A process of its own that runs one node until it is killed.
pub(crate) struct Process {
    child: Child,
    _stdin: ChildStdin,
    pub(crate) key: PublicKey,
    /// What the first reconcile had to do.
    ops: Vec<String>,
}

impl Process {
    /// This test binary again, in the namespace, as `the_process_that_is_killed`.
    fn start(netns: &Netns, device: &str, dir: &Path, peer: PublicKey) -> Self {
        Self::run(netns, device, dir, peer, false)
    }

    fn run(netns: &Netns, device: &str, dir: &Path, peer: PublicKey, take_over: bool) -> Self {
        Self::run_with(netns, device, dir, peer, take_over, "")
    }

    /// `ports` of both ends for sessions beyond the first.
    pub(crate) fn run_with(
        netns: &Netns,
        device: &str,
        dir: &Path,
        peer: PublicKey,
        take_over: bool,
        ports: &str,
    ) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &netns.name])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "survival::the_process_that_is_killed", "--nocapture"])
            .env(DEVICE, device)
            .env("HAWSER_TEST_DIR", dir)
            .env("HAWSER_TEST_PEER", hex(peer))
            .env("HAWSER_TEST_TAKE_OVER", take_over.to_string())
            .env("HAWSER_TEST_PORTS", ports)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let (mut ops, mut key) = (Vec::new(), None);
        for line in lines {
            if let Some(op) = line.strip_prefix("op ") {
                ops.push(op.to_owned());
            } else if let Some(hex) = line.strip_prefix("ready ") {
                key = Some(unhex(hex));
                break;
            }
        }
        let stdin = child.stdin.take().unwrap();
        Self { child, _stdin: stdin, key: key.expect("the process became ready"), ops }
    }

    pub(crate) fn kill(mut self) {
        // SIGKILL: no handler runs, no destructor.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of [`Process`]. Alone it has nothing to run.
#[test]
fn the_process_that_is_killed() {
    let Ok(device) = std::env::var(DEVICE) else { return };
    let dir = std::env::var("HAWSER_TEST_DIR").unwrap();
    let peer = unhex(&std::env::var("HAWSER_TEST_PEER").unwrap());
    let mut config = config(DeviceName::parse(&device).unwrap(), Path::new(&dir).join("wireguard.key"));
    config.take_over = std::env::var("HAWSER_TEST_TAKE_OVER").unwrap() == "true";
    let ports = std::env::var("HAWSER_TEST_PORTS").unwrap_or_default();
    config.more_ports = ports.split_whitespace().map(|port| port.parse().unwrap()).collect();
    let driver = WireguardDriver::start(config.clone()).unwrap();
    let mut desired = desired(&config, driver.public_key(), 1);
    let allowed = nets(&["240.2.0.1/32", "fd68:6177:7365:2::1/128", "10.2.0.0/16"]);
    desired.routes = allowed.clone();
    let at = endpoint([172, 31, 2, 2]);
    desired.peers = vec![hawser_tunnels::Peer {
        name: name(2),
        public_key: peer,
        endpoint: at,
        allowed,
        keepalive: None,
        boot_id: None,
        esp: None,
        more_ports: config.more_ports.clone(),
        via: None,
        slot: 0,
    }];
    for op in reconcile(&driver, &desired) {
        println!("op {op}");
    }
    assert_eq!(reconcile(&driver, &desired), []);
    println!("ready {}", hex(driver.public_key()));
    std::io::stdout().flush().unwrap();
    // Until killed, or until the test that started this is gone.
    let _ = std::io::stdin().lines().next();
    driver.remove().unwrap();
}

#[test]
fn a_killed_engine_leaks_nothing_and_its_successor_adopts_everything() {
    let world = World::new();
    let mut two = Node::start(&world.b, 2);
    let (device, dir) = (unique(), tempfile::tempdir().unwrap());
    let process = Process::start(&world.a, &device, dir.path(), two.driver.public_key());
    two.add_peer(1, process.key, endpoint([172, 31, 1, 2]), &[]);
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    let capture = Capture::on(&world.router);
    let index = interface_index(&world.a, &device);
    let key = process.key;

    process.kill();
    assert_eq!(interface_index(&world.a, &device), index, "the device outlives the process");
    assert!(world.a.run("ip route show").contains(&format!("10.2.0.0/16 dev {device}")));
    let everywhere =
        ["240.2.0.1:9", "10.2.3.4:9", "[fd68:6177:7365:2::1]:9", "240.9.9.9:9", "[fd68:6177:7365:9::9]:9"];
    let send_everywhere = || {
        for to in everywhere {
            for _ in 0..20 {
                let _ = send_udp(&world.a, to, MARKER);
            }
        }
    };
    send_everywhere();
    // Even when somebody takes the device away, and with it the routes to it.
    let process = Process::start(&world.a, &device, dir.path(), two.driver.public_key());
    assert_eq!(process.key, key, "the key is the same one");
    let mut expected: Vec<String> = process.ops.clone();
    expected.retain(|op| !op.starts_with("add peer") && !op.starts_with("peer "));
    assert_eq!(expected, Vec::<String>::new(), "device, addresses and routes were adopted as they were");
    assert_eq!(interface_index(&world.a, &device), index);
    eventually("the mesh is whole again", || world.a.pings(mesh_v4(2)));

    process.kill();
    run(&format!("ip -n {} link del {device}", world.a.name));
    send_everywhere();

    // The wire was watched, and what is not the mesh's does leave in clear.
    send_udp(&world.a, "198.51.100.1:9", b"in clear on purpose").unwrap();
    eventually("the capture works", || capture.saw(b"in clear on purpose"));
    assert!(!capture.saw(MARKER));
    // It is the guards that hold: without them the secret is out.
    world.a.run("ip route flush proto 72");
    send_everywhere();
    eventually("the proof can fail", || capture.saw(MARKER));
    let _ = std::fs::remove_file(format!("/var/run/wireguard/{device}.sock"));
}

/// Datagrams from one end, which the other sends back; so many under way that a test's own sockets hold them.
struct Stream {
    running: Arc<AtomicBool>,
    threads: [JoinHandle<()>; 3],
    sent: Arc<AtomicU64>,
    seen: Arc<AtomicU64>,
}

const UNDER_WAY: u64 = 60;

impl Stream {
    fn between(a: &Netns, b: &Netns) -> Self {
        let bound = |netns: &Netns, at| {
            let socket = netns.inside(|| UdpSocket::bind(SocketAddr::new(at, 0)).unwrap());
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            socket
        };
        let (here, there) = (bound(a, mesh_v4(1)), bound(b, mesh_v4(2)));
        here.connect(there.local_addr().unwrap()).unwrap();
        there.connect(here.local_addr().unwrap()).unwrap();
        let (running, sent, seen) =
            (Arc::new(AtomicBool::new(true)), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let back = here.try_clone().unwrap();
        let (go, count, came) = (Arc::clone(&running), Arc::clone(&sent), Arc::clone(&seen));
        let send = move || {
            while go.load(Ordering::Relaxed) {
                if count.load(Ordering::Relaxed) - came.load(Ordering::Relaxed) < UNDER_WAY {
                    here.send(&count.fetch_add(1, Ordering::Relaxed).to_le_bytes()).unwrap();
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        };
        let echo = move || {
            let mut buffer = [0; 8];
            while there.recv(&mut buffer).is_ok() {
                there.send(&buffer).unwrap();
            }
        };
        let came = Arc::clone(&seen);
        let count = move || {
            let mut buffer = [0; 8];
            while back.recv(&mut buffer).is_ok() {
                came.fetch_add(1, Ordering::Relaxed);
            }
        };
        let threads = [std::thread::spawn(send), std::thread::spawn(echo), std::thread::spawn(count)];
        Self { running, threads, sent, seen }
    }

    /// Datagrams sent, and those that came there and back; after a silence in which nothing more came.
    fn end(self) -> (u64, u64) {
        self.running.store(false, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.sent.load(Ordering::Relaxed), self.seen.load(Ordering::Relaxed))
    }

    fn goes_on_for(&self, count: u64) {
        let until = self.sent.load(Ordering::Relaxed) + count;
        eventually("datagrams are sent", || self.sent.load(Ordering::Relaxed) >= until);
    }
}

#[test]
fn a_planned_restart_hands_the_sessions_over_and_loses_no_packet() {
    let world = World::new();
    let mut two = Node::start(&world.b, 2);
    let (device, dir) = (unique(), tempfile::tempdir().unwrap());
    let mut process = Process::start(&world.a, &device, dir.path(), two.driver.public_key());
    two.add_peer(1, process.key, endpoint([172, 31, 1, 2]), &[]);
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    let handshake = || two.stats().peers[&process.key].last_handshake;
    let before = handshake();
    let stream = Stream::between(&world.a, &world.b);
    let mut successors = Vec::new();
    for _ in 0..3 {
        stream.goes_on_for(300);
        let successor = Process::run(&world.a, &device, dir.path(), two.driver.public_key(), true);
        assert_eq!(successor.key, process.key);
        stream.goes_on_for(300);
        successors.push(successor);
    }
    assert_eq!(handshake(), before, "the session that was goes on");
    let last = successors.pop().unwrap();
    // Those before carry nothing any more, and take nothing along.
    successors.into_iter().for_each(Process::kill);
    let key = process.key;
    std::mem::replace(&mut process, last).kill();
    stream.goes_on_for(300);
    let (sent, seen) = stream.end();
    assert_eq!(seen, sent);
    assert_eq!(process.key, key);
    assert!(world.b.pings(mesh_v4(1)));
    assert!(process.ops.iter().all(|op| !op.starts_with("add peer")), "peers are there: {:?}", process.ops);
}

/// A successor of another version: what it asks with is not known here, and it cannot use what it would get.
#[test]
fn a_predecessor_that_does_not_understand_lets_go_and_its_successor_makes_sessions_anew() {
    let world = World::new();
    let mut two = Node::start(&world.b, 2);
    let (device, dir) = (unique(), tempfile::tempdir().unwrap());
    let process = Process::start(&world.a, &device, dir.path(), two.driver.public_key());
    two.add_peer(1, process.key, endpoint([172, 31, 1, 2]), &[]);
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
    let mut stream = UnixStream::connect(format!("/var/run/wireguard/{device}.sock")).unwrap();
    stream.write_all(b"handover=2\nwith more to say\n\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"", "nothing of its keys, and the end");
    assert!(!world.a.pings(mesh_v4(2)), "it carries no more");
    let key = process.key;
    process.kill();
    let successor = Process::run(&world.a, &device, dir.path(), two.driver.public_key(), true);
    assert_eq!(successor.key, key);
    eventually("the mesh is whole again", || world.a.pings(mesh_v4(2)));
}

#[test]
fn there_is_nothing_to_take_over_where_nobody_is_and_that_is_no_error() {
    let world = World::new();
    let mut two = Node::start(&world.b, 2);
    let (device, dir) = (unique(), tempfile::tempdir().unwrap());
    let process = Process::run(&world.a, &device, dir.path(), two.driver.public_key(), true);
    two.add_peer(1, process.key, endpoint([172, 31, 1, 2]), &[]);
    two.reconcile();
    assert!(world.a.pings(mesh_v4(2)));
}

fn interface_index(netns: &Netns, device: &str) -> String {
    let line = run(&format!("ip -n {} -o link show {device}", netns.name));
    line.split(':').next().unwrap().to_owned()
}

fn hex(key: PublicKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> PublicKey {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    PublicKey::new(std::array::from_fn(byte)).unwrap()
}
