//! The task: what arrives goes into the core, what the core says goes out, and the core's deadline wakes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use hawser_discovery::bfd::{ControlPacket, TTL};
use hawser_discovery::{
    About, Budget, Greyness, Liveness, LivenessConfig, NodeId, Output, PeerSnapshot, REFLECTOR_PORT,
    Reflector, Shared, SharingCounts, Transition, Users,
};
use hawser_model::{ClusterHealth, ClusterId, HealthWord, Time};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};

use crate::socket::{open, receive};
use crate::{BindError, Clock, sleep};

#[derive(Clone)]
pub struct ProberConfig {
    pub address: Ipv4Addr,
    /// Prober leave from here, and their answers come back here.
    pub port: u16,
    /// Nothing that came another way than through this device is heard.
    pub device: Option<String>,
    pub liveness: LivenessConfig,
    pub clock: Clock,
    /// A random number: replies to an earlier run of this process answer nothing.
    pub seed: u64,
}

impl fmt::Debug for ProberConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProberConfig({}:{})", self.address, self.port)
    }
}

/// What the task has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub sent: u64,
    /// Of them as large as users' packets.
    pub large: u64,
    pub send_errors: u64,
    pub replies: u64,
    /// No control packet, from nobody's reflector, routed on the way (its TTL), or an answer to nothing that was asked.
    pub refused: u64,
    pub rebinds: u64,
}

#[derive(Clone, Debug, Default)]
pub struct ProberSnapshot {
    pub nodes: BTreeMap<NodeId, PeerSnapshot>,
    pub clusters: BTreeMap<ClusterId, (ClusterHealth, Time)>,
    /// None before the first look at who is used.
    pub budget: Option<Budget>,
    pub sharing: SharingCounts,
    pub counters: Counters,
}

/// What the task tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Changed(Transition),
    /// Up, and a step further on its slow way back.
    Weight {
        about: About,
        weight: u16,
    },
    /// Up, but users fail or large packets do not arrive; or they do again.
    Grey(Greyness),
}

#[derive(Debug, thiserror::Error)]
#[error("the probing task has ended")]
pub struct ProberGone;

/// Packets read before the clock is looked at: a flood delays a verdict, it does not prevent it.
const IN_A_ROW: u32 = 1_024;

enum Command {
    /// With what an earlier run left about them.
    Peers(BTreeMap<NodeId, Reflector>, BTreeMap<About, HealthWord>),
    Used(BTreeSet<NodeId>),
    Users(Vec<(NodeId, Users)>),
    Shared(Shared),
    Snapshot(oneshot::Sender<ProberSnapshot>),
}

/// A handle on the task, which ends when the last handle is dropped. Reflectors go on answering: nobody's verdict about
/// this node changes by that.
#[derive(Clone, Debug)]
pub struct Prober {
    commands: mpsc::Sender<Command>,
    found: watch::Receiver<BTreeSet<NodeId>>,
}

impl Prober {
    /// The remote nodes a tunnel exists to. Known ones keep their state, missing ones lose it.
    pub async fn set_peers(&self, peers: BTreeMap<NodeId, Reflector>) -> Result<(), ProberGone> {
        self.resume(peers, BTreeMap::new()).await
    }

    /// The same at a start, with the health words that an earlier run left ([`Liveness::handle_left`]).
    pub async fn resume(
        &self,
        peers: BTreeMap<NodeId, Reflector>,
        left: BTreeMap<About, HealthWord>,
    ) -> Result<(), ProberGone> {
        self.commands.send(Command::Peers(peers, left)).await.map_err(|_| ProberGone)
    }

    /// Users' packets went to these nodes: they are watched for a minute.
    pub async fn used(&self, nodes: BTreeSet<NodeId>) -> Result<(), ProberGone> {
        self.commands.send(Command::Used(nodes)).await.map_err(|_| ProberGone)
    }

    /// The counters of users' connections to these nodes, as they are now ([`Liveness::handle_users`]).
    pub async fn users(&self, nodes: Vec<(NodeId, Users)>) -> Result<(), ProberGone> {
        self.commands.send(Command::Users(nodes)).await.map_err(|_| ProberGone)
    }

    /// What the other nodes of this cluster find ([`Liveness::handle_shared`]).
    pub async fn shared(&self, shared: Shared) -> Result<(), ProberGone> {
        self.commands.send(Command::Shared(shared)).await.map_err(|_| ProberGone)
    }

    /// What they are to be told ([`Liveness::found`]); its sender goes with the task.
    pub fn found(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.found.clone()
    }

    pub async fn snapshot(&self) -> Result<ProberSnapshot, ProberGone> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Snapshot(reply)).await.map_err(|_| ProberGone)?;
        answer.await.map_err(|_| ProberGone)
    }
}

/// Opens the socket and starts the task. Every verdict comes out of the receiver, in order; a receiver that is not read
/// stops the probes after 1,024 rather than losing one.
pub fn spawn_prober(config: ProberConfig) -> Result<(Prober, mpsc::Receiver<Verdict>), BindError> {
    let socket = open(config.address, config.port, config.device.as_deref())?;
    let (commands, inbox) = mpsc::channel(16);
    let (verdicts, outbox) = mpsc::channel(1_024);
    let (tell, found) = watch::channel(BTreeSet::new());
    let task = Task {
        liveness: Liveness::new(config.liveness, config.seed),
        reflectors: BTreeMap::new(),
        nodes: BTreeMap::new(),
        counters: Counters::default(),
        config,
        socket,
        verdicts,
        found: tell,
    };
    tokio::spawn(task.run(inbox));
    Ok((Prober { commands, found }, outbox))
}

struct Task {
    config: ProberConfig,
    socket: UdpSocket,
    liveness: Liveness,
    reflectors: BTreeMap<NodeId, Reflector>,
    nodes: BTreeMap<Ipv4Addr, NodeId>,
    counters: Counters,
    verdicts: mpsc::Sender<Verdict>,
    found: watch::Sender<BTreeSet<NodeId>>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        // What lies behind the packet in an answer to a large probe is not looked at.
        let mut buffer = [0; ControlPacket::LEN];
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
                received = receive(&self.socket, &mut buffer), if in_a_row < IN_A_ROW => {
                    in_a_row += 1;
                    match received {
                        Ok(received) => self.receive(&buffer[..received.len], received.from, received.ttl),
                        Err(error) => self.rebind(&error),
                    }
                }
                command = inbox.recv() => match command {
                    Some(Command::Peers(peers, left)) => {
                        self.set_peers(peers);
                        self.liveness.handle_left(&left, (self.config.clock)());
                    }
                    Some(Command::Used(nodes)) => {
                        let now = (self.config.clock)();
                        nodes.into_iter().for_each(|node| self.liveness.handle_used(node, now));
                    }
                    Some(Command::Users(nodes)) => {
                        let now = (self.config.clock)();
                        nodes.into_iter().for_each(|(node, users)| self.liveness.handle_users(node, users, now));
                    }
                    Some(Command::Shared(shared)) => self.liveness.handle_shared(shared, (self.config.clock)()),
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
    async fn drain(&mut self) -> Result<(), ProberGone> {
        while let Some(output) = self.liveness.poll_output() {
            let verdict = match output {
                Output::Send { to, address, probe, padding } => {
                    self.send(&probe, padding, address);
                    self.liveness.handle_sent(to, &probe, (self.config.clock)());
                    continue;
                }
                Output::Changed(transition) => Verdict::Changed(transition),
                Output::Weight { about, weight } => Verdict::Weight { about, weight },
                Output::Grey(greyness) => Verdict::Grey(greyness),
                Output::Found => {
                    self.found.send_replace(self.liveness.found().clone());
                    continue;
                }
            };
            self.verdicts.send(verdict).await.map_err(|_| ProberGone)?;
        }
        Ok(())
    }

    fn send(&mut self, probe: &ControlPacket, padding: u16, to: Ipv4Addr) {
        let target = SocketAddr::V4(SocketAddrV4::new(to, REFLECTOR_PORT));
        let small = probe.encode();
        let large = (padding > 0).then(|| {
            let mut octets = small.to_vec();
            octets.resize(octets.len() + usize::from(padding), 0);
            octets
        });
        match self.socket.try_send_to(large.as_deref().unwrap_or(&small), target) {
            Ok(_) => {
                self.counters.sent += 1;
                self.counters.large += u64::from(padding > 0);
            }
            // A full buffer or an unreachable route is silence like any other; the core judges it.
            Err(error) => {
                self.counters.send_errors += 1;
                self.rebind(&error);
            }
        }
    }

    /// From a reflector's port (RFC 7881 §4), from a node we have a tunnel to, and with the TTL of one hop.
    fn receive(&mut self, bytes: &[u8], from: SocketAddrV4, ttl: u8) {
        let now = (self.config.clock)();
        let node = self.nodes.get(from.ip()).filter(|_| from.port() == REFLECTOR_PORT && ttl == TTL);
        let packet = ControlPacket::parse(bytes).ok();
        let answers =
            node.zip(packet).is_some_and(|(node, packet)| self.liveness.handle_packet(*node, &packet, now));
        match answers {
            true => self.counters.replies += 1,
            false => self.counters.refused += 1,
        }
    }

    fn set_peers(&mut self, peers: BTreeMap<NodeId, Reflector>) {
        let now = (self.config.clock)();
        let gone: Vec<_> = self.reflectors.keys().filter(|node| !peers.contains_key(node)).copied().collect();
        for node in gone {
            self.liveness.handle_peer_gone(node, now);
        }
        self.nodes = peers.iter().map(|(node, at)| (at.address, *node)).collect();
        self.reflectors = peers;
        for (node, at) in &self.reflectors {
            self.liveness.handle_peer(*node, *at, now);
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
                tracing::info!(address = %self.config.address, "liveness socket opened anew");
            }
            Err(error) => tracing::debug!(%error, "liveness socket"),
        }
    }

    fn snapshot(&self) -> ProberSnapshot {
        ProberSnapshot {
            nodes: self.liveness.nodes().collect(),
            clusters: self.liveness.clusters().map(|(id, health, since)| (id, (health, since))).collect(),
            budget: (!self.reflectors.is_empty()).then(|| self.liveness.budget().clone()),
            sharing: self.liveness.sharing(),
            counters: self.counters,
        }
    }
}
