//! What annotations ask for, as tiers and weights of clusters.

use hawser_ebpf_abi::FewMap;
use hawser_model::{Fallback, MinHealthy, OnLoss, Routing};

use super::*;
use crate::spread::{Group, Share, spread};
use crate::{MergedBackend, MergedPort, State};

/// us-east (the own one) has 2 backends, eu-west 4, ap-south 6: `cluster tier weight`.
fn shares(routing: &Routing) -> Vec<String> {
    shares_of(routing, [2, 4, 6])
}

fn shares_of(routing: &Routing, backends: [usize; 3]) -> Vec<String> {
    let slices = (1..=3).zip(backends).map(|(c, len)| (cluster(c), vec![backend(); len]));
    shares_in(routing, slices.collect())
}

fn backend() -> MergedBackend {
    MergedBackend {
        ip: [10, 0, 0, 1].into(),
        port: 80,
        node: None,
        slot: 0,
        state: State::Ready,
        elsewhere: false,
    }
}

fn shares_in(routing: &Routing, slices: FewMap<ClusterRef, Vec<MergedBackend>>) -> Vec<String> {
    let port = ServicePort { protocol: Protocol::Tcp, port: 80 };
    let port = MergedPort { port, slices };
    let mut shares: Vec<_> = spread(&cluster(1), routing, &port, true).into_iter().collect();
    shares.sort_by_key(|((cluster, group), _)| (cluster.id, *group));
    let line = |((c, group), share): &((ClusterRef, Group), Share)| {
        let [drains, elsewhere] = [(group.draining, " draining"), (group.elsewhere, " elsewhere")]
            .map(|(is, text)| if is { text } else { "" });
        format!("{} {} {}{drains}{elsewhere}", c.name, share.tier, share.weight)
    };
    shares.iter().map(line).collect()
}

fn order(names: &[&str]) -> Vec<ClusterName> {
    names.iter().map(|name| ClusterName::parse(name).unwrap()).collect()
}

#[test]
fn by_default_every_backend_counts_alike() {
    assert_eq!(shares(&Routing::default()), ["us-east 0 2", "eu-west 0 4", "ap-south 0 6"]);
}

#[test]
fn affinity_prefers_a_side() {
    let local = Routing { affinity: Affinity::Local, ..Routing::default() };
    assert_eq!(shares(&local), ["us-east 0 2", "eu-west 1 4", "ap-south 1 6"]);
    let remote = Routing { affinity: Affinity::Remote, ..Routing::default() };
    assert_eq!(shares(&remote), ["us-east 1 2", "eu-west 0 4", "ap-south 0 6"]);
    assert_eq!(shares_of(&local, [0, 4, 6]), ["eu-west 0 4", "ap-south 0 6"]);
}

#[test]
fn a_home_that_is_too_weak_is_helped_by_the_others() {
    let at_least = |min| Routing { affinity: Affinity::Local, min_healthy: Some(min), ..Routing::default() };
    let all = ["us-east 0 2", "eu-west 0 4", "ap-south 0 6"];
    let alone = ["us-east 0 2", "eu-west 1 4", "ap-south 1 6"];
    assert_eq!(shares(&at_least(MinHealthy::Count(3))), all);
    assert_eq!(shares(&at_least(MinHealthy::Count(2))), alone);
    assert_eq!(shares(&at_least(MinHealthy::Percent(50))), all, "2 of 6");
    assert_eq!(shares(&at_least(MinHealthy::Percent(33))), alone);
    let ordered = Routing { order: order(&["ap-south"]), ..at_least(MinHealthy::Count(3)) };
    assert_eq!(
        shares(&ordered),
        ["us-east 0 2", "eu-west 1 4", "ap-south 0 6"],
        "the first of the order helps"
    );
}

#[test]
fn weights_are_shares_of_clusters_and_who_has_none_comes_last() {
    let weights = Routing::parse_weights("us-east=80,eu-west=20").unwrap();
    let routing = Routing { weights, ..Routing::default() };
    assert_eq!(shares(&routing), ["us-east 0 80", "eu-west 0 20", "ap-south 1 6"]);
    let drained = Routing { weights: Routing::parse_weights("us-east=0,eu-west=1").unwrap(), ..routing };
    assert_eq!(shares(&drained), ["us-east 1 2", "eu-west 0 1", "ap-south 1 6"]);
}

#[test]
fn an_order_is_followed_and_what_is_not_in_it_comes_after_or_never() {
    let routing = Routing { order: order(&["ap-south", "us-east"]), ..Routing::default() };
    assert_eq!(shares(&routing), ["us-east 1 2", "eu-west 2 4", "ap-south 0 6"]);
    let only = Routing { fallback: Fallback::None, ..routing.clone() };
    assert_eq!(shares(&only), ["us-east 1 2", "ap-south 0 6"]);
    let home_first = Routing { affinity: Affinity::Local, order: order(&["ap-south"]), ..only };
    assert_eq!(shares(&home_first), ["us-east 0 2", "ap-south 1 6"], "local is named by its affinity");
    assert_eq!(shares_of(&routing, [2, 4, 0]), ["us-east 0 2", "eu-west 1 4"], "an empty cluster is no tier");
}

#[test]
fn what_drains_comes_after_everything_that_is_ready() {
    let drains = || MergedBackend { state: State::Draining, ..backend() };
    let slices = || {
        FewMap::from([
            (cluster(1), vec![backend(), drains(), drains()]),
            (cluster(2), vec![backend()]),
            (cluster(3), vec![drains()]),
        ])
    };
    let all = ["us-east 0 1", "us-east 1 2 draining", "eu-west 0 1", "ap-south 1 1 draining"];
    assert_eq!(shares_in(&Routing::default(), slices()), all);
    let local = Routing { affinity: Affinity::Local, ..Routing::default() };
    let home = ["us-east 0 1", "us-east 2 2 draining", "eu-west 1 1", "ap-south 3 1 draining"];
    assert_eq!(shares_in(&local, slices()), home);
    let min = Routing { min_healthy: Some(MinHealthy::Count(2)), ..local };
    assert_eq!(shares_in(&min, slices())[0], "us-east 0 1");
    assert_eq!(shares_in(&min, slices())[2], "eu-west 0 1", "what drains makes home no stronger");
}

#[test]
fn with_more_places_than_tiers_the_last_of_each_kind_share_one_and_the_kinds_do_not() {
    let clusters = (1..=40).map(|n| ClusterRef {
        name: ClusterName::parse(&format!("c-{n:02}")).unwrap(),
        id: ClusterId::new(n, WIDTH).unwrap(),
    });
    let clusters: Vec<_> = clusters.collect();
    let drains = || MergedBackend { state: State::Withdrawn, ..backend() };
    let order = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let slices = clusters.into_iter().map(|cluster| (cluster, vec![backend(), drains()])).collect();
    let port = MergedPort { port: ServicePort { protocol: Protocol::Tcp, port: 80 }, slices };
    let shares = spread(&cluster(1), &Routing { order, ..Routing::default() }, &port, true);
    let tiers = |draining: bool| {
        let of = shares.iter().filter(move |((_, group), _)| group.draining == draining);
        of.map(|(_, share)| share.tier).collect::<Vec<_>>()
    };
    assert_eq!(tiers(false)[..16], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14]);
    assert!(tiers(true).iter().all(|tier| *tier == 15));
}

#[test]
fn the_clients_zone_counts_within_a_cluster_preference() {
    let far = || MergedBackend { elsewhere: true, ..backend() };
    let slices = || {
        FewMap::from([
            (cluster(1), vec![backend(), far(), far()]),
            (cluster(2), vec![backend(), far()]),
            (cluster(3), vec![far()]),
        ])
    };
    let zone = Routing { zone_affinity: hawser_model::ZoneAffinity::Local, ..Routing::default() };
    assert_eq!(
        shares_in(&zone, slices()),
        [
            "us-east 0 1",
            "us-east 1 2 elsewhere",
            "eu-west 0 1",
            "eu-west 1 1 elsewhere",
            "ap-south 1 1 elsewhere"
        ]
    );
    let home = Routing { affinity: Affinity::Local, ..zone };
    assert_eq!(
        shares_in(&home, slices()),
        [
            "us-east 0 1",
            "us-east 1 2 elsewhere",
            "eu-west 2 1",
            "eu-west 3 1 elsewhere",
            "ap-south 3 1 elsewhere"
        ]
    );
}

#[test]
fn wishes_reach_the_datapath() {
    let mut mesh = Mesh::of_three();
    let Entry::LocalService(mut service) = mk_service(Affinity::None, &["10.1.1.5"]) else { unreachable!() };
    service.routing = Routing {
        order: order(&["eu-west"]),
        session_seconds: Some(600),
        on_data_plane_loss: OnLoss::Keep,
        ..Routing::default()
    };
    mesh.say(1, [Entry::LocalService(service)]);
    mesh.say(2, [mk_pod(2, 1, 7), mk_shared(2, &["10.2.1.7"], 9_090)]);
    mesh.settle();
    let spec = mesh.agent.plan().datapath.services.values().next().unwrap();
    assert_eq!(spec.session_seconds, 600);
    let slices: Vec<_> = spec.slices.iter().map(|(of, s)| (of.0, s.tier, s.ignores_health)).collect();
    assert_eq!(slices, [(1, 1, false), (2, 0, true)], "nobody judges the own cluster");
}
