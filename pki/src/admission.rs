//! Admission: whether a cluster, as its bundle describes it, fits into this mesh. Everything is checked before anything
//! is changed.

use hawser_model::{
    CiliumPeer, ClusterId, ClusterIdWidth, ClusterName, ClusterRef, Encryption, IpNet, MeshPlan, Peer,
    PeerKind, ServerUrl, Timestamp,
};

use crate::bundle::Bundle;
use crate::ca_set::CaSet;

/// This cluster, as far as a newcomer may clash with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFacts {
    pub cluster: ClusterRef,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
    pub width: ClusterIdWidth,
    pub mesh: MeshPlan,
    pub encryption: Encryption,
    pub ca: CaSet,
}

/// What admitting the bundle would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    New(Peer),
    /// The same cluster with the same CA says something else about addresses or servers.
    Updated {
        peer: Peer,
        was: Peer,
    },
    Unchanged(Peer),
}

impl Admission {
    pub fn peer(&self) -> &Peer {
        match self {
            Self::New(peer) | Self::Updated { peer, .. } | Self::Unchanged(peer) => peer,
        }
    }
}

/// Checks a bundle against this cluster and every peer it has admitted.
pub fn check_admission(
    own: &OwnFacts,
    existing: &[Peer],
    bundle: &Bundle,
    now: Timestamp,
) -> Result<Admission, Refusal> {
    let facts = &bundle.facts;
    let theirs = &facts.cluster;
    check_own_names(own, theirs)?;
    check_settings(own, bundle)?;
    if own.ca.holds(&bundle.ca) {
        return Err(Refusal::SharedCa { theirs: theirs.clone(), other: own.cluster.name.clone() });
    }
    let same = existing.iter().find(|peer| peer.cluster.name == theirs.name);
    if let Some(was) = same {
        check_same(was, bundle)?;
    }
    for other in others(existing, theirs) {
        check_id(theirs, other)?;
        if CaSet::from_pem(&other.ca).is_ok_and(|cas| cas.holds(&bundle.ca)) {
            return Err(Refusal::SharedCa { theirs: theirs.clone(), other: other.cluster.name.clone() });
        }
    }
    let peer = Peer {
        cluster: theirs.clone(),
        endpoints: facts.endpoints.clone(),
        pod_cidrs: facts.pod_cidrs.clone(),
        node_cidrs: facts.node_cidrs.clone(),
        // In the middle of its rotation a cluster is believed by both of its CAs.
        ca: same.map_or_else(|| bundle.ca.pem(), |was| was.ca.clone()),
        admitted: now,
        kind: PeerKind::Hawser,
    };
    check_ranges(own, others(existing, theirs), &peer)?;
    match admission(same, peer) {
        // An old bundle must not take back what a newer one said.
        Admission::Updated { was, .. } if bundle.issued < was.admitted => {
            Err(Refusal::Stale { theirs: theirs.clone(), issued: bundle.issued, admitted: was.admitted })
        }
        admission => Ok(admission),
    }
}

/// A cluster on Cilium, as the operator says who connects it: nothing is signed there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumFacts {
    pub cluster: ClusterRef,
    pub endpoints: Vec<ServerUrl>,
    pub pod_cidrs: Vec<IpNet>,
    pub node_cidrs: Vec<IpNet>,
    /// Of its server's certificate, and of those it shows here.
    pub ca: CaSet,
    pub reach: CiliumPeer,
}

/// The same for a cluster on Cilium. Such clusters may share a CA among themselves, and it may change: nothing of theirs
/// could say so in between.
pub fn check_cilium(
    own: &OwnFacts,
    existing: &[Peer],
    facts: &CiliumFacts,
    now: Timestamp,
) -> Result<Admission, Refusal> {
    let theirs = &facts.cluster;
    check_own_names(own, theirs)?;
    check_width(own, theirs)?;
    let same = existing.iter().find(|peer| peer.cluster.name == theirs.name);
    if let Some(was) = same {
        check_kind(was, theirs, matches!(was.kind, PeerKind::Cilium(_)), "a Cilium cluster")?;
    }
    let holds = |other: &Peer, ca| CaSet::from_pem(&other.ca).is_ok_and(|cas| cas.holds(ca));
    let shared = |other: &ClusterName| Refusal::SharedCa { theirs: theirs.clone(), other: other.clone() };
    if facts.ca.iter().any(|ca| own.ca.holds(ca)) {
        return Err(shared(&own.cluster.name));
    }
    for other in others(existing, theirs) {
        check_id(theirs, other)?;
        if other.kind == PeerKind::Hawser && facts.ca.iter().any(|ca| holds(other, ca)) {
            return Err(shared(&other.cluster.name));
        }
    }
    let peer = Peer {
        cluster: theirs.clone(),
        endpoints: facts.endpoints.clone(),
        pod_cidrs: facts.pod_cidrs.clone(),
        node_cidrs: facts.node_cidrs.clone(),
        ca: facts.ca.pem(),
        admitted: now,
        kind: PeerKind::Cilium(facts.reach.clone()),
    };
    check_ranges(own, others(existing, theirs), &peer)?;
    Ok(admission(same, peer))
}

fn others<'a>(existing: &'a [Peer], theirs: &'a ClusterRef) -> impl Iterator<Item = &'a Peer> {
    existing.iter().filter(|peer| peer.cluster.name != theirs.name)
}

fn admission(same: Option<&Peer>, peer: Peer) -> Admission {
    match same {
        None => Admission::New(peer),
        Some(was) if (Peer { admitted: was.admitted, ..peer.clone() }) == *was => {
            Admission::Unchanged(was.clone())
        }
        Some(was) => Admission::Updated { peer, was: was.clone() },
    }
}

fn check_own_names(own: &OwnFacts, theirs: &ClusterRef) -> Result<(), Refusal> {
    if theirs.name == own.cluster.name {
        return Err(Refusal::OwnName { theirs: theirs.clone(), own: own.cluster.clone() });
    }
    if theirs.id == own.cluster.id {
        return Err(Refusal::OwnId { theirs: theirs.clone(), own: own.cluster.clone() });
    }
    Ok(())
}

fn check_id(theirs: &ClusterRef, other: &Peer) -> Result<(), Refusal> {
    if other.cluster.id != theirs.id {
        return Ok(());
    }
    Err(Refusal::DuplicateId { theirs: theirs.clone(), other: other.cluster.clone() })
}

fn check_width(own: &OwnFacts, theirs: &ClusterRef) -> Result<(), Refusal> {
    let fits = ClusterId::new(theirs.id.get().into(), own.width);
    fits.map(|_| ()).map_err(|_| Refusal::IdOutOfRange {
        theirs: theirs.clone(),
        max: own.width.max_clusters(),
        own: own.cluster.clone(),
    })
}

/// A name once admitted keeps its id, and what it runs.
fn check_kind(was: &Peer, theirs: &ClusterRef, same: bool, now: &'static str) -> Result<(), Refusal> {
    if was.cluster.id != theirs.id {
        return Err(Refusal::DuplicateName { theirs: theirs.clone(), other: was.cluster.clone() });
    }
    match same {
        true => Ok(()),
        false => Err(Refusal::OtherKind { theirs: theirs.clone(), now }),
    }
}

/// What has to be equal in the whole mesh.
fn check_settings(own: &OwnFacts, bundle: &Bundle) -> Result<(), Refusal> {
    let facts = &bundle.facts;
    // A wide mesh's id says more about the mistake than its width does.
    check_width(own, &facts.cluster)?;
    let settings = [
        (
            "mesh.maxConnectedClusters",
            facts.width.max_clusters().to_string(),
            own.width.max_clusters().to_string(),
        ),
        ("mesh.ula", facts.mesh.ula().to_string(), own.mesh.ula().to_string()),
        ("mesh.ipv4", facts.mesh.ipv4().to_string(), own.mesh.ipv4().to_string()),
        ("encryption", facts.encryption.to_string(), own.encryption.to_string()),
    ];
    for (setting, theirs, ours) in settings {
        if theirs != ours {
            let (cluster, own) = (facts.cluster.clone(), own.cluster.clone());
            return Err(Refusal::Setting { setting, cluster, theirs, own, ours });
        }
    }
    Ok(())
}

/// A name once admitted keeps its id and its CA.
fn check_same(was: &Peer, bundle: &Bundle) -> Result<(), Refusal> {
    let theirs = &bundle.facts.cluster;
    check_kind(was, theirs, was.kind == PeerKind::Hawser, "a Hawser cluster")?;
    match CaSet::from_pem(&was.ca) {
        Ok(cas) if cas.holds(&bundle.ca) => Ok(()),
        Ok(cas) => Err(Refusal::OtherCa {
            theirs: theirs.clone(),
            theirs_fingerprint: bundle.fingerprint(),
            admitted_fingerprint: cas.newest().fingerprint(),
        }),
        Err(_) => Err(Refusal::OtherCa {
            theirs: theirs.clone(),
            theirs_fingerprint: bundle.fingerprint(),
            admitted_fingerprint: "an unreadable one".to_owned(),
        }),
    }
}

fn check_ranges<'a>(
    own: &OwnFacts,
    others: impl Iterator<Item = &'a Peer>,
    newcomer: &Peer,
) -> Result<(), Refusal> {
    let theirs = &newcomer.cluster;
    let here = ranges(&own.pod_cidrs, &own.node_cidrs).map(|(kind, net)| (&own.cluster, kind, net));
    let there = others.flat_map(|other| {
        ranges(&other.pod_cidrs, &other.node_cidrs).map(|(kind, net)| (&other.cluster, kind, net))
    });
    let taken: Vec<_> = here.chain(there).collect();
    let claims: Vec<_> = ranges(&newcomer.pod_cidrs, &newcomer.node_cidrs).collect();
    for (at, (kind, net)) in claims.iter().enumerate() {
        for mesh in [IpNet::from(own.mesh.ipv4()), IpNet::from(own.mesh.ula())] {
            if overlap(net, &mesh) {
                return Err(Refusal::MeshRange { theirs: theirs.clone(), kind, net: *net, mesh });
            }
        }
        let within = claims[..at].iter().map(|(kind, net)| (theirs, *kind, *net));
        for (other, other_kind, other_net) in within.chain(taken.iter().copied()) {
            // A cluster may list pods' and nodes' ranges twice; only its pods must not look like its nodes.
            if overlap(net, &other_net) && (other != theirs || *kind != other_kind) {
                return Err(Refusal::Overlap(Box::new(Overlap {
                    theirs: theirs.clone(),
                    kind,
                    net: *net,
                    other: other.clone(),
                    other_kind,
                    other_net,
                })));
            }
        }
    }
    Ok(())
}

fn ranges<'a>(pods: &'a [IpNet], nodes: &'a [IpNet]) -> impl Iterator<Item = (&'static str, IpNet)> + 'a {
    let pods = pods.iter().map(|net| ("pod CIDR", *net));
    pods.chain(nodes.iter().map(|net| ("node CIDR", *net)))
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Two ranges that share addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    pub theirs: ClusterRef,
    pub kind: &'static str,
    pub net: IpNet,
    pub other: ClusterRef,
    pub other_kind: &'static str,
    pub other_net: IpNet,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("cluster {theirs} has the name of this cluster, {own}; fix: give one of them another name")]
    OwnName { theirs: ClusterRef, own: ClusterRef },
    #[error("cluster {theirs} has the id of this cluster, {own}; fix: give one of them another id")]
    OwnId { theirs: ClusterRef, own: ClusterRef },
    #[error(
        "cluster {theirs} is admitted as {other} already, and an id cannot change; \
         fix: `hawser disconnect {}` first, or give the newcomer another name", theirs.name
    )]
    DuplicateName { theirs: ClusterRef, other: ClusterRef },
    #[error(
        "cluster {theirs} was not admitted as {now}, and what a cluster runs does not change under its name; \
         fix: `hawser disconnect {}` first", theirs.name
    )]
    OtherKind { theirs: ClusterRef, now: &'static str },
    #[error("cluster {theirs} has the id of the admitted cluster {other}; fix: give one of them another id")]
    DuplicateId { theirs: ClusterRef, other: ClusterRef },
    #[error(
        "cluster {theirs} has an id above {max}, which is the most in the mesh of {own}; \
         fix: give it an id of 1..={max}"
    )]
    IdOutOfRange { theirs: ClusterRef, max: u16, own: ClusterRef },
    #[error(
        "cluster {theirs} uses the CA key of cluster {other}, so neither could be told from the other; \
         fix: `hawser ca init` at one of them"
    )]
    SharedCa { theirs: ClusterRef, other: ClusterName },
    #[error(
        "cluster {theirs} comes with CA {theirs_fingerprint}, but is admitted with {admitted_fingerprint}; \
         fix: if its CA was really made anew, `hawser disconnect {}` first", theirs.name
    )]
    OtherCa { theirs: ClusterRef, theirs_fingerprint: String, admitted_fingerprint: String },
    #[error(
        "the bundle of cluster {theirs} is of {issued}, older than what was admitted at {admitted}; \
         fix: make a new one there"
    )]
    Stale { theirs: ClusterRef, issued: Timestamp, admitted: Timestamp },
    #[error(
        "{setting} is {theirs} at cluster {cluster} and {ours} here, at {own}; it must be equal in the whole mesh; \
         fix: set it to {ours} there"
    )]
    Setting { setting: &'static str, cluster: ClusterRef, theirs: String, own: ClusterRef, ours: String },
    #[error(
        "{} {} of cluster {} overlaps {} {} of cluster {}; fix: give one of them another range",
        .0.kind, .0.net, .0.theirs, .0.other_kind, .0.other_net, .0.other
    )]
    Overlap(Box<Overlap>),
    #[error(
        "{kind} {net} of cluster {theirs} overlaps the mesh's own range {mesh}; \
         fix: give the cluster another range, or the whole mesh another `mesh` setting"
    )]
    MeshRange { theirs: ClusterRef, kind: &'static str, net: IpNet, mesh: IpNet },
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
