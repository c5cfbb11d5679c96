//! One peer over several lanes: each by itself, all of them the same peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{End, Pair, SECOND};
use crate::engine::handshake;
use crate::engine::peer::{Context, Peer};
use crate::engine::sockets::Line;
use crate::noise::Kind;

impl Pair {
    /// Connected by the first lane, with as many more as are stated here, and our own.
    fn spread(stated: [usize; 2], own: usize) -> Self {
        let pair = Self::connected();
        for (end, stated) in stated.into_iter().enumerate() {
            let port = pair.at[1 - end].port();
            let ports: Vec<u16> = (1..=stated as u16).map(|lane| port + 10 * lane).collect();
            pair.ends[end].peer.spread(&ports, own, &pair.ends[end].sessions);
        }
        pair
    }

    fn lane(&self, end: usize, lane: u8) -> Arc<Peer> {
        Arc::clone(self.ends[end].peer.lane(lane).expect("a lane in use"))
    }

    fn is_open(&self, end: usize, lane: u8) -> bool {
        End::session_of(&self.lane(end, lane), self.now).is_some()
    }

    fn ask(&mut self, end: usize, lane: u8) {
        let (now, lane) = (self.now, self.lane(end, lane));
        self.ends[end].with(now, |_, context| lane.ask(context));
    }

    /// A packet by a lane that is open.
    fn send_by(&mut self, end: usize, lane: u8, packet: &[u8]) {
        let (now, lane) = (self.now, self.lane(end, lane));
        self.ends[end].with(now, |_, context| lane.enqueue(context, packet));
    }

    fn ports(&self, end: usize) -> Vec<Option<u16>> {
        let at = |lane: u8| self.lane(end, lane).lock().endpoint.map(|at: SocketAddr| at.port());
        (0..3).map(at).collect()
    }
}

#[test]
fn each_lane_shakes_hands_when_it_is_wanted_and_carries_by_sessions_of_its_own() {
    let mut pair = Pair::spread([2, 2], 2);
    assert_eq!(pair.ports(0), [Some(2), Some(12), Some(22)]);
    assert_eq!(pair.sessions(), [1, 1], "nobody has wanted one");
    for lane in [1, 2] {
        pair.ask(0, lane);
        pair.exchange();
        assert!(pair.is_open(0, lane) && pair.is_open(1, lane));
    }
    assert_eq!(pair.sessions(), [3, 3]);
    let indices: Vec<_> = (0..3).map(|lane| End::session_of(&pair.lane(0, lane), pair.now)).collect();
    assert!(indices[0] != indices[1] && indices[1] != indices[2]);
    pair.send_by(0, 1, b"by the second");
    pair.send_by(1, 2, b"by the third");
    pair.exchange();
    assert_eq!(pair.ends[1].got.last().unwrap(), b"by the second");
    assert_eq!(pair.ends[0].got.last().unwrap(), b"by the third");
    let totals = pair.ends[0].peer.totals(pair.now);
    assert_eq!(totals.sessions, 3);
    assert!(totals.rx_bytes > pair.ends[0].peer.bytes().0, "it is one peer to whoever looks");
}

#[test]
fn a_flow_keeps_to_one_lane_and_flows_are_on_all_of_them() {
    let pair = Pair::spread([2, 2], 2);
    let peer = &pair.ends[0].peer;
    let lanes: Vec<u8> = (0..30).map(|flow| peer.lane_of(|| flow).lane).collect();
    assert_eq!(lanes, (0..30).map(|flow| peer.lane_of(|| flow).lane).collect::<Vec<_>>());
    assert!((0..3).all(|lane| lanes.contains(&lane)));
}

#[test]
fn two_ends_use_as_many_lanes_as_the_smaller_has() {
    let mut pair = Pair::spread([2, 1], 2);
    let peer = &pair.ends[1].peer;
    assert_eq!((0..9).map(|flow| peer.lane_of(|| flow).lane).max(), Some(1));
    assert!(peer.lane(2).is_none());
    // Who has not heard of it yet asks in vain, and goes on by the first.
    pair.ask(0, 2);
    pair.exchange();
    assert_eq!(pair.ends[1].refused.len(), 1);
    assert!(!pair.is_open(0, 2) && pair.is_open(0, 0));
    let few = Pair::spread([7, 0], 1);
    assert_eq!((0..9).map(|flow| few.ends[0].peer.lane_of(|| flow).lane).max(), Some(1), "we have one");
    assert_eq!(few.ends[0].peer.more_ports().len(), 7, "what was stated is known all the same");
}

#[test]
fn what_was_said_in_one_lane_is_nothing_in_another() {
    let mut pair = Pair::spread([2, 2], 2);
    pair.now = pair.now + 10 * SECOND;
    pair.ask(0, 1);
    let (to, initiation) = pair.ends[0].out.take().remove(0);
    assert_eq!(to.lane, 1);
    let now = pair.now;
    let at: SocketAddr = "198.51.100.9:9".parse().unwrap();
    for lane in [0, 2] {
        let End { state, sessions, out, sockets, counters, .. } = &mut pair.ends[1];
        let mut context = Context { own: &state.key, sessions, out, sockets, counters, now };
        let from = Line { lane, at };
        assert!(handshake::receive(state, &mut context, Kind::Initiation, &initiation, from).is_err());
        assert_ne!(pair.lane(1, lane).lock().endpoint, Some(at), "whoever repeats it moves nobody");
    }
    let from = Line { lane: 1, at: pair.at[0] };
    pair.ends[1].receive_by(&mut initiation.clone(), from, now);
    assert!(pair.ends[1].refused.is_empty(), "it was a good one");
}

#[test]
fn a_lane_that_falls_silent_is_left_until_a_handshake_brings_it_back() {
    let mut pair = Pair::spread([1, 1], 1);
    pair.ask(0, 1);
    pair.exchange();
    pair.send_by(0, 1, b"lost");
    pair.pass(16 * SECOND, true, |_| {});
    assert!(!pair.is_open(0, 1), "its flows go by the first lane");
    assert!(pair.is_open(0, 0), "which has not been asked for anything");
    pair.ask(0, 1);
    pair.exchange();
    assert!(pair.is_open(0, 1));
}

#[test]
fn an_idle_lane_ends_and_is_not_kept() {
    let mut pair = Pair::spread([1, 1], 1);
    pair.ends[0].peer.set_keepalive(25);
    pair.ask(0, 1);
    pair.exchange();
    pair.pass(100 * SECOND, false, |_| {});
    assert!(pair.is_open(0, 1), "a keepalive keeps what is there");
    pair.ends[0].peer.set_keepalive(0);
    pair.pass(200 * SECOND, false, |_| {});
    assert!(!pair.is_open(0, 1));
    pair.ends[0].peer.set_keepalive(25);
    pair.pass(60 * SECOND, false, |_| {});
    assert!(!pair.is_open(0, 1), "and makes nothing");
    assert!(pair.is_open(0, 0), "but the first");
}

#[test]
fn lanes_follow_a_peer_to_another_address_and_each_has_its_own_port_there() {
    let mut pair = Pair::spread([2, 2], 2);
    assert_eq!(pair.ports(0).len(), 3);
    // One of them is behind a NAT that rewrites its port.
    let moved: SocketAddr = "192.0.2.2:4000".parse().unwrap();
    pair.lane(0, 1).set_endpoint(moved);
    pair.ends[0].peer.set_endpoint("192.0.2.2:5000".parse().unwrap());
    assert_eq!(pair.ports(0), [Some(5000), Some(4000), Some(22)], "the address is the same");
    pair.ends[0].peer.set_endpoint("203.0.113.1:5000".parse().unwrap());
    assert_eq!(pair.ports(0), [Some(5000), Some(12), Some(22)]);
    let at = pair.lane(0, 2).lock().endpoint.unwrap();
    assert_eq!(at.to_string(), "203.0.113.1:22");
    pair.now = pair.now + Duration::from_secs(1);
}

#[test]
fn of_a_peer_that_goes_or_has_fewer_lanes_nothing_stays() {
    let mut pair = Pair::spread([2, 2], 2);
    for lane in [1, 2] {
        pair.ask(0, lane);
        pair.exchange();
    }
    let (peer, sessions) = (Arc::clone(&pair.ends[0].peer), Arc::clone(&pair.ends[0].sessions));
    peer.spread(&[12], 2, &sessions);
    assert_eq!(pair.sessions()[0], 2);
    assert!(pair.is_open(0, 1) && peer.lane(2).is_none());
    pair.ends[0].state.remove(peer.key);
    assert_eq!(pair.sessions()[0], 0);
    pair.ends[0].with(pair.now, |_, context| peer.lane(1).unwrap().ask(context));
    assert!(pair.ends[0].out.take().is_empty());
}
