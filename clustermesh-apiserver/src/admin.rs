//! The `Admin` service: what an operator asks of this cluster. Everything is checked before anything is changed.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use hawser_api::admin::{
    BundleReply, BundleRequest, CaStatusReply, CaStatusRequest, CiliumConfigReply, CiliumConfigRequest,
    ConnectReply, ConnectRequest, CreateJoinTokenReply, CreateJoinTokenRequest, DisconnectReply,
    DisconnectRequest, ExportsReply, ExportsRequest, StatusReply, StatusRequest, admin_server,
};
use hawser_model::{ClusterName, NodeName, Peer};
use hawser_pki::{
    Admission, Bundle, BundleFacts, JoinFile, OwnFacts, StoredToken, Token, check_admission, check_cilium,
};
use hawser_wire::{Entry, encode_synced, prefix};
use tokio::sync::{Mutex, mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::agent::token_key;
use crate::authorize::Caller;
use crate::board::Board;
use crate::cilium;
use crate::config::Config;
use crate::exporter::Command;
use crate::exports::{Views, report};
use crate::exposure::named;
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::peers;
use crate::replicas::Replica;
use crate::rotation::Rotating;
use crate::status;
use crate::trust::{Certificates, now};

#[derive(Debug)]
pub struct AdminService {
    pub config: Arc<Config>,
    pub own: Own,
    /// Of the own keyspace, for people.
    pub store: String,
    pub replica: Replica,
    pub certificates: Arc<Certificates>,
    pub exporter: mpsc::Sender<Command>,
    pub mirrors: Mirrors,
    pub rotating: Rotating,
    pub board: Arc<Board>,
    pub views: Views,
    /// One admission at a time: each is checked against all before it.
    pub admitting: Mutex<()>,
}

fn admin<T>(request: Request<T>, rpc: &str) -> Result<T, Status> {
    Caller::of(request.extensions()).require_admin(rpc)?;
    Ok(request.into_inner())
}

fn refused(error: impl ToString) -> Status {
    Status::failed_precondition(error.to_string())
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn store_failed(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the store cannot write: {error}"))
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    async fn bundle(&self, request: Request<BundleRequest>) -> Result<Response<BundleReply>, Status> {
        let request = admin(request, "Admin.Bundle")?;
        let audience = ClusterName::parse(&request.for_cluster)
            .map_err(|error| invalid(format!("{error}; fix: name the cluster that will read the bundle")))?;
        let config = &self.config;
        let facts = BundleFacts {
            cluster: config.cluster.clone(),
            endpoints: config.advertise.clone(),
            pod_cidrs: config.pod_cidrs.clone(),
            node_cidrs: config.node_cidrs.clone(),
            width: config.width,
            mesh: config.plan,
            encryption: config.encryption,
        };
        let bundle = Bundle::create(self.certificates.authority().issuing(), audience, facts, now())
            .map_err(refused)?;
        Ok(Response::new(BundleReply { bundle: bundle.to_yaml(), ca_fingerprint: bundle.fingerprint() }))
    }

    async fn connect(&self, request: Request<ConnectRequest>) -> Result<Response<ConnectReply>, Status> {
        let request = admin(request, "Admin.Connect")?;
        let _one = self.admitting.lock().await;
        let (admission, shown, ca_fingerprint) = self.check(&request)?;
        let peer = admission.peer();
        let shown_key = peers::shown_key(peer.cluster.name.as_str());
        let shown_is = self.own.get(&shown_key).map(|kv| kv.value.clone());
        let unchanged = matches!(admission, Admission::Unchanged(_)) && shown == shown_is;
        if !request.policy_bypass_accepted && !unchanged {
            self.check_exposure(&peer.cluster.name).await?;
        }
        if !request.dry_run {
            self.note_bypass(&peer.cluster.name, request.policy_bypass_accepted, unchanged).await?;
        }
        if !request.dry_run && !unchanged {
            // Before the mirror begins, which shows it.
            match shown {
                Some(shown) => self.own.put(shown_key, shown).await.map_err(store_failed)?,
                None => _ = self.own.delete(&shown_key).await.map_err(store_failed)?,
            }
            let value = Entry::LocalPeer(peer.clone()).encode();
            self.own.put(peers::key(&peer.cluster.name), value).await.map_err(store_failed)?;
            // So that whoever was told may rely on it.
            self.mirrors.follow_list();
        }
        self.peers_changed().await;
        Ok(Response::new(ConnectReply {
            cluster: peer.cluster.name.to_string(),
            cluster_id: peer.cluster.id.get().into(),
            ca_fingerprint,
            unchanged,
        }))
    }

    async fn disconnect(
        &self,
        request: Request<DisconnectRequest>,
    ) -> Result<Response<DisconnectReply>, Status> {
        let request = admin(request, "Admin.Disconnect")?;
        let _one = self.admitting.lock().await;
        let own = &self.config.cluster.name;
        let unknown = |name: &str| {
            let name: String = name.chars().take(64).collect();
            Status::not_found(format!(
                "cluster {name:?} is not connected to {own}; fix: `hawser status` lists those that are"
            ))
        };
        let cluster = ClusterName::parse(&request.cluster).map_err(|_| unknown(&request.cluster))?;
        if !self.own.delete(&peers::key(&cluster)).await.map_err(store_failed)? {
            return Err(unknown(cluster.as_str()));
        }
        for key in [peers::bypass_key(cluster.as_str()), peers::shown_key(cluster.as_str())] {
            self.own.delete(&key).await.map_err(store_failed)?;
        }
        self.mirrors.follow_list();
        self.peers_changed().await;
        Ok(Response::new(DisconnectReply {}))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenReply>, Status> {
        let request = admin(request, "Admin.CreateJoinToken")?;
        let node = NodeName::parse(&request.node)
            .map_err(|error| invalid(format!("{error}; fix: name it as its Node object is named")))?;
        self.sweep_tokens().await?;
        let token = Token::create(&mut rand::rng());
        let stored = token.stored(node.clone(), now()).to_json();
        self.own.put(token_key(token.id()), stored).await.map_err(store_failed)?;
        let file = JoinFile {
            cluster: self.config.cluster.clone(),
            node,
            servers: self.config.advertise.clone(),
            token,
            ca: self.certificates.authority().trusted(),
        };
        Ok(Response::new(CreateJoinTokenReply { join: file.to_yaml() }))
    }

    async fn cilium_config(
        &self,
        request: Request<CiliumConfigRequest>,
    ) -> Result<Response<CiliumConfigReply>, Status> {
        let request = admin(request, "Admin.CiliumConfig")?;
        let peers: Vec<Peer> =
            peers::admitted(&self.own, &self.config).into_iter().map(|(peer, _)| peer).collect();
        let authority = self.certificates.authority();
        let reply = cilium::files(&self.config, &authority, &peers, &request.for_cluster);
        reply.map(Response::new).map_err(refused)
    }

    async fn ca_status(&self, request: Request<CaStatusRequest>) -> Result<Response<CaStatusReply>, Status> {
        admin(request, "Admin.CaStatus")?;
        Ok(Response::new(self.rotating.status()))
    }

    async fn exports(&self, request: Request<ExportsRequest>) -> Result<Response<ExportsReply>, Status> {
        let request = admin(request, "Admin.Exports")?;
        let connected =
            peers::admitted(&self.own, &self.config).into_iter().map(|(peer, _)| peer.cluster.name);
        let connected = connected.collect();
        let unknown = || {
            let name: String = request.peer.chars().take(64).collect();
            Status::not_found(format!(
                "cluster {name:?} is not connected to {} and `exports` does not name it; fix: `hawser export list` \
                 lists those that are",
                self.config.cluster.name
            ))
        };
        let peer = match request.peer.is_empty() {
            true => None,
            false => Some(ClusterName::parse(&request.peer).map_err(|_| unknown())?),
        };
        let reply = report(&self.views, &connected, peer.as_ref()).await;
        reply.map(Response::new).ok_or_else(unknown)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        admin(request, "Admin.Status")?;
        let facts = self.board.read();
        let [identities, endpoints, services] = status::counts(&self.own, &facts);
        let problems = facts.source_problems.iter().chain(&facts.export_problems);
        let source_errors = problems.chain(&facts.heartbeat_problem).chain(&facts.writeback_problem);
        let source_errors = source_errors.cloned().chain(self.views.problem()).collect();
        Ok(Response::new(StatusReply {
            cluster: self.config.cluster.name.to_string(),
            cluster_id: self.config.cluster.id.get().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            store: self.store.clone(),
            revision: self.own.revision(),
            nodes: status::nodes(&self.config, &self.own, &self.board, Instant::now()),
            peers: status::peers(&self.mirrors, &self.views.exports(), Instant::now()),
            services,
            identities,
            endpoints,
            source_errors,
            replica: Some(self.replica.status(&self.own, &facts, SystemTime::now())),
        }))
    }
}

impl AdminService {
    /// What the request would change of the peers, what the cluster is shown if it is one on Cilium, and its CA's fingerprint.
    fn check(&self, request: &ConnectRequest) -> Result<(Admission, Option<Bytes>, String), Status> {
        let existing: Vec<Peer> =
            peers::admitted(&self.own, &self.config).into_iter().map(|(peer, _)| peer).collect();
        let own = OwnFacts {
            cluster: self.config.cluster.clone(),
            pod_cidrs: self.config.pod_cidrs.clone(),
            node_cidrs: self.config.node_cidrs.clone(),
            width: self.config.width,
            mesh: self.config.plan,
            encryption: self.config.encryption,
            ca: self.certificates.authority().trusted(),
        };
        let Some(cluster) = &request.cilium else {
            let bundle = Bundle::read(&request.bundle, &own.cluster.name, now()).map_err(refused)?;
            let admission = check_admission(&own, &existing, &bundle, now()).map_err(refused)?;
            return Ok((admission, None, bundle.fingerprint()));
        };
        let facts = cilium::facts(cluster).map_err(invalid)?;
        let shown = cilium::Shown::of(cluster).map_err(invalid)?;
        let admission = check_cilium(&own, &existing, &facts, now()).map_err(refused)?;
        Ok((admission, shown.map(|shown| shown.to_json()), facts.ca.newest().fingerprint()))
    }

    /// A mesh opens no door that a NetworkPolicy closed.
    async fn check_exposure(&self, peer: &ClusterName) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        let gone = || Status::unavailable("the server is shutting down");
        self.exporter.send(Command::Exposures { reply }).await.map_err(|_| gone())?;
        let exposures = answer.await.map_err(|_| gone())?.map_err(refused)?;
        if exposures.is_empty() {
            return Ok(());
        }
        Err(refused(format!(
            "connecting {peer} would let the mesh reach pods that a NetworkPolicy guards, and Hawser does not enforce \
             NetworkPolicy yet: {}; fix: set hawser.io/shared: \"false\" on the service, or say \
             --policy-bypass-accepted",
            named(&exposures)
        )))
    }

    /// Acceptance is for as long as the cluster stays connected; it can be said later, too.
    async fn note_bypass(&self, peer: &ClusterName, accepted: bool, unchanged: bool) -> Result<(), Status> {
        let key = peers::bypass_key(peer.as_str());
        if accepted {
            self.own.put(key, encode_synced(now())).await.map_err(store_failed)?;
        } else if !unchanged {
            self.own.delete(&key).await.map_err(store_failed)?;
        }
        Ok(())
    }

    async fn peers_changed(&self) {
        // Refused by a server that is shutting down alone.
        let _ = self.exporter.send(Command::PeersChanged).await;
    }

    /// Tokens nobody used go when their day is over.
    async fn sweep_tokens(&self) -> Result<(), Status> {
        for kv in self.own.list(prefix::PRIVATE_TOKENS) {
            let over = StoredToken::from_json(&kv.value).map_or(true, |token| token.expires < now());
            if over {
                self.own.take(&kv).await.map_err(store_failed)?;
            }
        }
        Ok(())
    }
}
