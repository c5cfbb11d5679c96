//! The `Agent` service: a node joins with a one-time token, renews its certificate, and states facts about itself.

use std::sync::Arc;

use hawser_api::agent::{
    JoinReply, JoinRequest, RenewRequest, ReportReply, ReportRequest, ShareRequest, WireGuardEnd,
    agent_server,
};
use hawser_model::{BootId, Epoch, EspEnd, Generation, MorePorts, NodeName, PublicKey, TunnelEnd};
use hawser_pki::{Issued, Role, StoredToken, Token, TokenError};
use hawser_wire::{limits, prefix};
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use crate::authorize::Caller;
use crate::config::Config;
use crate::exporter::{Command, ReportError};
use crate::own::Own;
use crate::reports::{self, NodeReport};
use crate::rotation;
use crate::session::Session;
use crate::sharing::{Replies, Sharing};
use crate::tokenreview::{ReviewError, Reviewer};
use crate::trust::{Certificates, now};

#[derive(Debug)]
pub struct AgentService {
    pub config: Arc<Config>,
    pub own: Own,
    pub certificates: Arc<Certificates>,
    pub exporter: mpsc::Sender<Command>,
    /// Where nodes prove themselves by their pod.
    pub reviewer: Option<Reviewer>,
    pub sharing: Arc<Sharing>,
}

/// Where a token is kept, hashed.
pub fn token_key(id: &str) -> String {
    format!("{}{id}", prefix::PRIVATE_TOKENS)
}

/// Whose word a request is, and that it is an agent's.
fn agent_of<T>(request: &Request<T>, rpc: &str) -> Result<NodeName, Status> {
    match Caller::of(request.extensions()) {
        Caller::Known(Role::Agent { node }) => Ok(node),
        other => Err(other.refuse(rpc, "agents with a certificate of this cluster")),
    }
}

fn invalid(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

fn store_failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the store cannot write: {error}"))
}

#[tonic::async_trait]
impl agent_server::Agent for AgentService {
    type ShareStream = Replies;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        match Caller::of(request.extensions()) {
            Caller::Anonymous | Caller::Known(Role::Admin(_)) => {}
            other => return Err(other.refuse("Agent.Join", "nodes that have no certificate yet")),
        }
        let request = request.into_inner();
        let node = NodeName::parse(&request.node).map_err(invalid)?;
        if !request.service_account_token.is_empty() {
            return self.join_by_pod(&request, &node).await;
        }
        let token = Token::parse(&request.token).map_err(invalid)?;
        let unknown =
            || Status::unauthenticated(TokenError::Unknown { id: token.id().to_owned() }.to_string());
        let kv = self.own.get(&token_key(token.id())).ok_or_else(unknown)?;
        let stored =
            StoredToken::from_json(&kv.value).map_err(|error| Status::internal(error.to_string()))?;
        stored.verify(&token, &node, now()).map_err(|error| Status::unauthenticated(error.to_string()))?;
        // A request that cannot be signed must not cost the token; one that is signed must, and before it is known.
        let issued = self.issue(&request.csr, &node)?;
        if !self.own.take(&kv).await.map_err(store_failed)? {
            return Err(unknown());
        }
        tracing::info!(%node, "joined");
        Ok(Response::new(self.reply(&issued)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<JoinReply>, Status> {
        let node = agent_of(&request, "Agent.Renew")?;
        let issued = self.issue(&request.into_inner().csr, &node)?;
        tracing::info!(%node, "certificate renewed");
        Ok(Response::new(self.reply(&issued)))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        let node = agent_of(&request, "Agent.Report")?;
        let session = request.extensions().get::<Arc<Session>>().cloned();
        let mut request = request.into_inner();
        if request.node != node.as_str() {
            let said: String = request.node.chars().take(64).collect();
            return Err(Status::permission_denied(format!(
                "agent of node {node} may not call Agent.Report about node {said:?}: it speaks for its own node alone"
            )));
        }
        let trusted = bounded(std::mem::take(&mut request.trusted_cas))?;
        let report = read_report(request)?;
        let (reply, answer) = oneshot::channel();
        let gone = |_| Status::unavailable("the server is shutting down");
        self.exporter.send(Command::Reported { node: node.clone(), reply }).await.map_err(|_| gone(()))?;
        let known: Result<(), ReportError> = answer.await.map_err(|_| gone(()))?;
        known.map_err(|error| Status::failed_precondition(error.to_string()))?;
        // Whichever replica exports reads it there.
        reports::note(&self.own, &node, &report).await.map_err(store_failed)?;
        let index = reports::exported(&self.own, &self.config, &node, &report).await;
        let index = index.map_err(|error| Status::unavailable(error.to_string()))?;
        let authority = self.certificates.authority();
        let issuer = session.and_then(|session| session.issuer(&authority.trusted()));
        rotation::note_agent(&self.own, &node, issuer, trusted).await.map_err(store_failed)?;
        let plan = self.config.plan;
        let mesh = plan.addresses(self.config.cluster.id, index, &node);
        Ok(Response::new(ReportReply {
            index: index.get().into(),
            mesh_ipv4: mesh.ipv4.to_string(),
            mesh_ipv6: mesh.ipv6.to_string(),
            max_connected_clusters: self.config.width.max_clusters().into(),
            mesh_ula: plan.ula().to_string(),
            mesh_ipv4_range: plan.ipv4().to_string(),
            ca: authority.trusted().pem(),
            issuer: authority.issuing().cert().fingerprint(),
            encryption: self.config.encryption.to_string(),
        }))
    }

    async fn share(
        &self,
        request: Request<Streaming<ShareRequest>>,
    ) -> Result<Response<Self::ShareStream>, Status> {
        let node = agent_of(&request, "Agent.Share")?;
        Ok(Response::new(Arc::clone(&self.sharing).serve(node, request.into_inner())))
    }
}

impl AgentService {
    /// The token costs nothing and is not used up: it is the API server's word that this is a pod of ours on that node.
    async fn join_by_pod(
        &self,
        request: &JoinRequest,
        node: &NodeName,
    ) -> Result<Response<JoinReply>, Status> {
        if !request.token.is_empty() {
            return Err(invalid(
                "a one-time token and a service account token; fix: prove it by one of them",
            ));
        }
        let Some(reviewer) = &self.reviewer else {
            return Err(Status::failed_precondition(
                "this cluster lets nodes in by one-time tokens alone; fix: set `agents` in cluster.yaml, or join with \
                 `hawser ca token`",
            ));
        };
        reviewer.review(&request.service_account_token, node).await.map_err(|error| match error {
            ReviewError::Unavailable { .. } | ReviewError::Busy => Status::unavailable(error.to_string()),
            ReviewError::NotAllowed { .. } => Status::failed_precondition(error.to_string()),
            ReviewError::NoToken { .. } => invalid(error),
            ReviewError::Refused(_) => Status::unauthenticated(error.to_string()),
        })?;
        let issued = self.issue(&request.csr, node)?;
        tracing::info!(%node, "joined by its service account");
        Ok(Response::new(self.reply(&issued)))
    }

    fn issue(&self, csr: &[u8], node: &NodeName) -> Result<Issued, Status> {
        self.certificates.authority().issuing().issue_agent(csr, node, now()).map_err(invalid)
    }

    fn reply(&self, issued: &Issued) -> JoinReply {
        JoinReply {
            certificate: issued.pem(),
            ca: self.certificates.authority().trusted().pem(),
            cluster: self.config.cluster.name.to_string(),
            cluster_id: self.config.cluster.id.get().into(),
        }
    }
}

/// Fingerprints, as many and as long as they may be.
fn bounded(trusted: Vec<String>) -> Result<Vec<String>, Status> {
    let long = |text: &String| text.len() > limits::FINGERPRINT_BYTES;
    if trusted.len() > limits::CAS || trusted.iter().any(long) {
        return Err(invalid(format!("trusted_cas is not up to {} fingerprints", limits::CAS)));
    }
    Ok(trusted)
}

fn read_report(request: ReportRequest) -> Result<NodeReport, Status> {
    let boot_id = match request.boot_id.as_str() {
        "" => None,
        text => Some(BootId::parse(text).map_err(invalid)?),
    };
    Ok(NodeReport { boot_id, wireguard: request.wireguard.as_ref().map(read_end).transpose()? })
}

fn read_end(end: &WireGuardEnd) -> Result<TunnelEnd, Status> {
    let key: [u8; 32] =
        end.public_key.as_slice().try_into().map_err(|_| {
            invalid(format!("wireguard.public_key has {} bytes, not 32", end.public_key.len()))
        })?;
    let small = |field, number: u32| {
        let fits = u16::try_from(number).ok().filter(|number| *number != 0);
        fits.ok_or_else(|| invalid(format!("wireguard.{field} {number} is out of range 1..=65535")))
    };
    Ok(TunnelEnd {
        epoch: Epoch::new(end.epoch).ok_or_else(|| invalid("wireguard.epoch 0: epochs count from 1"))?,
        public_key: PublicKey::new(key).map_err(invalid)?,
        port: small("port", end.port)?,
        mtu: small("mtu", end.mtu)?,
        more_ports: read_ports(&end.more_ports)?,
        esp: end.esp.as_ref().map(read_esp).transpose()?,
    })
}

fn read_ports(ports: &[u32]) -> Result<MorePorts, Status> {
    let ports = ports.iter().take(MorePorts::MOST + 1).map(|port| u16::try_from(*port).unwrap_or(0));
    MorePorts::new(&ports.collect::<Vec<_>>()).ok_or_else(|| {
        invalid(format!("wireguard.more_ports is not up to {} ports, each once", MorePorts::MOST))
    })
}

fn read_esp(esp: &hawser_api::agent::EspEnd) -> Result<EspEnd, Status> {
    let none = || invalid("wireguard.esp.epoch 0: epochs count from 1");
    let generation = |text: &hawser_api::agent::Generation| {
        Ok(Generation { epoch: Epoch::new(text.epoch).ok_or_else(none)?, turn: text.turn })
    };
    let bounded = esp.receives.iter().take(EspEnd::MOST + 1);
    let generations: Vec<_> = bounded.map(generation).collect::<Result<_, Status>>()?;
    EspEnd::new(generations, esp.in_udp)
        .ok_or_else(|| invalid("wireguard.esp.receives is not one generation of one or two epochs"))
}
