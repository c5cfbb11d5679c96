//! Users and large packets as evidence: who is grey, who is not, and how long it takes.

use hawser_model::ClusterHealth::{Down, Up};
use proptest::prelude::*;

use super::*;
use crate::grey::Grey;
use crate::{About, Greyness, LARGE_EVERY, REST, Users, WINDOW, Why};

const MTU: u16 = 1_420;

/// A world in which a node's users are looked at as the agent does.
struct Watched {
    world: World,
    users: Users,
}

impl Watched {
    fn new() -> Self {
        let config = LivenessConfig { mtu: Some(MTU), ..LivenessConfig::default() };
        let mut world = World::with(config, &[node(2, 1), node(2, 2)]).answered_by(&[node(2, 1), node(2, 2)]);
        world.run(SECOND * 5);
        world.changes();
        let mut watched = Self { world, users: Users::default() };
        watched.look();
        watched
    }

    fn look(&mut self) {
        let now = self.world.now;
        self.world.liveness.handle_users(node(2, 1), self.users, now);
        self.world.drain();
    }

    /// So many connections a second, of which each of a thousand fails with these odds.
    fn run(&mut self, time: Duration, per_second: u32, failing: u32) {
        let sampling = LivenessConfig::default().sampling();
        let end = self.world.now + time;
        let mut due = 0;
        while self.world.now < end {
            due += per_second * sampling.as_millis() as u32;
            while due >= 1_000 {
                due -= 1_000;
                self.users.begun += 1;
                match self.world.random.between(1, 1_000) <= failing {
                    true => self.users.late += 1,
                    false => {
                        (self.users.established, self.users.closed) =
                            (self.users.established + 1, self.users.closed + 1);
                    }
                }
            }
            self.look();
            self.world.run(sampling);
        }
    }

    fn greys(&mut self) -> Vec<(u16, Why)> {
        self.world.greys.drain(..).map(|grey: Greyness| (grey.weight, grey.why)).collect()
    }
}

#[test]
fn a_node_whose_probes_are_answered_and_whose_users_are_not_loses_weight_and_says_why() {
    let mut watched = Watched::new();
    watched.users.late_clients = 2;
    watched.run(SECOND * 10, 3, 0);
    assert_eq!(watched.greys(), []);
    let cut = watched.world.now;
    watched.run(SECOND * 20, 3, 1_000);
    let first = watched.world.greys[0];
    assert!(first.at.since(cut) < WINDOW + SECOND, "{first:?}");
    assert_eq!(
        watched
            .greys()
            .iter()
            .map(|(weight, why)| (*weight, matches!(why, Why::UsersFail { .. })))
            .collect::<Vec<_>>(),
        [(64, true), (16, true)],
        "never less"
    );
    assert!(first.why.to_string().starts_with("users' connections time out ("), "{}", first.why);
    assert_eq!(watched.world.changes(), [""; 0], "it is not Down: it answers");
    // Nothing else is known of the cluster than that its users fail.
    assert_eq!(watched.world.weights, [64, 16]);
    let snapshot = watched.world.liveness.node(node(2, 1)).unwrap();
    assert_eq!((snapshot.verdict, snapshot.weight), (Up, 16));
    // Well again: a step up after a while, and another one.
    watched.run(REST * 3, 3, 0);
    assert_eq!(watched.greys(), [(64, Why::Quiet(REST)), (256, Why::Well)]);
    assert_eq!(watched.world.weights, [64, 16, 64, 256]);
}

#[test]
fn an_hour_at_one_percent_loss_each_way_makes_no_node_grey() {
    for per_second in [1, 2, 20] {
        let mut watched = Watched::new();
        watched.users.late_clients = 9;
        (watched.world.lost, watched.world.jitter) = (10, Duration::from_millis(60));
        // A SYN or its answer is lost.
        watched.run(SECOND * 3_600, per_second, 20);
        assert_eq!(watched.greys(), [], "{per_second} connections a second");
        assert_eq!(watched.world.changes(), [""; 0]);
    }
}

#[test]
fn one_client_that_is_not_let_out_speaks_for_nobody_and_few_failures_or_a_minority_say_nothing() {
    let mut watched = Watched::new();
    watched.users.late_clients = 1;
    watched.run(SECOND * 60, 20, 1_000);
    assert_eq!(watched.greys(), []);
    let mut watched = Watched::new();
    watched.users.late_clients = 2;
    watched.run(WINDOW * 2, 20, 0);
    watched.run(SECOND * 60, 20, 400);
    assert_eq!(watched.greys(), [], "most of them reach it");
    let mut watched = Watched::new();
    watched.users.late_clients = 2;
    for _ in 0..20 {
        watched.users.late += 4;
        watched.look();
        watched.world.run(WINDOW + SECOND);
    }
    assert_eq!(watched.greys(), [], "four in a window");
}

#[test]
fn one_clients_established_connections_that_all_stall_do_count() {
    let mut watched = Watched::new();
    (watched.users.established, watched.users.closed) = (100, 90);
    watched.look();
    watched.world.run(WINDOW + SECOND);
    watched.users.stalled += 10;
    watched.look();
    assert_eq!(watched.greys(), [(64, Why::UsersFail { failed: 10, of: 10 })]);
    // One that speaks much stands for all that are open, and no more.
    let mut watched = Watched::new();
    (watched.users.established, watched.users.closed) = (100, 90);
    watched.look();
    watched.world.run(WINDOW + SECOND);
    (watched.users.stalled, watched.users.spoke) = (10, 1_000);
    watched.look();
    assert_eq!(watched.greys(), []);
}

#[test]
fn where_users_hear_from_a_node_it_is_asked_a_quarter_as_often_and_found_dead_as_fast() {
    let mut watched = Watched::new();
    watched.run(SECOND * 60, 20, 0);
    let quiet = Watched::new().world.liveness.node(node(2, 1)).unwrap();
    assert!(!quiet.by_users && watched.world.liveness.node(node(2, 1)).unwrap().by_users);
    let before = watched.world.sent;
    watched.run(SECOND * 60, 20, 0);
    let sent = watched.world.sent - before;
    // Two nodes at 333 ms would send some 430 probes in that minute; one of them is asked every 1.3 s.
    assert!((230..290).contains(&sent), "{sent}");
    let detection = LivenessConfig::default().detection();
    for cut in 0..40 {
        watched.run(SECOND * 10, 20, 0);
        watched.world.run(Duration::from_millis(cut * 9));
        watched.world.changes();
        let began = watched.world.now;
        watched.world.answers.clear();
        watched.world.in_flight.clear();
        watched.users.begun += 1;
        for _ in 0..9 {
            watched.look();
            watched.world.run(LivenessConfig::default().sampling());
        }
        let down = watched.world.changes.iter().find(|change| change.about == About::Node(node(2, 1)));
        let took = down.expect("it is found dead").at.since(began);
        assert!(took <= detection, "{took:?}");
        watched.world.answers = BTreeSet::from([node(2, 1), node(2, 2)]);
        watched.world.run(SECOND * 300);
    }
}

#[test]
fn users_that_hear_from_a_node_keep_it_up_while_nobody_answers_its_probes() {
    let mut watched = Watched::new();
    watched.world.answers.remove(&node(2, 1));
    watched.run(SECOND * 60, 20, 0);
    assert_eq!(watched.world.changes(), [""; 0]);
    watched.run(SECOND * 3, 0, 0);
    assert_eq!(watched.world.changes(), ["2/1 up -> down"]);
}

#[test]
fn large_packets_that_do_not_arrive_lower_the_weight_in_seconds_and_their_arrival_raises_it() {
    let mut watched = Watched::new();
    watched.world.run(LARGE_EVERY * 6);
    assert_eq!(watched.greys(), []);
    watched.world.black_hole = true;
    let began = watched.world.now;
    watched.world.run(LARGE_EVERY + SECOND * 8);
    assert!(watched.world.greys.iter().all(|grey| grey.at.since(began) < LARGE_EVERY + SECOND * 8));
    let why = Why::BlackHole { octets: MTU };
    assert_eq!(watched.greys(), [(16, why), (16, why)], "both nodes");
    assert!(
        why.to_string().contains("packets of 1420 octets do not arrive") && why.to_string().contains("fix:")
    );
    assert_eq!(watched.world.weights, [16], "and so their cluster");
    assert_eq!(watched.world.changes(), [""; 0]);
    watched.world.black_hole = false;
    watched.world.run(SECOND * 8);
    assert_eq!(watched.greys(), [(256, Why::Well), (256, Why::Well)]);
    assert_eq!(watched.world.weights, [16, 256]);
}

#[test]
fn a_day_at_one_percent_loss_each_way_takes_no_path_for_a_black_hole_and_a_cut_is_a_cut() {
    let mut watched = Watched::new();
    (watched.world.lost, watched.world.jitter) = (10, Duration::from_millis(60));
    watched.world.run(SECOND * 86_400);
    assert_eq!(watched.greys(), []);
    watched.world.answers.clear();
    watched.world.run(SECOND * 60);
    watched.world.answers = BTreeSet::from([node(2, 1), node(2, 2)]);
    watched.world.run(SECOND * 60);
    assert_eq!(watched.greys(), []);
    assert_eq!(watched.world.changes().len(), 6, "both and their cluster, down and up");
}

#[test]
fn a_grey_node_that_dies_is_down_and_comes_back_with_all_of_its_weight() {
    let mut watched = Watched::new();
    watched.users.late_clients = 2;
    watched.run(SECOND * 7, 3, 1_000);
    assert!(!watched.greys().is_empty());
    watched.world.answers.clear();
    watched.run(SECOND * 3, 3, 1_000);
    assert!(watched.world.changes.iter().any(|change| change.to == Down));
    watched.world.changes.clear();
    watched.world.answers = BTreeSet::from([node(2, 1), node(2, 2)]);
    watched.world.run(SECOND * 20);
    let back = watched.world.changes.iter().find(|change| change.about == About::Node(node(2, 1)));
    assert_eq!(back.map(|change| (change.to, change.weight)), Some((Up, 256)));
}

proptest! {
    /// Whatever the connections do: weights are those of the steps, one step at a time, and falls are rare.
    #[test]
    fn falls_are_bounded_whatever_the_connections_do(
        seconds in prop::collection::vec((0_u64..30, 0_u64..30, 0_u64..30, any::<bool>()), 1..1_500),
    ) {
        let start = ms(7_000);
        let mut users = Users { late_clients: 5, ..Users::default() };
        let mut grey = Grey::new(users, start);
        let (mut weight, mut falls) = (256, 0);
        for (n, (late, stalled, established, fails)) in seconds.iter().enumerate() {
            let now = start + SECOND * n as u32;
            if *fails {
                users.late += late;
                users.stalled += stalled;
            }
            users.established += established;
            users.closed += established;
            grey.look(users, now);
            grey.judge(now);
            let is = grey.weight();
            falls += u32::from(weight == 256 && is < 256);
            prop_assert!([(256, 64), (64, 16), (16, 64), (64, 256)].contains(&(weight, is)) || weight == is);
            weight = is;
        }
        prop_assert!(falls <= 6 + seconds.len() as u32 / 320, "{} falls", falls);
    }
}

#[test]
fn a_peer_with_a_smaller_mtu_is_no_black_hole_and_one_behind_a_black_hole_still_is() {
    let there = node(2, 1);
    let config = LivenessConfig { mtu: Some(1_420), ..slow() };
    let takes = |mtu: u16| mtu - 20 - 8 - ControlPacket::LEN as u16;
    for (theirs, path, lost) in [(Some(1_280), 1_280, false), (Some(1_420), 1_280, true), (None, 1_280, true)]
    {
        let mut world = World::with(config, &[]).answered_by(&[there]);
        let at = crate::Reflector { address: address(there), mtu: theirs };
        world.takes = takes(path);
        world.liveness.handle_peer(there, at, world.now);
        world.run(SECOND * 60);
        assert_eq!(world.liveness.node(there).unwrap().weight < 256, lost, "{theirs:?} over {path}");
        // Whoever lowers its own takes smaller ones from then on.
        world.liveness.handle_peer(there, crate::Reflector { mtu: Some(1_280), ..at }, world.now);
        world.run(SECOND * 30);
        assert_eq!(world.liveness.node(there).unwrap().weight, 256, "{theirs:?} over {path}");
    }
}
