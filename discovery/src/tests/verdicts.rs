//! The transition table, and what a mesh is promised.

use hawser_model::ClusterHealth::{Down, Unknown, Up};

use super::*;
use crate::Because;

#[test]
fn the_first_reply_brings_a_node_and_its_cluster_up() {
    let mut world = World::new(&[node(2, 1)]);
    assert_eq!(world.liveness.node(node(2, 1)).unwrap().verdict, Unknown);
    world = world.answered_by(&[node(2, 1)]);
    world.run(SECOND * 2);
    assert_eq!(world.changes(), ["2/1 unknown -> up", "2 unknown -> up"]);
    let snapshot = world.liveness.node(node(2, 1)).unwrap();
    assert_eq!(snapshot.rtt_last, Some(Duration::from_millis(40)));
    assert_eq!(snapshot.rtt_smoothed, Some(Duration::from_millis(40)));
}

#[test]
fn a_node_that_never_answered_is_down_three_seconds_after_probing_began() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 3 - Duration::from_millis(1));
    assert_eq!(world.changes(), [""; 0]);
    world.run(Duration::from_millis(1));
    assert_eq!(world.changes(), ["2/1 unknown -> down", "2 unknown -> down"]);
}

#[test]
fn silence_is_down_after_interval_times_multiplier_and_not_before() {
    for (interval, multiplier) in [(1_000, 3), (250, 3), (250, 10), (50, 5)] {
        let config =
            LivenessConfig { interval: Duration::from_millis(interval), multiplier, ..Default::default() };
        let mut world = World::with(config, &[node(2, 1)]).answered_by(&[node(2, 1)]);
        world.round_trip = Duration::from_millis(5);
        world.run(SECOND * 20);
        world.changes();
        world.answers.clear();
        world.in_flight.clear();
        let heard = world.liveness.node(node(2, 1)).unwrap().heard.unwrap();
        let detection = Duration::from_millis(interval) * multiplier;
        world.run((heard + detection).since(world.now) - Duration::from_millis(1));
        assert_eq!(world.changes(), [""; 0], "{interval} x {multiplier}");
        world.run(Duration::from_millis(1));
        assert_eq!(world.changes(), ["2/1 up -> down", "2 up -> down"], "{interval} x {multiplier}");
    }
}

#[test]
fn at_the_setting_of_250_ms_a_clusters_cut_is_seen_in_that_time_wherever_in_the_rhythm_it_falls() {
    let nodes: Vec<_> = (1..=4).map(|index| node(2, index)).collect();
    let config = LivenessConfig::detecting_in(Duration::from_millis(250), 3);
    let mut world = World::with(config, &nodes).answered_by(&nodes);
    world.round_trip = Duration::from_millis(20);
    let mut took = Vec::new();
    for cut in 0..200 {
        world.run(SECOND * 300 + Duration::from_millis(cut * 7));
        world.changes.clear();
        let began = world.now;
        world.answers.clear();
        world.in_flight.clear();
        world.run(SECOND);
        let verdict = world.changes.iter().find(|change| matches!(change.about, crate::About::Cluster(_)));
        took.push(verdict.unwrap().at.since(began).as_millis());
        world.answers = nodes.iter().copied().collect();
    }
    took.sort_unstable();
    let (median, late) = (took[100], took[197]);
    assert!(median <= 250 && late <= 275, "{median} ms, and 99 of 100 within {late} ms");
}

#[test]
fn a_cluster_is_down_when_all_its_nodes_are_and_up_when_one_is() {
    let all = [node(2, 1), node(2, 2), node(3, 1)];
    let mut world = World::new(&all).answered_by(&all);
    world.run(SECOND * 5);
    world.changes();
    world.answers.remove(&node(2, 1));
    world.run(SECOND * 5);
    assert_eq!(world.changes(), ["2/1 up -> down"]);
    world.answers.remove(&node(2, 2));
    world.run(SECOND * 5);
    assert_eq!(world.changes(), ["2/2 up -> down", "2 up -> down"]);
    world.answers.extend(all);
    world.run(SECOND * 5);
    let changes = world.changes();
    assert_eq!(changes.len(), 3, "{changes:?}");
    assert!(changes[..2].contains(&"2 down -> up".into()), "the cluster with its first node: {changes:?}");
}

#[test]
fn down_ends_after_three_consecutive_replies_not_after_one() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 4);
    assert_eq!(world.changes(), ["2/1 unknown -> down", "2 unknown -> down"]);
    // Now and then one probe is answered: heard, but never three in a row.
    for _ in 0..20 {
        let (sent, answers) = (world.sent, BTreeSet::from([node(2, 1)]));
        world.answers = answers;
        while world.sent == sent {
            world.run(Duration::from_millis(50));
        }
        world.answers.clear();
        world.run(SECOND * 3);
    }
    assert_eq!(world.changes(), [""; 0]);
    world.answers = BTreeSet::from([node(2, 1)]);
    world.run(SECOND * 4);
    assert!(matches!(world.changes.first().map(|t| t.because), Some(Because::Steady(_))));
    assert_eq!(world.changes(), ["2/1 down -> up", "2 down -> up"]);
}

#[test]
fn a_round_trip_longer_than_the_interval_comes_up_stays_up_and_comes_up_again() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.round_trip = Duration::from_millis(1_700);
    world.run(SECOND * 60);
    assert_eq!(world.changes(), ["2/1 unknown -> up", "2 unknown -> up"]);
    world.answers.clear();
    world.run(SECOND * 10);
    assert_eq!(world.changes(), ["2/1 up -> down", "2 up -> down"]);
    world.answers = BTreeSet::from([node(2, 1)]);
    world.run(SECOND * 10);
    assert_eq!(world.changes(), ["2/1 down -> up", "2 down -> up"]);
}

#[test]
fn an_idle_mesh_flips_nothing_in_an_hour() {
    let nodes: Vec<_> = (1..=40).map(|index| node(2 + index % 3, index)).collect();
    let mut world = World::new(&nodes).answered_by(&nodes);
    world.run(SECOND * 5);
    assert_eq!(world.changes().len(), 40 + 3);
    let before = world.sent;
    world.run(SECOND * 3_600);
    assert_eq!(world.changes(), [""; 0]);
    // Intervals of 0.75 to 1 s, ended at the sixteenth before: 27/32 s.
    let expected = 40 * 3_600 * 32 / 27;
    assert!((world.sent - before).abs_diff(expected) <= expected / 50, "{} sent", world.sent - before);
}

#[test]
fn an_hour_at_one_percent_loss_each_way_and_with_jitter_brings_no_false_verdict() {
    let nodes: Vec<_> = (1..=30).map(|index| node(2 + index % 3, index)).collect();
    let settings =
        [(3_000, 10, 60), (1_000, 10, 60), (250, 10, 60), (250, 10, 5), (250, 50, 60), (3_000, 50, 400)];
    for (detection, lost, jitter) in settings {
        let config = LivenessConfig::detecting_in(Duration::from_millis(detection), 3);
        let mut world = World::with(config, &nodes).answered_by(&nodes);
        world.run(SECOND * 30);
        world.changes();
        (world.lost, world.jitter) = (lost, Duration::from_millis(jitter));
        world.run(SECOND * 3_600);
        assert_eq!(world.changes(), [""; 0], "{detection} ms, {lost} of 1000 lost, {jitter} ms");
    }
}

#[test]
fn the_multiplier_follows_the_measured_loss_and_back() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.run(SECOND * 300);
    let multiplier = |world: &World| world.liveness.node(node(2, 1)).unwrap().multiplier;
    assert_eq!(multiplier(&world), 4);
    world.lost = 100;
    world.run(SECOND * 300);
    assert!(multiplier(&world) >= 9, "{:?}", world.liveness.node(node(2, 1)));
    // It is still found dead, only later.
    world.answers.clear();
    world.run(SECOND * 8);
    assert_eq!(world.liveness.node(node(2, 1)).unwrap().verdict, Down);
    (world.answers, world.lost) = (BTreeSet::from([node(2, 1)]), 0);
    world.run(SECOND * 600);
    assert_eq!((multiplier(&world), world.liveness.node(node(2, 1)).unwrap().verdict), (4, Up));
}

#[test]
fn a_path_that_was_as_bad_as_can_be_is_found_dead_all_the_same() {
    for (lost, jitter) in [(0, 900), (100, 300), (100, 900), (300, 900), (300, 2_500)] {
        let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
        world.run(SECOND * 30);
        (world.lost, world.jitter) = (lost, Duration::from_millis(jitter));
        world.run(SECOND * 300);
        // Packets of one way are enough.
        world.answers.clear();
        world.run(SECOND * 15);
        let snapshot = world.liveness.node(node(2, 1)).unwrap();
        assert_eq!(snapshot.verdict, Down, "{lost} of 1000 lost, {jitter} ms: {snapshot:?}");
    }
}

#[test]
fn a_process_that_slept_asks_before_it_judges() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.run(SECOND * 5);
    world.changes();
    world.in_flight.clear();
    world.now = world.now + SECOND * 3_600;
    let now = world.now;
    world.liveness.handle_time(now);
    world.drain();
    world.run(SECOND * 10);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_clock_that_steps_back_changes_nothing() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.run(SECOND * 5);
    world.changes();
    world.liveness.handle_time(ms(0));
    world.liveness.handle_used(node(2, 1), ms(0));
    world.drain();
    world.run(SECOND * 5);
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn a_late_a_repeated_and_a_forged_reply_count_for_nothing() {
    let to = node(2, 1);
    let mut liveness = Liveness::new(slow(), 7);
    liveness.handle_peer(to, address(to), ms(0));
    liveness.handle_time(ms(0));
    let Some(Output::Send { probe, .. }) = liveness.poll_output() else {
        panic!("a new node is asked at once")
    };
    let good = reflected(&probe, State::Up);
    let forged = [
        (
            "another process' number",
            ControlPacket { your_discriminator: good.your_discriminator ^ 1 << 20, ..good },
        ),
        ("not asked yet", ControlPacket { your_discriminator: good.your_discriminator + 1, ..good }),
        ("another node's reflector", ControlPacket { my_discriminator: 9.try_into().unwrap(), ..good }),
        ("a probe, no answer", ControlPacket { demand: true, ..good }),
        ("no state of a reflector", ControlPacket { state: State::Init, ..good }),
    ];
    for (what, packet) in forged {
        assert!(!liveness.handle_packet(to, &packet, ms(10)), "{what}");
    }
    assert!(!liveness.handle_packet(node(3, 1), &good, ms(10)), "nobody we know");
    assert!(liveness.handle_packet(to, &good, ms(10)));
    assert!(!liveness.handle_packet(to, &good, ms(11)), "twice");
}

#[test]
fn a_node_that_leaves_takes_its_verdict_along() {
    let mut world = World::new(&[node(2, 1), node(2, 2)]).answered_by(&[node(2, 2)]);
    world.run(SECOND * 6);
    world.changes();
    world.liveness.handle_peer_gone(node(2, 2), world.now);
    world.drain();
    assert_eq!(world.changes(), ["2 up -> down"], "only the dead node is left");
    world.liveness.handle_peer_gone(node(2, 1), world.now);
    world.drain();
    assert_eq!(world.liveness.nodes().count() + world.liveness.clusters().count(), 0);
}

#[test]
fn a_new_node_in_a_dead_cluster_does_not_raise_it_before_it_answers() {
    let mut world = World::new(&[node(2, 1)]);
    world.run(SECOND * 4);
    world.changes();
    world.liveness.handle_peer(node(2, 2), address(node(2, 2)), world.now);
    world.run(SECOND);
    assert_eq!(world.changes(), [""; 0]);
    world.answers = BTreeSet::from([node(2, 2)]);
    world.run(SECOND * 3);
    assert_eq!(world.changes(), ["2/2 unknown -> up", "2 down -> up"]);
}

#[test]
fn a_first_round_trip_that_waited_for_a_handshake_is_soon_forgotten() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.in_flight.clear();
    world.round_trip = Duration::from_millis(900);
    world.run(SECOND);
    world.round_trip = Duration::from_millis(80);
    world.run(SECOND * 6);
    let snapshot = world.liveness.node(node(2, 1)).unwrap();
    assert_eq!(snapshot.rtt_smoothed, Some(Duration::from_millis(80)));
}

#[test]
fn out_of_service_on_purpose_keeps_the_last_verdict_for_as_long_as_it_says_so() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.run(SECOND * 5);
    world.changes();
    for _ in 0..60_000 {
        world.run(Duration::from_millis(1));
        for (_, packet) in world.in_flight.values_mut() {
            packet.state = State::AdminDown;
        }
    }
    assert_eq!(world.changes(), [""; 0]);
    assert!(world.liveness.node(node(2, 1)).unwrap().admin_down);
    // The machine goes as well: that is no purpose that users are served by.
    world.answers.clear();
    world.run(SECOND * 5);
    assert_eq!(world.changes(), ["2/1 up -> down", "2 up -> down"]);
    // Back, and still out of service: no sign of life.
    world.answers = BTreeSet::from([node(2, 1)]);
    for _ in 0..10_000 {
        world.run(Duration::from_millis(1));
        for (_, packet) in world.in_flight.values_mut() {
            packet.state = State::AdminDown;
        }
    }
    assert_eq!(world.changes(), [""; 0]);
}

#[test]
fn what_was_down_begins_with_a_quarter_of_its_weight() {
    let mut world = World::new(&[node(2, 1)]).answered_by(&[node(2, 1)]);
    world.run(SECOND * 5);
    assert!(world.changes.iter().all(|change| change.weight == 256), "what was never down begins with all");
    world.changes();
    world.answers.clear();
    world.run(SECOND * 5);
    world.changes();
    world.answers = BTreeSet::from([node(2, 1)]);
    world.run(SECOND * 20);
    let weight_of = |cluster: bool| {
        let about = |t: &&Transition| matches!(t.about, crate::About::Cluster(_)) == cluster;
        world.changes.iter().filter(about).map(|t| t.weight).collect::<Vec<_>>()
    };
    assert_eq!((weight_of(false), weight_of(true)), (vec![256], vec![64]));
    assert_eq!(world.weights, [128, 192, 256]);
}
