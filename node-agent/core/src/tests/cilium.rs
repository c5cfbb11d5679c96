//! A cluster on Cilium: what of it is in the view, and that no backend is chosen that nothing leads to.

use hawser_model::{
    AddressFamily, CiliumPeer, ClusterConfig, EndpointSlice, ExportMode, ImportKind, ServiceExport,
    SessionAffinity, SliceEndpoint, SliceKey, SlicePort,
};

use super::*;
use crate::{MeshView, Served};

/// eu-west, as an operator said of it.
fn on_cilium() -> Entry {
    let Entry::LocalPeer(peer) = mk_peer(2) else { panic!("a peer") };
    Entry::LocalPeer(Peer { kind: PeerKind::Cilium(CiliumPeer::default()), ..peer })
}

fn config(endpoint_slices: ExportMode) -> Entry {
    Entry::ClusterConfig(ClusterConfig {
        cluster: cluster(2),
        width: WIDTH,
        synced_canaries: true,
        cached: false,
        service_exports: Some(true),
        endpoint_slices,
        path: hawser_model::NodePath::Direct,
    })
}

/// A slice of shop/cart: address, ready, serving.
fn slice(name: &str, ends: &[(&str, bool, bool)]) -> Entry {
    let end = |(address, ready, serving): &(&str, bool, bool)| SliceEndpoint {
        addresses: vec![ip(address)],
        ready: Some(*ready),
        serving: Some(*serving),
        terminating: Some(!ready),
        ..SliceEndpoint::default()
    };
    Entry::Slice(EndpointSlice {
        cluster: cluster(2),
        key: SliceKey::new("shop", name).unwrap(),
        labels: BTreeMap::from([(EndpointSlice::SERVICE_LABEL.to_owned(), "cart".to_owned())]),
        annotations: BTreeMap::new(),
        family: AddressFamily::V4,
        endpoints: ends.iter().map(end).collect(),
        ports: vec![SlicePort {
            name: PortName::parse("http").unwrap(),
            protocol: Protocol::Tcp,
            port: Some(8_080),
        }],
    })
}

fn view_of(entries: Vec<Entry>) -> MeshView {
    let mut view = MeshView::new(cluster(1), WIDTH, MeshPlan::default());
    let mut say = |c: u32, entry: &Entry| {
        view.upsert(&name(c), entry.key(&cluster(c)).to_string().as_bytes(), &entry.encode());
    };
    say(1, &on_cilium());
    entries.iter().for_each(|entry| say(2, entry));
    assert_eq!(view.cluster(&name(2)).unwrap().refused.last, None);
    view
}

fn cart(view: &MeshView) -> Vec<String> {
    let (cart, http) = (ServiceKey::new("shop", "cart").unwrap(), PortName::parse("http").unwrap());
    let backends = view.cluster(&name(2)).unwrap().backends(&cart, &http);
    let line = |served: &Served<'_>| {
        format!("{}:{}{}", served.ip, served.port.port, if served.draining { " draining" } else { "" })
    };
    backends.iter().map(line).collect()
}

#[test]
fn a_cluster_on_cilium_is_complete_without_tunnel_nodes() {
    let canaries = Resource::ALL.into_iter().filter(|kind| *kind != Resource::TunnelNodes);
    let mut view = view_of(canaries.map(|resource| Entry::Synced { resource, at: None }).collect());
    view.listed(&name(2));
    assert!(view.cluster(&name(2)).unwrap().is_synced());
}

#[test]
fn services_are_read_where_they_are_published_and_slices_where_nothing_else_is_never_both() {
    let both = vec![mk_shared(2, &["10.2.1.5"], 80), slice("cart-a", &[("10.2.1.6", true, true)])];
    for (mode, expected) in [
        (ExportMode::ServicesOnly, ["10.2.1.5:80"]),
        (ExportMode::ServicesAndSlices, ["10.2.1.5:80"]),
        (ExportMode::SlicesOnly, ["10.2.1.6:8080"]),
    ] {
        assert_eq!(cart(&view_of([vec![config(mode)], both.clone()].concat())), expected, "{mode:?}");
    }
}

#[test]
fn endpoints_that_only_serve_are_backends_that_drain() {
    let mode = config(ExportMode::SlicesOnly);
    let draining = slice("cart-a", &[("10.2.1.6", false, true), ("10.2.1.7", false, false)]);
    let mut view = view_of(vec![mode, draining, slice("cart-b", &[("10.2.1.8", true, true)])]);
    assert_eq!(cart(&view), ["10.2.1.6:8080 draining", "10.2.1.8:8080"]);
    view.remove(&name(2), b"cilium/state/endpointslices/v1/eu-west/shop/cart-b");
    assert_eq!(cart(&view), ["10.2.1.6:8080 draining"]);
    view.remove(&name(2), b"cilium/state/endpointslices/v1/eu-west/shop/cart-a");
    assert!(cart(&view).is_empty());
}

#[test]
fn what_carries_the_endpoints_of_an_export_is_no_service_of_its_own() {
    let key = ServiceKey::new("shop", "web").unwrap();
    let Entry::Service(cart) = mk_shared(2, &["10.2.1.5"], 80) else { panic!("a service") };
    let carrier = SharedService { key: hawser_wire::derived(&key), ..cart.clone() };
    let export = ServiceExport {
        cluster: cluster(2),
        key,
        annotations: BTreeMap::new(),
        labels: BTreeMap::new(),
        created: Timestamp::parse("2026-11-20T12:00:00Z").unwrap(),
        ports: vec![],
        kind: ImportKind::ClusterSetIp,
        session_affinity: SessionAffinity::None,
        ip_families: vec![],
        internal_traffic_policy: None,
        traffic_distribution: None,
    };
    let view = view_of(vec![Entry::Service(cart), Entry::Service(carrier), Entry::Export(export)]);
    let remote = view.cluster(&name(2)).unwrap();
    assert_eq!((remote.services.len(), remote.service_count(), remote.exports.len()), (2, 1, 1));
}

#[test]
fn its_backends_are_known_and_none_is_chosen_and_status_says_why() {
    let mut mesh = Mesh::new();
    let own = vec![mk_service(Affinity::None, &["10.1.1.5"]), mk_pod(1, 1, 5), on_cilium()];
    mesh.say(1, [mk_node(1, 1), own].concat());
    mesh.complete(1);
    let node = mk_node(2, 1).into_iter().filter(|entry| matches!(entry, Entry::Node(_)));
    let pods = [mk_pod(2, 1, 5), mk_shared(2, &["10.2.1.5"], 80)];
    mesh.say(2, node.chain(pods).collect::<Vec<_>>());
    mesh.complete(2);
    mesh.settle();
    let services = mesh.agent.services();
    let clusters: Vec<_> = services[0].service.ports.values().flat_map(|port| port.slices.keys()).collect();
    assert_eq!(clusters, [&cluster(1)]);
    let status = mesh.agent.clusters(mesh.now);
    assert_eq!((status[1].synced, status[1].nodes, status[1].services, status[1].endpoints), (true, 1, 1, 1));
    assert!(mesh.agent.problems().iter().any(|note| note.contains("eu-west runs Cilium")));
}
