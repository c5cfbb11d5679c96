//! What gateways carry for others, held against the same kernel.

use crate::*;

/// Some peers are behind others.
fn any_desired_with_gateways() -> impl Strategy<Value = Desired> {
    let vias = prop::collection::vec(prop::option::of(1u8..7), 7);
    (any_desired(), vias).prop_map(|(mut desired, vias)| {
        for (peer, via) in desired.peers.iter_mut().zip(vias) {
            peer.via = via.map(key);
        }
        desired
    })
}

proptest! {
    #[test]
    fn what_gateways_carry_is_theirs_and_moves_from_one_to_the_other_without_a_gap(
        states in prop::collection::vec(any_desired_with_gateways(), 1..5)
    ) {
        let mut kernel = Kernel::default();
        for desired in &states {
            kernel.follow(desired);
            prop_assert_eq!(plan(desired, &kernel.0).ops, vec![]);
            let carried = desired.peers.iter().filter(|peer| peer.via.is_some());
            let direct: BTreeSet<_> =
                desired.peers.iter().filter(|peer| peer.via.is_none()).map(|peer| peer.public_key).collect();
            for peer in carried.filter(|peer| !direct.contains(&peer.public_key)) {
                prop_assert!(!kernel.0.peers.contains_key(&peer.public_key), "nobody sends to {}", peer.name);
            }
            for (owner, peer) in &kernel.0.peers {
                for prefix in &peer.allowed {
                    let states = |peer: &&Peer| peer.allowed.iter().any(|stated| stated.trunc() == *prefix);
                    let of = |peer: &Peer| peer.via.unwrap_or(peer.public_key) == *owner;
                    let somebodys = desired.peers.iter().filter(states).any(of);
                    prop_assert!(somebodys, "{prefix} is carried for nobody");
                }
            }
        }
    }
}

#[test]
fn a_pair_that_moves_from_gateway_to_gateway_moves_in_one_step_and_alone() {
    // A node of c1 behind its own gateways 2 and 3, or a gateway of ours (c0); another one stays where it is.
    let at = |via: u8| {
        let mut behind = peer(1, 1, 1, &["10.1.0.0/24", "240.2.0.1/32"]);
        behind.via = Some(key(via));
        // Inside of the other's prefix, as pods of CNIs without a CIDR for each node are.
        let mut stays = peer(1, 4, 4, &["10.1.0.0/16"]);
        stays.via = Some(key(3));
        let gateways = [peer(1, 2, 2, &["10.1.1.0/24"]), peer(1, 3, 3, &[]), peer(0, 5, 5, &[])];
        let peers = gateways.into_iter().chain([behind, stays]).collect();
        desired(peers, nets(&["10.1.0.0/16"]))
    };
    let mut kernel = Kernel::default();
    kernel.follow(&at(2));
    assert_eq!(kernel.0.peers[&key(2)].allowed, nets(&["10.1.0.0/24", "10.1.1.0/24", "240.2.0.1/32"]));
    assert_eq!(kernel.0.peers[&key(3)].allowed, nets(&["10.1.0.0/16"]));
    for via in [3, 5] {
        let moved = plan(&at(via), &kernel.0);
        let [Op::Allow { public_key, prefixes, .. }] = &moved.ops[..] else { panic!("{:#?}", moved.ops) };
        assert_eq!((*public_key, prefixes), (key(via), &nets(&["10.1.0.0/24", "240.2.0.1/32"])));
        kernel.follow(&at(via));
        assert_eq!(moved.problems, vec![]);
    }
    // A gateway that is not there carries nothing, and nobody else does.
    let lost = plan(&at(9), &kernel.0);
    kernel.follow(&at(9));
    assert_eq!(lost.problems, vec![]);
    assert!(!kernel.owned().contains(&"10.1.0.0/24".parse().unwrap()));
}

#[test]
fn what_a_gateway_has_for_itself_nobody_that_it_carries_takes_by_stating_it() {
    let state = |cluster: u8, allowed: &[&str], behind: &[&str]| {
        let mut carried = peer(1, 1, 1, behind);
        carried.via = Some(key(2));
        desired(vec![carried, peer(cluster, 2, 2, allowed)], nets(&[]))
    };
    let mut kernel = Kernel::default();
    kernel.follow(&state(1, &["10.1.0.0/16"], &[]));
    // The key is another cluster's now, and both state the prefix inside.
    let contradicted = state(2, &["10.1.0.0/16", "10.1.0.0/24"], &["10.1.0.0/24"]);
    kernel.follow(&contradicted);
    assert_eq!(kernel.0.peers[&key(2)].allowed, nets(&["10.1.0.0/16", "10.1.0.0/24"]));
    let again = plan(&contradicted, &kernel.0);
    assert_eq!((again.ops, again.problems.len()), (vec![], 1));
}
