//! Two nodes and a router between them, as network namespaces; and eyes on the wire.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Unique on this machine; short enough for a device.
pub(crate) fn unique() -> String {
    format!("hw{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a command; anything but success ends the test with what it said.
pub(crate) fn run(command: &str) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn output(command: &str) -> Output {
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output();
    output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
}

/// Waits for something that must become true; how long it took is nobody's business.
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < patience, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    fn new() -> Self {
        let name = unique();
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    /// Runs a closure on a thread inside; threads that it starts stay inside.
    pub(crate) fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.name)).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).expect("this test needs root");
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    pub(crate) fn pings(&self, to: impl Into<IpAddr>) -> bool {
        let to = to.into();
        output(&format!("ip netns exec {} ping -c 1 -W 2 {to}", self.name)).status.success()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = output(&format!("ip netns del {}", self.name));
    }
}

/// `a` (172.31.1.2, fd31:1::2) -- `router` -- `b` (172.31.2.2, fd31:2::2). Both nodes have a default route to the router
/// and strict reverse-path filters.
pub(crate) struct World {
    pub(crate) a: Netns,
    pub(crate) b: Netns,
    pub(crate) router: Netns,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self { a: Netns::new(), b: Netns::new(), router: Netns::new() };
        let router = &world.router;
        for (node, n) in [(&world.a, 1), (&world.b, 2)] {
            let (name, side) = (&node.name, format!("eth{n}"));
            run(&format!("ip link add eth0 netns {name} type veth peer name {side} netns {}", router.name));
            run(&format!("ip -n {name} addr add 172.31.{n}.2/24 dev eth0"));
            run(&format!("ip -n {name} addr add fd31:{n}::2/64 dev eth0 nodad"));
            run(&format!("ip -n {name} link set eth0 up"));
            run(&format!("ip -n {} addr add 172.31.{n}.1/24 dev {side}", router.name));
            run(&format!("ip -n {} addr add fd31:{n}::1/64 dev {side} nodad", router.name));
            run(&format!("ip -n {} link set {side} up", router.name));
            run(&format!("ip -n {name} route add default via 172.31.{n}.1"));
            run(&format!("ip -n {name} -6 route add default via fd31:{n}::1"));
            node.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1");
        }
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        eventually("the nodes reach each other", || {
            world.a.pings([172, 31, 2, 2]) && world.b.pings("fd31:1::2".parse::<IpAddr>().unwrap())
        });
        world
    }
}

/// Everything that crosses a namespace's devices.
pub(crate) struct Capture {
    pub(crate) frames: Arc<Mutex<Vec<Vec<u8>>>>,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    pub(crate) fn on(netns: &Netns) -> Self {
        let fd = netns.inside(|| {
            let all = SockProtocol::EthAll;
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, all)
                .expect("this test needs root")
        });
        let (frames, running) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(true)));
        let (seen, go) = (Arc::clone(&frames), Arc::clone(&running));
        let thread = std::thread::spawn(move || {
            let mut frame = [0; 65536];
            while go.load(Ordering::Relaxed) {
                match nix::sys::socket::recv(fd.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty())
                {
                    Ok(length) => seen.lock().unwrap().push(frame[..length].to_vec()),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self { frames, running, thread: Some(thread) }
    }

    pub(crate) fn saw(&self, marker: &[u8]) -> bool {
        let frames = self.frames.lock().unwrap();
        frames.iter().any(|frame| frame.windows(marker.len()).any(|window| window == marker))
    }

    /// UDP destination ports of all IPv4 frames that carry an IP protocol other than ICMP; 0 for other protocols.
    pub(crate) fn ipv4_ports(&self) -> Vec<u16> {
        let frames = self.frames.lock().unwrap();
        let ipv4 = frames.iter().filter(|f| f.len() > 38 && f[12..14] == [8, 0] && f[23] != 1);
        ipv4.map(|f| if f[23] == 17 { u16::from_be_bytes([f[36], f[37]]) } else { 0 }).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends `length` bytes by TCP from one node to the other and back, and compares.
pub(crate) fn echo_by_tcp(from: &Netns, to: &Netns, address: IpAddr, length: usize) {
    let listener = to.inside(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        std::io::copy(&mut reader, &mut stream).unwrap();
    });
    let stream = from.inside(|| TcpStream::connect(at).unwrap());
    let sent: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let copy = sent.clone();
    let sender = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    (&stream).read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    server.join().unwrap();
    assert!(received == sent, "{} bytes came back of {}", received.len(), sent.len());
}

/// Sends one datagram, whatever becomes of it.
pub(crate) fn send_udp(from: &Netns, to: &str, data: &[u8]) -> std::io::Result<usize> {
    from.inside(|| {
        let to: SocketAddr = to.parse().unwrap();
        let any: SocketAddr =
            if to.is_ipv4() { "0.0.0.0:0".parse().unwrap() } else { "[::]:0".parse().unwrap() };
        UdpSocket::bind(any).unwrap().send_to(data, to)
    })
}
