//! Limits of a peer on the real binary: what it is refused is told to both, and what it has used is in the status.

use crate::cluster::{Cluster, eventually, get, until_gone};
use crate::mesh::CART;
use hawser_etcd::pb;

const FOREIGN: &str = "cilium/state/ip/v1/default/8.8.8.8";

#[tokio::test]
async fn a_peer_is_held_to_its_limits_both_ways_and_status_says_so() {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.write_config(&format!(
        "{}limits: {{ peers: {{ eu-west: {{ requestsPerSecond: 4 }} }} }}\n",
        us.config()
    ));
    eu.write_config(&format!("{}limits: {{ peer: {{ keys: 100 }} }}\n", eu.config()));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    let own = us.etcd(Some(&us.admin_identity()), None).await.unwrap();
    let put = |key: String, value: &str| {
        let (own, value) = (own.clone(), value.to_owned());
        async move {
            let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
            own.put(put).await.unwrap();
        }
    };
    let mirror = eu.etcd(Some(&eu.admin_identity()), Some("us-east")).await.unwrap();
    eventually("the mirror has the cart", async || match get(&mirror, CART).await? {
        Some(_) => Ok(()),
        None => Err("no cart".into()),
    })
    .await;

    // What us-east may not say, and more than it may say.
    put(FOREIGN.to_owned(), r#"{"IP":"8.8.8.8","HostIP":"172.16.1.11","ID":65793,"Key":0}"#).await;
    for n in 0..100 {
        let value = format!(r#"{{"IP":"10.1.9.{n}","HostIP":"172.16.1.11","ID":65793,"Key":0}}"#);
        put(format!("cilium/state/ip/v1/default/10.1.9.{n}"), &value).await;
    }
    let peer = eventually("both are refused and told", async || {
        let peer = eu.status().await.peers.remove(0);
        match (peer.refused.get("address_range"), peer.refused.get("key_limit")) {
            (Some(1), Some(_)) => Ok(peer),
            _ => Err(format!("{peer:?}")),
        }
    })
    .await;
    let limit = |name: &str| peer.limits.iter().find(|limit| limit.name == name).unwrap();
    assert_eq!((limit("keys").limit, limit("keys").used), (100, 100));
    assert!(limit("eventsPerSecond").limit >= 10_000 && peer.held_ms == -1, "{peer:?}");
    assert!(peer.reason.contains("limits.peers.us-east.keys"), "{}", peer.reason);
    assert!(get(&mirror, FOREIGN).await.unwrap().is_none());
    assert!(get(&mirror, CART).await.unwrap().is_some(), "what was said before stays");

    // What eu-west asks too fast is refused with a sentence; its mirror and our own admin do not notice.
    let remote = us.etcd(Some(&eu.remote_identity()), None).await.unwrap();
    let error = eventually("it asks too much", async || {
        for _ in 0..100 {
            match get(&remote, CART).await {
                Err(error) if error.contains("ResourceExhausted") => return Ok(error),
                _ => {}
            }
        }
        Err("a hundred requests passed".into())
    })
    .await;
    assert!(error.contains("more than 4 requests a second") && error.contains("fix: "), "{error}");
    for _ in 0..100 {
        get(&own, CART).await.unwrap();
    }
    put("cilium/state/ip/v1/default/10.1.9.7".into(), "moved").await;
    until_gone(&mirror, "cilium/state/ip/v1/default/10.1.9.7").await;
    let peer = us.status().await.peers.remove(0);
    assert!(peer.refused_requests["requests"] > 0, "{peer:?}");
    let used = |name: &str| peer.limits.iter().find(|limit| limit.name == name).unwrap().used;
    assert!(used("connections") >= 2 && used("watches") >= 5, "{peer:?}");
    assert_eq!(eu.status().await.peers[0].relists, 0);
}
