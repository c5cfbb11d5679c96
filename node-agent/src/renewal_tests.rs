//! What an agent makes of what it is told of CAs, on disk and in its next connection; the rest is told end to end (e2e, certificates).

use hawser_model::{ClusterName, NodeName, ServerUrl, Timestamp};
use hawser_pki::Ca;

use super::*;
use crate::api::Dialer;
use crate::state::ClusterFile;

fn ca() -> Ca {
    Ca::create(&ClusterName::parse("us-east").unwrap(), wall()).unwrap()
}

fn issue(ca: &Ca, key: &KeyPair, now: Timestamp) -> Identity {
    let node = NodeName::parse("node-1").unwrap();
    let issued = ca.issue_agent(&csr(key).unwrap(), &node, now).unwrap();
    Identity { certificate: issued.pem(), key: key.serialize_pem() }
}

/// An agent of that CA, whose API server is not there.
fn agent(ca: &Ca, now: Timestamp) -> (tempfile::TempDir, Renewal) {
    let dir = tempfile::tempdir().unwrap();
    let identity = issue(ca, &KeyPair::generate().unwrap(), now);
    let cluster = ClusterName::parse("us-east").unwrap();
    let servers = vec![ServerUrl::parse("https://127.0.0.1:1").unwrap()];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Another test may have been first.
    let _ = provider.install_default();
    let dialer = Dialer::new(&cluster, servers, ca.cert().clone().into(), Some(&identity)).unwrap();
    let member = Member {
        leaf: Leaf::from_pem(&identity.certificate).unwrap(),
        identity,
        cluster: ClusterFile {
            cluster: "us-east".into(),
            cluster_id: 1,
            node: "node-1".into(),
            servers: vec!["https://127.0.0.1:1".into()],
            place: None,
        },
        channel: dialer.channel(),
        dialer,
    };
    let renewal = Renewal {
        member,
        state: Arc::new(StateDir::open(dir.path()).unwrap()),
        trusts: mpsc::channel(1).1,
        report_now: Arc::new(Notify::new()),
        told: mpsc::channel(1).0,
    };
    (dir, renewal)
}

#[tokio::test]
async fn another_ca_is_kept_and_stated_and_a_new_issuer_wants_a_new_certificate() {
    let (old, next) = (ca(), ca());
    let (_dir, agent) = agent(&old, wall());
    let both = CaSet::new(vec![old.cert().clone(), next.cert().clone()]).unwrap();
    let says = |cas: &CaSet, issuer: &Ca| Trusts { cas: cas.clone(), issuer: issuer.cert().fingerprint() };
    assert!(!agent.heed(says(&old.cert().clone().into(), &old)), "nothing new");
    assert_eq!(agent.state.read(CA).unwrap(), None);
    assert!(!agent.heed(says(&both, &old)), "prepare");
    assert_eq!(agent.state.read(CA).unwrap(), Some(both.pem()));
    assert_eq!(agent.member.dialer.trusted(), both);
    agent.report_now.notified().await;
    assert!(agent.heed(says(&both, &next)), "issue");
}

#[tokio::test]
async fn a_renewal_that_fails_names_the_certificate_and_changes_nothing() {
    let ca = ca();
    let (_dir, mut agent) = agent(&ca, wall());
    let before = agent.member.identity.certificate.clone();
    let problem = agent.renew().await.unwrap_err();
    let said = agent.problem(&problem);
    assert!(
        said.starts_with("the certificate agent-us-east-node-1 could not be renewed and ends at"),
        "{said}"
    );
    assert_eq!((agent.state.read(CERTIFICATE).unwrap(), &agent.member.identity.certificate), (None, &before));
}

#[tokio::test]
async fn a_certificate_that_is_over_is_said_with_the_way_back() {
    let ca = ca();
    let (_dir, agent) = agent(&ca, wall());
    let over = Leaf { not_after: wall().minus(Duration::from_secs(60)), ..agent.member.leaf.clone() };
    let agent = Renewal { member: Member { leaf: over, ..agent.member }, ..agent };
    let said = agent.problem(&anyhow!("refused"));
    assert!(said.contains("expired at") && said.contains("hawser ca token --node node-1"), "{said}");
}

#[tokio::test]
async fn an_agent_and_a_server_agree_on_x25519mlkem768() {
    let ca = ca();
    let (_dir, agent) = agent(&ca, wall());
    let issued = ca.issue_server(&[], wall()).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(issued.key_der).into();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![issued.cert.der], key).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = ServerUrl::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
    let cluster = ClusterName::parse("us-east").unwrap();
    let dialer = Dialer::new(&cluster, vec![server], ca.cert().clone().into(), Some(&agent.member.identity));
    let mut client = AgentClient::new(dialer.unwrap().channel());
    tokio::spawn(async move { client.renew(RenewRequest::default()).await });
    let (stream, _) = listener.accept().await.unwrap();
    let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
}
