//! Certificates that live for seconds: renewed by themselves, on connections that live on.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cluster::{Cluster, csr, eventually, get, now, open_shop, until_says};
use clustermesh_apiserver::config::Config;
use clustermesh_apiserver::dial::Line;
use clustermesh_apiserver::{listen, server};
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{JoinRequest, RenewRequest};
use hawser_api::session::PresentRequest;
use hawser_api::session::session_client::SessionClient;
use hawser_etcd::client::{Client, FollowConfig, FollowEvent};
use hawser_kvstore::KeyRange;
use hawser_model::{ClusterName, ClusterRef, Peer, PeerKind, ServerUrl};
use hawser_pki::session::{self, Binding};
use hawser_pki::{CaSet, Leaf};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};

/// An agent as far as TLS goes: its key, its newest certificate, and what is known of its connection.
struct Agent {
    key: rcgen::KeyPair,
    leaf: CertificateDer<'static>,
    dials: Arc<AtomicUsize>,
    binding: Arc<Mutex<Option<Binding>>>,
    /// What the server showed at the last dial.
    served: Arc<Mutex<Option<CertificateDer<'static>>>>,
    channel: Channel,
}

fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

impl Agent {
    async fn join(cluster: &Cluster, node: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let token = cluster.token(node).await.token.reveal();
        let request = JoinRequest { node: node.into(), token, csr: csr(&key), ..Default::default() };
        let reply = cluster.agent(None).await.join(request).await.unwrap().into_inner();
        assert_eq!(CaSet::from_pem(&reply.ca).unwrap(), cluster.ca.cert().clone().into());
        Self::with(cluster, key, leaf(&reply.certificate))
    }

    fn with(cluster: &Cluster, key: rcgen::KeyPair, leaf: CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(cluster.ca.cert().der().clone()).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf.clone()], private)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(format!("{}.mesh.hawser.io", cluster.name)).unwrap();
        let dials = Arc::new(AtomicUsize::default());
        let binding = Arc::new(Mutex::new(None::<Binding>));
        let served = Arc::new(Mutex::new(None));
        let shared = (Arc::clone(&dials), Arc::clone(&binding), Arc::clone(&served));
        let port = cluster.port;
        let dial = tower::service_fn(move |_: Uri| {
            let (connector, name, shared) = (connector.clone(), name.clone(), shared.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
                let stream = connector.connect(name, stream).await?;
                let tls = stream.get_ref().1;
                shared.0.fetch_add(1, Ordering::SeqCst);
                *shared.1.lock().unwrap() = tls.export_keying_material([0; 32], session::LABEL, None).ok();
                *shared.2.lock().unwrap() = tls.peer_certificates().and_then(|chain| chain.first().cloned());
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        let channel =
            Endpoint::from(Uri::from_static("https://api-server")).connect_with_connector_lazy(dial);
        Self { key, leaf, dials, binding, served, channel }
    }

    async fn renew(&mut self) {
        let mut client = AgentClient::new(self.channel.clone());
        let reply = client.renew(RenewRequest { csr: csr(&self.key) }).await.unwrap().into_inner();
        self.leaf = leaf(&reply.certificate);
    }

    async fn present(&self, binding: &Binding) -> Result<(), tonic::Status> {
        let proof = session::prove(&self.key.serialize_der(), &self.leaf, binding).unwrap();
        let request = PresentRequest { certificate: self.leaf.to_vec(), proof };
        SessionClient::new(self.channel.clone()).present(request).await.map(drop)
    }

    fn binding(&self) -> Binding {
        self.binding.lock().unwrap().unwrap()
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

/// Certificates of seconds.
fn brief(name: &'static str, id: u16) -> Cluster {
    let cluster = Cluster::with_shop(name, id);
    cluster.write_config(&format!("{}certificateLifetime: 6s\n", cluster.config()));
    cluster
}

async fn until_over(leaf: &CertificateDer<'_>) {
    let end = Leaf::from_der(leaf).unwrap().not_after;
    while now() <= end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_watch_outlives_the_certificates_of_both_its_ends() {
    let (mut us, mut eu) = (brief("us-east", 1), brief("eu-west", 2));
    us.start(&[]).await;
    eu.start(&[]).await;
    us.connect_with(&eu).await;
    // The first to be connected is refused until the second is, too.
    let mut reconnects = Vec::new();
    for cluster in [&us, &eu] {
        let peer =
            eventually("the mirrors are synced", async || match cluster.status().await.peers[0].clone() {
                peer if peer.state == "synced" => Ok(peer),
                peer => Err(format!("{peer:?}")),
            });
        reconnects.push(peer.await.reconnects);
    }
    let mut agent = Agent::join(&us, "node-1").await;
    let same_key = rcgen::KeyPair::from_pem(&agent.key.serialize_pem()).unwrap();
    let idle = Agent::with(&us, same_key, agent.leaf.clone());
    let node = "cilium/state/nodes/v1/us-east/node-1";
    until_says(&Client::new(idle.channel.clone()), node, "node-1").await;
    let watched = KeyRange::prefix("cilium/state/services/v1/us-east/");
    let mut follow = Client::new(agent.channel.clone()).follow(FollowConfig::new(vec![watched])).unwrap();
    while !matches!(follow.next().await, Some(FollowEvent::Listed { .. })) {}
    let served_first = agent.served.lock().unwrap().clone().unwrap();
    for _ in 0..2 {
        let last = agent.leaf.clone();
        tokio::time::sleep(Duration::from_secs(3)).await;
        agent.renew().await;
        let elsewhere = agent.present(&[7; 32]).await.unwrap_err();
        assert!(elsewhere.message().contains("did not sign for this connection"), "{elsewhere}");
        agent.present(&agent.binding()).await.unwrap();
        assert_ne!(agent.leaf, last);
    }
    until_over(&served_first).await;
    us.manifest("shop.yaml", &open_shop().replace("10.1.0.9", "10.1.0.10"));
    loop {
        match follow.next().await.unwrap() {
            FollowEvent::Put { kv, .. } if kv.value.windows(9).any(|window| window == b"10.1.0.10") => break,
            FollowEvent::Put { .. } | FollowEvent::Progress { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(agent.dials(), 1, "one connection carried it all");
    eventually("who shows nothing newer has to leave", async || {
        match us.log().lines().any(|line| line.contains("its certificate expired") && line.contains("node-1"))
        {
            true => Ok(()),
            false => Err("it is still here".into()),
        }
    })
    .await;
    // A new connection is shown a newer certificate.
    let fresh = Agent::with(&us, agent.key, agent.leaf.clone());
    assert!(get(&Client::new(fresh.channel.clone()), node).await.unwrap().is_some());
    assert_ne!(fresh.served.lock().unwrap().clone().unwrap(), served_first);
    // And so did the mirrors, whose own certificates are as brief.
    for (cluster, reconnects) in [&us, &eu].into_iter().zip(reconnects) {
        let peer = cluster.status().await.peers[0].clone();
        assert_eq!(
            (peer.state.as_str(), peer.relists, peer.reconnects),
            ("synced", 0, reconnects),
            "{peer:?}"
        );
    }
}

#[tokio::test]
async fn a_connection_goes_on_only_as_who_it_was() {
    let mut us = Cluster::with_shop("us-east", 1);
    us.start(&[]).await;
    let one = Agent::join(&us, "node-1").await;
    let two = Agent::join(&us, "node-2").await;
    for agent in [&one, &two] {
        get(&Client::new(agent.channel.clone()), "cilium/.heartbeat").await.unwrap();
    }
    // node-2's certificate and key, on node-1's connection: proven, and of another role.
    let proof = session::prove(&two.key.serialize_der(), &two.leaf, &one.binding()).unwrap();
    let request = PresentRequest { certificate: two.leaf.to_vec(), proof };
    let refused = SessionClient::new(one.channel.clone()).present(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("another role, agent of node node-2"), "{refused}");
    // A CA of the same name that is not trusted.
    let stranger = Cluster::new("us-east", 1);
    let forged =
        stranger.ca.issue_agent(&csr(&one.key), &hawser_model::NodeName::parse("node-1").unwrap(), now());
    let forged = forged.unwrap().der;
    let proof = session::prove(&one.key.serialize_der(), &forged, &one.binding()).unwrap();
    let request = PresentRequest { certificate: forged.to_vec(), proof };
    let refused = SessionClient::new(one.channel.clone()).present(request).await.unwrap_err();
    assert!(refused.message().contains("this cluster trusts"), "{refused}");
    let nobody = SessionClient::new(us.channel(None).await.unwrap()).present(PresentRequest::default()).await;
    assert_eq!(nobody.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn our_client_and_our_server_agree_on_x25519mlkem768() {
    let (us, eu) = (Cluster::new("us-east", 1), Cluster::new("eu-west", 2));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificates = |cluster: &Cluster| {
        let config = Arc::new(Config::load(&cluster.path("cluster.yaml")).unwrap());
        let opened = server::certificates(Arc::clone(&config), Arc::clone(&provider)).unwrap();
        (config, Arc::new(opened))
    };
    let (ours, theirs) = (certificates(&us), certificates(&eu));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let peer = Peer {
        cluster: ClusterRef { name: ClusterName::parse("us-east").unwrap(), id: ours.0.cluster.id },
        endpoints: vec![ServerUrl::parse(&url).unwrap()],
        pod_cidrs: Vec::new(),
        node_cidrs: Vec::new(),
        ca: us.ca.cert().pem(),
        admitted: now(),
        kind: PeerKind::Hawser,
    };
    let acceptor = TlsAcceptor::from(listen::tls(&ours.1, Arc::clone(&provider)).unwrap());
    let line = Line::new(&peer, None, &theirs.1, provider).unwrap();
    tokio::spawn(async move { get(&Client::new(line.channel()), "x").await });
    let (stream, _) = listener.accept().await.unwrap();
    let stream = acceptor.accept(stream).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
}
