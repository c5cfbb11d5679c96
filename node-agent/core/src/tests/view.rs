//! What comes in, by key, and what is kept out.

use super::*;
use crate::{Changed, MeshView};

fn view() -> MeshView {
    let mut view = MeshView::new(cluster(1), WIDTH, MeshPlan::default());
    say(&mut view, 1, &mk_peer(2));
    view
}

fn say(view: &mut MeshView, c: u32, entry: &Entry) -> Changed {
    view.upsert(&name(c), entry.key(&cluster(c)).to_string().as_bytes(), &entry.encode())
}

#[test]
fn what_a_key_brought_goes_with_the_key() {
    let mut view = view();
    let entries = [mk_node(2, 1), vec![mk_pod(2, 1, 5), mk_shared(2, &["10.2.1.5"], 80)]].concat();
    for entry in &entries {
        let changed = match entry {
            Entry::Service(service) => Changed::Service(service.key.clone()),
            Entry::Endpoint(endpoint) => Changed::Pod(endpoint.ip),
            _ => Changed::Data,
        };
        assert_eq!(say(&mut view, 2, entry), changed);
    }
    let counts = |view: &MeshView| {
        let v = view.cluster(&name(2)).unwrap();
        [v.nodes.len(), v.tunnel_nodes.len(), v.endpoints.len(), v.services.len()]
    };
    assert_eq!(counts(&view), [1, 1, 1, 1]);
    for entry in &entries {
        view.remove(&name(2), entry.key(&cluster(2)).to_string().as_bytes());
    }
    assert_eq!(counts(&view), [0, 0, 0, 0]);
}

#[test]
fn a_malformed_value_is_counted_and_the_last_good_one_stays() {
    let mut view = view();
    say(&mut view, 2, &mk_pod(2, 1, 5));
    let key = b"cilium/state/ip/v1/default/10.2.1.5";
    assert_eq!(view.upsert(&name(2), key, b"{"), Changed::Nothing);
    let remote = view.cluster(&name(2)).unwrap();
    assert_eq!((remote.refused.count, remote.endpoints.len()), (1, 1));
    assert!(remote.refused.last.as_ref().unwrap().contains("10.2.1.5"), "{:?}", remote.refused.last);
}

#[test]
fn a_cluster_speaks_only_for_itself() {
    let mut view = view();
    let foreign = [
        mk_pod_at(2, "10.1.1.5", 1),
        mk_pod_at(2, "8.8.8.8", 1),
        mk_shared(2, &["10.3.1.5"], 80),
        mk_shared(3, &["10.3.1.5"], 80),
        mk_peer(3),
    ];
    for entry in &foreign {
        let key = entry.key(&cluster(2)).to_string();
        assert_eq!(view.upsert(&name(2), key.as_bytes(), &entry.encode()), Changed::Nothing, "{key}");
    }
    assert_eq!(view.cluster(&name(2)).unwrap().refused.count, foreign.len() as u64);
}

#[test]
fn keys_of_kinds_nobody_plans_with_are_passed_over() {
    let mut view = view();
    for key in ["cilium/.heartbeat", "cilium/state/serviceexports/v1/eu-west/a/b", "x"] {
        assert_eq!(view.upsert(&name(2), key.as_bytes(), b"?"), Changed::Nothing);
    }
    assert_eq!(view.cluster(&name(2)).unwrap().refused.count, 0);
}

#[test]
fn a_cluster_is_complete_when_all_is_listed_and_every_canary_was_seen() {
    let mut view = view();
    view.listed(&name(2));
    assert!(!view.cluster(&name(2)).unwrap().is_synced());
    let waits = view.cluster(&name(2)).unwrap().waits_for();
    assert!(waits.contains("cilium/state/nodes/v1") && waits.contains("hawser/state/nodes/v1"), "{waits}");
    for resource in Resource::ALL {
        say(&mut view, 2, &Entry::Synced { resource, at: None });
    }
    assert!(view.cluster(&name(2)).unwrap().is_synced());
    view.remove(&name(2), b"cilium/synced/eu-west/cilium/state/nodes/v1");
    assert!(view.cluster(&name(2)).unwrap().is_synced(), "a canary that goes says nothing");
}

#[test]
fn a_new_followers_list_replaces_what_was_known() {
    let mut view = view();
    for entry in mk_node(2, 1).iter().chain(&mk_node(2, 2)) {
        say(&mut view, 2, entry);
    }
    view.begin(&name(2));
    for entry in &mk_node(2, 2) {
        say(&mut view, 2, entry);
    }
    assert_eq!(view.cluster(&name(2)).unwrap().nodes.len(), 2, "nothing goes before the list is complete");
    view.listed(&name(2));
    let nodes = &view.cluster(&name(2)).unwrap().nodes;
    assert_eq!(nodes.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["node-2"]);
}
