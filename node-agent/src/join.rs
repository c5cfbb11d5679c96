//! Becoming a member: a key made here, a certificate for it by one-time token, renewed at two thirds of its life.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hawser_api::agent::agent_client::AgentClient;
use hawser_api::agent::{JoinReply, JoinRequest, RenewRequest};
use hawser_model::{ClusterName, ServerUrl};
use hawser_pki::{CaCert, JoinFile, Leaf};
use rcgen::{CertificateParams, KeyPair};
use tonic::Code;

use crate::api::{Dialer, Identity, explain};
use crate::clock;
use crate::config::Config;
use crate::state::{ClusterFile, StateDir};

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
    Ok(Some(Member { identity, leaf, cluster, dialer }))
}

fn dialer(cluster: &ClusterFile, ca: &str, identity: Option<&Identity>) -> Result<Dialer> {
    let name = ClusterName::parse(&cluster.cluster)?;
    let servers = cluster.servers.iter().map(|url| ServerUrl::parse(url)).collect::<Result<_, _>>()?;
    Ok(Dialer::new(&name, servers, CaCert::from_pem(ca)?, identity)?)
}

async fn join(config: &Config, state: &StateDir, probe: impl FnOnce() -> Result<()>) -> Result<Member> {
    let text = std::fs::read_to_string(&config.join).with_context(|| {
        format!(
            "this node is no member yet and {} cannot be read. fix: `hawser ca token --node {} -o join.yaml`, and bring it here",
            config.join.display(),
            config.node
        )
    })?;
    let file = JoinFile::from_yaml(&text).with_context(|| format!("reading {}", config.join.display()))?;
    if file.node != config.node {
        bail!(
            "{} is for node {}, but this agent is node {}. fix: bring the join file that was made for this node",
            config.join.display(),
            file.node,
            config.node
        );
    }
    probe().context("this node cannot run the agent, and its token is still good")?;
    let key = load_or_make_key(state)?;
    let csr = csr(&key)?;
    let dialer = Dialer::new(&file.cluster.name, file.servers.clone(), file.ca.clone(), None)?;
    let reply = ask(&dialer, &file, csr, config).await?;
    let leaf = accept(&reply, &file)?;
    let cluster = ClusterFile {
        cluster: reply.cluster.clone(),
        cluster_id: reply.cluster_id,
        node: config.node.to_string(),
        servers: file.servers.iter().map(ToString::to_string).collect(),
        place: None,
    };
    // The certificate last: with it, all of it is there.
    state.write(CA, file.ca.pem().as_bytes())?;
    state.write_json(CLUSTER, &cluster)?;
    state.write(CERTIFICATE, reply.certificate.as_bytes())?;
    let identity = Identity { certificate: reply.certificate, key: key.serialize_pem() };
    dialer.use_identity(&identity)?;
    tracing::info!(cluster = cluster.cluster, node = %config.node, not_after = %leaf.not_after, "joined");
    // The connection that joined carries no certificate; a new dialer makes a new one.
    let dialer = self::dialer(&cluster, &file.ca.pem(), Some(&identity))?;
    Ok(Member { identity, leaf, cluster, dialer })
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

fn csr(key: &KeyPair) -> Result<Vec<u8>> {
    // Of a request only the key counts: the name is the API server's to say.
    let request =
        CertificateParams::default().serialize_request(key).context("making a certificate request")?;
    Ok(request.der().to_vec())
}

async fn ask(dialer: &Dialer, file: &JoinFile, csr: Vec<u8>, config: &Config) -> Result<JoinReply> {
    let mut client = AgentClient::new(dialer.channel());
    let mut wait = RETRY_FIRST;
    loop {
        let (node, token) = (config.node.to_string(), file.token.reveal());
        let status = match client.join(JoinRequest { node, token, csr: csr.clone() }).await {
            Ok(reply) => return Ok(reply.into_inner()),
            Err(status) => status,
        };
        let reason = explain(&status);
        // rustls' words for a server that the pinned CA does not vouch for: waiting does not help.
        if reason.contains("invalid peer certificate") {
            bail!(
                "the API server at {} is not {} as the CA of {} knows it: {reason}. fix: see that `servers` are that cluster's, \
                 or make a new join file",
                file.servers[0],
                file.cluster,
                config.join.display()
            );
        }
        if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) {
            bail!(
                "{} refused to let node {} join: {reason}. fix: a token is for one node, one use and 24 hours; \
                 make a new one with `hawser ca token --node {} -o {}`",
                file.cluster,
                config.node,
                config.node,
                config.join.display()
            );
        }
        tracing::warn!(reason, "the API server cannot be reached to join, trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MOST);
    }
}

/// What came back must be what the join file promised.
fn accept(reply: &JoinReply, file: &JoinFile) -> Result<Leaf> {
    let ca = CaCert::from_pem(&reply.ca).context("the CA in the answer")?;
    if !ca.same_key(&file.ca) {
        bail!(
            "the API server answered with the CA {}, but the join file names {}. fix: make a new join file",
            ca.fingerprint(),
            file.ca.fingerprint()
        );
    }
    if reply.cluster != file.cluster.name.as_str() || reply.cluster_id != u32::from(file.cluster.id.get()) {
        bail!(
            "the API server says it is {} (id {}), but the join file is of {}. fix: make a new join file",
            reply.cluster,
            reply.cluster_id,
            file.cluster
        );
    }
    Leaf::from_pem(&reply.certificate).context("the certificate in the answer")
}

/// A new certificate for the same key, on disk and in use from the next connection on.
pub(crate) async fn renew(member: &Member, state: &StateDir) -> Result<(Identity, Leaf)> {
    let key = KeyPair::from_pem(&member.identity.key).context("reading this node's key")?;
    let request = RenewRequest { csr: csr(&key)? };
    let reply = AgentClient::new(member.dialer.channel())
        .renew(request)
        .await
        .map_err(|status| anyhow!("{}", explain(&status)))?
        .into_inner();
    let leaf = Leaf::from_pem(&reply.certificate).context("the certificate in the answer")?;
    state.write(CERTIFICATE, reply.certificate.as_bytes())?;
    let identity = Identity { certificate: reply.certificate, key: member.identity.key.clone() };
    member.dialer.use_identity(&identity)?;
    Ok((identity, leaf))
}

#[cfg(test)]
mod tests {
    use hawser_model::{ClusterId, ClusterIdWidth, ClusterRef};
    use hawser_pki::{Ca, Token};

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
            ca: Ca::create(&name, clock::wall()).unwrap().cert().clone(),
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
