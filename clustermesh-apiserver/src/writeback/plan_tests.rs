//! Slices come, stay and go as little as they can.

use hawser_model::{ClusterId, ClusterIdWidth, ClusterRef, Protocol};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

fn cart() -> ServiceKey {
    ServiceKey::new("shop", "cart").unwrap()
}

fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).unwrap()
}

fn ip(n: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0a02_0000 + n).into()
}

/// cart at eu-west with these addresses, all on one port.
fn says(addresses: impl IntoIterator<Item = u32>) -> Remote {
    let ports = BTreeMap::from([(
        PortName::parse("http").unwrap(),
        ServicePort { protocol: Protocol::Tcp, port: 8080 },
    )]);
    let name = cluster("eu-west");
    Remote::Says(vec![SharedService {
        cluster: ClusterRef { name, id: ClusterId::new(2, ClusterIdWidth::Bits8).unwrap() },
        key: cart(),
        frontends: BTreeMap::new(),
        backends: addresses.into_iter().map(|n| (ip(n), ports.clone())).collect(),
        draining: Default::default(),
        hostnames: BTreeMap::new(),
        zones: BTreeMap::new(),
        labels: BTreeMap::new(),
        selector: BTreeMap::new(),
        include_external: true,
        shared: true,
    }])
}

fn wanted(remote: Remote) -> Wanted {
    Wanted {
        services: BTreeMap::from([(cart(), "uid-1".into())]),
        remotes: BTreeMap::from([(cluster("eu-west"), remote)]),
        taken: BTreeSet::new(),
    }
}

/// Carries the operations out, as an API server would.
fn apply(held: &mut Vec<Held>, ops: &[Op]) {
    for op in ops {
        let gone = |held: &mut Vec<Held>, namespace: &str, name: &str, version: &str| {
            let at =
                held.iter().position(|h| h.namespace == namespace && h.name == name).expect("it is there");
            assert_eq!(held.remove(at).version, version);
        };
        let add = |held: &mut Vec<Held>, slice: &Slice, version: String| {
            let namespace = slice.group.service.namespace().to_owned();
            assert!(
                held.iter().all(|h| (&h.namespace, &h.name) != (&namespace, &slice.name)),
                "a name twice"
            );
            assert!((1..=MAX_ENDPOINTS).contains(&slice.endpoints.len()));
            held.push(Held { namespace, name: slice.name.clone(), version, slice: Some(slice.clone()) });
        };
        match op {
            Op::Create(slice) => add(held, slice, "1".into()),
            Op::Update { slice, version } => {
                gone(held, slice.group.service.namespace(), &slice.name, version);
                add(held, slice, format!("{version}+"));
            }
            Op::Delete { namespace, name, version } => gone(held, namespace, name, version),
        }
    }
    held.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
}

/// Plans and applies; what was planned, a word each.
fn settle(held: &mut Vec<Held>, wanted: &Wanted) -> Vec<String> {
    let ops = plan(wanted, held);
    apply(held, &ops);
    assert_eq!(plan(wanted, held), [], "planned again, there is nothing left");
    ops.iter()
        .map(|op| match op {
            Op::Create(slice) => format!("+{} {}", slice.name, slice.endpoints.len()),
            Op::Update { slice, .. } => format!("~{} {}", slice.name, slice.endpoints.len()),
            Op::Delete { name, .. } => format!("-{name}"),
        })
        .collect()
}

#[test]
fn a_hundred_endpoints_fill_a_slice_and_one_that_goes_writes_one() {
    let mut held = Vec::new();
    let ops = settle(&mut held, &wanted(says(0..250)));
    assert_eq!(ops, ["+cart-eu-west-1 100", "+cart-eu-west-2 100", "+cart-eu-west-3 50"]);
    assert_eq!(settle(&mut held, &wanted(says((0..250).filter(|n| *n != 120)))), ["~cart-eu-west-2 99"]);
    // One goes and one comes: still one write.
    assert_eq!(settle(&mut held, &wanted(says((1..251).filter(|n| *n != 120)))), ["~cart-eu-west-1 100"]);
    // New ones go where the most room is.
    assert_eq!(settle(&mut held, &wanted(says((1..261).filter(|n| *n != 120)))), ["~cart-eu-west-3 60"]);
    // None is moved to make room elsewhere: that would be two writes, and a moment without it in between.
    let ops = settle(&mut held, &wanted(says(1..101)));
    assert_eq!(ops, ["~cart-eu-west-1 99", "~cart-eu-west-2 1", "-cart-eu-west-3"]);
}

#[test]
fn an_endpoint_that_begins_to_end_is_written_where_it_is() {
    let mut held = Vec::new();
    settle(&mut held, &wanted(says(0..3)));
    let mut ending = wanted(says(0..3));
    let Some(Remote::Says(services)) = ending.remotes.get_mut(&cluster("eu-west")) else { panic!() };
    services[0].draining = [ip(1)].into();
    assert_eq!(settle(&mut held, &ending), ["~cart-eu-west-1 3"]);
    let endpoints = &held[0].slice.as_ref().unwrap().endpoints;
    let draining: Vec<_> = endpoints.iter().filter(|(_, known)| known.draining).map(|(ip, _)| *ip).collect();
    assert_eq!(draining, [ip(1)]);
    assert_eq!(settle(&mut held, &wanted(says(0..3))), ["~cart-eu-west-1 3"], "and back");
}

#[test]
fn clusters_families_and_ports_are_kept_apart() {
    let mut remotes = wanted(says(0..2));
    remotes.remotes.insert(cluster("ap-south"), says(500..501));
    let Some(Remote::Says(services)) = remotes.remotes.get_mut(&cluster("eu-west")) else { panic!() };
    let ports = services[0].backends[&ip(0)].clone();
    services[0].backends.insert("fd00:10:2::1".parse().unwrap(), ports.clone());
    let other = ports.into_keys().map(|name| (name, ServicePort { protocol: Protocol::Tcp, port: 9090 }));
    services[0].backends.insert(ip(9), other.collect());
    // Kubernetes refuses these, and with them their slice.
    for odd in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "fe80::1"] {
        let ports = services[0].backends[&ip(0)].clone();
        services[0].backends.insert(odd.parse().unwrap(), ports);
    }
    services[0].hostnames = BTreeMap::from([(ip(0), "cart-0".into()), (ip(1), "No_Label".into())]);
    let mut held = Vec::new();
    let ops = settle(&mut held, &remotes);
    assert_eq!(ops, ["+cart-ap-south-1 1", "+cart-eu-west-1 2", "+cart-eu-west-2 1", "+cart-eu-west-3 1"]);
    let endpoints = held.iter().flat_map(|h| h.slice.as_ref().unwrap().endpoints.values());
    let hostnames: Vec<_> = endpoints.filter_map(|endpoint| endpoint.hostname.as_deref()).collect();
    assert_eq!(hostnames, ["cart-0"]);
}

#[test]
fn slices_go_with_the_annotation_and_with_the_remote_and_stay_while_it_is_silent() {
    let fresh = || {
        let mut held = Vec::new();
        settle(&mut held, &wanted(says(0..3)));
        held
    };
    assert_eq!(settle(&mut fresh(), &wanted(Remote::Waiting)), [""; 0], "not heard whole yet");
    let gone = ["-cart-eu-west-1"];
    assert_eq!(settle(&mut fresh(), &wanted(Remote::Says(vec![]))), gone, "it has no such service any more");
    assert_eq!(settle(&mut fresh(), &wanted(says([]))), gone, "no endpoints");
    let disconnected = Wanted { remotes: BTreeMap::new(), ..wanted(Remote::Waiting) };
    assert_eq!(settle(&mut fresh(), &disconnected), gone);
    let unasked = Wanted { services: BTreeMap::new(), ..wanted(says(0..3)) };
    assert_eq!(settle(&mut fresh(), &unasked), gone);
    let asleep = Wanted { services: BTreeMap::new(), ..wanted(Remote::Waiting) };
    assert_eq!(settle(&mut fresh(), &asleep), gone, "nobody asks for it, whatever the remote would say");
}

#[test]
fn a_service_that_was_made_anew_owns_its_slices_and_strange_ones_go() {
    let mut held = Vec::new();
    settle(&mut held, &wanted(says(0..3)));
    let mut again = wanted(says(0..3));
    again.services.insert(cart(), "uid-2".into());
    assert_eq!(settle(&mut held, &again), ["~cart-eu-west-1 3"]);
    held.push(Held { namespace: "shop".into(), name: "odd".into(), version: "7".into(), slice: None });
    assert_eq!(settle(&mut held, &again), ["-odd"]);
}

#[test]
fn names_that_others_have_are_passed_by() {
    let mut wanted = wanted(says(0..1));
    wanted.taken.insert(("shop".into(), "cart-eu-west-1".into()));
    assert_eq!(settle(&mut Vec::new(), &wanted), ["+cart-eu-west-2 1"]);
}

#[test]
fn any_history_ends_with_exactly_what_is_wanted_and_no_slice_that_need_not_change() {
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut held: Vec<Held> = Vec::new();
        let mut addresses: BTreeSet<u32> = BTreeSet::new();
        for _ in 0..12 {
            for _ in 0..random.random_range(0..150) {
                let n = random.random_range(0..400);
                if !addresses.remove(&n) {
                    addresses.insert(n);
                }
            }
            settle(&mut held, &wanted(says(addresses.iter().copied())));
            let mut there: Vec<IpAddr> =
                held.iter().flat_map(|h| h.slice.as_ref().unwrap().endpoints.keys().copied()).collect();
            there.sort_unstable();
            assert_eq!(there, addresses.iter().map(|n| ip(*n)).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
