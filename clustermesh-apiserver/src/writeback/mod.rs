//! Other clusters' endpoints written back as EndpointSlices, for what reads those and knows no mesh (ingress controllers).
//!
//! For services that ask for it, by the one replica that leads. `plan` decides; this looks, writes and looks again.

pub mod object;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hawser_etcd::mirror::MirrorState;
use hawser_etcd::server::Keyspaces;
use hawser_kvstore::{KeyRange, RangeQuery, Revision};
use hawser_model::{ClusterName, Peer, ServiceKey};
use hawser_wire::{Entry, Key, PeerRecord, decode};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::leader::Leading;
use crate::mirrors::Mirrors;
use plan::{Held, Op, Remote, Wanted, plan};

/// How often the mirrors are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the slices are read again: a foreign edit lives no longer than this.
const REASSERT: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
const PAGE: u32 = 500;

/// The services that ask for it, with their uids; none before the source is read whole.
pub type Asked = Option<Arc<BTreeMap<ServiceKey, String>>>;

type Taken = BTreeSet<(String, String)>;

/// What decides whether there is anything to do: each remote's state and revision.
type Seen = Vec<(ClusterName, bool, Revision)>;

pub struct Writeback {
    pub client: Client,
    pub config: Arc<Config>,
    pub mirrors: Mirrors,
    pub keyspaces: Keyspaces,
    pub board: Arc<Board>,
    pub asked: watch::Receiver<Asked>,
    /// Whether this replica is the one that writes.
    pub leading: Leading,
}

impl fmt::Debug for Writeback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writeback").finish_non_exhaustive()
    }
}

impl Writeback {
    pub async fn run(mut self, stop: CancellationToken) {
        // What this replica believes to be there, and which names are somebody else's.
        let (mut known, mut taken): (Option<Vec<Held>>, Taken) = (None, BTreeSet::new());
        let mut done: Option<(Asked, Seen)> = None;
        let (mut read_at, mut not_before) = (Instant::now(), Instant::now());
        let mut wait = RETRY_FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = self.asked.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let asked = self.asked.borrow_and_update().clone();
            if self.leading.borrow().is_none() || asked.is_none() {
                // Another one writes now, or nobody: what is there is to be read again then.
                (known, done) = (None, None);
                continue;
            }
            if Instant::now() < not_before {
                continue;
            }
            if read_at.elapsed() >= REASSERT {
                known = None;
                taken.clear();
            }
            let peers = self.peers();
            let now = Some((asked.clone(), self.seen(&peers)));
            if known.is_some() && done == now {
                continue;
            }
            if known.is_none() {
                read_at = Instant::now();
            }
            match self.settle(&mut known, &mut taken, asked.unwrap_or_default(), &peers).await {
                Ok(()) => {
                    (done, wait) = (now, RETRY_FIRST);
                    self.board.update(|facts| facts.writeback_problem = None);
                }
                Err(error) => {
                    (known, done) = (None, None);
                    not_before = Instant::now() + wait.mul_f64(rand::random_range(0.5..1.0));
                    wait = (wait * 2).min(RETRY_MOST);
                    self.tell(&error);
                }
            }
        }
    }

    /// What lasts is told; that an object was changed meanwhile is ordinary.
    fn tell(&self, error: &kube::Error) {
        if matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
            return tracing::debug!(%error, "an EndpointSlice was changed meanwhile");
        }
        let forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
        let fix = "; fix: allow create, update and delete on endpointslices.discovery.k8s.io";
        let problem =
            format!("EndpointSlices cannot be written back: {error}{}", if forbidden { fix } else { "" });
        let news = self.board.update(|facts| {
            let news = facts.writeback_problem.as_ref() != Some(&problem);
            facts.writeback_problem = Some(problem.clone());
            news
        });
        if news {
            tracing::warn!(problem, "trying again");
        }
    }

    /// The connected clusters, and whether what is held of them is all they last said.
    fn peers(&self) -> Vec<(Peer, bool)> {
        let heard = |state| match state {
            MirrorState::Synced | MirrorState::CutOff | MirrorState::Restored => true,
            MirrorState::Connecting | MirrorState::Syncing => false,
        };
        let all = self.mirrors.status().into_iter();
        all.map(|(peer, status)| (peer, status.is_ok_and(|status| heard(status.state)))).collect()
    }

    fn seen(&self, peers: &[(Peer, bool)]) -> Seen {
        let revision = |peer: &Peer| {
            let handle = self.keyspaces.get(peer.cluster.name.as_str());
            handle.map_or(0, |handle| handle.keyspace().read(|keyspace| keyspace.revision()))
        };
        peers.iter().map(|(peer, heard)| (peer.cluster.name.clone(), *heard, revision(peer))).collect()
    }

    /// Cost: the services that ask times the clusters; a list of our slices when they are not known.
    async fn settle(
        &self,
        known: &mut Option<Vec<Held>>,
        taken: &mut Taken,
        services: Arc<BTreeMap<ServiceKey, String>>,
        peers: &[(Peer, bool)],
    ) -> Result<(), kube::Error> {
        let known = match known {
            Some(known) => known,
            None => known.insert(self.list().await?),
        };
        let remotes = peers.iter().map(|(peer, heard)| {
            let says = || Remote::Says(services.keys().filter_map(|key| self.service(peer, key)).collect());
            (peer.cluster.name.clone(), if *heard { says() } else { Remote::Waiting })
        });
        let wanted =
            Wanted { remotes: remotes.collect(), services: (*services).clone(), taken: taken.clone() };
        let mut first_error = None;
        for op in plan(&wanted, known) {
            // One that is refused keeps no other from being written.
            if let Err(error) = self.write(known, taken, &op).await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn service(&self, peer: &Peer, key: &ServiceKey) -> Option<hawser_model::SharedService> {
        let handle = self.keyspaces.get(peer.cluster.name.as_str())?;
        let key = Key::Service { cluster: peer.cluster.name.clone(), service: key.clone() };
        let query = RangeQuery::new(KeyRange::key(key.to_string()));
        let kv = handle.keyspace().read(|keyspace| keyspace.range(&query)).ok()?.kvs.into_iter().next()?;
        let context = PeerRecord::new(peer, self.config.width, self.config.plan).context();
        match decode(&key, &kv.value, &context) {
            Ok(Entry::Service(service)) => Some(service),
            _ => None,
        }
    }

    async fn list(&self) -> Result<Vec<Held>, kube::Error> {
        let slices: Api<EndpointSlice> = Api::all(self.client.clone());
        let selector = format!("{}={}", object::MANAGED_BY, object::MANAGER);
        let mut params = ListParams::default().labels(&selector).limit(PAGE);
        let mut held = Vec::new();
        loop {
            let page = slices.list(&params).await?;
            held.extend(page.items.iter().map(object::held));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                None => return Ok(held),
                Some(token) => params = params.continue_token(&token),
            }
        }
    }

    async fn write(&self, known: &mut Vec<Held>, taken: &mut Taken, op: &Op) -> Result<(), kube::Error> {
        let api = |namespace: &str| -> Api<EndpointSlice> { Api::namespaced(self.client.clone(), namespace) };
        let post = PostParams::default();
        let (namespace, name, written) = match op {
            Op::Create(slice) => {
                let namespace = slice.group.service.namespace();
                let created = api(namespace).create(&post, &object::object(slice, None)).await;
                if matches!(&created, Err(kube::Error::Api(status)) if status.reason == "AlreadyExists") {
                    taken.insert((namespace.to_owned(), slice.name.clone()));
                }
                (namespace, &slice.name, Some(created?))
            }
            Op::Update { slice, version } => {
                let namespace = slice.group.service.namespace();
                let object = object::object(slice, Some(version));
                (namespace, &slice.name, Some(api(namespace).replace(&slice.name, &post, &object).await?))
            }
            Op::Delete { namespace, name, version } => {
                let preconditions =
                    Preconditions { resource_version: Some(version.clone()), ..Default::default() };
                let params = DeleteParams { preconditions: Some(preconditions), ..Default::default() };
                api(namespace).delete(name, &params).await?;
                (namespace.as_str(), name, None)
            }
        };
        tracing::debug!(namespace, name, gone = written.is_none(), "EndpointSlice written back");
        known.retain(|held| held.namespace != namespace || held.name != *name);
        known.extend(written.as_ref().map(object::held));
        Ok(())
    }
}
