//! One negative test per rule: a newcomer that does not fit, and the sentence that says so.

use std::time::Duration;

use hawser_model::ServerUrl;

use super::*;
use crate::bundle::BundleFacts;
use crate::ca::Ca;

fn now() -> Timestamp {
    Timestamp::parse("2026-11-20T21:44:55Z").unwrap()
}

fn cluster(name: &str, id: u32) -> ClusterRef {
    let id = ClusterId::new(id, ClusterIdWidth::Bits9).unwrap();
    ClusterRef { name: ClusterName::parse(name).unwrap(), id }
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn own() -> OwnFacts {
    let cluster = cluster("us-east", 1);
    OwnFacts {
        ca: Ca::create(&cluster.name, now()).unwrap().cert().clone().into(),
        cluster,
        pod_cidrs: nets(&["10.1.0.0/16"]),
        node_cidrs: nets(&["172.16.1.0/24"]),
        width: ClusterIdWidth::Bits8,
        mesh: MeshPlan::default(),
        encryption: Encryption::Wireguard,
    }
}

fn facts(name: &str, id: u32) -> BundleFacts {
    BundleFacts {
        cluster: cluster(name, id),
        endpoints: vec![ServerUrl::parse("https://172.16.2.11:2379").unwrap()],
        pod_cidrs: nets(&[&format!("10.{id}.0.0/16")]),
        node_cidrs: nets(&[&format!("172.16.{id}.0/24")]),
        width: ClusterIdWidth::Bits8,
        mesh: MeshPlan::default(),
        encryption: Encryption::Wireguard,
    }
}

/// As `ca` would sign it, whatever it says.
fn signed(ca: &Ca, facts: BundleFacts, issued: Timestamp) -> Bundle {
    Bundle::create(ca, ClusterName::parse("reader").unwrap(), facts, issued).unwrap()
}

fn bundle(facts: BundleFacts) -> Bundle {
    signed(&Ca::create(&facts.cluster.name, now()).unwrap(), facts, now())
}

fn admitted(facts: BundleFacts) -> Peer {
    check_admission(&own(), &[], &bundle(facts), now()).unwrap().peer().clone()
}

/// The refusal's sentence; it has to name both sides and a fix.
fn refused(existing: &[Peer], facts: BundleFacts) -> String {
    let name = facts.cluster.name.to_string();
    let text = check_admission(&own(), existing, &bundle(facts), now()).unwrap_err().to_string();
    assert!(text.contains(&name) && text.contains("fix: "), "{text}");
    text
}

#[test]
fn a_cluster_that_fits_is_new_then_unchanged_then_updated() {
    let ca = Ca::create(&cluster("eu-west", 2).name, now()).unwrap();
    let first = signed(&ca, facts("eu-west", 2), now());
    let Admission::New(peer) = check_admission(&own(), &[], &first, now()).unwrap() else {
        panic!("not new")
    };
    assert_eq!((peer.cluster.clone(), peer.admitted), (cluster("eu-west", 2), now()));

    let later = now().plus(Duration::from_secs(60));
    let existing = [admitted(facts("ap-south", 3)), peer.clone()];
    let again = check_admission(&own(), &existing, &first, later).unwrap();
    assert_eq!(again, Admission::Unchanged(peer.clone()));

    let more = BundleFacts { pod_cidrs: nets(&["10.2.0.0/16", "10.20.0.0/16"]), ..facts("eu-west", 2) };
    let grown = signed(&ca, more.clone(), later);
    let updated = check_admission(&own(), &existing, &grown, later).unwrap();
    assert!(matches!(&updated, Admission::Updated { was, .. } if *was == peer));
    assert_eq!(updated.peer().pod_cidrs, more.pod_cidrs);

    // The first bundle again would take the new range back.
    let error = check_admission(&own(), &[updated.peer().clone()], &first, later).unwrap_err();
    assert!(matches!(&error, Refusal::Stale { .. }), "{error}");
}

#[test]
fn names_and_ids_are_unique_each_for_itself() {
    assert!(refused(&[], facts("us-east", 2)).contains("has the name of this cluster, us-east (id 1)"));
    let own_id = BundleFacts { cluster: cluster("eu-west", 1), ..facts("eu-west", 2) };
    assert!(refused(&[], own_id).contains("has the id of this cluster, us-east (id 1)"));
    let west = [admitted(facts("eu-west", 2))];
    let same_id = BundleFacts { cluster: cluster("ap-south", 2), ..facts("ap-south", 3) };
    assert!(refused(&west, same_id).contains("id of the admitted cluster eu-west (id 2)"));
    let other_id = facts("eu-west", 3);
    assert!(refused(&west, other_id).contains("hawser disconnect eu-west"));
}

#[test]
fn an_id_has_to_fit_the_width_of_this_mesh() {
    let wide =
        BundleFacts { cluster: cluster("eu-west", 300), width: ClusterIdWidth::Bits9, ..facts("eu-west", 2) };
    assert!(refused(&[], wide).contains("id above 255"), "the id is named before the width");
}

#[test]
fn a_ca_stands_for_one_cluster_and_does_not_change_silently() {
    let west = [admitted(facts("eu-west", 2))];
    let text = refused(&west, facts("eu-west", 2));
    assert!(text.contains("disconnect eu-west"), "a new CA under the old name: {text}");

    let shared = Ca::create(&cluster("ap-south", 3).name, now()).unwrap();
    let south = signed(&shared, facts("ap-south", 3), now());
    let peer = check_admission(&own(), &[], &south, now()).unwrap().peer().clone();
    let mut twin = south.clone();
    twin.facts = facts("eu-west", 2);
    let error = check_admission(&own(), &[peer], &twin, now()).unwrap_err();
    assert!(matches!(&error, Refusal::SharedCa { other, .. } if other.as_str() == "ap-south"), "{error}");
    let ours = OwnFacts { ca: shared.cert().clone().into(), ..own() };
    let error = check_admission(&ours, &[], &south, now()).unwrap_err();
    assert!(matches!(&error, Refusal::SharedCa { other, .. } if other.as_str() == "us-east"), "{error}");
}

#[test]
fn settings_of_the_mesh_are_equal_everywhere() {
    let base = || facts("eu-west", 2);
    let wide = BundleFacts { width: ClusterIdWidth::Bits9, ..base() };
    assert!(
        refused(&[], wide).contains("maxConnectedClusters is 511 at cluster eu-west (id 2) and 255 here")
    );
    let plan = MeshPlan::default();
    let ula = MeshPlan::new("fd11:2233:4455::/48".parse().unwrap(), plan.ipv4()).unwrap();
    assert!(refused(&[], BundleFacts { mesh: ula, ..base() }).contains("mesh.ula is fd11:2233:4455::/48"));
    let v4 = MeshPlan::new(plan.ula(), "100.0.0.0/7".parse().unwrap()).unwrap();
    assert!(refused(&[], BundleFacts { mesh: v4, ..base() }).contains("mesh.ipv4 is 100.0.0.0/7"));
    let ipsec = BundleFacts { encryption: Encryption::Ipsec, ..base() };
    assert!(refused(&[], ipsec).contains("encryption is ipsec at cluster eu-west (id 2) and wireguard here"));
}

#[test]
fn ranges_do_not_overlap_with_ours_a_peers_or_each_other() {
    let pods = |texts: &[&str]| BundleFacts { pod_cidrs: nets(texts), ..facts("eu-west", 2) };
    let nodes = |texts: &[&str]| BundleFacts { node_cidrs: nets(texts), ..facts("eu-west", 2) };
    let south = [admitted(facts("ap-south", 3))];
    for (facts, why) in [
        (
            pods(&["10.2.0.0/16", "10.1.128.0/17"]),
            "pod CIDR 10.1.128.0/17 of cluster eu-west (id 2) overlaps pod CIDR 10.1.0.0/16 of cluster us-east",
        ),
        (pods(&["10.0.0.0/8"]), "overlaps pod CIDR 10.1.0.0/16 of cluster us-east"),
        (pods(&["172.16.1.128/25"]), "overlaps node CIDR 172.16.1.0/24 of cluster us-east"),
        (pods(&["10.3.4.0/24"]), "overlaps pod CIDR 10.3.0.0/16 of cluster ap-south (id 3)"),
        (
            nodes(&["10.3.4.0/24"]),
            "node CIDR 10.3.4.0/24 of cluster eu-west (id 2) overlaps pod CIDR 10.3.0.0/16 of cluster ap-south",
        ),
        (nodes(&["172.16.3.0/24"]), "overlaps node CIDR 172.16.3.0/24 of cluster ap-south"),
        (nodes(&["10.2.7.0/24"]), "overlaps pod CIDR 10.2.0.0/16 of cluster eu-west"),
        (pods(&["240.2.0.0/16"]), "overlaps the mesh's own range 240.0.0.0/4"),
        (pods(&["fd68:6177::/32"]), "overlaps the mesh's own range fd68:6177:7365::/48"),
        (pods(&["0.0.0.0/0"]), "overlaps"),
    ] {
        let text = refused(&south, facts);
        assert!(text.contains(why), "{why}: {text}");
    }
}

#[test]
fn an_update_is_not_held_against_what_it_replaces() {
    let ca = Ca::create(&cluster("eu-west", 2).name, now()).unwrap();
    let first = signed(&ca, facts("eu-west", 2), now());
    let peer = check_admission(&own(), &[], &first, now()).unwrap().peer().clone();
    let narrower = BundleFacts { pod_cidrs: nets(&["10.2.0.0/17"]), ..facts("eu-west", 2) };
    let update = signed(&ca, narrower, now());
    let admission = check_admission(&own(), &[peer], &update, now()).unwrap();
    assert!(matches!(admission, Admission::Updated { .. }));
}

fn on_cilium(name: &str, id: u32, ca: &Ca) -> CiliumFacts {
    let BundleFacts { cluster, endpoints, pod_cidrs, node_cidrs, .. } = facts(name, id);
    let ca = ca.cert().clone().into();
    CiliumFacts { cluster, endpoints, pod_cidrs, node_cidrs, ca, reach: CiliumPeer::default() }
}

#[test]
fn a_cluster_on_cilium_is_admitted_and_held_to_the_same_rules() {
    let ca = Ca::create(&cluster("cilium", 9).name, now()).unwrap();
    let check = |existing: &[Peer], facts: &CiliumFacts| check_cilium(&own(), existing, facts, now());
    let c1 = check(&[], &on_cilium("c1", 2, &ca)).unwrap().peer().clone();
    assert_eq!(c1.kind, PeerKind::Cilium(CiliumPeer::default()));
    let again = check(std::slice::from_ref(&c1), &on_cilium("c1", 2, &ca)).unwrap();
    assert_eq!(again, Admission::Unchanged(c1.clone()));
    // Cilium's clusters share a CA by default, and change it as they like.
    let shared = check(std::slice::from_ref(&c1), &on_cilium("c2", 3, &ca)).unwrap();
    assert!(matches!(shared, Admission::New(_)));
    let other = Ca::create(&cluster("cilium", 9).name, now()).unwrap();
    let updated = check(std::slice::from_ref(&c1), &on_cilium("c1", 2, &other)).unwrap();
    assert!(matches!(updated, Admission::Updated { .. }));

    let refused = |existing: &[Peer], facts: &CiliumFacts| check(existing, facts).unwrap_err().to_string();
    let existing = [c1.clone(), admitted(facts("eu-west", 4))];
    for (facts, why) in [
        (on_cilium("us-east", 5, &ca), "has the name of this cluster"),
        (on_cilium("c5", 1, &ca), "has the id of this cluster"),
        (CiliumFacts { cluster: cluster("c5", 300), ..on_cilium("c5", 5, &ca) }, "id above 255"),
        (on_cilium("c5", 4, &ca), "id of the admitted cluster eu-west (id 4)"),
        (on_cilium("c1", 5, &ca), "an id cannot change"),
        (on_cilium("eu-west", 4, &ca), "was not admitted as a Cilium cluster"),
        (
            CiliumFacts { pod_cidrs: nets(&["10.4.7.0/24"]), ..on_cilium("c5", 5, &ca) },
            "overlaps pod CIDR 10.4.0.0/16",
        ),
        (
            CiliumFacts { pod_cidrs: nets(&["240.0.0.0/8"]), ..on_cilium("c5", 5, &ca) },
            "the mesh's own range",
        ),
    ] {
        let text = refused(&existing, &facts);
        assert!(text.contains(why) && text.contains("fix:"), "{text}");
    }
    let of_own = OwnFacts { ca: ca.cert().clone().into(), ..own() };
    let error = check_cilium(&of_own, &[], &on_cilium("c1", 2, &ca), now()).unwrap_err();
    assert!(matches!(error, Refusal::SharedCa { .. }), "{error}");
    let west = CaSet::from_pem(&existing[1].ca).unwrap();
    let error = check(&existing, &CiliumFacts { ca: west, ..on_cilium("c5", 5, &ca) }).unwrap_err();
    assert!(matches!(&error, Refusal::SharedCa { other, .. } if other.as_str() == "eu-west"), "{error}");
    // And a Hawser cluster does not come under the name of one on Cilium.
    let error = check_admission(&own(), &[c1], &bundle(facts("c1", 2)), now()).unwrap_err();
    assert!(matches!(error, Refusal::OtherKind { .. }), "{error}");
}
