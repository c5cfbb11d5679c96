//! Becoming a member: a key made here, a certificate for it by whatever proves this node, renewed at two thirds of its life.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{JoinReply, JoinRequest};
use hawser_model::{ClusterName, ServerUrl};
use hawser_pki::{CaSet, Leaf};
use rcgen::{CertificateParams, KeyPair};
use tonic::Code;
use tonic::transport::Channel;

use crate::api::{Dialer, Identity, explain};
use crate::clock;
use crate::config::Config;
use crate::state::{ClusterFile, StateDir};
use crate::way::Way;

pub(crate) const CERTIFICATE: &str = "agent.crt";
pub(crate) const KEY: &str = "agent.key";
pub(crate) const CA: &str = "ca.crt";
pub(crate) const CLUSTER: &str = "cluster.json";
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// A node that has been let in.
#[derive(Debug)]
pub(crate) struct Member {
    pub identity: Identity,
    pub leaf: Leaf,
    pub cluster: ClusterFile,
    pub dialer: Dialer,
    /// The one connection for all there is to say and to hear: what renews it, renews it for every watch.
    pub channel: Channel,
}

/// The member this node is already, or becomes now. Waits for an API server that is away; ends when it refuses.
/// `probe` says whether this node can run us at all; it is asked before the token is used, for that goes only once.
pub(crate) async fn member(
    config: &Config,
    state: &StateDir,
    probe: impl FnOnce() -> Result<()>,
) -> Result<Member> {
    match existing(config, state)? {
        Some(member) => Ok(member),
        None => join(config, state, probe).await,
    }
}

/// None when there is nothing yet, or what there is has expired and a join file offers another way in.
fn existing(config: &Config, state: &StateDir) -> Result<Option<Member>> {
    let (certificate, key) = (state.read(CERTIFICATE)?, state.read(KEY)?);
    let (ca, cluster) = (state.read(CA)?, state.read_json::<ClusterFile>(CLUSTER)?);
    let (Some(certificate), Some(key), Some(ca), Some(cluster)) = (certificate, key, ca, cluster) else {
        return Ok(None);
    };
    if cluster.node != config.node.as_str() {
        bail!(
            "{} holds the certificate of node {}, but this agent is node {}. fix: correct `node`, or give it another `state`",
            state.path(CERTIFICATE).display(),
            cluster.node,
            config.node
        );
    }
    let leaf = Leaf::from_pem(&certificate)
        .with_context(|| format!("reading {}", state.path(CERTIFICATE).display()))?;
    let now = clock::wall();
    if now > leaf.not_after {
        if config.join.exists() {
            tracing::warn!(not_after = %leaf.not_after, "the certificate has expired, joining anew");
            return Ok(None);
        }
        bail!(
            "the certificate {} of {} expired at {}, and here it is {now}. fix: `hawser ca token --node {} -o {}` and start again",
            state.path(CERTIFICATE).display(),
            leaf.name,
            leaf.not_after,
            config.node,
            config.join.display()
        );
    }
    let identity = Identity { certificate, key };
    let dialer = dialer(&cluster, &ca, Some(&identity))?;
    let channel = dialer.channel();
    Ok(Some(Member { identity, leaf, cluster, dialer, channel }))
}

fn dialer(cluster: &ClusterFile, ca: &str, identity: Option<&Identity>) -> Result<Dialer> {
    let name = ClusterName::parse(&cluster.cluster)?;
    let servers = cluster.servers.iter().map(|url| ServerUrl::parse(url)).collect::<Result<_, _>>()?;
    Ok(Dialer::new(&name, servers, CaSet::from_pem(ca)?, identity)?)
}

async fn join(config: &Config, state: &StateDir, probe: impl FnOnce() -> Result<()>) -> Result<Member> {
    let way = Way::of(config)?;
    probe().context("this node cannot run the agent, and its token is still good")?;
    let key = load_or_make_key(state)?;
    let csr = csr(&key)?;
    let dialer = Dialer::new(&way.cluster, way.servers.clone(), way.ca.clone(), None)?;
    let reply = ask(&dialer, &way, csr, config).await?;
    let leaf = accept(&reply, &way)?;
    let cluster = ClusterFile {
        cluster: reply.cluster.clone(),
        cluster_id: reply.cluster_id,
        node: config.node.to_string(),
        servers: way.servers.iter().map(ToString::to_string).collect(),
        place: None,
    };
    // The certificate last: with it, all of it is there.
    state.write(CA, way.ca.pem().as_bytes())?;
    state.write_json(CLUSTER, &cluster)?;
    state.write(CERTIFICATE, reply.certificate.as_bytes())?;
    let identity = Identity { certificate: reply.certificate, key: key.serialize_pem() };
    dialer.use_identity(&identity)?;
    tracing::info!(cluster = cluster.cluster, node = %config.node, not_after = %leaf.not_after, "joined");
    // The connection that joined carries no certificate; a new dialer makes a new one.
    let dialer = self::dialer(&cluster, &way.ca.pem(), Some(&identity))?;
    let channel = dialer.channel();
    Ok(Member { identity, leaf, cluster, dialer, channel })
}

/// One key per node: an answer that was lost on the way is asked for again with the same one.
fn load_or_make_key(state: &StateDir) -> Result<KeyPair> {
    if let Some(pem) = state.read(KEY)? {
        return KeyPair::from_pem(&pem).with_context(|| format!("reading {}", state.path(KEY).display()));
    }
    let key = KeyPair::generate().context("making a key")?;
    state.write(KEY, key.serialize_pem().as_bytes())?;
    Ok(key)
}

pub(crate) fn csr(key: &KeyPair) -> Result<Vec<u8>> {
    // Of a request only the key counts: the name is the API server's to say.
    let request =
        CertificateParams::default().serialize_request(key).context("making a certificate request")?;
    Ok(request.der().to_vec())
}

async fn ask(dialer: &Dialer, way: &Way, csr: Vec<u8>, config: &Config) -> Result<JoinReply> {
    let mut client = AgentClient::new(dialer.channel());
    let (mut wait, mut told) = (RETRY_FIRST, None);
    loop {
        let request = JoinRequest { node: config.node.to_string(), csr: csr.clone(), ..way.request()? };
        let status = match client.join(request).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => status,
        };
        let reason = explain(&status);
        // rustls' words for a server that the pinned CA does not vouch for: waiting does not help.
        if reason.contains("invalid peer certificate") {
            bail!(
                "the API server at {} is not {} as the CA of {} knows it: {reason}. fix: see that `servers` are that cluster's, \
                 or bring its CA of today",
                way.servers[0],
                way.cluster,
                config.join.display()
            );
        }
        if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) {
            bail!("{} refused to let node {} join: {reason}. fix: {}", way.cluster, config.node, way.fix);
        }
        if told.as_ref() != Some(&reason) {
            tracing::warn!(reason, "the API server cannot be reached to join, trying again");
            told = Some(reason);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MOST);
    }
}

/// What came back must be what was promised.
fn accept(reply: &JoinReply, way: &Way) -> Result<Leaf> {
    let cas = CaSet::from_pem(&reply.ca).context("the CA in the answer")?;
    if !cas.iter().any(|ca| way.ca.holds(ca)) {
        bail!(
            "the API server answered with the CA {}, and {} was expected. fix: {}",
            cas.newest().fingerprint(),
            way.ca.newest().fingerprint(),
            way.fix
        );
    }
    let other_id = way.cluster_id.is_some_and(|id| id != reply.cluster_id);
    if reply.cluster != way.cluster.as_str() || other_id {
        bail!(
            "the API server says it is {} (id {}), and {} was expected. fix: {}",
            reply.cluster,
            reply.cluster_id,
            way.cluster,
            way.fix
        );
    }
    Leaf::from_pem(&reply.certificate).context("the certificate in the answer")
}

#[cfg(test)]
mod tests {
    use hawser_model::{ClusterId, ClusterIdWidth, ClusterRef};
    use hawser_pki::{Ca, JoinFile, Token};

    use super::*;

    #[tokio::test]
    async fn a_node_that_cannot_run_us_is_refused_before_its_token_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("agent")).unwrap();
        let path = dir.path().join("join.yaml");
        let text = format!("join: {}", path.display());
        let config = Config::parse(&text, &dir.path().join("agent.yaml"), "node-1").unwrap();
        let name = ClusterName::parse("us-east").unwrap();
        let file = JoinFile {
            ca: Ca::create(&name, clock::wall()).unwrap().cert().clone().into(),
            cluster: ClusterRef { name, id: ClusterId::new(1, ClusterIdWidth::Bits8).unwrap() },
            node: config.node.clone(),
            // Nobody listens here: an agent that asked would wait for ever.
            servers: vec![ServerUrl::parse("https://127.0.0.1:1").unwrap()],
            token: Token::create(&mut rand::rng()),
        };
        std::fs::write(&path, file.to_yaml()).unwrap();
        let refused = member(&config, &state, || bail!("no BTF")).await.unwrap_err();
        let said = crate::causes::chain(&refused);
        assert!(said.contains("its token is still good: no BTF"), "{said}");
        assert_eq!(state.read(KEY).unwrap(), None, "nothing was made for it");
    }
}
