//! Liveness told as stories: virtual time, two ends, a path that can be cut.

mod packets;
mod properties;
mod verdicts;

use std::time::Duration;

use hawser_model::{ClusterId, ClusterIdWidth, NodeIndex, Time};

use crate::{Liveness, LivenessConfig, NodeId, Output, Transition};

fn node(cluster: u32, index: u32) -> NodeId {
    NodeId {
        cluster: ClusterId::new(cluster, ClusterIdWidth::Bits9).unwrap(),
        index: NodeIndex::new(index).unwrap(),
    }
}

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// One agent, and a world in which each remote node answers or not.
struct World {
    liveness: Liveness,
    now: Time,
    answers: Vec<NodeId>,
    round_trip: Duration,
    in_flight: Vec<(Time, NodeId, u64)>,
    changes: Vec<Transition>,
    sent: usize,
}

impl World {
    fn new(nodes: &[NodeId]) -> Self {
        let mut world = Self {
            liveness: Liveness::new(LivenessConfig::default(), 0xfeed_beef),
            now: ms(1_000),
            answers: Vec::new(),
            round_trip: Duration::from_millis(40),
            in_flight: Vec::new(),
            changes: Vec::new(),
            sent: 0,
        };
        for node in nodes {
            world.liveness.handle_peer(*node, world.now);
        }
        world.drain();
        world
    }

    fn drain(&mut self) {
        while let Some(output) = self.liveness.poll_output() {
            match output {
                Output::Send { to, nonce, .. } => {
                    self.sent += 1;
                    self.liveness.handle_sent(to, nonce, self.now);
                    if self.answers.contains(&to) {
                        self.in_flight.push((self.now + self.round_trip, to, nonce));
                    }
                }
                Output::Changed(transition) => self.changes.push(transition),
            }
        }
    }

    /// Runs deadline by deadline.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timer = self.liveness.poll_deadline().map(|d| d.at);
            let packet = self.in_flight.iter().map(|(at, ..)| *at).min();
            let Some(next) = timer.into_iter().chain(packet).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let (due, later) = self.in_flight.drain(..).partition(|(at, ..)| *at <= self.now);
            self.in_flight = later;
            let due: Vec<_> = due;
            for (_, from, nonce) in due {
                self.liveness.handle_reply(from, nonce, self.now);
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
