//! Liveness told as stories: virtual time, two ends, a path that can be cut, delayed and lossy.

mod budget;
mod damping;
mod endpoint;
mod grey;
mod left;
mod path;
mod properties;
mod sampling;
mod sharing;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex, Time};

use crate::bfd::{ControlPacket, Random, State};
use crate::{Liveness, LivenessConfig, NodeId, Output, Transition};

const SECOND: Duration = Duration::from_secs(1);

fn node(cluster: u32, index: u32) -> NodeId {
    NodeId {
        cluster: ClusterId::new(cluster, ClusterIdWidth::Bits9).unwrap(),
        index: NodeIndex::new(index).unwrap(),
    }
}

fn address(node: NodeId) -> Ipv4Addr {
    Ipv4Addr::from(0xf000_0000 | u32::from(node.cluster.get()) << 16 | u32::from(node.index.get()))
}

/// Probes of a watched node a second apart: numbers that a reader can follow.
fn slow() -> LivenessConfig {
    LivenessConfig { interval: SECOND, ..LivenessConfig::default() }
}

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// What a reflector makes of a probe (RFC 7880 §7.2.2).
fn reflected(asked: &ControlPacket, state: State) -> ControlPacket {
    ControlPacket {
        state,
        demand: false,
        control_plane_independent: true,
        my_discriminator: asked.your_discriminator.try_into().unwrap(),
        your_discriminator: asked.my_discriminator.get(),
        ..*asked
    }
}

/// One agent, and a world in which each remote node answers or not.
struct World {
    liveness: Liveness,
    now: Time,
    answers: BTreeSet<NodeId>,
    round_trip: Duration,
    /// Added to a round trip, up to this much.
    jitter: Duration,
    /// Of a thousand packets, each way.
    lost: u32,
    random: Random,
    in_flight: BTreeMap<(Time, usize), (NodeId, ControlPacket)>,
    changes: Vec<Transition>,
    weights: Vec<u16>,
    greys: Vec<crate::Greyness>,
    /// Packets of users' size do not arrive.
    black_hole: bool,
    /// Nor probes with more behind them than this.
    takes: u16,
    sent: usize,
    /// How often the colleagues were to be told.
    found: usize,
}

impl World {
    fn new(nodes: &[NodeId]) -> Self {
        Self::with(slow(), nodes)
    }

    fn with(config: LivenessConfig, nodes: &[NodeId]) -> Self {
        let mut world = Self {
            liveness: Liveness::new(config, 0xfeed_beef),
            now: ms(1_000),
            answers: BTreeSet::new(),
            round_trip: Duration::from_millis(40),
            jitter: Duration::ZERO,
            lost: 0,
            random: Random::seeded(5),
            in_flight: BTreeMap::new(),
            changes: Vec::new(),
            weights: Vec::new(),
            greys: Vec::new(),
            black_hole: false,
            takes: u16::MAX,
            sent: 0,
            found: 0,
        };
        for node in nodes {
            world.liveness.handle_peer(*node, address(*node), world.now);
        }
        world.liveness.handle_time(world.now);
        world.drain();
        world
    }

    fn answered_by(mut self, nodes: &[NodeId]) -> Self {
        self.answers = nodes.iter().copied().collect();
        self
    }

    fn drain(&mut self) {
        while let Some(output) = self.liveness.poll_output() {
            match output {
                Output::Send { to, probe, padding, .. } => {
                    self.sent += 1;
                    self.liveness.handle_sent(to, &probe, self.now);
                    let survives = (0..2).all(|_| self.random.between(0, 999) >= self.lost);
                    let fits = padding <= self.takes && !(self.black_hole && padding > 0);
                    if self.answers.contains(&to) && survives && fits {
                        let jitter = self.jitter * self.random.between(0, 1_000) / 1_000;
                        let at = self.now + self.round_trip + jitter;
                        self.in_flight.insert((at, self.sent), (to, reflected(&probe, State::Up)));
                    }
                }
                Output::Changed(transition) => self.changes.push(transition),
                Output::Weight { weight, .. } => self.weights.push(weight),
                Output::Grey(greyness) => self.greys.push(greyness),
                Output::Found => self.found += 1,
            }
        }
    }

    /// Runs deadline by deadline.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self.liveness.poll_deadline().map(|deadline| deadline.at);
            let packet = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = timer.into_iter().chain(packet).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            while let Some(entry) = self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let (from, packet) = entry.remove();
                self.liveness.handle_packet(from, &packet, self.now);
            }
            self.liveness.handle_time(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn changes(&mut self) -> Vec<String> {
        self.changes
            .drain(..)
            .map(|t| match t.about {
                crate::About::Node(n) => format!("{}/{} {} -> {}", n.cluster, n.index, t.from, t.to),
                crate::About::Cluster(c) => format!("{c} {} -> {}", t.from, t.to),
            })
            .collect()
    }
}
