//! A cluster whose source is Kubernetes, against a fake API server: export, nodes that join by their pod, slices written back.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::admin::DisconnectRequest;
use hawser_api::agent::JoinRequest;
use hawser_kvstore::KeyRange;
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::cluster::{Cluster, SHOP, csr, eventually, get, list, open_shop, until_gone, until_says};
use crate::fake_api_server::{FakeApiServer, FakeToken};

const SYNC: &str = "hawser.io/global-sync-endpoint-slices";
const CART: &str = "cilium/state/services/v1/us-east/shop/cart";

/// The shop as objects, without what the fake does not know.
fn shop(text: &str) -> Vec<Value> {
    let list: Value = serde_saphyr::from_str(text).unwrap();
    let known = ["Namespace", "Node", "Pod", "Service", "EndpointSlice", "NetworkPolicy"];
    let items = list["items"].as_array().unwrap().iter();
    items.filter(|item| known.iter().any(|kind| item["kind"] == *kind)).cloned().collect()
}

/// us-east on a fake API server that holds the shop.
async fn us_east() -> (Cluster, FakeApiServer) {
    let server = FakeApiServer::start().await;
    for object in shop(&open_shop()) {
        server.apply(object);
    }
    let us = Cluster::new("us-east", 1);
    std::fs::write(us.path("kubeconfig"), server.kubeconfig()).unwrap();
    let dir = us.dir.path().display().to_string();
    let source = format!("source: {{ dir: {dir}/manifests }}");
    let kubernetes = format!(
        "source: {{ kubernetes: {{ kubeconfig: {dir}/kubeconfig }} }}\n\
         agents: {{ namespace: hawser-system, serviceAccount: hawser-node-agent }}"
    );
    assert!(us.config().contains(&source));
    us.write_config(&us.config().replace(&source, &kubernetes));
    (us, server)
}

#[tokio::test]
async fn the_objects_of_an_api_server_are_exported_and_outlive_it() {
    let (mut us, server) = us_east().await;
    us.start(&[]).await;
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    until_says(&own, CART, "10.1.0.9").await;
    // What a directory of the same objects would have made, key by key.
    let mut same = Cluster::with_shop("us-east", 1);
    same.start(&[]).await;
    let other = same.etcd(Some(&same.admin_identity()), None).await.unwrap();
    let state = || KeyRange::prefix("cilium/state/");
    assert_eq!(list(&own, state()).await.unwrap(), list(&other, state()).await.unwrap());
    // It goes away; nothing else does, not even when we begin anew meanwhile.
    server.down(Some(503));
    us.kill();
    us.spawn(&[]);
    let admin = us.admin_identity();
    eventually("the problem is told", async || {
        us.etcd(Some(&admin), None).await.map_err(|error| error.to_string())?;
        let status = us.status().await;
        match status.source_errors.iter().any(|e| e.contains("kubernetes /api/v1/pods: 503")) {
            true => Ok(()),
            false => Err(format!("{:?}", status.source_errors)),
        }
    })
    .await;
    let own = us.etcd(Some(&admin), None).await.unwrap();
    assert!(get(&own, CART).await.unwrap().is_some());
    server.down(None);
    assert!(server.delete("Service", "shop", "cart"));
    until_gone(&own, CART).await;
}

async fn join(us: &Cluster, node: &str, token: &str) -> Result<String, Status> {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = JoinRequest {
        node: node.into(),
        service_account_token: token.into(),
        csr: csr(&key),
        ..Default::default()
    };
    let reply = us.agent(None).await.join(request).await?.into_inner();
    Ok(hawser_pki::Leaf::from_pem(&reply.certificate).unwrap().name)
}

#[tokio::test]
async fn a_node_joins_by_its_pod_and_by_nothing_less() {
    let (mut us, server) = us_east().await;
    us.start(&[]).await;
    let good = FakeToken {
        username: "system:serviceaccount:hawser-system:hawser-node-agent".into(),
        audiences: vec!["hawser.io".into()],
        node: Some("node-1".into()),
        expired: false,
    };
    let user = |name: &str| FakeToken { username: name.into(), ..good.clone() };
    let tokens = [
        ("a.good.one", good.clone()),
        (
            "a.kube.one",
            FakeToken { audiences: vec!["https://kubernetes.default.svc".into()], ..good.clone() },
        ),
        ("a.shop.one", user("system:serviceaccount:shop:hawser-node-agent")),
        ("a.human.one", user("system:admin")),
        ("a.loose.one", FakeToken { node: None, ..good.clone() }),
        ("a.moved.one", FakeToken { node: Some("node-2".into()), ..good.clone() }),
        ("an.old.one", FakeToken { expired: true, ..good }),
    ];
    for (text, token) in tokens {
        server.token(text, token);
    }
    for (token, code, says) in [
        ("a.kube.one", Code::Unauthenticated, "is invalid for the target audiences"),
        ("a.shop.one", Code::Unauthenticated, "system:serviceaccount:shop:hawser-node-agent's"),
        ("a.human.one", Code::Unauthenticated, "system:admin's"),
        ("a.loose.one", Code::Unauthenticated, "bound to no node"),
        ("a.moved.one", Code::Unauthenticated, "on node node-2, and node node-1 was asked for"),
        ("an.old.one", Code::Unauthenticated, "service account token has expired"),
        ("an.unknown.one", Code::Unauthenticated, "invalid bearer token"),
        ("no token", Code::InvalidArgument, "no token at all"),
    ] {
        let refused = join(&us, "node-1", token).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token}: {refused}");
        assert!(refused.message().contains(says) && refused.message().contains("fix: "), "{refused}");
    }
    // While Kubernetes cannot say, the answer is to ask again; the token is as good as before.
    server.down(Some(503));
    assert_eq!(join(&us, "node-1", "a.good.one").await.unwrap_err().code(), Code::Unavailable);
    server.down(Some(403));
    let refused = join(&us, "node-1", "a.good.one").await.unwrap_err();
    assert!(refused.message().contains("allow `create` on tokenreviews"), "{refused}");
    server.down(None);
    assert_eq!(join(&us, "node-1", "a.good.one").await.unwrap(), "agent-us-east-node-1");
    let other = join(&us, "node-2", "a.good.one").await.unwrap_err();
    assert!(other.message().contains("node node-2 was asked for"), "{other}");
    let reviews = server.requests();
    assert!(reviews.iter().any(|r| r.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews")));
}

#[tokio::test]
async fn a_cluster_without_kubernetes_takes_no_pods_word() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let refused = join(&us, "node-1", "a.good.one").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("one-time tokens alone"), "{refused}");
}

/// The slices that are ours.
fn written(server: &FakeApiServer) -> Vec<Arc<Value>> {
    let ours = "endpointslice.kubernetes.io/managed-by=endpointslice-mesh-controller.hawser.io";
    server.objects("EndpointSlice", "", ours)
}

async fn until_written(server: &FakeApiServer, what: &str, addresses: &[&str]) {
    eventually(what, async || {
        let slices = written(server);
        let all = slices.iter().flat_map(|slice| slice["endpoints"].as_array().unwrap());
        let mut found: Vec<&str> = all.map(|e| e["addresses"][0].as_str().unwrap()).collect();
        found.sort_unstable();
        if found == addresses { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// The Service of the shop with these annotations.
fn cart(annotations: &BTreeMap<&str, &str>) -> Value {
    let mut cart = shop(SHOP).into_iter().find(|object| object["kind"] == "Service").unwrap();
    cart["metadata"]["annotations"] = json!(annotations);
    cart
}

#[tokio::test]
async fn the_endpoints_elsewhere_of_a_service_that_asks_are_written_back_and_never_read() {
    let (mut us, server) = us_east().await;
    let mut eu = Cluster::with_shop("eu-west", 2);
    us.start(&[]).await;
    eu.start(&[]).await;
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    let before = get(&own, CART).await.unwrap().unwrap();
    us.connect_with(&eu).await;
    let asking = BTreeMap::from([("hawser.io/global", "true"), (SYNC, "true")]);
    let silent = BTreeMap::from([("hawser.io/global", "true")]);
    server.apply(cart(&asking));
    until_written(&server, "eu-west's endpoint is written", &["10.2.0.9"]).await;
    let slice = &written(&server)[0];
    let service = &server.objects("Service", "metadata.name=cart", "")[0];
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "cart");
    assert_eq!(slice["metadata"]["labels"]["multicluster.kubernetes.io/service-name"], "cart");
    assert_eq!(slice["metadata"]["labels"]["multicluster.kubernetes.io/source-cluster"], "eu-west");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], service["metadata"]["uid"]);
    assert_eq!(slice["addressType"], "IPv4");
    // It is not taken for an endpoint of this cluster: what we say is what we said.
    let (version, name) = (slice["metadata"]["resourceVersion"].clone(), slice["metadata"]["name"].clone());
    eu.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.77"));
    until_written(&server, "it follows", &["10.2.0.77"]).await;
    assert_eq!(get(&own, CART).await.unwrap().unwrap(), before);
    let slice = &written(&server)[0];
    assert_eq!(slice["metadata"]["name"], name, "the same slice");
    assert_ne!(slice["metadata"]["resourceVersion"], version);
    // Somebody's edit between our reading and our writing is found out, and undone.
    let mut edited = (**slice).clone();
    edited["endpoints"] = json!([]);
    server.apply(edited);
    eu.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.78"));
    until_written(&server, "a conflict is survived", &["10.2.0.78"]).await;
    // The remote that is cut off keeps its endpoints, also over a restart of ours.
    eu.kill();
    assert_eq!(us.stop(), Some(0));
    us.start(&[]).await;
    server.apply(cart(&silent));
    until_written(&server, "they go with the annotation", &[]).await;
    server.apply(cart(&asking));
    until_written(&server, "and come with it, from what was kept on disk", &["10.2.0.78"]).await;
    us.admin().await.disconnect(DisconnectRequest { cluster: "eu-west".into() }).await.unwrap();
    until_written(&server, "they go with the remote", &[]).await;
}

#[tokio::test]
async fn an_annotation_that_is_not_understood_is_an_event_about_its_service_once_for_each_value() {
    let (mut us, server) = us_east().await;
    let asks = |affinity: &'static str| {
        cart(&BTreeMap::from([("hawser.io/global", "true"), ("hawser.io/affinity", affinity)]))
    };
    let notes = async |what: &str, values: &[&str]| {
        eventually(what, async || {
            let events = server.objects("Event", "", "");
            let mut notes: Vec<String> =
                events.iter().map(|e| e["note"].as_str().unwrap().to_owned()).collect();
            notes.sort_unstable();
            let all = notes.iter().zip(values).all(|(note, value)| note.contains(value));
            if notes.len() == values.len() && all { Ok(()) } else { Err(format!("{notes:?}")) }
        })
        .await;
    };
    server.apply(asks("Local"));
    us.start(&[]).await;
    notes("the value is told", &["hawser.io/affinity: \"Local\" is not understood"]).await;
    let event = &server.objects("Event", "", "")[0];
    let service = &server.objects("Service", "metadata.name=cart", "")[0];
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("AnnotationNotUnderstood")));
    assert_eq!(event["regarding"]["uid"], service["metadata"]["uid"]);
    assert_eq!(event["regarding"]["kind"], "Service");
    assert!(event["eventTime"].is_string() && event["action"].is_string(), "{event}");
    assert_eq!(event["reportingController"], "hawser.io/clustermesh-apiserver");
    // A restart tells nothing again, nor does the same value after a good one; another value does.
    assert_eq!(us.stop(), Some(0));
    us.start(&[]).await;
    for affinity in ["local", "Local", "remoet"] {
        server.apply(asks(affinity));
    }
    notes("the other value is told", &["\"Local\"", "\"remoet\""]).await;
}
