//! BFD with ordinary neighbours (RFC 5881): one task, one [`Session`] per peer's address. Decides nothing.
//!
//! Cost: a packet is O(log sessions); a timer looks at every session, of which there are at most [`MAX_PEERS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::{NonZeroU8, NonZeroU32};
use std::time::Duration;

use hawser_discovery::bfd::{
    Admin, Change, ControlPacket, Diagnostic, FIRST_SOURCE_PORT, Interval, Output, PORT, Random, Session,
    SessionConfig, State, TTL,
};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use crate::socket::{open, receive};
use crate::{BindError, Clock, sleep};

/// Sessions of one task; more peers are not begun.
pub const MAX_PEERS: usize = 64;
/// Source ports that are tried before a session is given up until the next [`Bfd::set_peers`].
const PORTS_TRIED: u32 = 64;
/// Packets read before the timers are looked at: a flood delays a verdict, it does not prevent it.
const IN_A_ROW: u32 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intervals {
    pub desired_min_tx: Interval,
    pub required_min_rx: Interval,
    pub detect_mult: NonZeroU8,
}

#[derive(Clone)]
pub struct BfdConfig {
    pub address: Ipv4Addr,
    /// Nothing that came another way than through this device is heard.
    pub device: Option<String>,
    pub intervals: Intervals,
    pub clock: Clock,
    /// A random number, for discriminators, source ports and jitter.
    pub seed: u64,
}

impl fmt::Debug for BfdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BfdConfig({} every {:?})", self.address, self.intervals)
    }
}

/// A change of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdChange {
    pub peer: Ipv4Addr,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BfdSession {
    pub state: State,
    pub remote_state: State,
    pub diagnostic: Diagnostic,
    pub transmit_interval: Option<Duration>,
    pub detection_time: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BfdSnapshot {
    pub sessions: BTreeMap<Ipv4Addr, BfdSession>,
    /// Packets that no session took: malformed, from a stranger, or with a TTL that says they were routed.
    pub discarded: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the BFD task has ended")]
pub struct BfdGone;

enum Command {
    Peers(BTreeSet<Ipv4Addr>),
    Admin(Admin),
    Intervals(Interval, Interval),
    Snapshot(oneshot::Sender<BfdSnapshot>),
}

/// A handle on the task. When the last one is dropped, every session says AdminDown and ends: a graceful stop is no failure.
#[derive(Clone, Debug)]
pub struct Bfd {
    commands: mpsc::Sender<Command>,
}

impl Bfd {
    /// The neighbours to have sessions with. Known ones keep theirs; those that are gone are told AdminDown.
    pub async fn set_peers(&self, peers: BTreeSet<Ipv4Addr>) -> Result<(), BfdGone> {
        self.send(Command::Peers(peers)).await
    }

    pub async fn admin(&self, admin: Admin) -> Result<(), BfdGone> {
        self.send(Command::Admin(admin)).await
    }

    /// Agreed upon with each peer by a poll sequence.
    pub async fn set_intervals(
        &self,
        desired_min_tx: Interval,
        required_min_rx: Interval,
    ) -> Result<(), BfdGone> {
        self.send(Command::Intervals(desired_min_tx, required_min_rx)).await
    }

    pub async fn snapshot(&self) -> Result<BfdSnapshot, BfdGone> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Snapshot(reply)).await?;
        answer.await.map_err(|_| BfdGone)
    }

    async fn send(&self, command: Command) -> Result<(), BfdGone> {
        self.commands.send(command).await.map_err(|_| BfdGone)
    }
}

/// Opens the socket and starts the task. Changes come out of the receiver in order; one that is not read stops the
/// sessions after 1,024 rather than losing one.
pub fn spawn_bfd(config: BfdConfig) -> Result<(Bfd, mpsc::Receiver<BfdChange>), BindError> {
    let socket = open(config.address, PORT, config.device.as_deref())?;
    let (commands, inbox) = mpsc::channel(16);
    let (changes, outbox) = mpsc::channel(1_024);
    let random = Random::seeded(config.seed);
    let task =
        Task { config, socket, sessions: BTreeMap::new(), random, changes, admin: Admin::Up, discarded: 0 };
    tokio::spawn(task.run(inbox));
    Ok((Bfd { commands }, outbox))
}

/// A session sends from a port of its own (RFC 5881 §4).
struct Running {
    session: Session,
    socket: UdpSocket,
}

struct Task {
    config: BfdConfig,
    socket: UdpSocket,
    sessions: BTreeMap<Ipv4Addr, Running>,
    random: Random,
    changes: mpsc::Sender<BfdChange>,
    admin: Admin,
    discarded: u64,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = [0; 512];
        let mut in_a_row = 0;
        loop {
            if self.drain().await.is_err() {
                return;
            }
            let deadline = self.sessions.values().filter_map(|running| running.session.poll_deadline()).min();
            let wait = match deadline {
                _ if in_a_row >= IN_A_ROW => Some(Duration::ZERO),
                deadline => deadline.map(|deadline| deadline.at.since((self.config.clock)())),
            };
            tokio::select! {
                biased;
                received = receive(&self.socket, &mut buffer), if in_a_row < IN_A_ROW => {
                    in_a_row += 1;
                    match received {
                        Ok(received) => self.receive(&buffer[..received.len], received.from, received.ttl),
                        Err(error) => tracing::debug!(%error, "BFD socket"),
                    }
                }
                command = inbox.recv() => match command {
                    Some(command) => self.obey(command),
                    None => {
                        self.obey(Command::Peers(BTreeSet::new()));
                        return;
                    }
                },
                () = sleep(wait) => {
                    in_a_row = 0;
                    let now = (self.config.clock)();
                    self.sessions.values_mut().for_each(|running| running.session.handle_timeout(now));
                }
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], from: SocketAddrV4, ttl: u8) {
        let now = (self.config.clock)();
        let packet = ControlPacket::parse(bytes).ok().filter(|_| ttl == TTL);
        let session = self.sessions.get_mut(from.ip());
        let taken = packet.zip(session).map(|(packet, running)| running.session.handle_packet(&packet, now));
        if !matches!(taken, Some(Ok(()))) {
            self.discarded += 1;
        }
    }

    fn obey(&mut self, command: Command) {
        let now = (self.config.clock)();
        match command {
            Command::Peers(peers) => self.set_peers(&peers),
            Command::Admin(admin) => {
                self.admin = admin;
                self.sessions.values_mut().for_each(|running| running.session.handle_admin(admin, now));
            }
            Command::Intervals(desired, required) => {
                self.config.intervals.desired_min_tx = desired;
                self.config.intervals.required_min_rx = required;
                let sessions = self.sessions.values_mut();
                sessions.for_each(|running| running.session.handle_intervals(desired, required, now));
            }
            Command::Snapshot(reply) => drop(reply.send(self.snapshot())),
        }
    }

    fn set_peers(&mut self, peers: &BTreeSet<Ipv4Addr>) {
        let now = (self.config.clock)();
        for (peer, mut gone) in self.sessions.extract_if(.., |peer, _| !peers.contains(peer)) {
            gone.session.handle_admin(Admin::Down, now);
            while let Some(output) = gone.session.poll_output() {
                if let Output::Send(packet) = output {
                    send(&gone.socket, peer, &packet);
                }
            }
        }
        for peer in peers.iter().take(MAX_PEERS) {
            if !self.sessions.contains_key(peer) {
                self.begin(*peer);
            }
        }
    }

    fn begin(&mut self, peer: Ipv4Addr) {
        let socket = match self.source() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%peer, %error, "no BFD session");
                return;
            }
        };
        let taken: BTreeSet<_> =
            self.sessions.values().map(|running| running.session.local_discriminator()).collect();
        let local_discriminator = loop {
            // At most MAX_PEERS of 2^32 are taken.
            let drawn = NonZeroU32::new(self.random.draw() as u32);
            if let Some(free) = drawn.filter(|drawn| !taken.contains(drawn)) {
                break free;
            }
        };
        let Intervals { desired_min_tx, required_min_rx, detect_mult } = self.config.intervals;
        let seed = self.random.draw();
        let config =
            SessionConfig { local_discriminator, desired_min_tx, required_min_rx, detect_mult, seed };
        let now = (self.config.clock)();
        let mut session = Session::new(config, now);
        session.handle_admin(self.admin, now);
        self.sessions.insert(peer, Running { session, socket });
    }

    fn source(&mut self) -> Result<UdpSocket, BindError> {
        let mut tried = 0;
        loop {
            // Fits: 65,535 at the most.
            let port = self.random.between(u32::from(FIRST_SOURCE_PORT), u32::from(u16::MAX)) as u16;
            tried += 1;
            match open(self.config.address, port, self.config.device.as_deref()) {
                Err(error) if tried < PORTS_TRIED && error.source.kind() == std::io::ErrorKind::AddrInUse => {
                }
                opened => return opened,
            }
        }
    }

    /// Err when nobody listens any more.
    async fn drain(&mut self) -> Result<(), BfdGone> {
        for (peer, running) in &mut self.sessions {
            while let Some(output) = running.session.poll_output() {
                match output {
                    Output::Send(packet) => send(&running.socket, *peer, &packet),
                    Output::Changed(change) => {
                        let change = BfdChange { peer: *peer, change };
                        self.changes.send(change).await.map_err(|_| BfdGone)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> BfdSnapshot {
        let sessions = self.sessions.iter().map(|(peer, Running { session, .. })| {
            let shown = BfdSession {
                state: session.state(),
                remote_state: session.remote_state(),
                diagnostic: session.diagnostic(),
                transmit_interval: session.transmit_interval(),
                detection_time: session.detection_time(),
            };
            (*peer, shown)
        });
        BfdSnapshot { sessions: sessions.collect(), discarded: self.discarded }
    }
}

fn send(socket: &UdpSocket, peer: Ipv4Addr, packet: &ControlPacket) {
    // A full buffer or an unreachable route is silence like any other; the other end judges it.
    if let Err(error) = socket.try_send_to(&packet.encode(), SocketAddrV4::new(peer, PORT).into()) {
        tracing::debug!(%peer, %error, "a BFD packet was not sent");
    }
}
