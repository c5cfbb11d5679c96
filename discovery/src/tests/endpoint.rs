//! Endpoints of one node: chosen, kept, left, and found again.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::{EndpointChoice, MOST_ENDPOINTS, PATIENCE, PATIENCE_MOST, PeerSeen};

fn at(n: u8) -> SocketAddr {
    SocketAddr::from(([172, 16, 2, n], 51_871))
}

fn behind_nat() -> SocketAddr {
    "198.51.100.7:40001".parse().unwrap()
}

/// A node that can be reached at some of its addresses, and the choice we make for it.
struct World {
    choice: EndpointChoice,
    reachable: Vec<SocketAddr>,
    received: u64,
    now: Time,
}

impl World {
    fn new(stated: &[SocketAddr], reachable: &[SocketAddr]) -> Self {
        let choice = EndpointChoice::new(stated.to_vec(), None, Time::ZERO).unwrap();
        Self { choice, reachable: reachable.to_vec(), received: 0, now: Time::ZERO }
    }

    /// A second: probes are answered or not, liveness says so, and the engine is looked at.
    fn second(&mut self) -> SocketAddr {
        self.now = self.now + SECOND;
        let up = self.reachable.contains(&self.choice.endpoint());
        self.received += if up { 96 } else { 0 };
        let endpoint = Some(self.choice.endpoint());
        self.choice.handle_seen(PeerSeen { endpoint, received: self.received, session: up }, self.now);
        self.choice.handle_verdict(up, self.now);
        self.choice.endpoint()
    }

    fn seconds(&mut self, seconds: u64) -> SocketAddr {
        (0..seconds).map(|_| self.second()).last().unwrap()
    }

    /// A packet of the node came from there.
    fn heard_from(&mut self, endpoint: SocketAddr) {
        self.received += 148;
        let seen = PeerSeen { endpoint: Some(endpoint), received: self.received, session: true };
        self.choice.handle_seen(seen, self.now);
    }
}

#[test]
fn the_first_that_is_stated_is_taken_and_kept_while_it_answers() {
    let mut world = World::new(&[at(1), at(2)], &[at(1), at(2)]);
    assert_eq!(world.seconds(10_000), at(1));
    assert_eq!(world.choice.poll_deadline(), None, "nothing is tried that is not needed");
}

#[test]
fn an_address_that_does_not_answer_gives_way_to_the_next() {
    let mut world = World::new(&[at(1), at(2), at(3)], &[at(3)]);
    assert_eq!(world.seconds(PATIENCE.as_secs() - 1), at(1));
    assert_eq!(world.second(), at(2));
    assert_eq!(world.seconds(PATIENCE.as_secs()), at(3));
    assert_eq!(world.seconds(1_000), at(3));
}

#[test]
fn what_falls_silent_is_left_for_the_best_first() {
    let mut world = World::new(&[at(1), at(2), at(3)], &[at(3)]);
    assert_eq!(world.seconds(20), at(3));
    world.reachable = vec![at(1), at(2)];
    assert_eq!(world.seconds(20), at(1));
}

#[test]
fn a_node_that_is_gone_is_asked_everywhere_and_ever_more_rarely() {
    let mut world = World::new(&[at(1), at(2)], &[]);
    let mut changes = Vec::new();
    let mut last = at(1);
    for second in 1..=1_200u64 {
        let is = world.second();
        if std::mem::replace(&mut last, is) != is {
            changes.push(second);
        }
    }
    let waits: Vec<u64> = changes.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits[..6], [6, 12, 12, 24, 24, 48]);
    assert!(waits[6..].iter().skip(1).all(|wait| *wait == PATIENCE_MOST.as_secs()), "{waits:?}");
}

#[test]
fn a_node_with_one_address_is_never_moved() {
    let mut world = World::new(&[at(1)], &[]);
    assert_eq!(world.seconds(1_000), at(1));
    assert_eq!(world.choice.poll_deadline(), None);
}

#[test]
fn where_a_node_was_heard_from_wins_over_what_is_stated_as_long_as_it_answers() {
    let mut world = World::new(&[at(1)], &[behind_nat()]);
    world.heard_from(behind_nat());
    assert_eq!(world.choice.endpoint(), behind_nat());
    assert!(world.choice.has_roamed());
    assert_eq!(world.seconds(10_000), behind_nat());
    world.choice.handle_stated(vec![at(1), at(2)], world.now);
    assert_eq!(world.second(), behind_nat(), "other addresses are stated, and it answers still");
    world.reachable = vec![at(2)];
    assert_eq!(world.seconds(2 * PATIENCE.as_secs() + 2), at(2));
    assert!(!world.choice.has_roamed());
}

#[test]
fn handshakes_that_are_never_finished_are_no_path() {
    let mut world = World::new(&[at(1), at(2)], &[]);
    for _ in 0..PATIENCE.as_secs() {
        world.now = world.now + SECOND;
        world.received += 148;
        let seen = PeerSeen { endpoint: Some(behind_nat()), received: world.received, session: false };
        world.choice.handle_seen(seen, world.now);
    }
    assert_eq!(world.choice.endpoint(), at(2));
}

#[test]
fn a_node_that_flaps_but_answers_is_not_moved() {
    let mut world = World::new(&[at(1), at(2)], &[at(1)]);
    world.seconds(10);
    for _ in 0..100 {
        world.now = world.now + SECOND;
        world.choice.handle_verdict(false, world.now);
        world.heard_from(at(1));
    }
    assert_eq!(world.choice.endpoint(), at(1));
}

#[test]
fn a_withdrawn_address_is_left_at_once_and_an_added_one_changes_nothing() {
    let mut world = World::new(&[at(1)], &[at(1), at(2)]);
    world.seconds(10);
    world.choice.handle_stated(vec![at(2), at(1)], world.now);
    assert_eq!(world.second(), at(1));
    world.choice.handle_stated(vec![at(2)], world.now);
    assert_eq!(world.second(), at(2));
}

#[test]
fn an_earlier_runs_endpoint_is_gone_on_with() {
    let choice = EndpointChoice::new(vec![at(1)], Some(behind_nat()), Time::ZERO).unwrap();
    assert_eq!(choice.endpoint(), behind_nat());
    assert_eq!(EndpointChoice::new(vec![], None, Time::ZERO), None);
}

proptest! {
    #[test]
    fn whatever_happened_before_a_reachable_address_is_found(
        stated in 1u8..=12,
        reachable in 0u8..12,
        verdicts in prop::collection::vec((any::<bool>(), any::<bool>(), 0u8..14), 0..60),
    ) {
        let stated: Vec<_> = (0..stated).map(at).collect();
        let mut world = World::new(&stated, &[]);
        for (up, grows, from) in verdicts {
            world.now = world.now + SECOND;
            world.choice.handle_verdict(up, world.now);
            if grows {
                world.heard_from(at(from));
            }
        }
        let reachable = at(reachable % stated.len().min(MOST_ENDPOINTS) as u8);
        world.reachable = vec![reachable];
        let is = world.seconds(PATIENCE_MOST.as_secs() * (MOST_ENDPOINTS as u64 + 2));
        prop_assert_eq!(is, reachable);
        prop_assert_eq!(world.seconds(600), reachable);
    }
}
