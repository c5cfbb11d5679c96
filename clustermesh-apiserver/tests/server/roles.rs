//! Roles over real TLS with real certificates: what each may, and a refusal for each RPC that it may not.

use crate::cluster::{Cluster, Identity, csr, eventually, get};
use hawser_api::admin::*;
use hawser_api::agent::*;
use hawser_etcd::client::Client;
use hawser_etcd::pb;
use hawser_kvstore::KeyRange;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// One client of each role, and one whose certificate means nothing here.
struct Clients {
    us: Cluster,
    admin: Identity,
    agent: Identity,
    remote: Identity,
    stranger: Identity,
}

async fn clients() -> (Clients, Cluster) {
    let (mut us, mut eu) = (Cluster::with_shop("us-east", 1), Cluster::with_shop("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    let mirror = us.etcd(Some(&us.admin_identity()), Some("eu-west")).await.unwrap();
    eventually("the mirror is there", async || match get(&mirror, "cilium/.heartbeat").await? {
        Some(_) => Ok(()),
        None => Err("empty".into()),
    })
    .await;
    let clients = Clients {
        admin: us.admin_identity(),
        agent: us.agent_identity("node-1").await,
        remote: eu.remote_identity(),
        stranger: Cluster::new("ap-south", 3).admin_identity(),
        us,
    };
    (clients, eu)
}

impl Clients {
    fn all(&self) -> [(&'static str, Option<&Identity>); 5] {
        [
            ("admin", Some(&self.admin)),
            ("agent", Some(&self.agent)),
            ("remote", Some(&self.remote)),
            ("nobody", None),
            ("stranger", Some(&self.stranger)),
        ]
    }
}

/// The calls of the etcd API, each with a word for whether it was let through.
async fn etcd_calls(client: &Client) -> Vec<(&'static str, bool)> {
    let range = |keys: KeyRange| {
        let (key, range_end) = keys.to_wire();
        pb::RangeRequest { key, range_end, ..Default::default() }
    };
    let put = pb::PutRequest { key: "test/key".into(), value: "v".into(), ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "test/none".into(), ..Default::default() };
    let txn =
        |op| pb::TxnRequest { success: vec![pb::RequestOp { request: Some(op) }], ..Default::default() };
    use pb::request_op::Request;
    let allowed = |result: Result<(), hawser_etcd::client::CallError>| match result {
        Ok(()) => true,
        Err(hawser_etcd::client::CallError::Status(status)) => {
            let message = status.message().to_owned();
            assert!(!message.is_empty(), "{status:?}");
            // What an admin may ask and the store then refuses was let through all the same.
            status.code() != Code::PermissionDenied
        }
        Err(other) => panic!("{other}"),
    };
    let lease = || pb::LeaseGrantRequest { ttl: 60, id: 0 };
    vec![
        ("range state", allowed(client.range(range(KeyRange::prefix("cilium/state/"))).await.map(drop))),
        ("range heartbeat", allowed(client.range(range(KeyRange::key("cilium/.heartbeat"))).await.map(drop))),
        ("range local", allowed(client.range(range(KeyRange::prefix("hawser/local/"))).await.map(drop))),
        ("range private", allowed(client.range(range(KeyRange::prefix("hawser/private/"))).await.map(drop))),
        ("range all", allowed(client.range(range(KeyRange::all())).await.map(drop))),
        ("txn range private", {
            let private = range(KeyRange::key("hawser/private/x"));
            allowed(client.txn(txn(Request::RequestRange(private))).await.map(drop))
        }),
        ("put", allowed(client.put(put.clone()).await.map(drop))),
        ("delete", allowed(client.delete_range(delete).await.map(drop))),
        ("txn put", allowed(client.txn(txn(Request::RequestPut(put))).await.map(drop))),
        (
            "compact",
            allowed(client.compact(pb::CompactionRequest { revision: 1, physical: false }).await.map(drop)),
        ),
        ("lease grant", allowed(client.lease_grant(lease()).await.map(drop))),
        ("lease revoke", allowed(client.lease_revoke(pb::LeaseRevokeRequest { id: 1 }).await.map(drop))),
        ("lease keep alive", allowed(client.lease_keep_alive(1).await.map(drop))),
        ("status", allowed(client.status(pb::StatusRequest::default()).await.map(drop))),
    ]
}

/// The calls that `Client` does not make, on the own keyspace or the one of `cluster`.
async fn other_etcd_calls(
    channel: Channel,
    cluster: Option<&str>,
) -> Vec<(&'static str, Result<(), Status>)> {
    fn of<T>(message: T, cluster: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(cluster) = cluster {
            request.metadata_mut().insert("hawser-cluster", cluster.parse().unwrap());
        }
        request
    }
    let mut leases = pb::lease_client::LeaseClient::new(channel.clone());
    let mut members = pb::cluster_client::ClusterClient::new(channel.clone());
    let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel);
    let ttl = of(pb::LeaseTimeToLiveRequest { id: 1, keys: true }, cluster);
    let once = tokio_stream::iter([pb::LeaseKeepAliveRequest { id: 1 }]);
    let kept = match leases.lease_keep_alive(of(once, cluster)).await {
        Ok(replies) => replies.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    vec![
        ("Lease.LeaseTimeToLive", leases.lease_time_to_live(ttl).await.map(drop)),
        ("Lease.LeaseLeases", leases.lease_leases(of(pb::LeaseLeasesRequest {}, cluster)).await.map(drop)),
        ("Lease.LeaseKeepAlive", kept),
        (
            "Cluster.MemberList",
            members.member_list(of(pb::MemberListRequest::default(), cluster)).await.map(drop),
        ),
        ("Maintenance.Alarm", maintenance.alarm(of(pb::AlarmRequest::default(), cluster)).await.map(drop)),
        ("Maintenance.Status", maintenance.status(of(pb::StatusRequest::default(), cluster)).await.map(drop)),
    ]
}

#[tokio::test]
async fn leases_are_for_admins_and_the_server_itself_for_agents_too() {
    let (clients, _eu) = clients().await;
    for (role, identity) in clients.all() {
        for cluster in [None, Some("eu-west")] {
            let channel = clients.us.channel(identity).await.unwrap();
            for (rpc, result) in other_etcd_calls(channel, cluster).await {
                let may = match rpc.starts_with("Lease.") {
                    true => role == "admin" && cluster.is_none(),
                    // Of what a peer reads it may know how much it is, as of an etcd.
                    false => matches!(role, "admin" | "agent") || role == "remote" && cluster.is_none(),
                };
                let denied = result.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
                assert_eq!(denied, !may, "{role}: {rpc} of {cluster:?}: {result:?}");
                if denied {
                    let message = result.unwrap_err().message().to_owned();
                    assert!(message.contains(rpc), "{message}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_etcd_api_is_open_as_the_table_says() {
    let (clients, _eu) = clients().await;
    for (role, identity) in clients.all() {
        let client = clients.us.etcd(identity, None).await.unwrap();
        for (call, allowed) in etcd_calls(&client).await {
            let reads: &[&str] = match role {
                "agent" => &["range state", "range heartbeat", "range local", "status"],
                "remote" => &["range state", "range heartbeat", "status"],
                _ => &[],
            };
            let expected = role == "admin" || reads.contains(&call);
            assert_eq!(allowed, expected, "{role}: {call}, own keyspace");
        }
        let mirror = clients.us.etcd(identity, Some("eu-west")).await.unwrap();
        for (call, allowed) in etcd_calls(&mirror).await {
            let reads = call.starts_with("range") || call == "txn range private" || call == "status";
            let expected = matches!(role, "admin" | "agent") && reads;
            assert_eq!(allowed, expected, "{role}: {call}, mirror");
        }
    }
}

#[tokio::test]
async fn a_watch_is_refused_like_a_range() {
    let (clients, _eu) = clients().await;
    for (role, identity) in clients.all() {
        let channel = clients.us.channel(identity).await.unwrap();
        let mut watches = pb::watch_client::WatchClient::new(channel);
        for (prefix, readers) in [
            ("cilium/state/", &["admin", "agent", "remote"][..]),
            ("hawser/local/", &["admin", "agent"]),
            ("hawser/private/", &["admin"]),
        ] {
            let (key, range_end) = KeyRange::prefix(prefix).to_wire();
            let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
            let union = pb::watch_request::RequestUnion::CreateRequest(create);
            let request = pb::WatchRequest { request_union: Some(union) };
            let (keep, requests) = tokio::sync::mpsc::channel(1);
            keep.send(request).await.unwrap();
            let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
            let first = match watches.watch(requests).await {
                Ok(replies) => replies.into_inner().message().await,
                Err(status) => Err(status),
            };
            // etcd refuses a watch by cancelling it, or by ending the stream.
            let open = first.is_ok_and(|reply| reply.is_some_and(|reply| reply.created && !reply.canceled));
            assert_eq!(open, readers.contains(&role), "{role} watches {prefix}");
        }
    }
}

#[tokio::test]
async fn admin_is_for_admins() {
    let (clients, _eu) = clients().await;
    for (role, identity) in clients.all() {
        let channel = clients.us.channel(identity).await.unwrap();
        let mut admin = admin_client::AdminClient::new(channel);
        let connect = ConnectRequest { bundle: "none".into(), ..Default::default() };
        let codes = [
            ("Bundle", admin.bundle(BundleRequest { for_cluster: "x".into() }).await.map(drop)),
            ("Connect", admin.connect(connect).await.map(drop)),
            ("Disconnect", admin.disconnect(DisconnectRequest { cluster: "x".into() }).await.map(drop)),
            (
                "CreateJoinToken",
                admin.create_join_token(CreateJoinTokenRequest { node: "x".into() }).await.map(drop),
            ),
            ("Status", admin.status(StatusRequest {}).await.map(drop)),
        ];
        for (rpc, result) in codes {
            let denied = result.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
            assert_eq!(denied, role != "admin", "{role}: Admin.{rpc}: {result:?}");
            if denied {
                let message = result.unwrap_err().message().to_owned();
                assert!(message.contains(&format!("Admin.{rpc}")), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn agent_calls_are_for_the_node_itself() {
    let (clients, _eu) = clients().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let bogus = || JoinRequest {
        node: "node-1".into(),
        token: "hwt1.x.y".into(),
        csr: Vec::new(),
        ..Default::default()
    };
    for (role, identity) in clients.all() {
        let mut agent = clients.us.agent(identity).await;
        let join = agent.join(bogus()).await.unwrap_err().code();
        let may_join = matches!(role, "admin" | "nobody");
        assert_eq!(join, if may_join { Code::InvalidArgument } else { Code::PermissionDenied }, "{role}");
        let renew = agent.renew(RenewRequest { csr: csr(&key) }).await.map(drop);
        let report =
            agent.report(ReportRequest { node: "node-1".into(), ..Default::default() }).await.map(drop);
        for (rpc, result) in [("Renew", renew), ("Report", report)] {
            match result {
                Ok(()) => assert_eq!(role, "agent", "Agent.{rpc}"),
                Err(status) => {
                    assert_eq!(status.code(), Code::PermissionDenied, "{role}: Agent.{rpc}: {status}");
                    assert!(status.message().contains(&format!("Agent.{rpc}")), "{status}");
                }
            }
        }
    }
    let mut agent = clients.us.agent(Some(&clients.agent)).await;
    let other =
        agent.report(ReportRequest { node: "node-2".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert!(other.message().contains("node-1") && other.message().contains("node-2"), "{other}");
}

#[tokio::test]
async fn an_expired_certificate_is_named_in_a_sentence() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let yesterday_a_year_ago = 366 * 86_400;
    let long_ago = crate::cluster::now().minus(std::time::Duration::from_secs(yesterday_a_year_ago));
    let expired: Identity =
        us.ca.issue_admin(&hawser_pki::UserName::parse("bob").unwrap(), long_ago).unwrap().into();
    let client = us.etcd(Some(&expired), None).await.unwrap();
    let error = get(&client, "cilium/.heartbeat").await.unwrap_err();
    for says in ["admin-bob", "expired", "fix:"] {
        assert!(error.contains(says), "{error}");
    }
}
