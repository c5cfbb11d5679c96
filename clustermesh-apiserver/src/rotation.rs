//! CA rotation as it is lived: the own CAs are announced, peers' announcements heeded, and what everybody took is known.
//!
//! Every replica does all of it and comes to the same: what is written follows from the directory and from what others said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::admin::{CaInfo, CaMember, CaStatusReply};
use hawser_etcd::server::{Keyspaces, WriteError};
use hawser_kvstore::{KeyRange, LeaseId, RangeQuery};
use hawser_model::{ClusterName, NodeName, Peer, TrustReceipt};
use hawser_pki::{Authority, Member, MemberKind, Rotation, announce, heed};
use hawser_wire::{Context, Entry, Key, decode, prefix};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::mirrors::Mirrors;
use crate::own::Own;
use crate::peers;
use crate::replicas::Replica;
use crate::trust::{Certificates, Trust, now};

/// How often what peers say is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// A replica that is gone is not waited for longer than this.
const TTL_SECONDS: i64 = 30;
const KEEP: Duration = Duration::from_secs(10);

/// What a member said of itself, under `hawser/private/trust/v1/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    issuer: Option<String>,
    trusts: BTreeSet<String>,
}

impl Record {
    fn read(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_default()
    }

    fn print(&self) -> Bytes {
        serde_json::to_vec(self).expect("a struct of strings always prints").into()
    }
}

fn agent_key(node: &NodeName) -> String {
    format!("{}agents/{node}", prefix::PRIVATE_TRUST)
}

/// Notes what an agent trusts and shows, when it is something new.
pub async fn note_agent(
    own: &Own,
    node: &NodeName,
    issuer: Option<String>,
    trusts: Vec<String>,
) -> Result<(), WriteError> {
    let record = Record { issuer, trusts: trusts.into_iter().collect() }.print();
    let key = agent_key(node);
    match own.get(&key) {
        Some(kv) if kv.value == record => Ok(()),
        _ => own.put(key, record).await,
    }
}

/// What the tasks and the Admin service know of trust.
#[derive(Clone, Debug)]
pub struct Rotating {
    pub config: Arc<Config>,
    pub own: Own,
    pub keyspaces: Keyspaces,
    pub trust: Trust,
    pub certificates: Arc<Certificates>,
    pub mirrors: Mirrors,
    pub replica: Replica,
}

/// What this replica has done, so that it is done once.
#[derive(Debug, Default)]
struct Done {
    /// Which CAs, and which of them signs.
    announced: Option<(String, String)>,
    lease: Option<LeaseId>,
    /// What is written of ourselves, and since when.
    kept: Option<(Bytes, tokio::time::Instant)>,
    presented: Option<u64>,
    refused: BTreeMap<ClusterName, String>,
    trouble: Option<String>,
}

impl Rotating {
    pub async fn run(self, stop: CancellationToken) {
        let mut changes = self.certificates.subscribe();
        let mut done = Done::default();
        loop {
            let step = self.step(&mut done, *changes.borrow_and_update());
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = step => outcome.err().map(|error| error.to_string()),
            };
            if let (Some(error), true) = (&outcome, outcome != done.trouble) {
                tracing::warn!(error, "what is known of CAs cannot be written");
            }
            done.trouble = outcome;
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Cost: two reads for each peer; writes only of what is new.
    async fn step(&self, done: &mut Done, changes: u64) -> Result<(), WriteError> {
        if done.presented != Some(changes) {
            self.mirrors.present().await;
            done.presented = Some(changes);
        }
        let authority = self.certificates.authority();
        self.announce(&authority, done).await?;
        self.keep_record(&authority, done).await?;
        self.heed_peers(done).await?;
        self.write_receipts().await
    }

    /// Written when what we have read changed, never because another replica says otherwise: it may not have read it yet.
    async fn announce(&self, authority: &Authority, done: &mut Done) -> Result<(), WriteError> {
        let cas = authority.trusted();
        let news = (cas.pem(), authority.issuing().cert().fingerprint());
        if done.announced.as_ref() == Some(&news) {
            return Ok(());
        }
        let name = &self.config.cluster.name;
        let there = self.own.get(&Key::Trust(name.clone()).to_string());
        let there = there.and_then(|kv| self.decode(&Key::Trust(name.clone()), &kv.value));
        // Where only the signer changed it is written anew all the same: agents take it as the word to ask.
        let same = done.announced.is_none()
            && matches!(there, Some(Entry::Trust(notice)) if heed(name, &notice, &cas).is_ok_and(|said| said == cas));
        if !same {
            match announce(authority, now()) {
                Ok(notice) => {
                    let entry = Entry::Trust(notice);
                    self.own.put(entry.key(&self.config.cluster).to_string(), entry.encode()).await?;
                }
                Err(error) => tracing::error!(%error, "the own CAs cannot be announced"),
            }
        }
        done.announced = Some(news);
        Ok(())
    }

    fn decode(&self, key: &Key, value: &[u8]) -> Option<Entry> {
        let context = Context { cluster: self.config.cluster.clone(), width: self.config.width };
        decode(key, value, &context).ok()
    }

    /// With a lease: who is gone is not waited for.
    async fn keep_record(&self, authority: &Authority, done: &mut Done) -> Result<(), WriteError> {
        let issuer = Some(authority.issuing().cert().fingerprint());
        let record = Record { issuer, trusts: authority.trusted().fingerprints() }.print();
        let fresh = |(kept, at): &(Bytes, tokio::time::Instant)| *kept == record && at.elapsed() < KEEP;
        if done.kept.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        let kept = match done.lease {
            Some(lease) => self.own.keep_lease(lease).await.is_ok(),
            None => false,
        };
        let lease = match done.lease.filter(|_| kept) {
            Some(lease) => lease,
            None => {
                let lease = rand::random_range(1..=LeaseId::MAX);
                self.own.grant_lease(lease, TTL_SECONDS).await?;
                lease
            }
        };
        if !kept || done.kept.as_ref().is_none_or(|(kept, _)| *kept != record) {
            self.own.put_leased(&self.replica_key(), record.clone(), lease).await?;
        }
        done.lease = Some(lease);
        done.kept = Some((record, tokio::time::Instant::now()));
        Ok(())
    }

    fn replica_key(&self) -> String {
        format!("{}replicas/{}", prefix::PRIVATE_TRUST, self.replica.key())
    }

    /// A peer's CAs change by the word of one that is believed already. They are kept where the peer is.
    async fn heed_peers(&self, done: &mut Done) -> Result<(), WriteError> {
        let mut news = false;
        for (peer, kv) in peers::admitted(&self.own, &self.config) {
            let name = peer.cluster.name.clone();
            let Some(Entry::Trust(notice)) = self.said(&peer, &Key::Trust(name.clone())) else { continue };
            match self.trust.current().heed(&name, &notice) {
                Ok(None) => _ = done.refused.remove(&name),
                Ok(Some(cas)) => {
                    let fingerprints = cas.fingerprints().into_iter().collect::<Vec<_>>().join(", ");
                    let peer = Peer { ca: cas.pem(), ..peer };
                    // Another replica, or a bundle, may have been faster: then it is looked at again.
                    news |= self.own.replace(&kv, Entry::LocalPeer(peer).encode()).await?;
                    tracing::info!(cluster = %name, fingerprints, "a peer's CAs changed, vouched for by the one it was believed by");
                }
                Err(error) => {
                    let error = error.to_string();
                    if done.refused.get(&name) != Some(&error) {
                        tracing::warn!(cluster = %name, error, "a peer's CAs are not taken over");
                    }
                    done.refused.insert(name, error);
                }
            }
        }
        if news {
            self.mirrors.follow_list();
        }
        Ok(())
    }

    /// What a peer says under that key, as far as its mirror knows.
    fn said(&self, peer: &Peer, key: &Key) -> Option<Entry> {
        let handle = self.keyspaces.get(peer.cluster.name.as_str())?;
        let query = RangeQuery::new(KeyRange::key(key.to_string()));
        let reply = handle.keyspace().read(|keyspace| keyspace.range(&query)).ok()?;
        let context = Context { cluster: peer.cluster.clone(), width: self.config.width };
        decode(key, &reply.kvs.first()?.value, &context).ok()
    }

    /// Tells each peer which of its CAs are believed here.
    async fn write_receipts(&self) -> Result<(), WriteError> {
        let own = &self.config.cluster;
        let trust = self.trust.current();
        let mut due = BTreeMap::new();
        for (peer, _) in peers::admitted(&self.own, &self.config) {
            let Some(cas) = trust.peer(&peer.cluster.name) else { continue };
            let entry = Entry::Trusted(TrustReceipt { peer: peer.cluster.name, cas: cas.fingerprints() });
            due.insert(entry.key(own).to_string(), entry.encode());
        }
        for kv in self.own.list(&format!("{}{}/", prefix::TRUSTED, own.name)) {
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            match due.get(&key) {
                Some(value) if *value == kv.value => _ = due.remove(&key),
                Some(_) => {}
                None => _ = self.own.delete(&key).await?,
            }
        }
        for (key, value) in due {
            self.own.put(key, value).await?;
        }
        Ok(())
    }

    /// Everybody whom a rotation concerns, by what they said last.
    fn members(&self) -> Vec<Member> {
        let own = &self.config.cluster.name;
        let member = |kind, name: &str, record: Record| Member {
            kind,
            name: name.to_owned(),
            issuer: record.issuer,
            trusts: record.trusts,
        };
        let replicas = format!("{}replicas/", prefix::PRIVATE_TRUST);
        let name_of = |key: &[u8], prefix: &str| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        let mut members: Vec<Member> = Vec::new();
        for kv in self.own.list(&replicas) {
            members.push(member(MemberKind::Replica, &name_of(&kv.key, &replicas), Record::read(&kv.value)));
        }
        // The nodes that the source knows and whose agents ever spoke.
        let nodes = format!("{}{own}/", prefix::TUNNEL_NODES);
        for kv in self.own.list(&nodes) {
            let node = name_of(&kv.key, &nodes);
            let Ok(parsed) = NodeName::parse(&node) else { continue };
            let record = self.own.get(&agent_key(&parsed)).map(|kv| Record::read(&kv.value));
            members.push(member(MemberKind::Agent, &node, record.unwrap_or_default()));
        }
        for (peer, _) in peers::admitted(&self.own, &self.config) {
            let key = Key::Trusted { cluster: peer.cluster.name.clone(), peer: own.clone() };
            let trusts = match self.said(&peer, &key) {
                Some(Entry::Trusted(receipt)) => receipt.cas,
                _ => BTreeSet::new(),
            };
            let record = Record { issuer: None, trusts };
            members.push(member(MemberKind::Peer, peer.cluster.name.as_str(), record));
        }
        members
    }

    pub fn status(&self) -> CaStatusReply {
        let authority = self.certificates.authority();
        let rotation = authority.rotation();
        let issuer = authority.issuing().cert().fingerprint();
        let ca = |ca: &hawser_pki::CaCert| CaInfo {
            fingerprint: ca.fingerprint(),
            not_after: ca.not_after().to_string(),
            issues: ca.fingerprint() == issuer,
        };
        let member = |member: Member| CaMember {
            kind: member.kind.as_str().to_owned(),
            lacks: rotation.and_then(|rotation| rotation.lacks(&member)).unwrap_or_default().to_owned(),
            name: member.name,
            issuer: member.issuer.unwrap_or_default(),
            trusts: member.trusts.into_iter().collect(),
        };
        CaStatusReply {
            cluster: self.config.cluster.name.to_string(),
            phase: rotation.map_or_else(String::new, |rotation| rotation.phase().as_str().to_owned()),
            started: rotation.map(Rotation::started).map(|at| at.to_string()).unwrap_or_default(),
            cas: authority.trusted().iter().map(ca).collect(),
            members: self.members().into_iter().map(member).collect(),
            problem: self.certificates.problem().unwrap_or_default(),
        }
    }
}
