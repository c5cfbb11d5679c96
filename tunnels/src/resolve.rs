//! Settles what contradicts itself in the desired state: every node of the mesh comes to the same answer, and the loser
//! is named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_model::PublicKey;
use ipnet::IpNet;

use crate::{Desired, Family, Peer, PeerName};

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

/// Peers are heard in the order of their names, and the first claim to a thing is granted.
pub fn resolve(desired: &Desired) -> Resolved {
    let mut problems = Vec::new();
    let peers = peers(desired, &mut problems);
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

fn peers(desired: &Desired, problems: &mut Vec<Problem>) -> BTreeMap<PublicKey, Peer> {
    let mut claims: Vec<&Peer> = desired.peers.iter().collect();
    claims.sort_by_key(|peer| (&peer.name, peer.public_key, peer.endpoint));
    let mut peers = BTreeMap::<PublicKey, Peer>::new();
    let mut owners = BTreeMap::<IpNet, PeerName>::new();
    for claim in claims {
        let public_key = claim.public_key;
        if public_key == desired.device.public_key {
            problems.push(Problem::OwnKey { public_key, peer: claim.name.clone() });
            continue;
        }
        if let Some(winner) = peers.get(&public_key) {
            let (winner, loser) = (winner.name.clone(), claim.name.clone());
            problems.push(Problem::SharedKey { public_key, winner, loser });
            continue;
        }
        let mut granted = claim.clone();
        granted.allowed = BTreeSet::new();
        for prefix in claim.allowed.iter().map(IpNet::trunc) {
            match refusal(desired, &owners, claim, prefix) {
                Some(problem) => problems.push(problem),
                None => {
                    owners.insert(prefix, claim.name.clone());
                    granted.allowed.insert(prefix);
                }
            }
        }
        peers.insert(public_key, granted);
    }
    peers
}

fn refusal(
    desired: &Desired,
    owners: &BTreeMap<IpNet, PeerName>,
    claim: &Peer,
    prefix: IpNet,
) -> Option<Problem> {
    if let Some(address) = desired.addresses.iter().copied().find(|address| prefix.contains(address)) {
        return Some(Problem::OwnAddress { prefix, peer: claim.name.clone(), address });
    }
    if let Some(winner) = owners.get(&prefix) {
        let (winner, loser) = (winner.clone(), claim.name.clone());
        return Some(Problem::SharedPrefix { prefix, winner, loser });
    }
    let foreign = |name: &PeerName| name.cluster != claim.name.cluster;
    let (held, winner) = overlapping(owners, prefix).find(|(_, name)| foreign(name))?;
    Some(Problem::Overlap { prefix, loser: claim.name.clone(), held: *held, winner: winner.clone() })
}

/// What lies above and below a prefix. O(prefix length + what lies below).
fn overlapping<T>(owners: &BTreeMap<IpNet, T>, prefix: IpNet) -> impl Iterator<Item = (&IpNet, &T)> {
    let above = std::iter::successors(prefix.supernet(), |net| net.supernet());
    let above = above.filter_map(|net| owners.get_key_value(&net));
    // `IpNet` sorts by address, then by length: what a prefix covers lies between its first and its last address.
    let last = IpNet::new(prefix.broadcast(), prefix.max_prefix_len()).unwrap_or(prefix);
    above.chain(owners.range(prefix..=last))
}
