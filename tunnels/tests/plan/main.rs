//! Plan, apply, plan again gives nothing; and no step on the way opens a hole. Against a kernel of fifty lines that
//! follows WireGuard's rule: a prefix belongs to whoever was given it last.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which clippy.toml exempts only inside #[test]")]

mod carried;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hawser_model::{ClusterId, ClusterIdWidth, ClusterName, ClusterRef, NodeName, PublicKey};
use hawser_tunnels::{
    Desired, Device, DeviceName, Mark, Observed, ObservedDevice, ObservedPeer, Op, Peer, PeerName, Problem,
    Settled, Violation, check, plan, resolve,
};
use ipnet::IpNet;
use proptest::prelude::*;

const PREFIXES: [&str; 12] = [
    "10.1.0.0/16",
    "10.1.0.0/24",
    "10.1.1.0/24",
    "10.1.1.7/32",
    "10.2.0.0/24",
    "10.2.1.0/24",
    "240.2.0.1/32",
    "240.0.0.0/4",
    "240.1.0.1/32",
    "fd68:6177:7365:2::/64",
    "fd68:6177:7365:2::7/128",
    "fd00:1::/64",
];

#[derive(Default)]
struct Kernel(Observed);

impl Kernel {
    fn apply(&mut self, op: &Op) {
        let Observed { device, addresses, rules, peers, routes, guards } = &mut self.0;
        match op.clone() {
            Op::CreateDevice { .. } => *device = Some(ObservedDevice::default()),
            Op::Configure { public_key, port, mark, .. } => {
                let device = device.as_mut().unwrap();
                (device.public_key, device.port, device.mark) = (Some(public_key), port, mark.value);
            }
            Op::SetLink { mtu, .. } => {
                let device = device.as_mut().unwrap();
                (device.up, device.mtu) = (true, mtu.into());
            }
            Op::AddAddress { address } => drop(addresses.insert(address)),
            Op::RemoveAddress { address } => drop(addresses.remove(&address)),
            Op::RemoveRule { rule } => drop(rules.remove(&rule)),
            Op::AddGuard { prefix } => drop(guards.insert(prefix)),
            Op::RemoveGuard { prefix } => drop(guards.remove(&prefix)),
            Op::SetRoute { prefix, source } => drop(routes.insert(prefix, Some(source))),
            Op::RemoveRoute { prefix } => drop(routes.remove(&prefix)),
            Op::AddPeer { public_key, endpoint, keepalive, more_ports, .. } => {
                let (endpoint, configured) = (Some(endpoint), Some(endpoint));
                let peer = ObservedPeer {
                    endpoint,
                    configured,
                    keepalive,
                    allowed: BTreeSet::new(),
                    slot: None,
                    esp: None,
                    more_ports: Some(more_ports),
                };
                assert!(peers.insert(public_key, peer).is_none(), "added twice");
            }
            Op::RemovePeer { public_key } => drop(peers.remove(&public_key)),
            Op::SetEndpoint { public_key, endpoint, .. } => {
                let peer = peers.get_mut(&public_key).unwrap();
                (peer.endpoint, peer.configured) = (Some(endpoint), Some(endpoint));
            }
            Op::SetKeepalive { public_key, keepalive, .. } => {
                peers.get_mut(&public_key).unwrap().keepalive = keepalive;
            }
            Op::SetPorts { public_key, ports, .. } => {
                peers.get_mut(&public_key).unwrap().more_ports = Some(ports);
            }
            Op::Allow { public_key, prefixes, .. } => self.give(public_key, &prefixes),
            Op::Restrict { public_key, keep, .. } => {
                peers.get_mut(&public_key).unwrap().allowed.clear();
                self.give(public_key, &keep);
            }
        }
    }

    fn give(&mut self, to: PublicKey, prefixes: &BTreeSet<IpNet>) {
        for peer in self.0.peers.values_mut() {
            peer.allowed.retain(|prefix| !prefixes.contains(prefix));
        }
        self.0.peers.get_mut(&to).unwrap().allowed.extend(prefixes);
    }

    fn owned(&self) -> BTreeSet<IpNet> {
        self.0.peers.values().flat_map(|peer| peer.allowed.iter().copied()).collect()
    }

    /// Carries out the plan, looking at every step.
    fn follow(&mut self, desired: &Desired) {
        let plan = plan(desired, &self.0);
        assert_eq!(check(&plan.ops, &self.0, desired), Ok(()), "{:#?}", plan.ops);
        let (owned, routed) = (self.owned(), self.0.routes.clone());
        let mut end = Kernel(self.0.clone());
        plan.ops.iter().for_each(|op| end.apply(op));
        for op in &plan.ops {
            self.apply(op);
            let kept = owned.intersection(&end.owned()).all(|prefix| self.owned().contains(prefix));
            assert!(kept, "a prefix lost its owner for a moment: {op}");
            let kept = routed.keys().filter(|prefix| end.0.routes.contains_key(prefix));
            assert!(kept.into_iter().all(|p| self.0.routes.contains_key(p)), "a route flickered: {op}");
            assert!(self.0.routes.keys().all(|prefix| self.0.guards.contains(prefix)), "unguarded: {op}");
        }
    }
}

fn key(n: u8) -> PublicKey {
    PublicKey::new([n; 32]).unwrap()
}

fn name(cluster: u8, node: u8) -> PeerName {
    let id = ClusterId::new(u32::from(cluster) + 1, ClusterIdWidth::Bits8).unwrap();
    let cluster = ClusterRef { name: ClusterName::parse(&format!("c{cluster}")).unwrap(), id };
    PeerName { cluster, node: NodeName::parse(&format!("node-{node}")).unwrap() }
}

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([172, 16, 0, n], 51871))
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn peer(cluster: u8, node: u8, k: u8, allowed: &[&str]) -> Peer {
    let allowed = nets(allowed);
    Peer {
        name: name(cluster, node),
        public_key: key(k),
        endpoint: endpoint(k),
        allowed,
        keepalive: None,
        boot_id: None,
        esp: None,
        more_ports: Vec::new(),
        via: None,
        slot: 0,
    }
}

fn desired(peers: Vec<Peer>, routes: BTreeSet<IpNet>) -> Desired {
    Desired {
        device: Device {
            name: DeviceName::parse("hawser0").unwrap(),
            public_key: key(200),
            port: 51871,
            mtu: 1420,
            mark: Mark { value: 0x0048_0000, mask: 0x00ff_0000 },
        },
        addresses: ["240.1.0.1".parse().unwrap(), "fd68:6177:7365:1::1".parse().unwrap()].into(),
        peers,
        routes,
        guards: nets(&["240.0.0.0/4", "fd68:6177:7365::/48"]),
    }
}

fn any_prefixes() -> impl Strategy<Value = BTreeSet<IpNet>> {
    prop::collection::btree_set(prop::sample::select(&PREFIXES[..]), 0..6)
        .prop_map(|texts| texts.into_iter().map(|text| text.parse().unwrap()).collect())
}

fn any_peer() -> impl Strategy<Value = Peer> {
    (1u8..4, 1u8..3, 1u8..7, 1u8..4, any_prefixes(), prop::option::of(20u16..23)).prop_map(
        |(cluster, node, k, at, allowed, keepalive)| Peer {
            name: name(cluster, node),
            public_key: key(k),
            endpoint: endpoint(at),
            allowed,
            keepalive,
            boot_id: None,
            esp: None,
            more_ports: Vec::new(),
            via: None,
            slot: 0,
        },
    )
}

fn any_desired() -> impl Strategy<Value = Desired> {
    (prop::collection::vec(any_peer(), 0..7), any_prefixes(), any::<bool>(), 1280u16..1283).prop_map(
        |(peers, routes, ipv6, mtu)| {
            let mut desired = desired(peers, routes);
            desired.device.mtu = mtu;
            if !ipv6 {
                desired.addresses.pop_last();
            }
            desired
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_desired_after_whatever_was_the_plan_gets_there_without_a_gap(
        states in prop::collection::vec(any_desired(), 1..5)
    ) {
        let mut kernel = Kernel::default();
        for desired in &states {
            kernel.follow(desired);
            prop_assert_eq!(plan(desired, &kernel.0).ops, vec![]);
            let resolved = resolve(desired, &kernel.0);
            for (key, peer) in &resolved.peers {
                prop_assert_eq!(&kernel.0.peers[key].allowed, &peer.allowed);
            }
        }
    }

    #[test]
    fn a_conflict_is_settled_alike_in_whatever_order_the_claims_arrive(
        before in any_desired(),
        one in any_desired(),
        turn in 0usize..7,
    ) {
        let mut kernel = Kernel::default();
        kernel.follow(&before);
        let mut other = one.clone();
        other.peers.reverse();
        let turn = turn.min(other.peers.len());
        other.peers.rotate_left(turn);
        let (a, b) = (resolve(&one, &kernel.0), resolve(&other, &kernel.0));
        let keys = |r: &hawser_tunnels::Resolved| r.peers.keys().copied().collect::<Vec<_>>();
        prop_assert_eq!(keys(&a), keys(&b));
        let owned = |r: &hawser_tunnels::Resolved| {
            r.peers.values().flat_map(|p| p.allowed.iter().map(|n| (*n, p.name.clone()))).collect::<BTreeSet<_>>()
        };
        // Two claims that state the same name and key are the same claimant.
        if unique(&one.peers) {
            prop_assert_eq!(owned(&a), owned(&b));
        }
    }

    #[test]
    fn a_cluster_that_states_what_others_hold_takes_nothing_from_them(
        mut one in any_desired(),
        prefixes in any_prefixes(),
        early in any::<bool>(),
    ) {
        for (at, peer) in one.peers.iter_mut().enumerate() {
            // Every node has an address that is computed: nobody else can state it.
            peer.allowed.insert(format!("100.64.0.{at}/32").parse().unwrap());
        }
        let mut kernel = Kernel::default();
        kernel.follow(&one);
        let before = resolve(&one, &kernel.0).peers;
        let mut two = one.clone();
        for k in 1..7 {
            let mut thief = peer(if early { 0 } else { 8 }, k, k, &[&format!("100.65.0.{k}/32")]);
            thief.allowed.extend(&prefixes);
            two.peers.push(thief);
        }
        kernel.follow(&two);
        prop_assert_eq!(plan(&two, &kernel.0).ops, vec![]);
        let after = resolve(&two, &kernel.0).peers;
        for (key, was) in before {
            prop_assert_eq!(&after[&key], &was);
        }
    }
}

/// Few contradictions, so that most of them are settled: each peer has a range of its own, and sometimes another's.
fn any_granted() -> impl Strategy<Value = Desired> {
    let prefix = (1u8..5, 0u8..4, any::<bool>()).prop_map(|(peer, at, whole)| match whole {
        true => format!("10.{peer}.0.0/16"),
        false => format!("10.{peer}.{at}.0/24"),
    });
    let extra = prop::collection::vec(prefix, 0..2);
    let of = (
        prop::collection::vec((any::<bool>(), 0u8..4, 1u8..3, prop::option::of(20u16..22)), 4),
        extra,
        0u8..3,
    );
    of.prop_map(|(peers, extra, routes)| {
        let peers = peers.into_iter().zip(1u8..).filter(|((there, ..), _)| *there).map(
            |((_, at, to, keepalive), n)| {
                let mut one =
                    peer(n / 3 + 1, n, n, &[&format!("10.{n}.{at}.0/24"), &format!("240.2.0.{n}/32")]);
                one.allowed
                    .extend(extra.iter().filter(|_| at == 3).map(|text| text.parse::<IpNet>().unwrap()));
                Peer { endpoint: endpoint(to), keepalive, ..one }
            },
        );
        let routes = (0..routes).map(|n| format!("10.{n}.0.0/16").parse().unwrap()).collect();
        desired(peers.collect(), routes)
    })
}

proptest! {
    #[test]
    fn what_changed_alone_gives_the_steps_of_the_whole_plan(
        states in prop::collection::vec(any_granted(), 2..6),
        early in (0usize..4, 0u8..9),
    ) {
        let mut kernel = Kernel::default();
        let mut settled: Option<(Settled, Desired)> = None;
        for desired in states {
            let whole = plan(&desired, &kernel.0);
            let next = settled.take().and_then(|(settled, before)| settled.follow(&before, &desired).unwrap());
            let (ops, mut next) = match next {
                Some((ops, next)) => {
                    prop_assert!(whole.problems.is_empty(), "{:?} was not seen", whole.problems);
                    prop_assert_eq!(&ops, &whole.ops);
                    (ops, next)
                }
                None => {
                    let next = Settled::after(&whole, &kernel.0, &desired).unwrap();
                    (whole.ops, next)
                }
            };
            ops.iter().for_each(|op| kernel.apply(op));
            prop_assert_eq!(plan(&desired, &kernel.0).ops, vec![]);
            // A pod comes before the plan that knows of it, and may be gone again by then.
            if let Some(peer) = desired.peers.get(early.0) {
                let pod: IpNet = format!("10.{}.9.{}/32", early.0, early.1).parse().unwrap();
                if let Some(op) = next.ahead(&peer.name, peer.public_key, pod, &desired) {
                    kernel.apply(&op);
                }
            }
            settled = Some((next, desired));
        }
    }
}

#[test]
fn one_pod_more_is_one_step_and_one_less_another() {
    let mut kernel = Kernel::default();
    let with = |pods: &[&str]| {
        desired(vec![peer(2, 1, 1, pods), peer(2, 2, 2, &["10.2.9.9/32"])], nets(&["10.2.0.0/16"]))
    };
    let (one, two) = (with(&["10.2.0.1/32"]), with(&["10.2.0.1/32", "10.2.0.2/32"]));
    let whole = plan(&one, &kernel.0);
    let settled = Settled::after(&whole, &kernel.0, &one).unwrap();
    kernel.follow(&one);
    let lines = |ops: &[Op]| ops.iter().map(Op::to_string).collect::<Vec<_>>();
    let (ops, settled) = settled.follow(&one, &two).unwrap().unwrap();
    assert_eq!(lines(&ops), ["peer c2/node-1 owns 10.2.0.2/32"]);
    let (ops, mut settled) = settled.follow(&two, &one).unwrap().unwrap();
    assert_eq!(lines(&ops), ["peer c2/node-1 no longer owns 10.2.0.2/32"]);

    let node = name(2, 1);
    let pod = "10.2.0.3/32".parse().unwrap();
    let early = settled.ahead(&node, key(1), pod, &one).unwrap();
    assert_eq!(early.to_string(), "peer c2/node-1 owns 10.2.0.3/32");
    assert_eq!(settled.ahead(&node, key(1), pod, &one), None, "it has it");
    assert_eq!(
        settled.ahead(&name(3, 1), key(1), "10.3.0.1/32".parse().unwrap(), &one),
        None,
        "of another cluster"
    );
    assert_eq!(settled.ahead(&node, key(1), "10.2.9.9/32".parse().unwrap(), &one), None, "another's");
    assert_eq!(settled.ahead(&node, key(1), "240.1.0.1/32".parse().unwrap(), &one), None, "our own");
    let (ops, _) = settled.follow(&one, &one).unwrap().unwrap();
    assert_eq!(lines(&ops), ["peer c2/node-1 no longer owns 10.2.0.3/32"], "nobody asks for it any more");
}

fn unique(peers: &[Peer]) -> bool {
    peers.iter().map(|p| (p.name.clone(), p.public_key)).collect::<BTreeSet<_>>().len() == peers.len()
}

#[test]
fn a_prefix_moves_between_peers_in_one_step() {
    let mut kernel = Kernel::default();
    let (a, b) = (peer(2, 1, 1, &["10.2.0.0/24"]), peer(2, 2, 2, &[]));
    kernel.follow(&desired(vec![a, b], nets(&["10.2.0.0/24"])));
    let (a, b) = (peer(2, 1, 1, &[]), peer(2, 2, 2, &["10.2.0.0/24"]));
    let next = desired(vec![a, b], nets(&["10.2.0.0/24"]));
    let lines: Vec<String> = plan(&next, &kernel.0).ops.iter().map(Op::to_string).collect();
    assert_eq!(lines, ["peer c2/node-2 owns 10.2.0.0/24"]);
}

#[test]
fn the_first_plan_reads_like_its_order() {
    let one = desired(vec![peer(2, 1, 1, &["10.2.0.0/24", "240.2.0.1/32"])], nets(&["10.2.0.0/24"]));
    let lines: Vec<String> = plan(&one, &Observed::default()).ops.iter().map(Op::to_string).collect();
    assert_eq!(
        lines,
        [
            "create device hawser0",
            "guard 10.2.0.0/24: unreachable unless a tunnel leads there",
            "guard 240.0.0.0/4: unreachable unless a tunnel leads there",
            "guard fd68:6177:7365::/48: unreachable unless a tunnel leads there",
            "configure hawser0: key:c8c8c8c8, port 51871, mark 0x480000/0xff0000",
            "set hawser0 up, mtu 1420",
            "add own address 240.1.0.1",
            "add own address fd68:6177:7365:1::1",
            "add peer c2/node-1 at 172.16.0.1:51871, key:01010101, no keepalive",
            "peer c2/node-1 owns 10.2.0.0/24, 240.2.0.1/32",
            "route 10.2.0.0/24 into the mesh, source 240.1.0.1",
        ]
    );
}

#[test]
fn a_peer_that_roamed_is_left_where_it_is_until_its_node_states_another_endpoint() {
    let mut kernel = Kernel::default();
    let mut next = desired(vec![peer(2, 1, 1, &[])], BTreeSet::new());
    kernel.follow(&next);
    kernel.0.peers.get_mut(&key(1)).unwrap().endpoint = Some(endpoint(99));
    assert_eq!(plan(&next, &kernel.0).ops, []);
    next.peers[0].endpoint = endpoint(50);
    let lines: Vec<String> = plan(&next, &kernel.0).ops.iter().map(Op::to_string).collect();
    assert_eq!(lines, ["move peer c2/node-1 to 172.16.0.50:51871"]);
}

#[test]
fn a_peer_has_sessions_where_it_states_ports_and_who_has_one_session_is_told_nothing() {
    let mut kernel = Kernel::default();
    let spread = |ports: &[u16]| {
        let peer = Peer { more_ports: ports.into(), ..peer(2, 1, 1, &["10.2.0.0/24"]) };
        desired(vec![peer], BTreeSet::new())
    };
    kernel.follow(&spread(&[51880]));
    assert_eq!(kernel.0.peers[&key(1)].more_ports, Some(vec![51880]), "with the peer itself");
    let said_by = |kernel: &Kernel, want: &Desired| -> Vec<String> {
        plan(want, &kernel.0).ops.iter().map(ToString::to_string).collect()
    };
    assert_eq!(said_by(&kernel, &spread(&[51880])), Vec::<String>::new());
    let more = spread(&[51880, 51881]);
    assert_eq!(said_by(&kernel, &more), ["peer c2/node-1: sessions at ports 51880, 51881, too"]);
    kernel.follow(&more);
    assert_eq!(said_by(&kernel, &spread(&[])), ["peer c2/node-1: one session"]);
    kernel.0.peers.get_mut(&key(1)).unwrap().more_ports = None;
    assert_eq!(said_by(&kernel, &spread(&[])), Vec::<String>::new(), "the kernel has one");
}

#[test]
fn every_contradiction_is_named_and_the_rest_goes_on() {
    let mut contradictory = desired(
        vec![
            peer(2, 1, 1, &["10.2.0.0/24", "240.1.0.1/32"]),
            peer(2, 2, 1, &["10.2.1.0/24"]),
            peer(2, 3, 3, &["10.2.0.0/24"]),
            peer(3, 1, 4, &["10.2.0.128/25", "10.3.0.0/24"]),
            peer(3, 2, 200, &[]),
        ],
        nets(&["10.2.0.0/24", "0.0.0.0/0", "fd00:1::/64"]),
    );
    contradictory.addresses.pop_last();
    let plan = plan(&contradictory, &Observed::default());
    assert_eq!(
        plan.problems
            .iter()
            .map(|p| p.to_string().split(". fix:").next().unwrap().to_owned())
            .collect::<Vec<_>>(),
        [
            "c2/node-1 and c2/node-2 state the same public key key:01010101; c2/node-2 gets no tunnel",
            "c3/node-2 states our own public key key:c8c8c8c8 and gets no tunnel",
            "240.1.0.1/32 of c2/node-1 covers our own mesh address 240.1.0.1 and is not accepted",
            "10.2.0.0/24 is claimed by c2/node-1 and by c2/node-3; c2/node-1 keeps it",
            "10.2.0.128/25 of c3/node-1 overlaps 10.2.0.0/24 of c2/node-1; c2/node-1 keeps it",
            "0.0.0.0/0 is everything and is not routed into the mesh",
            "fd00:1::/64 cannot be routed into the mesh: this node has no ipv6 mesh address",
        ]
    );
    assert!(plan.problems.iter().any(|p| matches!(p, Problem::Overlap { .. })));
    assert_eq!(check(&plan.ops, &Observed::default(), &contradictory), Ok(()));
    let given = plan.ops.iter().filter(|op| matches!(op, Op::Allow { .. })).count();
    assert_eq!(given, 2, "10.2.0.0/24 and 10.3.0.0/24");
}

fn said(plan: &hawser_tunnels::Plan) -> Vec<String> {
    let text = |problem: &Problem| problem.to_string().split(". fix:").next().unwrap().to_owned();
    plan.problems.iter().map(text).collect()
}

#[test]
fn a_key_stays_with_the_cluster_that_holds_it_whatever_another_states() {
    let mut kernel = Kernel::default();
    let owner = peer(2, 1, 1, &["10.2.0.0/24", "240.2.0.1/32"]);
    kernel.follow(&desired(vec![owner.clone()], BTreeSet::new()));
    let thief = peer(0, 1, 1, &["10.9.0.0/24", "240.9.0.1/32"]);
    let both = desired(vec![owner, thief], BTreeSet::new());
    let plan = plan(&both, &kernel.0);
    assert_eq!(plan.ops, []);
    assert_eq!(
        said(&plan),
        ["c2/node-1 and c0/node-1 state the same public key key:01010101; c0/node-1 gets no tunnel"]
    );
}

#[test]
fn a_key_that_nobody_holds_and_two_clusters_state_goes_to_neither() {
    let one = peer(2, 1, 1, &["240.2.0.1/32"]);
    let both = desired(vec![one.clone(), peer(0, 1, 1, &["240.9.0.1/32"])], BTreeSet::new());
    let mut kernel = Kernel::default();
    let named = ["c0/node-1 and c2/node-1 of different clusters state the same public key key:01010101; \
                  neither gets a tunnel"];
    assert_eq!(said(&plan(&both, &kernel.0)), named);
    kernel.follow(&both);
    assert!(kernel.0.peers.is_empty());
    // A key in the kernel without an address of either is nobody's.
    kernel.follow(&desired(vec![peer(3, 1, 1, &["240.3.0.1/32"])], BTreeSet::new()));
    assert_eq!(said(&plan(&both, &kernel.0)), named);
    kernel.follow(&both);
    assert!(kernel.0.peers.is_empty());
    // The other one withdraws.
    kernel.follow(&desired(vec![one], BTreeSet::new()));
    assert_eq!(kernel.owned(), nets(&["240.2.0.1/32"]));
}

#[test]
fn a_prefix_stays_with_the_cluster_that_holds_it() {
    let mut kernel = Kernel::default();
    let owner = peer(2, 1, 1, &["10.2.0.0/24"]);
    kernel.follow(&desired(vec![owner.clone()], BTreeSet::new()));
    let (same, wider) = (peer(0, 1, 2, &["10.2.0.0/24"]), peer(0, 2, 3, &["10.2.0.0/16"]));
    let all = desired(vec![owner, same, wider], BTreeSet::new());
    assert_eq!(
        said(&plan(&all, &kernel.0)),
        [
            "10.2.0.0/24 is claimed by c2/node-1 and by c0/node-1; c2/node-1 keeps it",
            "10.2.0.0/16 of c0/node-2 overlaps 10.2.0.0/24 of c2/node-1; c2/node-1 keeps it",
        ]
    );
    kernel.follow(&all);
    assert_eq!(kernel.0.peers[&key(1)].allowed, nets(&["10.2.0.0/24"]));
}

#[test]
fn check_refuses_what_plan_would_never_write() {
    let (a, b) = (peer(2, 1, 1, &[]), peer(3, 1, 2, &[]));
    let want = desired(vec![a.clone(), b.clone()], BTreeSet::new());
    let add = |p: &Peer| Op::AddPeer {
        peer: p.name.clone(),
        public_key: p.public_key,
        endpoint: p.endpoint,
        keepalive: None,
        boot_id: None,
        esp: None,
        more_ports: Vec::new(),
        slot: 0,
    };
    let allow = |p: &Peer, prefixes: &[&str]| Op::Allow {
        peer: p.name.clone(),
        public_key: p.public_key,
        prefixes: nets(prefixes),
    };
    let refused = |ops: &[Op]| check(ops, &Observed::default(), &want).unwrap_err();
    let prefix: IpNet = "10.2.0.0/24".parse().unwrap();

    let route = Op::SetRoute { prefix, source: "240.1.0.1".parse().unwrap() };
    assert_eq!(refused(std::slice::from_ref(&route)), Violation::Unguarded { step: 1, prefix });
    let ops = [Op::AddGuard { prefix }, route, Op::RemoveGuard { prefix }];
    assert_eq!(refused(&ops), Violation::Unguarded { step: 3, prefix });

    let ops = [add(&a), add(&b), allow(&a, &["10.2.0.0/24"]), allow(&b, &["10.2.0.0/24"])];
    assert_eq!(refused(&ops), Violation::Contested { step: 4, prefix, owner: key(1), to: key(2) });
    let ops = [add(&a), add(&b), allow(&a, &["10.2.0.0/16"]), allow(&b, &["10.2.0.0/24"])];
    assert!(matches!(refused(&ops), Violation::Overlap { .. }));
    let ops = [add(&a), allow(&a, &["240.0.0.0/4"])];
    assert!(matches!(refused(&ops), Violation::OwnAddress { .. }));
    let (stolen, peer) = (Peer { public_key: key(2), ..a.clone() }, a.name.clone());
    assert_eq!(refused(&[add(&stolen)]), Violation::ForeignKey { step: 1, public_key: key(2), peer });
    assert_eq!(refused(&[allow(&a, &[])]), Violation::UnknownPeer { step: 1, public_key: key(1) });
}
