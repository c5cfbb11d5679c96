//! The task: what arrives goes into the core, what the core says goes out, and the core's deadline wakes it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use hawser_discovery::{
    Liveness, LivenessConfig, NodeId, Output, PeerSnapshot, Probe, ProbeKind, Transition,
};
use hawser_model::{ClusterHealth, ClusterId, Time};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use crate::BindError;
use crate::socket::open;

/// Where the task takes the time from; the agent has one clock.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

#[derive(Clone)]
pub struct EchoConfig {
    pub own: NodeId,
    pub address: Ipv4Addr,
    pub port: u16,
    /// Nothing that came another way than through this device is heard.
    pub device: Option<String>,
    pub liveness: LivenessConfig,
    pub clock: Clock,
    /// A random number: replies to an earlier run of this process answer nothing.
    pub salt: u32,
}

impl fmt::Debug for EchoConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EchoConfig({} at {}:{})", self.own, self.address, self.port)
    }
}

/// What the task has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: u64,
    pub send_errors: u64,
    pub replies: u64,
    pub requests: u64,
    /// No probe, or one whose sender is not whose address it came from.
    pub refused: u64,
    pub rebinds: u64,
}

#[derive(Clone, Debug, Default)]
pub struct EchoSnapshot {
    pub nodes: BTreeMap<NodeId, PeerSnapshot>,
    pub clusters: BTreeMap<ClusterId, (ClusterHealth, Time)>,
    pub counters: Counters,
}

#[derive(Debug, thiserror::Error)]
#[error("the echo task has ended")]
pub struct EchoGone;

/// Packets read before the clock is looked at: a flood delays a verdict, it does not prevent it.
const IN_A_ROW: u32 = 1_024;

enum Command {
    Peers(BTreeMap<NodeId, Ipv4Addr>),
    Snapshot(oneshot::Sender<EchoSnapshot>),
}

/// A handle on the task, which ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Echo {
    commands: mpsc::Sender<Command>,
}

impl Echo {
    /// The remote nodes a tunnel exists to. Known ones keep their state, missing ones lose it.
    pub async fn set_peers(&self, peers: BTreeMap<NodeId, Ipv4Addr>) -> Result<(), EchoGone> {
        self.commands.send(Command::Peers(peers)).await.map_err(|_| EchoGone)
    }

    pub async fn snapshot(&self) -> Result<EchoSnapshot, EchoGone> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Snapshot(reply)).await.map_err(|_| EchoGone)?;
        answer.await.map_err(|_| EchoGone)
    }
}

/// Opens the socket and starts the task. Every change of a verdict comes out of the receiver, in order; a receiver that
/// is not read stops the echo after 1,024 changes rather than losing one.
pub fn spawn(config: EchoConfig) -> Result<(Echo, mpsc::Receiver<Transition>), BindError> {
    let socket = open(config.address, config.port, config.device.as_deref())?;
    let (commands, inbox) = mpsc::channel(16);
    let (changes, outbox) = mpsc::channel(1_024);
    let task = Task {
        liveness: Liveness::new(config.liveness, config.salt),
        addresses: BTreeMap::new(),
        counters: Counters::default(),
        config,
        socket,
        changes,
    };
    tokio::spawn(task.run(inbox));
    Ok((Echo { commands }, outbox))
}

struct Task {
    config: EchoConfig,
    socket: UdpSocket,
    liveness: Liveness,
    addresses: BTreeMap<NodeId, Ipv4Addr>,
    counters: Counters,
    changes: mpsc::Sender<Transition>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        // One byte more than a probe, so that a longer datagram is seen as longer.
        let mut buffer = [0; Probe::LEN + 1];
        let mut in_a_row = 0;
        loop {
            if self.drain().await.is_err() {
                return;
            }
            let deadline = self.liveness.poll_deadline();
            let wait = match deadline {
                _ if in_a_row >= IN_A_ROW => Some(Duration::ZERO),
                deadline => deadline.map(|deadline| deadline.at.since((self.config.clock)())),
            };
            // What has arrived counts before silence is judged: a process that was stopped finds its mail first.
            tokio::select! {
                biased;
                received = self.socket.recv_from(&mut buffer), if in_a_row < IN_A_ROW => {
                    in_a_row += 1;
                    match received {
                        Ok((len, from)) => self.receive(&buffer[..len], from),
                        Err(error) => self.rebind(&error),
                    }
                }
                command = inbox.recv() => match command {
                    Some(Command::Peers(peers)) => self.set_peers(peers),
                    Some(Command::Snapshot(reply)) => drop(reply.send(self.snapshot())),
                    None => return,
                },
                () = sleep(wait) => {
                    in_a_row = 0;
                    self.liveness.handle_time((self.config.clock)());
                }
            }
        }
    }

    /// Err when nobody listens any more.
    async fn drain(&mut self) -> Result<(), EchoGone> {
        while let Some(output) = self.liveness.poll_output() {
            match output {
                Output::Send { to, nonce, hears_you } => {
                    let request = Probe {
                        kind: ProbeKind::Request,
                        sender: self.config.own,
                        addressee: to,
                        hears_you,
                        nonce,
                    };
                    self.send(request, to);
                    self.liveness.handle_sent(to, nonce, (self.config.clock)());
                }
                Output::Changed(transition) => {
                    self.changes.send(transition).await.map_err(|_| EchoGone)?;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, probe: Probe, to: NodeId) {
        let Some(address) = self.addresses.get(&to) else { return };
        let target = SocketAddr::V4(SocketAddrV4::new(*address, self.config.port));
        match self.socket.try_send_to(&probe.encode(), target) {
            Ok(_) => self.counters.sent += 1,
            // A full buffer or an unreachable route is silence like any other; the core judges it.
            Err(error) => {
                self.counters.send_errors += 1;
                self.rebind(&error);
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], from: SocketAddr) {
        let now = (self.config.clock)();
        let Some(probe) = self.admitted(bytes, from) else {
            self.counters.refused += 1;
            return;
        };
        match probe.kind {
            ProbeKind::Reply if self.liveness.handle_reply(probe.sender, probe.nonce, now) => {
                self.counters.replies += 1;
            }
            ProbeKind::Reply => self.counters.refused += 1,
            ProbeKind::Request => {
                self.counters.requests += 1;
                if self.liveness.handle_request(probe.sender, probe.hears_you, now) {
                    let down = |peer: PeerSnapshot| peer.verdict == ClusterHealth::Down;
                    let hears_you = !self.liveness.node(probe.sender).is_some_and(down);
                    self.send(probe.reply(hears_you), probe.sender);
                }
            }
        }
    }

    /// For us, from a node we have a tunnel to, from the address which that node has, and from the echo port.
    fn admitted(&self, bytes: &[u8], from: SocketAddr) -> Option<Probe> {
        let probe = Probe::parse(bytes).ok()?;
        let expected = SocketAddrV4::new(*self.addresses.get(&probe.sender)?, self.config.port);
        (probe.addressee == self.config.own && from == SocketAddr::V4(expected)).then_some(probe)
    }

    fn set_peers(&mut self, peers: BTreeMap<NodeId, Ipv4Addr>) {
        let now = (self.config.clock)();
        let gone: Vec<_> = self.addresses.keys().filter(|node| !peers.contains_key(node)).copied().collect();
        for node in gone {
            self.liveness.handle_peer_gone(node, now);
        }
        self.addresses = peers;
        for node in self.addresses.keys() {
            self.liveness.handle_peer(*node, now);
        }
    }

    /// The device was made anew under the same name: a socket bound to the old one speaks to nobody.
    fn rebind(&mut self, error: &std::io::Error) {
        if !matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ENXIO)) {
            return;
        }
        match open(self.config.address, self.config.port, self.config.device.as_deref()) {
            Ok(socket) => {
                self.socket = socket;
                self.counters.rebinds += 1;
                tracing::info!(address = %self.config.address, "echo socket opened anew");
            }
            Err(error) => tracing::debug!(%error, "echo socket"),
        }
    }

    fn snapshot(&self) -> EchoSnapshot {
        EchoSnapshot {
            nodes: self.liveness.nodes().collect(),
            clusters: self.liveness.clusters().map(|(id, health, since)| (id, (health, since))).collect(),
            counters: self.counters,
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
