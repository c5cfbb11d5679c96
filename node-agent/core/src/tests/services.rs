//! Who may be chosen now, as status tells it: the same levels as the datapath's.

use std::collections::BTreeSet;

use hawser_discovery::{About, Because, NodeId, Transition};
use hawser_model::ClusterHealth;

use super::*;

fn serving(affinity: Affinity, local: &[&str]) -> Mesh {
    let mut mesh = Mesh::of_three();
    mesh.say(1, [mk_service(affinity, local)]);
    mesh.say(2, [mk_shared(2, &["10.2.1.7", "10.2.2.7"], 80)]);
    mesh.say(3, [mk_shared(3, &["10.3.1.8"], 80)]);
    mesh.settle();
    mesh
}

fn down(mesh: &mut Mesh, about: About) {
    let (from, to) = (ClusterHealth::Up, ClusterHealth::Down);
    mesh.agent.handle_transition(Transition {
        about,
        from,
        to,
        because: Because::AllNodesDown,
        weight: 256,
        at: mesh.now,
    });
}

fn eligible(mesh: &Mesh) -> BTreeSet<String> {
    let services = mesh.agent.services();
    let backends = services.iter().flat_map(|service| service.backends.iter().flatten());
    backends.filter(|b| b.eligible).map(|b| b.backend.ip.to_string()).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

#[test]
fn without_affinity_every_healthy_backend_is_eligible() {
    let mut mesh = serving(Affinity::None, &["10.1.1.5"]);
    assert_eq!(eligible(&mesh).len(), 4);
    down(&mut mesh, About::Cluster(cluster(2).id));
    assert_eq!(eligible(&mesh), set(&["10.1.1.5", "10.3.1.8"]));
}

#[test]
fn a_node_that_is_down_takes_only_its_own_backends_along() {
    let mut mesh = serving(Affinity::None, &[]);
    down(&mut mesh, About::Node(NodeId { cluster: cluster(2).id, index: NodeIndex::new(1).unwrap() }));
    assert_eq!(eligible(&mesh), set(&["10.2.2.7", "10.3.1.8"]));
}

#[test]
fn local_affinity_stays_home_while_there_is_a_home() {
    assert_eq!(eligible(&serving(Affinity::Local, &["10.1.1.5"])), set(&["10.1.1.5"]));
    assert_eq!(eligible(&serving(Affinity::Local, &[])).len(), 3);
}

#[test]
fn remote_affinity_comes_home_when_the_others_are_down() {
    let mut mesh = serving(Affinity::Remote, &["10.1.1.5"]);
    assert_eq!(eligible(&mesh).len(), 3);
    down(&mut mesh, About::Cluster(cluster(2).id));
    down(&mut mesh, About::Cluster(cluster(3).id));
    assert_eq!(eligible(&mesh), set(&["10.1.1.5"]));
}

#[test]
fn when_nobody_is_healthy_health_is_ignored() {
    let mut mesh = serving(Affinity::None, &[]);
    down(&mut mesh, About::Cluster(cluster(2).id));
    down(&mut mesh, About::Cluster(cluster(3).id));
    assert_eq!(eligible(&mesh).len(), 3);
}
