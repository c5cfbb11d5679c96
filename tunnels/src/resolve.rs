//! Settles what contradicts itself in the desired state: between clusters what is there stays where it is, inside one
//! the first by name has it, and the loser is named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::PublicKey;
use ipnet::IpNet;

use crate::keys::keys;
use crate::{Desired, Family, Observed, Peer, PeerName};

/// The desired state without contradictions: one owner per prefix, one node per key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub peers: BTreeMap<PublicKey, Peer>,
    /// Prefix and preferred source.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// Holds every prefix of `routes`.
    pub guards: BTreeSet<IpNet>,
    pub problems: Vec<Problem>,
}

/// A claim that was not granted. The rest goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "{winner} and {loser} state the same public key {public_key:?}; {loser} gets no tunnel. fix: give {loser} a key of its own"
    )]
    SharedKey { public_key: PublicKey, winner: PeerName, loser: PeerName },
    #[error(
        "{one} and {other} of different clusters state the same public key {public_key:?}; neither gets a tunnel. fix: give both keys of their own, and disconnect the cluster that states what is not its own"
    )]
    ContestedKey { public_key: PublicKey, one: PeerName, other: PeerName },
    #[error(
        "{peer} states our own public key {public_key:?} and gets no tunnel. fix: give it a key of its own"
    )]
    OwnKey { public_key: PublicKey, peer: PeerName },
    #[error(
        "{prefix} is claimed by {winner} and by {loser}; {winner} keeps it. fix: withdraw it from one of them"
    )]
    SharedPrefix { prefix: IpNet, winner: PeerName, loser: PeerName },
    #[error(
        "{prefix} of {loser} overlaps {held} of {winner}; {winner} keeps it. fix: give the clusters separate prefixes"
    )]
    Overlap { prefix: IpNet, loser: PeerName, held: IpNet, winner: PeerName },
    #[error(
        "{prefix} of {peer} covers our own mesh address {address} and is not accepted. fix: correct what {peer} states"
    )]
    OwnAddress { prefix: IpNet, peer: PeerName, address: IpAddr },
    #[error(
        "{prefix} cannot be routed into the mesh: this node has no {family} mesh address. fix: enable {family} on it"
    )]
    NoSource { prefix: IpNet, family: Family },
    #[error("{prefix} is everything and is not routed into the mesh. fix: state narrower prefixes")]
    Everything { prefix: IpNet },
}

/// A function of what is desired and what is there. What one cluster holds no other takes by stating it; the rest goes by
/// the order of names. Two peers at one endpoint are no contradiction: WireGuard tells them apart by key.
pub fn resolve(desired: &Desired, observed: &Observed) -> Resolved {
    let mut problems = Vec::new();
    let peers = peers(desired, observed, &mut problems);
    let mut routes = BTreeMap::new();
    let mut guards = BTreeSet::new();
    for prefix in desired.routes.iter().chain(&desired.guards).map(IpNet::trunc) {
        if prefix.prefix_len() == 0 {
            problems.push(Problem::Everything { prefix });
        } else {
            guards.insert(prefix);
        }
    }
    for prefix in desired.routes.iter().map(IpNet::trunc).filter(|prefix| guards.contains(prefix)) {
        let family = Family::of_net(&prefix);
        match desired.source(family) {
            Some(source) => drop(routes.insert(prefix, source)),
            None => problems.push(Problem::NoSource { prefix, family }),
        }
    }
    Resolved { peers, routes, guards, problems }
}

type Owners<'a> = BTreeMap<IpNet, &'a PeerName>;

fn peers(desired: &Desired, observed: &Observed, problems: &mut Vec<Problem>) -> BTreeMap<PublicKey, Peer> {
    let claims = keys(desired, observed, problems);
    let held = held(desired, observed, &claims);
    let mut peers = BTreeMap::new();
    let mut owners = Owners::new();
    for claim in claims {
        let mut granted = Peer { allowed: BTreeSet::new(), ..claim.clone() };
        for prefix in claim.allowed.iter().map(IpNet::trunc) {
            match refusal(desired, &held, &owners, claim, prefix) {
                Some(problem) => problems.push(problem),
                None => {
                    owners.insert(prefix, &claim.name);
                    granted.allowed.insert(prefix);
                }
            }
        }
        peers.insert(claim.public_key, granted);
    }
    peers
}

/// What claimants hold in the kernel already, kept for their clusters. All of it is granted in the end, so that the next
/// plan finds the same.
fn held<'a>(desired: &Desired, observed: &Observed, claims: &[&'a Peer]) -> Owners<'a> {
    let mut held = Owners::new();
    for claim in claims {
        let Some(kernel) = observed.peers.get(&claim.public_key) else { continue };
        for prefix in claim.allowed.iter().map(IpNet::trunc).filter(|prefix| kernel.allowed.contains(prefix))
        {
            if refusal(desired, &held, &Owners::new(), claim, prefix).is_none() {
                held.insert(prefix, &claim.name);
            }
        }
    }
    held
}

fn refusal(
    desired: &Desired,
    held: &Owners<'_>,
    owners: &Owners<'_>,
    claim: &Peer,
    prefix: IpNet,
) -> Option<Problem> {
    if let Some(address) = desired.addresses.iter().copied().find(|address| prefix.contains(address)) {
        return Some(Problem::OwnAddress { prefix, peer: claim.name.clone(), address });
    }
    let foreign = |name: &PeerName| name.cluster != claim.name.cluster;
    let kept = held.get(&prefix).filter(|name| foreign(name));
    if let Some(&winner) = kept.or_else(|| owners.get(&prefix)) {
        let (winner, loser) = (winner.clone(), claim.name.clone());
        return Some(Problem::SharedPrefix { prefix, winner, loser });
    }
    let mut nested = overlapping(held, prefix).chain(overlapping(owners, prefix));
    let (held, winner) = nested.find(|(_, name)| foreign(name))?;
    Some(Problem::Overlap { prefix, loser: claim.name.clone(), held: *held, winner: (*winner).clone() })
}

/// What lies above and below a prefix. O(prefix length + what lies below).
fn overlapping<T>(owners: &BTreeMap<IpNet, T>, prefix: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
    let above = std::iter::successors(prefix.supernet(), |net| net.supernet());
    let above = above.filter_map(|net| owners.get_key_value(&net));
    // `IpNet` sorts by address, then by length: what a prefix covers lies between its first and its last address.
    let last = IpNet::new(prefix.broadcast(), prefix.max_prefix_len()).unwrap_or(prefix);
    above.chain(owners.range(prefix..=last))
}
