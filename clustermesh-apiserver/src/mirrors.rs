//! One mirror per admitted cluster, begun and ended as `hawser/local/peers/v1/` says, each on its own.
//!
//! The trust follows the same list: a cluster that is disconnected is drained here and can no longer read there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use hawser_etcd::client::{Client, Pace};
use hawser_etcd::mirror::{ForeignConfig, Mirror, MirrorConfig, MirrorDir, MirrorState, MirrorStatus};
use hawser_etcd::server::Keyspaces;
use hawser_kvstore::{KeyRange, Limits, RangeQuery, Revision};
use hawser_model::{ClusterName, Peer, PeerKind};
use hawser_pki::CaSet;
use hawser_wire::{Resource, prefix};
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use tokio_util::sync::CancellationToken;

use crate::chart::CiliumChart;
use crate::cilium::Shown;
use crate::config::Config;
use crate::dial::Line;
use crate::limits::Readers;
use crate::own::Own;
use crate::peers;
use crate::trust::{Certificates, Trust};

/// How often the state of mirrors is looked at, for the log.
const LOOK: Duration = Duration::from_secs(1);
/// What an end waits for mirrors to be on disk.
const SETTLE: Duration = Duration::from_secs(10);
/// Of a mirror's history, kept whatever they weigh: values have a limit, so this has one, too.
const HISTORY_EVENTS: usize = 64;

/// The mirrors at work; shared with the Admin service.
#[derive(Clone, Debug)]
pub struct Mirrors(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    own: Own,
    keyspaces: Keyspaces,
    readers: Readers,
    trust: Trust,
    certificates: Arc<Certificates>,
    provider: Arc<CryptoProvider>,
    /// Or why nothing of them outlives this process.
    kept: Result<MirrorDir, String>,
    running: RwLock<BTreeMap<ClusterName, Running>>,
    /// Keys and revisions of the list that was followed last.
    followed: Mutex<Vec<(Bytes, Revision)>>,
}

#[derive(Debug)]
struct Running {
    peer: Peer,
    /// The value it was begun with: another one begins it anew, unless only its CAs are others.
    value: Bytes,
    /// What it is shown, where that is not our own.
    shown: Option<Bytes>,
    line: Option<Line>,
    mirror: Result<Mirror, String>,
    logged: Option<MirrorState>,
}

/// What a mirror is begun with.
enum Origin {
    Hawser(MirrorConfig),
    Foreign(ForeignConfig),
}

impl Mirrors {
    pub fn new(
        config: Arc<Config>,
        own: Own,
        keyspaces: Keyspaces,
        trust: Trust,
        certificates: Arc<Certificates>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        let (running, followed) = (RwLock::default(), Mutex::default());
        let kept = MirrorDir::take(&config.mirrors).map_err(|error| error.to_string());
        if let Err(error) = &kept {
            tracing::warn!(error, "mirrors are not kept on disk; a restart lists every cluster anew");
        }
        let readers = Readers::new(Arc::clone(&config), own.clone());
        let inner =
            Inner { config, own, keyspaces, readers, trust, certificates, provider, kept, running, followed };
        Self(Arc::new(inner))
    }

    /// The same clusters as they read here.
    pub fn readers(&self) -> &Readers {
        &self.0.readers
    }

    /// Follows the list of peers until told to stop. Mirrors end with it; what they hold is served to the last.
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.0.own.subscribe();
        loop {
            self.follow_list();
            self.log();
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        let running = std::mem::take(&mut *self.0.running.write().unwrap_or_else(PoisonError::into_inner));
        let settle = async {
            for mirror in running.values().filter_map(|running| running.mirror.as_ref().ok()) {
                mirror.settle().await;
            }
        };
        if tokio::time::timeout(SETTLE, settle).await.is_err() {
            tracing::warn!("not every mirror's last changes are on disk; they are asked for again");
        }
    }

    /// Brings mirrors and trust in line with the list. Cost: the list; its values only when one changed.
    pub fn follow_list(&self) {
        let mut followed = self.0.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = self.0.own.list(prefix::LOCAL_PEERS);
        list.extend(self.0.own.list(prefix::PRIVATE_PEERS));
        let list: Vec<_> = list.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect();
        if *followed == list {
            return;
        }
        *followed = list;
        let listed = peers::admitted(&self.0.own, &self.0.config);
        let mut running = self.0.running.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = running
            .keys()
            .filter(|name| !listed.iter().any(|(peer, _)| peer.cluster.name == **name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(Running { mirror: Ok(mirror), .. }) = running.remove(&name) {
                mirror.forget();
            }
            self.0.keyspaces.remove(name.as_str());
            self.0.trust.remove_peer(&name);
            tracing::info!(cluster = %name, "disconnected");
        }
        if let Ok(kept) = &self.0.kept {
            // Also of clusters that were disconnected while this server was not there.
            kept.retain(&listed.iter().map(|(peer, _)| peer.cluster.name.as_str()).collect::<Vec<_>>());
        }
        let (mut begun, mut configs) = (Vec::new(), Vec::new());
        for (peer, kv) in listed {
            let name = peer.cluster.name.clone();
            if running.get_mut(&name).is_some_and(|running| self.goes_on(running, &peer, &kv.value)) {
                continue;
            }
            // The old one ends before the new one goes on with its keyspace.
            let again = running.remove(&name).is_some();
            tracing::info!(cluster = %name, again, "connected");
            let value = kv.value.clone();
            let shown = self.shown(&peer);
            match self.prepare(&peer, shown.as_ref(), again) {
                Ok((line, Origin::Hawser(config))) => {
                    configs.push(config);
                    begun.push((peer, value, line));
                }
                Ok((line, Origin::Foreign(config))) => {
                    let mirror = Ok(Mirror::start_foreign(config, &self.0.keyspaces));
                    insert(&mut running, peer, value, shown, Some(line), mirror);
                }
                Err(error) => insert(&mut running, peer, value, shown, None, Err(error)),
            }
        }
        // What is on disk of all of them is read on all cores.
        let mirrors = Mirror::start_all(configs, &self.0.keyspaces);
        for ((peer, value, line), mirror) in begun.into_iter().zip(mirrors) {
            insert(&mut running, peer, value, None, Some(line), mirror.map_err(|error| error.to_string()));
        }
    }

    /// Whether this mirror does for what is now listed. Other CAs are believed from now on, and it goes on.
    fn goes_on(&self, running: &mut Running, peer: &Peer, value: &Bytes) -> bool {
        if running.shown != self.shown(peer) {
            return false;
        }
        if running.value == *value {
            return true;
        }
        let only_cas = Peer { ca: peer.ca.clone(), ..running.peer.clone() } == *peer;
        let (Some(line), Ok(cas), true) = (&running.line, CaSet::from_pem(&peer.ca), only_cas) else {
            return false;
        };
        self.0.trust.admit(peer, cas);
        let believed = line.believe(&peer.ca).is_ok();
        if believed {
            (running.peer, running.value) = (peer.clone(), value.clone());
        }
        believed
    }

    /// Shows our newest certificate to every peer, on the connections that there are.
    pub async fn present(&self) {
        let lines: Vec<Line> = {
            let running = self.0.running.read().unwrap_or_else(PoisonError::into_inner);
            running.values().filter_map(|running| running.line.clone()).collect()
        };
        futures::future::join_all(lines.iter().map(Line::present)).await;
    }

    /// What was given to be shown to it.
    fn shown(&self, peer: &Peer) -> Option<Bytes> {
        let cilium = matches!(peer.kind, PeerKind::Cilium(_));
        let kv = cilium.then(|| self.0.own.get(&peers::shown_key(peer.cluster.name.as_str()))).flatten()?;
        Some(kv.value.clone())
    }

    /// From here on the peer is trusted; its mirror is not begun yet.
    fn prepare(&self, peer: &Peer, shown: Option<&Bytes>, afresh: bool) -> Result<(Line, Origin), String> {
        let inner = &self.0;
        let cas = CaSet::from_pem(&peer.ca).map_err(|error| error.to_string())?;
        inner.trust.admit(peer, cas);
        let shown = shown.map(|shown| certified(peer, shown)).transpose()?;
        let line = Line::new(peer, shown, &inner.certificates, Arc::clone(&inner.provider));
        let line = line.map_err(|error| error.to_string())?;
        let cluster = peer.cluster.name.to_string();
        let admit = peers::admission(peer, &inner.config);
        let limits = Limits { history_events: HISTORY_EVENTS, ..Limits::default() };
        let intake = inner.config.limits.intake(&peer.cluster.name);
        let (pace, keep) = (Pace::default(), inner.kept.as_ref().ok().cloned());
        let origin = match peer.kind {
            PeerKind::Hawser => {
                let client = Client::new(line.channel());
                let ranges = peers::ranges(&peer.cluster.name);
                Origin::Hawser(MirrorConfig {
                    cluster,
                    client,
                    ranges,
                    admit,
                    limits,
                    intake,
                    afresh,
                    pace,
                    keep,
                })
            }
            PeerKind::Cilium(_) => {
                let again = line.clone();
                let connect = Box::new(move || Client::new(again.another()));
                let chart = CiliumChart { cluster: peer.cluster.clone(), width: inner.config.width };
                let chart = Box::new(chart);
                Origin::Foreign(ForeignConfig { cluster, connect, chart, admit, limits, intake, pace, keep })
            }
        };
        Ok((line, origin))
    }

    /// A change of state is worth a line; what happens within one is not.
    fn log(&self) {
        let mut running = self.0.running.write().unwrap_or_else(PoisonError::into_inner);
        for (cluster, running) in running.iter_mut() {
            let Ok(mirror) = &running.mirror else { continue };
            let state = mirror.state();
            if running.logged.replace(state) == Some(state) {
                continue;
            }
            let status = mirror.status();
            let (revision, trouble) = (status.revision, status.last_trouble.unwrap_or_default());
            match status.state {
                MirrorState::Synced => {
                    tracing::info!(%cluster, revision, keys = status.keys, "mirror is synced")
                }
                MirrorState::CutOff => {
                    tracing::warn!(%cluster, revision, trouble, "mirror is cut off; what it holds is served on");
                }
                MirrorState::Restored => {
                    tracing::info!(%cluster, revision, keys = status.keys, trouble, "mirror is served as it was kept");
                }
                MirrorState::Connecting => tracing::info!(%cluster, trouble, "mirror is connecting"),
                MirrorState::Syncing => tracing::debug!(%cluster, "mirror is listing"),
            }
        }
    }

    /// Every peer with its mirror's status, or why it has no mirror.
    pub fn status(&self) -> Vec<(Peer, Result<MirrorStatus, String>)> {
        let running = self.0.running.read().unwrap_or_else(PoisonError::into_inner);
        let status = |running: &Running| {
            let mut status = running.mirror.as_ref().map(Mirror::status).map_err(Clone::clone);
            if let (Ok(status), Err(why)) = (&mut status, &self.0.kept) {
                status.keep_trouble = Some(why.clone());
            }
            (running.peer.clone(), status)
        };
        running.values().map(status).collect()
    }

    /// Nodes, services, endpoints, identities that the mirror of a peer holds. Cost: its keys.
    pub fn counts(&self, peer: &ClusterName) -> [u32; 4] {
        let Some(handle) = self.0.keyspaces.get(peer.as_str()) else { return [0; 4] };
        let resources = [Resource::Nodes, Resource::Services, Resource::Ips, Resource::Identities];
        resources.map(|resource| {
            let keys = KeyRange::prefix(resource.prefix(peer));
            let count = RangeQuery { count_only: true, ..RangeQuery::new(keys) };
            let counted = handle.keyspace().read(|keyspace| keyspace.range(&count));
            counted.map_or(0, |reply| u32::try_from(reply.count).unwrap_or(u32::MAX))
        })
    }
}

fn certified(peer: &Peer, shown: &[u8]) -> Result<Arc<dyn ResolvesClientCert>, String> {
    let cluster = &peer.cluster.name;
    let fix = format!("fix: connect {cluster} again (`hawser connect --cilium FILE`) with --cert and --key");
    let shown = Shown::from_json(shown)
        .map_err(|error| format!("what {cluster} is shown cannot be read: {error}; {fix}"))?;
    let certified = shown.certified().map_err(|error| format!("{error}; {fix}"))?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn insert(
    running: &mut BTreeMap<ClusterName, Running>,
    peer: Peer,
    value: Bytes,
    shown: Option<Bytes>,
    line: Option<Line>,
    mirror: Result<Mirror, String>,
) {
    let name = peer.cluster.name.clone();
    if let Err(error) = &mirror {
        tracing::error!(cluster = %name, error, "a connected cluster cannot be mirrored");
    }
    running.insert(name, Running { peer, value, shown, line, mirror, logged: None });
}
